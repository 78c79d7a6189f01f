"""The methods of a session for independent jobs: its token, and records of finished regions."""

from __future__ import annotations

from icechunk_engine import paths
from icechunk_engine.errors import SessionStateError
from icechunk_engine.format.zarr_metadata import ArrayShape
from icechunk_engine.ids import NodeId
from icechunk_engine.journal.finished_regions import FinishedRegions
from icechunk_engine.journal.regions import Box, Region, RegionLike, box_of, region_of, within, without
from icechunk_engine.session.copies import Copies
from icechunk_engine.workspace.workspace import Workspace


class SharedSessionMethods:
    """The methods of :class:`Session` for independent jobs, which may be interrupted."""

    _workspace: Workspace
    _copies: Copies

    def share(self) -> str:
        """Return a token by which other processes find this session, without a pickle.

        Jobs write through ``repo.join_session(token)``. If this process dies, another one can commit through
        ``repo.resume_session(token)``. From now on, each edit of this session is stored before the call returns.

        Call it again after you create arrays, so that jobs that join later start with them.

        Returns
        -------
        The token. It names the session in this repository until the session is committed or discarded.

        Raises
        ------
        SessionStateError
            ``not-allowed``: this is a fork, or a copy of one.
        """
        return self._copies.share()

    def mark_done(self, array_path: str, region: RegionLike) -> None:
        """Record that a region of an array is finished. Write its data first.

        A job that was interrupted goes on with the missing regions. It cannot tell them from the stored chunks,
        because zarr does not store chunks that hold only the fill value. The record lasts until the session is
        committed.

        Parameters
        ----------
        region
            A mapping of dimension names to slices, like xarray's ``region``, or slices for the first axes. It contains
            all of any axis that it does not mention.

        Raises
        ------
        SessionStateError
            ``not-allowed``: the session is not shared. ``session-ended``: it was committed or discarded.
        InvalidInputError
            The region is empty, has gaps, or reaches beyond the array.
        NodeNotFoundError
            The array does not exist.
        """
        regions = self._finished_regions()
        node_id, shape = self._array(array_path)
        box = box_of(region, shape)
        self._workspace.report()
        regions.add(node_id, box)

    def regions_done(self, array_path: str) -> list[Region]:
        """Return the finished regions of an array that any job recorded, sorted.

        Returns
        -------
        A dictionary of dimension names to slices for each region, which xarray takes as ``region``. For an array
        without dimension names, a tuple of slices for each.
        """
        node_id, shape = self._array(array_path)
        return [region_of(box, shape) for box in self._boxes(node_id, shape)]

    def regions_missing(self, array_path: str) -> list[Region]:
        """Return the unfinished part of an array as regions that do not overlap.

        They are as large as possible, and need not match the regions of your jobs. :meth:`regions_done` describes
        their form. To ask about one region, call :meth:`is_done`.
        """
        node_id, shape = self._array(array_path)
        whole = tuple([(0, length) for length in shape.lengths])
        return [region_of(box, shape) for box in without(whole, self._boxes(node_id, shape))]

    def is_done(self, array_path: str, region: RegionLike) -> bool:
        """Return True if all of a region is finished, in one piece or in several.

        Parameters are those of :meth:`mark_done`.
        """
        node_id, shape = self._array(array_path)
        return not without(box_of(region, shape), self._boxes(node_id, shape))

    def _boxes(self, node_id: NodeId, shape: ArrayShape) -> list[Box]:
        return within(self._finished_regions().boxes(node_id), shape.lengths)

    def _finished_regions(self) -> FinishedRegions:
        ledger = self._copies.ledger
        if not ledger.is_open:
            raise SessionStateError(
                "only shared sessions record finished regions. Call session.share() before you start the jobs, and "
                "let them join with repo.join_session(token)"
            )
        return FinishedRegions(ledger.journal)

    def _array(self, path: str) -> tuple[NodeId, ArrayShape]:
        self._workspace.look(for_chunks=False)
        node = self._workspace.require_array_reader(paths.normalize(path)).node
        assert node.shape is not None
        return node.node_id, node.shape
