"""Recognise objects of the official package that users pass to ours, without importing that package.

Both packages use the same class names, so "must be a Session, not a Session" would help nobody.
"""

from __future__ import annotations

import sys

_EXTENSION = "icechunk._icechunk_python"  # its classes claim to belong to builtins

_OPEN = "icechunk_engine.Repository.open(path_or_url)"
_LINES = {
    "Storage": "a path or URL, or icechunk_engine.s3_storage(...), local_filesystem_storage(...) and so on",
    "Repository": _OPEN,
    "Session": f"{_OPEN}.writable_session('main'), or .readonly_session('main')",
    "ForkSession": "session.fork(), of a session of icechunk_engine",
    "IcechunkStore": f"{_OPEN}.writable_session('main').store, or .readonly_session('main').store",
}


def official_class(value: object) -> str | None:
    """Return the class name of an object of the official package; None for all other objects."""
    extension = sys.modules.get(_EXTENSION)
    for cls in type(value).__mro__:
        is_public = cls.__module__.partition(".")[0] == "icechunk"
        if is_public or (extension is not None and getattr(extension, cls.__name__, None) is cls):
            return cls.__name__
    return None


def describe(value: object) -> str:
    """Describe an object, for the end of "must be a Session, not …". For official's, say what to write instead."""
    name = official_class(value)
    if name is None:
        return repr(value)
    return (
        f"a {name} of the official icechunk package. Write {_LINES.get(name, f'icechunk_engine.{name}')}; "
        f"`import icechunk_engine as icechunk` does that throughout a program"
    )
