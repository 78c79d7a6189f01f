"""Objects of the official package that were handed to ours: recognised without importing it, and named as such.

Both packages use the same class names, so "session is a Session" would help nobody who moves over.
"""

from __future__ import annotations

import sys
from typing import Any

_EXTENSION = "icechunk._icechunk_python"  # its classes say that they belong to builtins

_OPEN = "icechunk_engine.Repository.open(path_or_url)"
_LINES = {
    "Storage": "a path or URL, or icechunk_engine.s3_storage(...), local_filesystem_storage(...) and so on",
    "Repository": _OPEN,
    "Session": f"{_OPEN}.writable_session('main'), or .readonly_session('main')",
    "ForkSession": "session.fork(), of a session of icechunk_engine",
    "IcechunkStore": f"{_OPEN}.writable_session('main').store, or .readonly_session('main').store",
}


def official_class(value: object) -> str | None:
    """Name of the official package's class that an object belongs to; None for all other objects."""
    extension: Any = sys.modules.get(_EXTENSION)
    for cls in type(value).__mro__:
        is_public = cls.__module__.partition(".")[0] == "icechunk"
        if is_public or (extension is not None and getattr(extension, cls.__name__, None) is cls):
            return cls.__name__
    return None


def describe(value: object) -> str:
    """What an object is, for the end of "must be a Session, not …": official's with the line to write instead."""
    name = official_class(value)
    if name is None:
        return repr(value)
    return (
        f"a {name} of the official icechunk package. Write {_LINES.get(name, f'icechunk_engine.{name}')}; "
        f"`import icechunk_engine as icechunk` does that throughout a program"
    )
