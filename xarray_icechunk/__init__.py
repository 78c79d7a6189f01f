"""Icechunk repositories for xarray and dask: the ``icechunk`` engine, parallel writes, kerchunk references.

xarray imports every installed engine just to list them. So this package imports nothing until you use a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .appending import append_with_retry
    from .backend import IcechunkBackendEntrypoint, open_dataset, open_datatree
    from .dask_writer import merge_forks, store_dask
    from .locations import open_or_create_repository, open_repository
    from .virtual import ReferenceLimits, import_kerchunk
    from .writer import to_icechunk

    __version__: str

__all__ = [
    "IcechunkBackendEntrypoint",
    "ReferenceLimits",
    "__version__",
    "append_with_retry",
    "import_kerchunk",
    "merge_forks",
    "open_dataset",
    "open_datatree",
    "open_or_create_repository",
    "open_repository",
    "store_dask",
    "to_icechunk",
]

_HOMES = {
    "IcechunkBackendEntrypoint": "backend",
    "ReferenceLimits": "virtual",
    "append_with_retry": "appending",
    "import_kerchunk": "virtual",
    "merge_forks": "dask_writer",
    "open_dataset": "backend",
    "open_datatree": "backend",
    "open_or_create_repository": "locations",
    "open_repository": "locations",
    "store_dask": "dask_writer",
    "to_icechunk": "writer",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("icechunk_engine._version").__version__
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
