"""Node paths: absolute, canonical, ``/`` for the root (spec, *Nodes*).

Two orders matter. Files sort nodes by the raw bytes of their paths (``/a-b`` before ``/a/b``); people and tree walks
want parents directly before their children, which is the order of the components.
"""

from __future__ import annotations

from icechunk_engine.errors import ErrorKind, InvalidInputError

ROOT = "/"


def normalize(path: str) -> str:
    """Canonical absolute form of a path as users write it (``""``, ``a/b``, ``/a/b/``).

    Raises
    ------
    InvalidInputError
        ``invalid-path`` for empty, ``.`` or ``..`` components, NUL, and lone surrogates, which no file can hold.
    """
    if path in ("", ROOT):
        return ROOT
    parts = (path[1:] if path[0] == "/" else path).split("/")
    if parts[-1] == "":
        parts.pop()
    if not parts or "" in parts or "." in parts or ".." in parts or "\0" in path or not _is_text(path):
        raise InvalidInputError(
            f"{path!r} is not a node path: components must be valid text and not empty, '.' or '..'. Write it like "
            f"'/group/array'",
            ErrorKind.INVALID_PATH,
        )
    return "/" + "/".join(parts)


def _is_text(path: str) -> bool:
    """False for lone surrogates."""
    if path.isascii():
        return True
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def parent(path: str) -> str | None:
    """Path of the parent group; None for the root."""
    if path == ROOT:
        return None
    return path.rpartition("/")[0] or ROOT


def name(path: str) -> str:
    """Last component; empty for the root."""
    return path.rpartition("/")[2]


def ancestors(path: str) -> list[str]:
    """All proper ancestors, nearest first, ending with the root."""
    found = []
    above = parent(path)
    while above is not None:
        found.append(above)
        above = parent(above)
    return found


def is_within(path: str, top: str) -> bool:
    """True when ``path`` is ``top`` or lies below it."""
    return path == top or top == ROOT or path.startswith(top + "/")


def join(top: str, relative: str) -> str:
    """Path of ``relative`` (a name or several joined by ``/``) below ``top``."""
    return ROOT + relative if top == ROOT else f"{top}/{relative}"


def storage_order(path: str) -> bytes:
    """Sort key of files: raw UTF-8 bytes."""
    return path.encode()


def tree_order(path: str) -> tuple[str, ...]:
    """Sort key that puts every node directly before its descendants."""
    return tuple(path.split("/")) if path != ROOT else ("",)
