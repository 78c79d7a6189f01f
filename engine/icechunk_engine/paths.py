"""Node paths: absolute, canonical, ``/`` for the root (spec, *Nodes*).

Two orders matter. Files sort nodes by the raw bytes of their paths (``/a-b`` before ``/a/b``). For people and tree
walks, each parent comes directly before its children, which is the order of the components.
"""

from __future__ import annotations

from icechunk_engine.errors import ErrorKind, InvalidInputError

ROOT = "/"


def normalize(path: str) -> str:
    """Return the canonical absolute form of a path that a user wrote (``""``, ``a/b``, ``/a/b/``).

    Raises
    ------
    InvalidInputError
        ``invalid-path``: a component is empty, ``.`` or ``..``, or the path has a NUL or a lone surrogate.
    """
    if path in ("", ROOT):
        return ROOT
    parts = (path[1:] if path[0] == "/" else path).split("/")
    if parts[-1] == "":
        parts.pop()
    if not parts or "" in parts or "." in parts or ".." in parts or "\0" in path or not _is_text(path):
        raise InvalidInputError(
            f"{path!r} is not a valid node path: components must be valid text and not empty, '.' or '..'. Write it "
            f"like '/group/array'",
            ErrorKind.INVALID_PATH,
        )
    return "/" + "/".join(parts)


def _is_text(path: str) -> bool:
    """Return False if the path has lone surrogates, which UTF-8 cannot encode."""
    if path.isascii():
        return True
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def parent(path: str) -> str | None:
    """Return the path of the parent group, None for the root."""
    if path == ROOT:
        return None
    return path.rpartition("/")[0] or ROOT


def name(path: str) -> str:
    """Return the last component, empty for the root."""
    return path.rpartition("/")[2]


def ancestors(path: str) -> list[str]:
    """Return all proper ancestors, from the nearest to the root."""
    found = []
    above = parent(path)
    while above is not None:
        found.append(above)
        above = parent(above)
    return found


def is_within(path: str, top: str) -> bool:
    """Return True if ``path`` is ``top`` or lies below it."""
    return path == top or top == ROOT or path.startswith(top + "/")


def join(top: str, relative: str) -> str:
    """Return the path of ``relative`` (one or more names joined by ``/``) below ``top``."""
    return ROOT + relative if top == ROOT else f"{top}/{relative}"


def tree_order(path: str) -> tuple[str, ...]:
    """Return a sort key that puts every node directly before its descendants."""
    return tuple(path.split("/")) if path != ROOT else ("",)
