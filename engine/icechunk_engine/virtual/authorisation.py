"""Who may read through a container, with which credential, and at which places. Pure.

Deny by default. Whoever opens the repository authorises URL prefixes. A stored container does not decide where their
credentials go: an address that is not the cloud's own is used when they name it (:func:`~.credentials.access_at`), or
when the container stands in a configuration of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from icechunk_engine.config import ObjectStoreConfig, VirtualChunkContainer, virtual_urls
from icechunk_engine.config.virtual_urls import with_trailing_slash
from icechunk_engine.credentials import AccessAt, AnyCredential, Credentials, as_container_credential
from icechunk_engine.credentials.types import AzureAnonymous, GcsAnonymous, S3Anonymous
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.redaction import redacted
from icechunk_engine.virtual.container_endpoints import is_safe_without_secrets, route_of
from icechunk_engine.virtual.error_remedies import grant, is_known_scheme

_S3_STORES = (ObjectStoreConfig.S3, ObjectStoreConfig.S3Compatible, ObjectStoreConfig.Tigris)


_ENGINE = Path(__file__).parents[1]
_PACKAGES = (str(_ENGINE), str(_ENGINE.with_name("xarray_icechunk")))
"""Warnings point at the line that called them."""


class Granted(NamedTuple):
    """What the reader authorised for one container.

    Attributes
    ----------
    credential
        None means access without explicit credentials.
    places
        Origins and folders beyond the container's own that may be used.
    """

    credential: AnyCredential | None
    places: tuple[str, ...]


def authorize(container: VirtualChunkContainer, authorized: Mapping[str, AnyCredential | None]) -> Granted:
    """Credential and places to read through a container with.

    Parameters
    ----------
    authorized
        By URL prefix.

    Raises
    ------
    InvalidInputError
        ``unauthorized-virtual-chunk-container``, ``invalid-credentials``.
    """
    wanted = virtual_urls.normalize(container.url_prefix)
    for prefix, given in authorized.items():
        if prefix == container.url_prefix or _canonical_prefix(prefix) == wanted:
            granted = _granted(given)
            break
    else:
        raise InvalidInputError(
            f"you need to authorize the virtual chunk container {container.url_prefix!r} to read its chunks. If "
            f"this repository may do that for you, open it with\n    Repository.open(storage, "
            f"authorize_virtual_chunk_access={grant([container.url_prefix])})",
            ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
        )
    credential = granted.credential
    if credential is not None and not isinstance(credential, _credential_types(container.store)):
        raise InvalidInputError(
            f"{type(credential).__name__} does not fit the virtual chunk container at {container.url_prefix!r}; "
            f"authorise it with authorize_virtual_chunk_access={grant([container.url_prefix])}",
            ErrorKind.INVALID_CREDENTIALS,
        )
    if container.is_stored:
        _require_known_route(container, granted)
    return granted


def warn_of_missing_credentials(authorized: Mapping[str, AnyCredential | None] | None) -> None:
    """Warn, as official does, of None in place of a credential: it may mean the ones that the process finds."""
    for prefix, credential in (authorized or {}).items():
        if credential is None:
            scheme = virtual_urls.scheme_of(prefix)
            known = f"pass {grant([prefix])}" if is_known_scheme(scheme) else "pass a credential"
            warnings.warn(
                redacted(
                    f"None as the credential for {prefix!r} in authorize_virtual_chunk_access is deprecated and will "
                    f"be refused: it does not say whether your own credentials are meant. Instead, {known}"
                ),
                DeprecationWarning,
                skip_file_prefixes=_PACKAGES,
            )


def _granted(given: AnyCredential | None) -> Granted:
    access = as_container_credential(given)
    if isinstance(access, AccessAt):
        return Granted(access.access, access.places)
    return Granted(access, ())


def _require_known_route(container: VirtualChunkContainer, granted: Granted) -> None:
    """Refuse a stored container that sends requests where its reader did not say they may go."""
    prefix = container.url_prefix
    try:
        route = route_of(container.store)
    except ValueError as error:
        raise _unauthorised(f"the stored endpoint of the virtual chunk container at {prefix!r}: {error}") from None
    if route.options:
        raise _unauthorised(
            f"the configuration stored in this repository sets {', '.join(route.options)} for the virtual chunk "
            f"container at {prefix!r}, which decides where requests go, how safely, or in whose name. If you trust "
            f"that, set the container yourself, with the options that you want:\n"
            f"    config = repo.config\n"
            f"    config.set_virtual_chunk_container(VirtualChunkContainer({prefix!r}, {container.store!r}))\n"
            f"    repo = repo.reopen(config)"
        )
    endpoint = route.endpoint
    if endpoint is None or endpoint in granted.places:
        return
    anonymous = _is_anonymous(container.store, granted.credential)
    if anonymous and is_safe_without_secrets(endpoint):
        return
    danger = "on your network" if anonymous else "with your credentials"
    raise _unauthorised(
        f"the configuration stored in this repository sends requests for {prefix!r} to {endpoint}, {danger}. If you "
        f"trust that address, name it:\n    Repository.open(storage, authorize_virtual_chunk_access="
        f"{grant([prefix], endpoint, anonymous=anonymous)})"
    )


def _unauthorised(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER)


def _is_anonymous(store: ObjectStoreConfig, credential: AnyCredential | None) -> bool:
    """True when requests carry nothing secret."""
    match credential:
        case None if isinstance(store, _S3_STORES):
            return store.options.anonymous
        case None:
            return isinstance(store, ObjectStoreConfig.Gcs)
        case Credentials.S3(S3Anonymous()) | Credentials.Gcs(GcsAnonymous()) | Credentials.Azure(AzureAnonymous()):
            return True
    return False


def _canonical_prefix(prefix: str) -> str | None:
    try:
        return virtual_urls.normalize(with_trailing_slash(prefix))
    except ValueError:
        return None


def _credential_types(store: ObjectStoreConfig) -> tuple[type[Any], ...]:
    if isinstance(store, _S3_STORES):
        return (Credentials.S3,)
    if isinstance(store, ObjectStoreConfig.Gcs):
        return (Credentials.Gcs,)
    if isinstance(store, ObjectStoreConfig.Azure):
        return (Credentials.Azure,)
    if isinstance(store, ObjectStoreConfig.Http):
        return (Credentials.HttpAccess,)
    return (Credentials.LocalFileSystemAccess,)  # also for memory, which is as local
