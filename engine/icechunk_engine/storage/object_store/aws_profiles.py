"""Credentials, region and endpoint of the profiles that AWS's tools keep in the user's home.

Keys are read here. Profiles that say how to get some (single sign-on, roles, programs) are left to botocore, which
comes with boto3 and s3fs, also where keys stand beside that: those of a profile with a role are only to ask for the
role with.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from icechunk_engine.credentials.types import S3StaticCredentials
from icechunk_engine.errors import ErrorKind, InvalidInputError


@dataclass(frozen=True, slots=True)
class FromProfile:
    """A function that gives the credentials of one profile, as they are where and when it is called."""

    name: str

    def __call__(self) -> S3StaticCredentials:
        found = profile_credentials(self.name)
        if found is None:
            raise InvalidInputError(
                f"no credentials were found for the AWS profile {self.name!r}: check its name and ~/.aws, or pass key "
                f"and secret",
                ErrorKind.INVALID_CREDENTIALS,
            )
        return found


def default_profile() -> str | None:
    """The profile to use when no keys are in the environment, None if there is no such profile."""
    name = _name_in_environment()
    if name is None and (written_keys("default") is not None or _says_how("default")):
        return "default"
    return name


def region_of_profile(name: str | None = None) -> str | None:
    """The region that a profile, or the default one, says; the environment's goes first."""
    if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return None  # the client looks there itself
    return _settings(name or _name_in_environment() or "default").get("region")


def endpoint_of_profile(name: str | None = None) -> str | None:
    """The endpoint of S3 that a profile, or the default one, says; the environment's goes first."""
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return None
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    settings = _settings(name or _name_in_environment() or "default")
    services = _sections().get(f"services {settings.get('services')}", {})
    for line in services.get("s3", "").splitlines():  # settings within a setting
        key, _, value = line.partition("=")
        if key.strip() == "endpoint_url":
            return value.strip()
    return settings.get("endpoint_url")


def profile_credentials(name: str) -> S3StaticCredentials | None:
    """Credentials of a profile, None when there are none.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``: botocore is needed and is not here, or it failed.
    """
    found = written_keys(name)
    if found is not None:
        return found
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        raise InvalidInputError(
            f"the AWS profile {name!r} holds no keys. If it says how to get some (single sign-on, a role, a program), "
            f"that needs botocore: pip install botocore",
            ErrorKind.INVALID_CREDENTIALS,
        ) from None
    try:
        credentials = Session(profile=name).get_credentials()
        if credentials is None:
            return None
        keys = credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise InvalidInputError(
            f"the AWS profile {name!r} gives no credentials: {error}. Check ~/.aws, or log in again "
            f"(aws sso login --profile {name})",
            ErrorKind.INVALID_CREDENTIALS,
        ) from error
    expires: datetime | None = getattr(credentials, "_expiry_time", None)
    return S3StaticCredentials(keys.access_key, keys.secret_key, keys.token, expires)


def written_keys(name: str) -> S3StaticCredentials | None:
    """The keys that stand in a profile itself; None where it says that others are to be got."""
    keys = _secrets(name)
    if "aws_access_key_id" not in keys or "aws_secret_access_key" not in keys or _says_how(name, _BEFORE_KEYS):
        return None
    return S3StaticCredentials(keys["aws_access_key_id"], keys["aws_secret_access_key"], keys.get("aws_session_token"))


_BEFORE_KEYS = {"sso_session", "sso_start_url", "role_arn"}
"""Settings of profiles that say how to get keys, and are heeded even where keys are written."""

_MEANS = {*_BEFORE_KEYS, "credential_process", "aws_access_key_id"}
"""Settings that say how to get keys; to read keys from the configuration is left to botocore too."""


def _says_how(name: str, means: Set[str] = _MEANS) -> bool:
    return not means.isdisjoint({*_settings(name), *(_secrets(name).keys() - {"aws_access_key_id"})})


def _secrets(name: str) -> dict[str, str]:
    """What stands of a profile in the file of keys."""
    file = _read("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    return dict(file[name]) if file.has_section(name) else {}


def _name_in_environment() -> str | None:
    return os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or None


def _settings(name: str) -> dict[str, str]:
    return _sections().get(name if name == "default" else f"profile {name}", {})


def _sections() -> dict[str, dict[str, str]]:
    file = _read("AWS_CONFIG_FILE", "~/.aws/config")
    return {name: dict(file[name]) for name in file.sections()}


def _read(variable: str, default: str) -> configparser.RawConfigParser:
    """A file of profiles; empty when it cannot be read."""
    profiles = configparser.RawConfigParser(default_section="\0")
    try:
        profiles.read(Path(os.environ.get(variable) or default).expanduser(), encoding="utf-8")
    except (OSError, configparser.Error, UnicodeDecodeError):
        return configparser.RawConfigParser()
    return profiles
