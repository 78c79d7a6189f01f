"""``storage_options`` of users: each is taken by its type, and what nobody takes is refused by name.

Leaving an option out could mean the wrong place or the wrong person, so an unknown option is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from icechunk_engine.errors import ErrorKind, InvalidInputError


class StorageOptions:
    """The options of one URL. Methods take all spellings of an option; the first that is set counts.

    Raises
    ------
    InvalidInputError
        ``storage-config``: an option has the wrong type, or is not known.
    """

    def __init__(self, url: str, options: Mapping[str, object], within: str = "") -> None:
        self.url = url
        self._left = dict(options)
        self._within = within

    def take(self, *names: str) -> object:
        """Take an option of any type; None if it is not set."""
        values = [self._left.pop(name, None) for name in names]
        return next((value for value in values if value is not None), None)

    def text(self, *names: str) -> str | None:
        """Take a string."""
        value = self.take(*names)
        if value is not None and not isinstance(value, str):
            raise self.refusal([names[0]], f"it must be a string, not a {type(value).__name__}")
        return value

    def flag(self, *names: str) -> bool:
        """Take a switch; False if it is not set."""
        return bool(self.take(*names))

    def function[C](self, name: str) -> Callable[[], C] | None:
        """Take a function without arguments."""
        value = self.take(name)
        if value is not None and not callable(value):
            raise self.refusal([name], "it must be a function")
        return cast("Callable[[], C] | None", value)

    def options(self, name: str) -> StorageOptions:
        """Take a mapping of further options, which you must take in turn."""
        value = self.take(name) or {}
        if not isinstance(value, Mapping):
            raise self.refusal([name], "it must be a mapping")
        return StorageOptions(self.url, value, name)

    def headers(self, name: str = "headers") -> dict[str, str]:
        """Take HTTP headers. Their values are checked where they are used."""
        value = self.take(name) or {}
        if not isinstance(value, Mapping):
            raise self.refusal([name], "it must be a mapping")
        return dict(value)

    def left(self) -> list[str]:
        """Return the names that nobody has taken."""
        return [f"{self._within}[{name!r}]" if self._within else name for name in self._left]

    def refuse_rest(self, *others: StorageOptions) -> None:
        """Raise InvalidInputError if options are left, here or in others."""
        left = [name for options in (self, *others) for name in options.left()]
        if left:
            raise self.refusal(
                left,
                "they are not known here. Leave them out, or make the storage yourself, with "
                "icechunk_engine.s3_storage(…) or a similar function, and open it with Repository.open",
            )

    def refusal(self, names: list[str], why: str) -> InvalidInputError:
        """Return the error for some options."""
        return InvalidInputError(
            f"storage_options {', '.join(names)} for {self.url!r}: {why}", ErrorKind.STORAGE_CONFIG
        )
