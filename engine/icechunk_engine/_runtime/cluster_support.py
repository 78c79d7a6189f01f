"""Load the plugin's support for dask and clusters, if this process uses them.

The engine imports no such library. The plugin tells dask how to name our arrays. It tells the engine the names of
tasks (:mod:`icechunk_engine._runtime.task_names`), and whether a cluster would bury an error that pickling raises.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress

_SUPPORT = {"dask.base": "xarray_icechunk.dask_tokens", "distributed": "xarray_icechunk.cluster"}

_has_client: Callable[[], bool] | None = None


def load_cluster_support() -> None:
    """Load what fits the libraries that are imported. Takes about a microsecond if it is loaded.

    Call it when a process gets something that it may write to.
    """
    for library, module in _SUPPORT.items():
        if library in sys.modules and module not in sys.modules:
            with suppress(ImportError):
                importlib.import_module(module)


def set_client_finder(has_client: Callable[[], bool]) -> None:
    """Register a function that tells whether this process is the client of a cluster."""
    global _has_client
    _has_client = has_client


def is_client() -> bool:
    """Return True if this process is the client of a cluster.

    Such a client shows an error of pickling under ninety lines of its own. An error that the arriving object raises
    when it is used is shown alone.
    """
    load_cluster_support()
    return _has_client is not None and _has_client()
