"""What ``chunks=`` does: turn a variable into a dask array whose name contains the snapshot.

Invariant: two dask arrays have the same name only if they read the same array of the same snapshot.

xarray names a dask array after the location and the arguments of ``open_dataset``. It does not know what was found
there. Two snapshots opened from one URL would get the same name, and so would one variable in two groups opened by
``open_groups``. Dask computes equal names once: it would return the data of one for both, without an error. So the
engine returns variables that know their source, and these add it to the name.
"""

from __future__ import annotations

import hashlib
from typing import Any

from xarray import Variable

__all__ = ["SnapshotVariable"]


class SnapshotVariable(Variable):
    """A variable that was read from a snapshot. ``encoding["source"]`` names the snapshot and the group.

    Other engines put the name of a variable's file there. xarray keeps it when it decodes and copies a variable, and
    drops it when it writes one.
    """

    __slots__ = ()

    def to_base_variable(self) -> Variable:
        """Return a copy of this class, not a plain variable.

        xarray calls this for every coordinate, only to turn index variables back into variables. A plain variable
        would have lost its source.
        """
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
        """As :meth:`xarray.Variable.chunk`, but add the variable's source to the name of the dask array."""
        source = self.encoding.get("source")
        from_array_kwargs = dict(from_array_kwargs or {})
        if name is not None:
            from_array_kwargs["name"] = name
        if source and isinstance(from_array_kwargs.get("name"), str):
            # A digest, because the name is part of every task's key.
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
