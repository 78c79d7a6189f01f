"""Reading the bytes that a chunk reference points to: inline, native or virtual."""

from __future__ import annotations

from icechunk_engine.assets import AssetManager
from icechunk_engine.columns.chunk_refs import INLINE, NATIVE, ChunkRef
from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.format import layout
from icechunk_engine.virtual.resolver import VirtualResolver


def fetch_chunk(ref: ChunkRef, start: int, stop: int, assets: AssetManager, resolver: VirtualResolver) -> bytes:
    """Return bytes ``start:stop`` of a chunk; ``0 <= start <= stop <= ref.length``.

    Raises
    ------
    StorageError
        The object is missing, is shorter than the reference says, or has changed since the reference was made.
    InvalidInputError
        A virtual chunk lies in no container, or in one that you have not authorised.
    """
    if start == stop:
        return b""
    if ref.kind == INLINE:
        assert ref.inline is not None
        return ref.inline if stop - start == ref.length else ref.inline[start:stop]
    try:
        return _read(ref, start, stop, assets, resolver)
    except (MemoryError, OverflowError) as error:
        # A damaged or hostile reference can claim any length, whatever the size of the object.
        raise StorageError(
            f"cannot read {stop - start} bytes of a chunk from byte {ref.offset + start} on ({error!r}): memory ran "
            f"out, or the reference is damaged. Read fewer chunks at a time. If the error persists, write the chunk "
            f"again",
            ErrorKind.INVALID_OBJECT_SIZE,
        ) from None


def _read(ref: ChunkRef, start: int, stop: int, assets: AssetManager, resolver: VirtualResolver) -> bytes:
    if ref.kind == NATIVE:
        assert ref.chunk_id is not None
        try:
            return assets.chunk(ref.chunk_id, ref.offset + start, ref.offset + stop)
        except StorageError as error:
            if error.kind is not ErrorKind.OBJECT_NOT_FOUND:
                raise
            raise StorageError(
                f"object not found: the chunk {layout.chunk_key(ref.chunk_id)} is missing. Either garbage collection "
                f"ran with too late a cutoff, or the repository was copied incompletely. Restore it from a copy",
                ErrorKind.OBJECT_NOT_FOUND,
            ) from None
    return resolver.fetch(ref, start, stop)


def chunk_is_remote(ref: ChunkRef, assets: AssetManager, resolver: VirtualResolver) -> bool:
    """Return True if :func:`fetch_chunk` would wait for a network."""
    if ref.kind == INLINE:
        return False
    return assets.storage.is_remote if ref.kind == NATIVE else resolver.is_remote(ref)
