"""Limits on what a reference set may expand to. Pure.

A reference set is untrusted data, and one kilobyte of it can ask for terabytes: compressed text, templates that call
each other, ``gen`` items, data types of a gigabyte, keys thousands of levels deep.

Invariant: the import allocates nothing of that kind before a :class:`Budget` has accepted its size. The invariant
breaks if code measures what it has already built.
"""

from __future__ import annotations

from dataclasses import dataclass

from icechunk_engine.errors import ErrorKind, InvalidInputError

MAX_DEPTH = 200
"""Python's recursion limit allows little more."""

MAX_EXPANSION = 100
"""Default ratio of expanded size to original size. Sets that kerchunk writes expand about tenfold."""

_FREE_UNPACKED = 16 * 2**20
_FREE_RENDERED = 160 * 2**20

ITEMS_OF_A_GROUP = 10
"""A group costs about this many times as much memory as a chunk reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLimits:
    """Limits on what a reference set may expand to. The import refuses a set that exceeds them.

    Raise a limit for a set that you trust. References that the set spells out in full have no limit.

    Attributes
    ----------
    depth
        Maximum number of levels of groups in a key, and of lists and objects in a metadata document. At most 200.
    items
        Maximum number of references from all ``gen`` items. Each group without metadata of its own counts as ten.
    expanded_bytes
        Maximum size in bytes of a decompressed set, and of the text and fill values that templates and metadata
        produce. The default is 100 times the size of the set, but at least 16 MiB for decompression and 160 MiB for
        templates and fill values.
    """

    depth: int = 64
    items: int = 1_000_000
    expanded_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("depth", MAX_DEPTH), ("items", None), ("expanded_bytes", None)):
            value = getattr(self, name)
            if value is None and name == "expanded_bytes":
                continue
            if type(value) is not int or value < 1 or (most is not None and value > most):
                bound = f" from 1 to {most}" if most is not None else ", 1 or more"
                raise InvalidInputError(f"{name} of ReferenceLimits must be an integer{bound}, not {value!r}")


class Budget:
    """Counts what one import has used.

    Parameters
    ----------
    limits
        Default limits if None.
    source_bytes
        Size of the set before decompression.
    """

    def __init__(self, limits: ReferenceLimits | None = None, source_bytes: int = 0) -> None:
        self.limits = limits if limits is not None else ReferenceLimits()
        self.source_bytes = source_bytes
        self._items = 0
        self._bytes = 0

    @property
    def max_unpacked_bytes(self) -> int:
        """Maximum size of the set after decompression."""
        return self._max_bytes(_FREE_UNPACKED)

    def charge_bytes(self, count: int, reason: str) -> None:
        """Charge for bytes before you allocate them.

        Raises
        ------
        InvalidInputError
            ``deserialization``: the limit is exceeded. ``reason`` begins the message.
        """
        self._bytes += count
        most = self._max_bytes(_FREE_RENDERED)
        if self._bytes > most:
            raise over_limit(f"{reason}, which makes more than {most} bytes in all", "expanded_bytes")

    def charge_items(self, count: int, reason: str) -> None:
        """Charge for references or groups before you make them. Raises the errors of :meth:`charge_bytes`."""
        self._items += count
        if self._items > self.limits.items:
            raise over_limit(f"{reason}, which makes more than {self.limits.items} in all", "items")

    def require_depth(self, levels: int, reason: str) -> None:
        """Refuse deeper nesting than allowed. Raises the errors of :meth:`charge_bytes`."""
        if levels > self.limits.depth:
            raise over_limit(f"{reason} more than {self.limits.depth} levels deep", "depth")

    def _max_bytes(self, free: int) -> int:
        given = self.limits.expanded_bytes
        return given if given is not None else max(free, MAX_EXPANSION * self.source_bytes)


def over_limit(reason: str, name: str) -> InvalidInputError:
    """Return the error for a set that exceeds the limit ``name``."""
    return InvalidInputError(
        f"the reference set expands to more than this import allows: {reason}. If you trust the set, raise the limit "
        f"with limits=ReferenceLimits({name}=…)",
        ErrorKind.DESERIALIZATION,
    )
