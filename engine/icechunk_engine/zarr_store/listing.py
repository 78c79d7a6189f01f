"""Listing keys and directories, from nodes and columns of chunk references. No payload is read."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator

from icechunk_engine import keys
from icechunk_engine._runtime.pools import in_thread
from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.errors import InvalidInputError
from icechunk_engine.format.nodes import Node
from icechunk_engine.zarr_store import key_listing
from icechunk_engine.zarr_store.base import BaseStore
from icechunk_engine.zarr_store.directories import chunk_directory, node_path


class ListingStore(BaseStore):
    """Lists keys and directories, and adds up their sizes."""

    def _nodes_in(self, prefix: str) -> builtins.list[Node]:
        path = node_path(prefix)
        return [] if path is None else list(self._workspace.list_nodes(path))

    async def _nodes_with_refs(self, nodes: builtins.list[Node]) -> AsyncIterator[tuple[Node, ChunkRefs | None]]:
        """Yield nodes, with the references of those that are arrays. Fetches manifests batch by batch."""
        for batch in self._workspace.batches(nodes):
            if self._workspace.storage_is_remote:
                await in_thread(self._workspace.load_manifests, batch)
            else:
                self._workspace.load_manifests(batch)
            for node in batch:
                yield node, await self._chunk_refs(node.path) if node.is_array else None

    async def is_empty(self, prefix: str) -> bool:
        """Return True if a directory contains no key."""
        await self._prepare()
        path = node_path(prefix)
        if path is not None and (self._workspace.get_node(path) is not None or self._workspace.child_names(path)):
            return False
        found = chunk_directory(self._workspace, prefix)
        if found is None:
            return True
        return not key_listing.rows_under((await self._chunk_refs(found.path)).indices, found.index_prefix).any()

    def list(self) -> AsyncIterator[str]:
        """Iterate over all keys: the document of each node, and after that of an array its chunks by index."""
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over all keys in a directory, and over the key itself if ``prefix`` is a key."""
        await self._prepare()
        async for node, refs in self._nodes_with_refs(self._nodes_in(prefix)):
            yield keys.metadata_key(node.path)
            if refs is not None:
                for batch in key_listing.chunk_keys(node.path, refs.indices):
                    for key in batch:
                        yield key
        found = chunk_directory(self._workspace, prefix)
        if found is not None:
            indices = (await self._chunk_refs(found.path)).indices
            for batch in key_listing.chunk_keys(
                found.path, indices[key_listing.rows_under(indices, found.index_prefix)]
            ):
                for key in batch:
                    yield key
        elif await self._is_key(prefix):
            yield prefix.lstrip("/")

    async def _is_key(self, text: str) -> bool:
        try:
            return await self.exists(text)
        except InvalidInputError:
            return False

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the distinct names of keys and directories directly in a directory."""
        await self._prepare()
        path = node_path(prefix)
        names: dict[str, None] = {}
        if path is not None:
            node = self._workspace.get_node(path)
            if node is not None:
                names[keys.METADATA_NAME] = None
                if node.is_array and len(await self._chunk_refs(path)):
                    names["c"] = None
            names.update(dict.fromkeys(self._workspace.child_names(path)))
        found = chunk_directory(self._workspace, prefix)
        ordered = sorted(names)
        if found is not None:
            indices = (await self._chunk_refs(found.path)).indices
            ordered.extend(n for n in key_listing.next_components(indices, found.index_prefix) if n not in names)
        for name in ordered:
            yield name

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the total length of all values in a directory, in bytes. Reads manifests only."""
        total = 0
        await self._prepare()
        async for node, refs in self._nodes_with_refs(self._nodes_in(prefix)):
            total += len(node.user_data) + (0 if refs is None else int(refs.lengths.sum()))
        found = chunk_directory(self._workspace, prefix)
        if found is not None:
            of_array = await self._chunk_refs(found.path)
            total += int(of_array.lengths[key_listing.rows_under(of_array.indices, found.index_prefix)].sum())
        return total
