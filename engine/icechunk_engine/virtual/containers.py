"""Find the container of a virtual location. Pure.

A location is an absolute URL, or ``vcc://name/rest`` for the container with that name. It belongs to the container
with the longest URL prefix that it starts with. Both are compared in canonical form (:func:`normalize_location`).

Invariant: a location that matches a container cannot name anything outside the prefix of the container. Canonical
``file:`` URLs have no dot segments, and :func:`resolve_location` refuses dot segments that only percent-decoding
reveals. On S3 they are ordinary characters of a key. Matching locations that are not canonical would break this.

Locations come in columns of distinct strings. numpy handles the usual ones. Python looks only at locations with an
unusual scheme or with characters that may change.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.columns.tables import BytesTable
from icechunk_engine.config import ObjectStoreConfig, VirtualChunkContainer, is_valid_container, virtual_urls
from icechunk_engine.config.virtual_urls import with_trailing_slash
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.virtual.error_remedies import no_container
from icechunk_engine.virtual.vectorized_strings import StringBlock, string_blocks

__all__ = [
    "accepted_locations",
    "checked_refs",
    "expand_names",
    "location_to_key",
    "location_to_path",
    "match_containers",
    "normalize_location",
    "normalize_locations",
    "require_container",
    "resolve_location",
    "with_trailing_slash",
]

Containers = Mapping[str, VirtualChunkContainer]

NO_CONTAINER = -1

_VCC = "vcc://"
_KNOWN_SCHEMES = ("s3", "gs", "gcs", "az", "azure", "abfs", "tigris", "http", "https", "vcc", "memory")
_ENDS_AUTHORITY = np.zeros(256, np.bool_)
_ENDS_AUTHORITY[np.frombuffer(b"\0/?#", np.uint8)] = True  # NUL: the string ends
_UNCHANGED_IN_FILE_URLS = np.zeros(256, np.bool_)
_UNCHANGED_IN_FILE_URLS[
    np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,:;=@[]%/|^", np.uint8)
] = True

_S3_STORES = (ObjectStoreConfig.S3, ObjectStoreConfig.S3Compatible, ObjectStoreConfig.Tigris)


# --- canonical form ------------------------------------------------------------------------------------------------


def normalize_location(location: str) -> str:
    """Return the canonical form of a location (spec, *Virtual chunk locations*).

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: the location is not an absolute URL.
    """
    try:
        return virtual_urls.normalize(location)
    except ValueError as error:
        raise InvalidInputError(
            f"error parsing virtual ref URL {location!r}: {error}", ErrorKind.INVALID_VIRTUAL_REF
        ) from None


def normalize_locations(locations: BytesTable) -> BytesTable:
    """Apply :func:`normalize_location` to every string. Return the same table if all are canonical."""
    canonical = [_is_canonical(block) for block in string_blocks(locations)]
    unusual = np.flatnonzero(~np.concatenate(canonical)) if canonical else np.empty(0, np.intp)
    if len(unusual) == 0:
        return locations
    texts = locations.raws()
    for row in unusual.tolist():
        texts[row] = normalize_location(texts[row].decode()).encode()
    return BytesTable.of(texts)


def _is_canonical(block: StringBlock) -> NDArray[np.bool_]:
    """Return a mask of the strings that :func:`normalize_location` cannot change."""
    canonical = block.starts_with(b"file:///")
    if canonical.any():
        unusual = block.pairs(b"/.") | block.pairs(b"//") | (block.pairs(b"%2") & block.third(b"eE"))
        # "file:///" has two pairs of slashes.
        canonical &= block.count(unusual) == 2
        canonical &= block.count(~_UNCHANGED_IN_FILE_URLS[block.data]) == 0
    for scheme in _KNOWN_SCHEMES:
        if canonical.all():
            break
        start = f"{scheme}://".encode()
        canonical |= block.starts_with(start) & ~_ENDS_AUTHORITY[block.byte_at(len(start))]
    return canonical


# --- containers ----------------------------------------------------------------------------------------------------


def _prefixes(containers: Containers) -> list[tuple[str, int]]:
    """Return canonical prefixes and the rows of their containers, longest first. A name adds ``vcc://name/``."""
    found = []
    for row, container in enumerate(containers.values()):
        if is_valid_container(container):
            found.append((virtual_urls.normalize(container.url_prefix), row))
            if container.name is not None:
                found.append((f"{_VCC}{container.name}/", row))
    return sorted(found, key=lambda pair: -len(pair[0].encode()))


def match_containers(locations: BytesTable | Sequence[str], containers: Containers) -> NDArray[np.int32]:
    """Find the container of each location.

    Parameters
    ----------
    locations
        Distinct locations in canonical form.
    containers
        Containers by URL prefix. Invalid ones, which a stored configuration can have, match nothing.

    Returns
    -------
    ``int32 (n,)``: position in ``containers``, or -1 if there is none.
    """
    table = locations if isinstance(locations, BytesTable) else BytesTable.of(locations)
    prefixes = [(prefix.encode(), row) for prefix, row in _prefixes(containers)]
    blocks = [_match_block(block, prefixes) for block in string_blocks(table)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int32)


def _match_block(block: StringBlock, prefixes: Sequence[tuple[bytes, int]]) -> NDArray[np.int32]:
    rows = np.full(len(block), NO_CONTAINER, np.int32)
    for prefix, row in prefixes:
        free = rows == NO_CONTAINER
        if not free.any():
            break
        rows[free & block.starts_with(prefix)] = row
    return rows


def accepted_locations(locations: BytesTable, containers: Containers) -> NDArray[np.bool_]:
    """Return a mask ``(n,)`` of the canonical locations that are in a container whose store can address them.

    Only S3 supports keys with empty, ``.`` or ``..`` segments.
    """
    rows = match_containers(locations, containers)
    accepted: NDArray[np.bool_] = rows != NO_CONTAINER
    stores = [container.store for container in containers.values()]
    literal = np.array([isinstance(store, _S3_STORES) for store in stores], np.bool_)
    strict = accepted.copy()
    strict[accepted] = ~literal[rows[accepted]]
    if strict.any():
        unusual = np.concatenate([_has_unusual_segments(block) for block in string_blocks(locations)])
        for row in np.flatnonzero(strict & unusual).tolist():
            accepted[row] = _is_addressable(locations.text(row), containers)
    return accepted


def _is_addressable(location: str, containers: Containers) -> bool:
    try:
        url, _ = resolve_location(location, containers)
    except InvalidInputError:
        return False
    return virtual_urls.is_addressable(virtual_urls.decoded_path(url))


def _has_unusual_segments(block: StringBlock) -> NDArray[np.bool_]:
    """Return a mask that is False for strings that cannot have empty or dot segments, even percent-encoded."""
    unusual = block.pairs(b"/.") | block.pairs(b"//") | (block.pairs(b"%2") & block.third(b"eEfF"))
    # The "//" after the scheme is one pair of slashes; "///" in file URLs is two.
    usual = np.where(block.starts_with(b"file:///"), 2, 1)
    found: NDArray[np.bool_] = block.count(unusual) > usual
    return found


def require_container(location: str, containers: Containers) -> None:
    """Refuse a canonical location that :func:`accepted_locations` does not accept.

    Raises
    ------
    InvalidInputError
        ``no-container-for-virtual-chunk``, ``invalid-virtual-ref``.
    """
    (row,) = match_containers([location], containers).tolist()
    if row == NO_CONTAINER:
        raise no_container(location, containers)
    if not accepted_locations(BytesTable.of([location]), containers)[0]:
        raise InvalidInputError(
            f"only S3 can address {location!r}, because its key has empty, '.' or '..' segments. Remove them from the "
            f"location",
            ErrorKind.INVALID_VIRTUAL_REF,
        )


def checked_refs(
    refs: ChunkRefs, containers: Containers, *, validate: bool = True
) -> tuple[ChunkRefs, NDArray[np.bool_] | None]:
    """Make locations canonical, and drop chunk references that no container accepts.

    Returns
    -------
    The chunk references to keep, and the mask ``(n,)`` of the dropped ones, or None if all are kept.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: a location is not an absolute URL.
    """
    table = normalize_locations(refs.locations)
    if table is not refs.locations:
        refs = dataclasses.replace(refs, locations=table)
    if not validate or len(table) == 0:
        return refs, None
    accepted = accepted_locations(table, containers)
    if accepted.all():
        return refs, None
    virtual = refs.location_codes >= 0
    refused = np.zeros(len(refs), np.bool_)
    refused[virtual] = ~accepted[refs.location_codes[virtual]]
    return (refs.take(~refused), refused) if refused.any() else (refs, None)


def resolve_location(location: str, containers: Containers) -> tuple[str, VirtualChunkContainer]:
    """Return the canonical URL and the container of a stored location.

    The canonical URL decides about the container, so a ``..`` after the prefix cannot lead out of it.

    Raises
    ------
    InvalidInputError
        ``no-container-for-virtual-chunk``, ``invalid-virtual-ref``.
    """
    url = normalize_location(location)
    if url.startswith(_VCC):
        (row,) = match_containers([url], containers).tolist()
        if row == NO_CONTAINER:
            raise no_container(url, containers, is_stored=True)
        prefix = list(containers.values())[row].url_prefix
        url = normalize_location(prefix + virtual_urls.after_authority(url))
    (row,) = match_containers([url], containers).tolist()
    if row == NO_CONTAINER:
        raise no_container(url, containers, is_stored=True)
    container = list(containers.values())[row]
    if not isinstance(container.store, _S3_STORES) and virtual_urls.has_dot_segments(virtual_urls.decoded_path(url)):
        raise InvalidInputError(
            f"the location {location!r} of a virtual chunk has '.' or '..' in its path, which could lead out of its "
            f"container; set the chunk reference again without them",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return url, container


def expand_names(locations: BytesTable, containers: Containers) -> list[str]:
    """Replace ``vcc://name/`` by the URL prefix of the container. Unknown names stay."""
    texts = locations.texts()
    prefixes = {container.name: container.url_prefix for container in containers.values() if container.name}
    named = [block.starts_with(_VCC.encode()) for block in string_blocks(locations)]
    for row in np.flatnonzero(np.concatenate(named)).tolist() if named else []:
        prefix = prefixes.get(virtual_urls.authority_of(texts[row]))
        if prefix is not None:
            texts[row] = normalize_location(prefix + virtual_urls.after_authority(texts[row]))
    return texts


def location_to_key(url: str) -> str:
    """Return the key of an object: the percent-decoded path of a canonical URL, without query and fragment.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: the decoded path is not UTF-8.
    """
    try:
        return virtual_urls.decoded_path(url).decode()
    except ValueError:
        raise InvalidInputError(
            f"the path of {url!r} is not UTF-8 when percent-decoded; correct the location",
            ErrorKind.INVALID_VIRTUAL_REF,
        ) from None


def location_to_path(url: str, *, windows: bool = os.name == "nt") -> str:
    """Return the absolute path of the local file that a canonical ``file:`` URL names.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: a file name contains an encoded NUL, or the path is not valid on this system.
    """
    try:
        path = virtual_urls.file_path_bytes(url)
        return virtual_urls.windows_path(path) if windows else os.fsdecode(path)
    except ValueError as error:
        raise InvalidInputError(
            f"{url!r} does not name a local file: {error}", ErrorKind.INVALID_VIRTUAL_REF
        ) from None
