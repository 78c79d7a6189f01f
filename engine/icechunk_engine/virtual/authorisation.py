"""Decide who may read through a container, with which credential, and at which places. Pure.

Invariant: a repository that someone else wrote cannot make its reader send a request or a credential anywhere that the
reader did not name. This holds for three reasons:

- Nothing is read through a container unless the reader authorised its exact URL prefix. A prefix above or below it is
  not enough.
- The options of a *stored* container are not trusted. An endpoint that is not the cloud's own is used only if the
  reader names it (:func:`~.credentials.access_at`), or if the request carries no secret and goes to a public host over
  https (:func:`.container_endpoints.is_safe_without_secrets`).
- :mod:`.local_files` and :mod:`.http_servers` compare symbolic links and redirects with the places that the reader
  named.

Two things would break it: a stored container without its mark ``is_stored`` (``dataclasses.replace`` loses the mark),
and a client that follows redirects by itself, as obstore does on web servers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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
"""Warnings skip these packages and point at the caller's line."""


class Granted(NamedTuple):
    """The reader's authorisation for one container.

    Attributes
    ----------
    credential
        None means access without explicit credentials.
    places
        Origins and folders that may be used besides the container's own.
    """

    credential: AnyCredential | None
    places: tuple[str, ...]


def authorize(container: VirtualChunkContainer, authorized: Mapping[str, AnyCredential | None]) -> Granted:
    """Return the authorisation for a container.

    Parameters
    ----------
    authorized
        Credentials by URL prefix.

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
            f"you need to authorize the virtual chunk container {container.url_prefix!r} to read its chunks. If you "
            f"trust this repository, open it with\n    Repository.open(storage, "
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
    """Warn about None as a credential, as official does. It may mean any credentials that the process finds."""
    for prefix, credential in (authorized or {}).items():
        if credential is None:
            scheme = virtual_urls.scheme_of(prefix)
            known = f"pass {grant([prefix])}" if is_known_scheme(scheme) else "pass a credential"
            warnings.warn(
                redacted(
                    f"None as the credential for {prefix!r} in authorize_virtual_chunk_access is deprecated and will "
                    f"be refused, because it is unclear whether it means your own credentials. Instead, {known}"
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
    """Refuse a stored container that sends requests to a place that the reader did not name."""
    prefix = container.url_prefix
    try:
        route = route_of(container.store)
    except ValueError as error:
        raise _unauthorised(f"the stored endpoint of the virtual chunk container at {prefix!r}: {error}") from None
    if route.options:
        raise _unauthorised(
            f"the configuration stored in this repository sets {', '.join(route.options)} for the virtual chunk "
            f"container at {prefix!r}, which decides where requests go, how safely, or in whose name. If you trust "
            f"these options, set the container yourself:\n"
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
    """Return True if requests carry no secret."""
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


def _credential_types(store: ObjectStoreConfig) -> tuple[type[Credentials], ...]:
    if isinstance(store, _S3_STORES):
        return (Credentials.S3,)
    if isinstance(store, ObjectStoreConfig.Gcs):
        return (Credentials.Gcs,)
    if isinstance(store, ObjectStoreConfig.Azure):
        return (Credentials.Azure,)
    if isinstance(store, ObjectStoreConfig.Http):
        return (Credentials.HttpAccess,)
    return (Credentials.LocalFileSystemAccess,)  # memory is as local as files
