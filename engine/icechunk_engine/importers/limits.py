"""What a reference set may stand for, and the account of what it has used. Pure.

A reference set is data from elsewhere, and a kilobyte of it can ask for terabytes: compressed text, templates that
call each other, ``gen``, data types of a gigabyte, keys thousands of levels deep. Each is charged here before it is
made.
"""

from __future__ import annotations

from dataclasses import dataclass

from icechunk_engine.errors import ErrorKind, InvalidInputError

MAX_DEPTH = 200
"""Python's own recursion ends a little further."""

MAX_EXPANSION = 100
"""How often its own size a set may stand for by default. Sets that kerchunk writes compress to a tenth."""

_FREE_UNPACKED = 16 * 2**20
_FREE_RENDERED = 160 * 2**20

ITEMS_OF_A_GROUP = 10
"""A group costs so much more than a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLimits:
    """How much a reference set may stand for before the import refuses it.

    Raise a limit for a set that you trust. What a set spells out in full has no limit.

    Attributes
    ----------
    depth
        Levels of groups in a key, and of lists and objects in a metadata document; at most 200.
    items
        References that ``gen`` makes in all. A group that nothing but the keys below it names counts for ten.
    expanded_bytes
        Bytes that a compressed set may expand to, and bytes that templates and fill values may fill. By default 100
        times what the set itself has, and not less than 16 MiB for a compressed set or 160 MiB for templates.
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
    """The account of one import.

    Parameters
    ----------
    limits
        What may be used.
    source_bytes
        Size of the set as it came.
    """

    def __init__(self, limits: ReferenceLimits | None = None, source_bytes: int = 0) -> None:
        self.limits = limits if limits is not None else ReferenceLimits()
        self.source_bytes = source_bytes
        self._items = 0
        self._bytes = 0

    @property
    def max_unpacked_bytes(self) -> int:
        """What compressed text may hold."""
        return self._max_bytes(_FREE_UNPACKED)

    def charge_bytes(self, count: int, reason: str) -> None:
        """Account for bytes that are about to be made.

        Raises
        ------
        InvalidInputError
            ``deserialization``: the limit is reached; ``reason`` says by what.
        """
        self._bytes += count
        most = self._max_bytes(_FREE_RENDERED)
        if self._bytes > most:
            raise over_limit(f"{reason}, which makes more than {most} bytes in all", "expanded_bytes")

    def charge_items(self, count: int, reason: str) -> None:
        """Account for references or groups that are about to be made. Errors as for :meth:`charge_bytes`."""
        self._items += count
        if self._items > self.limits.items:
            raise over_limit(f"{reason}, which makes more than {self.limits.items} in all", "items")

    def require_depth(self, levels: int, reason: str) -> None:
        """Refuse what is nested deeper than allowed. Errors as for :meth:`charge_bytes`."""
        if levels > self.limits.depth:
            raise over_limit(f"{reason} more than {self.limits.depth} levels deep", "depth")

    def _max_bytes(self, free: int) -> int:
        given = self.limits.expanded_bytes
        return given if given is not None else max(free, MAX_EXPANSION * self.source_bytes)


def over_limit(reason: str, name: str) -> InvalidInputError:
    """The error for a set that stands for too much; ``name`` is the limit's."""
    return InvalidInputError(
        f"the reference set stands for more than this import allows: {reason}. If you trust the set, raise the limit "
        f"with limits=ReferenceLimits({name}=…)",
        ErrorKind.DESERIALIZATION,
    )
