"""Import a kerchunk reference set into a session."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping

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
from icechunk_engine.importers.kerchunk.reference_set import Source, read_reference_set
from icechunk_engine.importers.limits import ReferenceLimits
from icechunk_engine.importers.zarr_v2.metadata import group_document
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.types import JsonObject
from icechunk_engine.workspace.workspace import Workspace

Progress = Callable[[str, int, int], None]
"""Called with the path of an array that was written, the number of arrays written so far, and the total."""


@operation(
    lambda reference_set, session, group="/", **_: (
        f"importing a reference set into {group} of {workspace_of(session).storage_identity}"
    )
)
def import_kerchunk(
    reference_set: Source,
    session: Session,
    *,
    group: str = "/",
    storage_options: Mapping[str, object] | None = None,
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
    """Import a kerchunk reference set. Its arrays become Zarr v3 arrays, and their chunks stay in the original files.

    The import reads and checks the whole set before it writes to the session. It does not commit.

    Parameters
    ----------
    reference_set
        A path or URL, JSON text, bytes, an open file or a mapping. JSON of version 0 or 1, plain or compressed with
        gzip or zstd.
    session
        A writable session. Its configuration must have a virtual chunk container for every file of the set.
    group
        Path for the root of the set. Missing parent groups are created.
    storage_options
        Options of the fsspec filesystem that opens ``reference_set``.
    template_overrides
        Replacements for templates of the set.
    target
        URL for references that have none (``[null, offset, length]``).
    fs_root
        Directory, as path or URL, for relative paths in the set.
    skip
        Arrays to leave out, as names or as paths in the set.
    overwrite
        Replace existing arrays. Attributes of existing groups are always updated.
    checksum
        ``"last_modified"`` stores the modification time of each local file. If the file changes later, reading its
        chunks raises ``virtual-chunk-modified``. A datetime is stored for every file. None stores nothing.
    fill_value_as_mask
        Let xarray mask the fill values of numeric arrays, as it does when it opens the set directly. With False, it
        keeps values that happen to equal a default fill value (such as HDF5's 0), but it also keeps missing data that
        only the fill value marks.
    check_files
        Check that local files exist and are long enough.
    file_sizes
        Lengths in bytes by location, for references to whole remote files.
    validate_containers
        False also writes locations that are in no container. You cannot read them until you add one.
    progress
        Called after each array.
    limits
        Limits on what the set may expand to. Raise a limit for a set that you trust.

    Returns
    -------
    ImportReport
        What was written, and which keys of the set were ignored.

    Raises
    ------
    InvalidInputError
        The set cannot be imported or exceeds the limits (``deserialization``, ``bad-metadata``,
        ``invalid-array-metadata``, ``invalid-chunk-index``, ``invalid-virtual-ref``, ``virtual-chunk-fetch``), or a
        container is missing (``no-container-for-virtual-chunk``). The session is unchanged.
    AlreadyExistsError
        An existing node is in the way. The session is unchanged.
    """
    if not isinstance(session, Session):
        raise TypeError(f"session must be a Session, e.g. repo.writable_session(branch), not {describe(session)}")
    found = read_reference_set(
        reference_set, storage_options=storage_options, template_overrides=template_overrides, limits=limits
    )
    plan = plan_import(
        found,
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
    """Write a plan to a workspace completely, or leave the workspace unchanged.

    Raises
    ------
    AlreadyExistsError
        An existing node is in the way.
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


def _merge_groups(groups: Mapping[str, JsonObject], workspace: Workspace) -> dict[str, bytes]:
    """Return the documents of new groups, and of existing groups that get more attributes."""
    contents = {}
    for path, attributes in groups.items():
        existing = workspace.get_node(path)
        if existing is None:
            contents[path] = group_document(attributes, path=path)
        elif existing.is_array:
            raise _in_the_way(path, "the set has a group here, but the repository has an array")
        elif attributes:
            contents[path] = group_document({**_attributes(existing.user_data), **attributes}, path=path)
    return contents


def _require_free(plan: ImportPlan, workspace: Workspace, *, overwrite: bool) -> None:
    for array in plan.arrays:
        existing = workspace.get_node(array.path)
        if existing is None:
            if workspace.children(array.path):
                raise _in_the_way(
                    array.path, "the set has an array here, but the repository has nodes below this path"
                )
        elif not existing.is_array:
            raise _in_the_way(array.path, "the set has an array here, but the repository has a group")
        elif not overwrite:
            raise _in_the_way(array.path, "the array exists; pass overwrite=True to replace it")


def _in_the_way(path: str, reason: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"cannot import to {path}: {reason}. Import to another group=, or delete the node first",
        ErrorKind.NODE_ALREADY_EXISTS,
    )


def _attributes(document: bytes) -> JsonObject:
    found = json.loads(document).get("attributes")
    return found if isinstance(found, dict) else {}


def _write_array(array: ArrayChunks, workspace: Workspace, *, validate_containers: bool) -> None:
    workspace.delete_node(array.path)
    workspace.set_metadata(array.path, array.content)
    refs = array.refs
    threshold = resolve(workspace.config).inline_chunk_threshold_bytes
    is_large = (refs.kinds == INLINE) & (refs.lengths > threshold)
    # Inline data over the threshold becomes native chunks, which are written one by one.
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
