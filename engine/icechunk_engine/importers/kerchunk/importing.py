"""Import a kerchunk reference set into a session: read, plan, then write."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from icechunk_engine._runtime.observing import operation
from icechunk_engine.columns.chunk_refs import INLINE
from icechunk_engine.config import resolve
from icechunk_engine.errors import AlreadyExistsError, ErrorKind, InternalError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.importers.kerchunk.plan import (
    ArrayChunks,
    Checksum,
    ImportOptions,
    ImportPlan,
    ImportReport,
    plan_import,
)
from icechunk_engine.importers.kerchunk.reference_set import read_reference_set
from icechunk_engine.importers.limits import ReferenceLimits
from icechunk_engine.importers.zarr_v2.metadata import group_document
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.session.workspace import Workspace

Progress = Callable[[str, int, int], None]
"""Called with the path of an array that was written, how many were, and how many there are."""


@operation(
    lambda refs, session, group="/", **_: (
        f"importing a reference set into {group} of {workspace_of(session).storage_identity}"
    )
)
def import_kerchunk(
    refs: Any,
    session: Session,
    *,
    group: str = "/",
    storage_options: Mapping[str, Any] | None = None,
    template_overrides: Mapping[str, str] | None = None,
    target: str | None = None,
    fs_root: str | None = None,
    skip: Collection[str] = (),
    overwrite: bool = False,
    checksum: Checksum = "last_modified",
    fill_value_as_mask: bool = True,
    check_files: bool = True,
    file_sizes: Mapping[str, int] | None = None,
    validate_containers: bool = True,
    progress: Progress | None = None,
    limits: ReferenceLimits | None = None,
) -> ImportReport:
    """Import a kerchunk reference set: its arrays become Zarr v3 arrays whose chunks stay where they are.

    The set is read and checked completely before anything is written to the session. Nothing is committed.

    Parameters
    ----------
    refs
        Path or URL, JSON text, bytes, open file or mapping; JSON of version 0 or 1, plain or compressed with gzip or
        zstd.
    session
        A writable session. Its configuration must have a virtual chunk container for every location.
    group
        Where the root of the set goes. Missing groups above are made.
    storage_options
        Options of the fsspec filesystem that opens ``refs``.
    template_overrides
        Values that take the place of templates of the set.
    target
        URL for references that have none (``[null, offset, length]``).
    fs_root
        Directory, path or URL, that relative paths in the set start from.
    skip
        Arrays to leave out: names, or paths in the set.
    overwrite
        Replace arrays that exist. Attributes of existing groups are updated in any case.
    checksum
        ``"last_modified"`` stores with each reference into a local file when the file was modified, so that reading
        raises ``virtual-chunk-modified`` after a change; a time stores that with every reference; None stores nothing.
    fill_value_as_mask
        Let xarray mask the fill values of numeric arrays, as it does when it opens the set itself. False keeps values
        that merely equal a fill value nobody chose (HDF5's 0, say), but also real missing data where the set has it in
        the fill value only.
    check_files
        Look whether local files are there and long enough.
    file_sizes
        Lengths in bytes by location, for references to whole files that are not local.
    validate_containers
        False: write locations that lie in no container. They cannot be read until there is one.
    progress
        Called after each array.
    limits
        How much a set may stand for that is small itself: what compressed text, templates and ``gen`` expand to, and
        how deep it is nested. Raise a limit for a set that you trust.

    Raises
    ------
    InvalidInputError
        Something in the set cannot be imported, or it stands for more than the limits allow (``deserialization``,
        ``bad-metadata``, ``invalid-array-metadata``, ``invalid-chunk-index``, ``invalid-virtual-ref``,
        ``virtual-chunk-fetch``), or a container is missing (``no-container-for-virtual-chunk``). The session is as
        before.
    AlreadyExistsError
        A node is in the way.
    """
    if not isinstance(session, Session):
        raise TypeError(f"session must be the Session itself, repo.writable_session(branch), not {describe(session)}")
    reference_set = read_reference_set(
        refs, storage_options=storage_options, template_overrides=template_overrides, limits=limits
    )
    plan = plan_import(
        reference_set,
        group=group,
        containers=(session.config.virtual_chunk_containers or {}) if validate_containers else None,
        options=ImportOptions(
            target=target,
            fs_root=fs_root,
            skip=skip,
            checksum=checksum,
            fill_value_as_mask=fill_value_as_mask,
            check_files=check_files,
            file_sizes=file_sizes or {},
        ),
    )
    write_plan(
        plan, workspace_of(session), overwrite=overwrite, validate_containers=validate_containers, progress=progress
    )
    return plan.report


def write_plan(
    plan: ImportPlan,
    workspace: Workspace,
    *,
    overwrite: bool = False,
    validate_containers: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write a plan into a workspace: all of it, or nothing.

    Raises
    ------
    AlreadyExistsError
        A node is in the way.
    """
    groups = _merge_groups(plan.groups, workspace)
    _require_free(plan, workspace, overwrite=overwrite)
    with workspace.all_or_nothing():
        for path, content in groups.items():
            workspace.set_metadata(path, content)
        for done, array in enumerate(plan.arrays, 1):
            _write_array(array, workspace, validate_containers=validate_containers)
            if progress is not None:
                progress(array.path, done, len(plan.arrays))


def _merge_groups(groups: Mapping[str, dict[str, Any]], workspace: Workspace) -> dict[str, bytes]:
    """Documents of the groups to write: new ones, and existing ones that get further attributes."""
    contents = {}
    for path, attributes in groups.items():
        existing = workspace.get_node(path)
        if existing is None:
            contents[path] = group_document(attributes, path=path)
        elif existing.is_array:
            raise _in_the_way(path, "there is an array where the set has a group")
        elif attributes:
            contents[path] = group_document({**_attributes(existing.user_data), **attributes}, path=path)
    return contents


def _require_free(plan: ImportPlan, workspace: Workspace, *, overwrite: bool) -> None:
    for array in plan.arrays:
        existing = workspace.get_node(array.path)
        if existing is None:
            if workspace.children(array.path):
                raise _in_the_way(array.path, "there are nodes below, where the set has an array")
        elif not existing.is_array:
            raise _in_the_way(array.path, "there is a group where the set has an array")
        elif not overwrite:
            raise _in_the_way(array.path, "the array exists; pass overwrite=True to replace it")


def _in_the_way(path: str, reason: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"cannot import to {path}: {reason}. Import into another group= or delete the node first",
        ErrorKind.NODE_ALREADY_EXISTS,
    )


def _attributes(document: bytes) -> dict[str, Any]:
    found = json.loads(document).get("attributes")
    return found if isinstance(found, dict) else {}


def _write_array(array: ArrayChunks, workspace: Workspace, *, validate_containers: bool) -> None:
    workspace.delete_node(array.path)
    workspace.set_metadata(array.path, array.content)
    refs = array.refs
    threshold = resolve(workspace.config).inline_chunk_threshold_bytes
    is_large = (refs.kinds == INLINE) & (refs.lengths > threshold)
    # Bytes that are too long for a manifest become chunk objects, which are written one by one anyway.
    for row in np.flatnonzero(is_large):
        ref = refs.row(int(row))
        assert ref.inline is not None
        workspace.set_chunk(array.path, tuple(refs.indices[row].tolist()), ref.inline)
    small = refs.take(~is_large).compact() if bool(is_large.any()) else refs
    if len(small) == 0:
        return
    refused = workspace.set_chunk_refs(array.path, small, validate_containers=validate_containers)
    if refused is not None:
        location = small.row(int(np.argmax(refused))).location
        raise InternalError(
            f"the location {location} of array {array.path} passed the importer's checks but not the session's"
        )
