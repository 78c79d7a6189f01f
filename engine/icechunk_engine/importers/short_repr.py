"""Short text for values in error messages. Pure."""

from __future__ import annotations

from reprlib import Repr

MAX_SHOWN = 200
"""Maximum number of characters."""

_REPR = Repr(
    maxlevel=3, maxtuple=4, maxlist=4, maxdict=4, maxstring=MAX_SHOWN - 20, maxlong=40, maxother=60, indent=None
)


def short_repr(value: object) -> str:
    """Return the ``repr`` of a value, cut to a readable length.

    Unlike ``repr``, it does not fail for integers with thousands of digits or for deeply nested values.
    """
    try:
        text = _REPR.repr(value)
    except (ValueError, RecursionError):
        text = f"<a huge {type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
