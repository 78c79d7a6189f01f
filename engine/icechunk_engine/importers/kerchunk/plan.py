"""What an import will write: v3 documents and columns of chunk references, checked as a whole.

Whatever is wrong with any array is found here, before the first write: an import happens completely or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np

from icechunk_engine import paths
from icechunk_engine.columns.chunk_refs import INLINE, VIRTUAL, ChunkRefs
from icechunk_engine.columns.tables import I64
from icechunk_engine.errors import InvalidInputError
from icechunk_engine.importers.kerchunk import target_urls
from icechunk_engine.importers.kerchunk.chunk_columns import (
    UNKNOWN_SIZE,
    UrlTable,
    gather_sources,
    plan_refs,
    url_table,
)
from icechunk_engine.importers.kerchunk.files_on_disk import FileFacts, file_facts
from icechunk_engine.importers.kerchunk.groups_and_arrays import build_hierarchy
from icechunk_engine.importers.kerchunk.reference_set import ReferenceSet
from icechunk_engine.virtual.containers import Containers
from icechunk_engine.virtual.virtual_refs import whole_seconds

Checksum = Literal["last_modified"] | datetime | None
"""What to store with virtual references, so that a later change of a file is noticed."""

_LAST_SECOND = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did.

    Attributes
    ----------
    groups, arrays
        Paths written.
    num_virtual, num_inline
        Chunk references into files, and chunks whose bytes were in the reference set.
    num_files
        Distinct target_urls.
    skipped
        Arrays left out by ``skip=``, as paths in the set.
    num_stray, stray
        Keys of the set that name neither metadata nor a chunk of an array, and a few of them.
    """

    groups: tuple[str, ...]
    arrays: tuple[str, ...]
    num_virtual: int
    num_inline: int
    num_files: int
    skipped: tuple[str, ...]
    num_stray: int
    stray: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayChunks:
    """One array to be written: its path, its document, and its references, sorted by index, one a chunk."""

    path: str
    content: bytes
    refs: ChunkRefs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImportPlan:
    """What an import will write, completely checked.

    Attributes
    ----------
    groups
        Attributes by path, parents before children.
    arrays
        Documents and references, with their paths.
    report
        The report if all of it is written.
    """

    groups: dict[str, dict[str, Any]]
    arrays: tuple[ArrayChunks, ...]
    report: ImportReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How to read a reference set; see :func:`import_kerchunk`."""

    target: str | None = None
    fs_root: str | None = None
    skip: Collection[str] = ()
    checksum: Checksum = "last_modified"
    fill_value_as_mask: bool = True
    check_files: bool = True
    file_sizes: Mapping[str, int] = field(default_factory=dict)


def plan_import(
    reference_set: ReferenceSet,
    *,
    group: str = "/",
    containers: Containers | None = None,
    options: ImportOptions | None = None,
) -> ImportPlan:
    """What importing a set would write; touches no session, only asks the disk about local files.

    Parameters
    ----------
    reference_set
        From :func:`read_reference_set`.
    group
        Where the root of the set goes.
    containers
        The configured virtual chunk containers; None: do not check.
    options
        See :func:`import_kerchunk`.
    """
    options = options if options is not None else ImportOptions()
    top = paths.normalize(group)
    hierarchy = build_hierarchy(
        reference_set.metadata,
        skip=options.skip,
        fill_value_as_mask=options.fill_value_as_mask,
        budget=reference_set.budget,
    )
    sources = gather_sources(reference_set, hierarchy)
    urls = _look_up(reference_set.urls, sources.used_urls, containers, options)
    arrays = []
    for path, array in hierarchy.arrays.items():
        found = sources.arrays.get(path)
        refs = plan_refs(array, *found, urls) if found is not None else ChunkRefs.empty(array.shape.ndim)
        arrays.append(ArrayChunks(path=_below(top, path), content=array.content, refs=refs))
    groups: dict[str, dict[str, Any]] = {above: {} for above in reversed(paths.ancestors(top))}
    groups |= {_below(top, path): attributes for path, attributes in hierarchy.groups.items()}
    kinds = np.concatenate([np.empty(0, np.uint8), *(array.refs.kinds for array in arrays)])
    report = ImportReport(
        groups=tuple(groups),
        arrays=tuple(array.path for array in arrays),
        num_virtual=int(np.count_nonzero(kinds == VIRTUAL)),
        num_inline=int(np.count_nonzero(kinds == INLINE)),
        num_files=len(urls.locations),
        skipped=hierarchy.skipped,
        num_stray=sources.num_stray,
        stray=sources.stray,
    )
    return ImportPlan(groups=groups, arrays=tuple(arrays), report=report)


def _below(top: str, path: str) -> str:
    return top if path == paths.ROOT else paths.join(top, path[1:])


def _look_up(urls: Sequence[str | None], used: I64, containers: Containers | None, options: ImportOptions) -> UrlTable:
    """Locations, containers, sizes and times of the URLs that are used, each distinct one once."""
    found = target_urls.resolve_urls(
        [urls[position] for position in used], target=options.target, fs_root=options.fs_root
    )
    if containers is not None:
        found = target_urls.place_in_containers(found, containers)
    facts = file_facts(found) if options.check_files else [None] * len(found)
    sizes = [
        fact.size_bytes if fact is not None else options.file_sizes.get(location, UNKNOWN_SIZE)
        for location, fact in zip(found, facts, strict=True)
    ]
    return url_table(len(urls), used, found, sizes, _times(facts, options.checksum))


def _times(facts: Sequence[FileFacts | None], checksum: Checksum) -> list[int]:
    if isinstance(checksum, datetime):
        return [whole_seconds(checksum)] * len(facts)
    if checksum == "last_modified":
        times = [0 if fact is None else fact.modified_s for fact in facts]
        return [time if 0 < time <= _LAST_SECOND else 0 for time in times]
    if checksum is None:
        return [0] * len(facts)
    raise InvalidInputError(f"checksum must be 'last_modified', a datetime or None, not {checksum!r}")
