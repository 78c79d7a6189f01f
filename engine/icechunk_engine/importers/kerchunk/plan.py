"""Plan an import: v3 documents and columns of chunk references, completely checked.

Invariant: an import happens completely or not at all. :func:`plan_import` finds every problem that the set and the
files can have before anything is written, and :func:`.importing.write_plan` undoes its edits if the session refuses
one. A check that runs after the first write, or a plan that is written while it is still being built, would break the
invariant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

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
from icechunk_engine.types import JsonObject
from icechunk_engine.virtual.containers import Containers
from icechunk_engine.virtual.virtual_refs import whole_seconds

Checksum = Literal["last_modified"] | datetime | None
"""What to store with virtual chunk references, so that readers notice a later change of a file."""

_LAST_SECOND = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """The result of an import.

    Attributes
    ----------
    groups, arrays
        Paths that were written.
    num_virtual, num_inline
        Number of chunks in files, and of chunks in the reference set itself.
    num_files
        Number of distinct files.
    skipped
        Arrays left out by ``skip=``, as paths in the set.
    num_stray, stray
        Number of keys that are neither metadata nor a chunk of an array, and some of these keys.
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
    """An array to write: its path, its document, and its chunk references, sorted by index, one for each chunk."""

    path: str
    content: bytes
    refs: ChunkRefs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImportPlan:
    """Everything that an import will write.

    Attributes
    ----------
    groups
        Attributes by path, parents before children.
    arrays
        Arrays, with their documents and chunk references.
    report
        The report of the import.
    """

    groups: dict[str, JsonObject]
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
    """Plan the import of a set. This reads facts about local files, but uses no session.

    Parameters
    ----------
    reference_set
        The result of :func:`read_reference_set`.
    group
        Path for the root of the set.
    containers
        The configured virtual chunk containers. None skips the check.
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
    groups: dict[str, JsonObject] = {above: {} for above in reversed(paths.ancestors(top))}
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
    """Look up location, size and time of every URL that is used. Each distinct URL is looked up once."""
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
