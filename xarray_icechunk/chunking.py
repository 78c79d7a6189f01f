"""Dask names that contain the snapshot.

xarray names the dask arrays it makes after the location and the options that were passed to ``open_dataset``, not
after what was found there. Two snapshots opened from one URL, or one variable in two groups opened by
``open_groups``, would get the same task keys, and dask would compute one of them and return it for both.
So the variables that the engine returns know what they are, and add it to the name.
"""

from __future__ import annotations

import hashlib
from typing import Any

from xarray import Variable

__all__ = ["SnapshotVariable"]


class SnapshotVariable(Variable):
    """A variable read from a snapshot, which its ``encoding["source"]`` names; otherwise a plain variable.

    ``encoding["source"]`` is where other engines put a variable's file; xarray keeps it through decoding and copies
    and drops it on writing.
    """

    __slots__ = ()

    def to_base_variable(self) -> Variable:
        """A copy of this class: xarray calls this for every coordinate, only to undo what an index variable is."""
        return self.copy(deep=False)

    def chunk(  # type: ignore[override]
        self,
        chunks: Any = {},  # noqa: B006  xarray's default, never changed
        name: str | None = None,
        lock: bool | None = None,
        inline_array: bool | None = None,
        chunked_array_type: Any = None,
        from_array_kwargs: Any = None,
        **chunks_kwargs: Any,
    ) -> Variable:
        """As :meth:`xarray.Variable.chunk`, but a name given for the dask array gets this variable's source added."""
        source = self.encoding.get("source")
        from_array_kwargs = dict(from_array_kwargs or {})
        if name is not None:
            from_array_kwargs["name"] = name
        if source and isinstance(from_array_kwargs.get("name"), str):
            # Digested, because the name is part of every task's key.
            digest = hashlib.blake2b(str(source).encode(), digest_size=8).hexdigest()
            from_array_kwargs["name"] = f"{from_array_kwargs['name']}-{digest}"
        return (
            super()
            .to_base_variable()
            .chunk(
                chunks,
                lock=lock,
                inline_array=inline_array,
                chunked_array_type=chunked_array_type,
                from_array_kwargs=from_array_kwargs,
                **chunks_kwargs,
            )
        )
