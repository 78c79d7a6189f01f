"""``to_icechunk`` under official's module name. It is :func:`xarray_icechunk.to_icechunk`.

xarray is imported when you use the name, so the engine works without it.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["to_icechunk"]  # noqa: F822 - made by __getattr__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("xarray_icechunk"), name)


def __dir__() -> list[str]:
    return __all__
