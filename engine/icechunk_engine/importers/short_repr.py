"""Values of a reference set in the text of errors: short, whatever their size or nesting. Pure."""

from __future__ import annotations

from reprlib import Repr
from typing import Any

MAX_SHOWN = 200
"""Characters of one value in a message."""

_REPR = Repr(
    maxlevel=3, maxtuple=4, maxlist=4, maxdict=4, maxstring=MAX_SHOWN - 20, maxlong=40, maxother=60, indent=None
)


def short_repr(value: Any) -> str:
    """The ``repr`` of a value, cut to a length that people read.

    ``repr`` itself fails for integers of thousands of digits and for values nested thousands deep.
    """
    try:
        text = _REPR.repr(value)
    except (ValueError, RecursionError):
        text = f"<a huge {type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
