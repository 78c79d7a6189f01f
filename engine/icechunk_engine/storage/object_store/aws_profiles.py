"""Credentials, region and endpoint of the profiles that AWS's tools keep in the user's home directory.

Keys in a profile are read here. If a profile says how to get keys (single sign-on, roles, programs), botocore gets
them; it comes with boto3 and s3fs. That holds even if the profile also has keys: with a role, they only serve to ask
for the role.
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
    """A function that returns the current credentials of one profile on the machine where it is called."""

    name: str

    def __call__(self) -> S3StaticCredentials:
        found = profile_credentials(self.name)
        if found is None:
            raise InvalidInputError(
                f"no credentials were found for the AWS profile {self.name!r}. Check its name and ~/.aws, or pass key "
                f"and secret",
                ErrorKind.INVALID_CREDENTIALS,
            )
        return found


def default_profile() -> str | None:
    """Return the profile to use if the environment has no keys, None if there is none."""
    name = _name_in_environment()
    if name is None and (written_keys("default") is not None or _says_how("default")):
        return "default"
    return name


def region_of_profile(name: str | None = None) -> str | None:
    """Return the region of a profile, or of the default one; None if the environment sets a region."""
    if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return None  # the client looks there itself
    return _settings(name or _name_in_environment() or "default").get("region")


def endpoint_of_profile(name: str | None = None) -> str | None:
    """Return the S3 endpoint of a profile, or of the default one; None if the environment sets an endpoint."""
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
    """Return the credentials of a profile, None if it has none.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``: botocore is needed but not installed, or it failed.
    """
    found = written_keys(name)
    if found is not None:
        return found
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        raise InvalidInputError(
            f"the AWS profile {name!r} has no keys. If it says how to get some (single sign-on, a role, a program), "
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
    """Return the keys that a profile contains; None if it says how to get other keys."""
    keys = _secrets(name)
    if "aws_access_key_id" not in keys or "aws_secret_access_key" not in keys or _says_how(name, _BEFORE_KEYS):
        return None
    return S3StaticCredentials(keys["aws_access_key_id"], keys["aws_secret_access_key"], keys.get("aws_session_token"))


_BEFORE_KEYS = {"sso_session", "sso_start_url", "role_arn"}
"""Settings that say how to get keys. They take precedence over keys in the profile."""

_MEANS = {*_BEFORE_KEYS, "credential_process", "aws_access_key_id"}
"""All settings that say how to get keys. botocore also reads keys from the configuration file."""


def _says_how(name: str, means: Set[str] = _MEANS) -> bool:
    return not means.isdisjoint({*_settings(name), *(_secrets(name).keys() - {"aws_access_key_id"})})


def _secrets(name: str) -> dict[str, str]:
    """Return what the file of keys says about a profile."""
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
    """Read a file of profiles. If that fails, it counts as empty."""
    profiles = configparser.RawConfigParser(default_section="\0")
    try:
        profiles.read(Path(os.environ.get(variable) or default).expanduser(), encoding="utf-8")
    except (OSError, configparser.Error, UnicodeDecodeError):
        return configparser.RawConfigParser()
    return profiles
