"""The methods of a session that independent jobs share: the token, and records of finished regions."""

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
        """Return a token by which other processes find this session: names in place of pickles.

        Jobs write through ``repo.join_session(token)``. Another process can commit, if this one dies, through
        ``repo.resume_session(token)``. From now on, each edit of this session is stored before the call returns.

        Call it again after you have created arrays, so that jobs that join later start with them.

        Returns
        -------
        The token. It names the session in this repository until the session is committed or discarded.

        Raises
        ------
        SessionStateError
            ``not-allowed``: the copy of an explicit fork, which is merged and not joined.
        """
        return self._copies.share()

    def mark_done(self, array_path: str, region: RegionLike) -> None:
        """Record that a region of an array is finished. Its data must be written.

        Jobs that are interrupted go on with the regions that are missing. Which chunks are stored would not tell them:
        zarr stores no chunk that holds only the fill value. The record lasts until the session is committed.

        Parameters
        ----------
        region
            A mapping of dimension names to slices, as for xarray's ``region``, or slices for the first axes. What it
            does not mention, it contains in full.

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
        """Return the finished regions of an array, sorted, as they were recorded by any job.

        Returns
        -------
        A dictionary of dimension names to slices for each region, which xarray takes as ``region``. For an array
        without dimension names, a tuple of slices for each.
        """
        node_id, shape = self._array(array_path)
        return [region_of(box, shape) for box in self._boxes(node_id, shape)]

    def regions_missing(self, array_path: str) -> list[Region]:
        """Return regions that together are all of an array that is not finished. They do not overlap.

        They are as large as possible, not those that the jobs were going to write. See :meth:`regions_done` for their
        form, and :meth:`is_done` to ask for one region.
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
                "finished regions are recorded for shared sessions only. Call session.share() before you start the "
                "jobs; they join the session with repo.join_session(token)"
            )
        return FinishedRegions(ledger.journal)

    def _array(self, path: str) -> tuple[NodeId, ArrayShape]:
        self._workspace.look(for_chunks=False)
        node = self._workspace.require_array_reader(paths.normalize(path)).node
        assert node.shape is not None
        return node.node_id, node.shape
