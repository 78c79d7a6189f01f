"""Code that error messages about virtual chunks recommend: add a container, authorise it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from icechunk_engine.config import VirtualChunkContainer, virtual_urls
from icechunk_engine.errors import ErrorKind, InvalidInputError

_EXAMPLES = {
    "file": ("local_filesystem_store({path!r})", "credentials.LocalFileSystemAccess"),
    "memory": ("ObjectStoreConfig.InMemory()", "credentials.LocalFileSystemAccess"),
    "http": ("http_store()", "credentials.HttpAccess"),
    "https": ("http_store()", "credentials.HttpAccess"),
    "s3": ("s3_store(region='…')", "s3_from_env_credentials()"),
    "tigris": ("ObjectStoreConfig.Tigris(S3Options())", "s3_from_env_credentials()"),
    "gs": ("gcs_store()", "gcs_from_env_credentials()"),
    "gcs": ("gcs_store()", "gcs_from_env_credentials()"),
    "az": ("azure_store(account='…')", "azure_from_env_credentials()"),
    "azure": ("azure_store(account='…')", "azure_from_env_credentials()"),
    "abfs": ("azure_store(account='…')", "azure_from_env_credentials()"),
}
"""The store of a container and a credential, by scheme."""

_ANONYMOUS = {
    "s3": "s3_anonymous_credentials()",
    "tigris": "s3_anonymous_credentials()",
    "gs": "gcs_credentials(anonymous=True)",
    "gcs": "gcs_credentials(anonymous=True)",
    "az": "azure_anonymous_credentials()",
    "azure": "azure_anonymous_credentials()",
    "abfs": "azure_anonymous_credentials()",
}


def is_known_scheme(scheme: str | None) -> bool:
    """Return True if containers support the scheme."""
    return scheme in _EXAMPLES


def grant(prefixes: Sequence[str], *places: str, anonymous: bool = False) -> str:
    """Return the expression that authorises containers with these URL prefixes, also at these other places."""
    pairs = []
    for prefix in prefixes:
        scheme = virtual_urls.scheme_of(prefix) or ""
        credential = (_ANONYMOUS if anonymous else {}).get(scheme, _EXAMPLES[scheme][1])
        if places:
            credential = f"credentials.access_at({', '.join((credential, *map(repr, places)))})"
        pairs.append(f"{prefix!r}: {credential}")
    return f"containers_credentials({{{', '.join(pairs)}}})"


def container_lines(prefixes: Sequence[str]) -> list[str]:
    """Return code that adds containers with these URL prefixes to an open repository, authorises and saves them."""
    lines = ["config = repo.config"]
    for prefix in prefixes:
        store = _EXAMPLES[virtual_urls.scheme_of(prefix) or ""][0].format(path="/" + virtual_urls.path_of(prefix))
        lines.append(f"config.set_virtual_chunk_container(VirtualChunkContainer({prefix!r}, {store}))")
    return [
        *lines,
        f"repo = repo.reopen(config, authorize_virtual_chunk_access={grant(prefixes)})",
        "repo.save_config()",
    ]


def no_container(
    location: str, containers: Mapping[str, VirtualChunkContainer], *, is_stored: bool = False
) -> InvalidInputError:
    """Return the error for a canonical location in no container, with code that adds a container."""
    if location.startswith("vcc://"):
        names = [container.name for container in containers.values() if container.name is not None]
        advice = (
            f"no virtual chunk container is named {virtual_urls.authority_of(location)!r} "
            f"(known names: {', '.join(names) or 'none'}); add one with VirtualChunkContainer(url_prefix, store, name)"
        )
    else:
        advice = f"it is in none of the virtual chunk containers {list(containers)}"
        scheme = virtual_urls.scheme_of(location)
        if scheme in _EXAMPLES:
            lines = "\n    ".join(container_lines([_suggested_prefix(location)]))
            advice += f". Add one, in a new session:\n    {lines}"
        else:
            advice += f"; containers do not support {scheme}://"
    what = "invalid chunk location, no matching virtual chunk container for"
    if is_stored:
        what = "no virtual chunk container can handle the chunk location"
    return InvalidInputError(f"{what} {location!r}: {advice}", ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK)


def _suggested_prefix(location: str) -> str:
    if location.startswith("file:///"):
        directory = virtual_urls.path_of(location).rpartition("/")[0]
        return f"file:///{directory}/" if directory else "file:///<directory>/"
    return f"{virtual_urls.scheme_of(location)}://{virtual_urls.authority_of(location)}/"
