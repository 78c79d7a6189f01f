"""The object that arrives in place of a session or store that cannot be sent. It raises the reason when it is used."""

from __future__ import annotations

from typing import NoReturn

from icechunk_engine.errors import ErrorKind, InvalidInputError


class RefusedCopy:
    """Takes the place of a session or store that cannot be sent to another process.

    Raises
    ------
    InvalidInputError
        ``pickle``: at any use.
    """

    def __init__(self, reason: str) -> None:
        vars(self)["_reason"] = reason

    def __reduce__(self) -> tuple[type[RefusedCopy], tuple[str]]:
        return RefusedCopy, (vars(self)["_reason"],)

    def __repr__(self) -> str:
        return "<a session or store that cannot be sent to another process>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # protocols of Python, such as copying and pickling
            raise AttributeError(name)
        raise InvalidInputError(vars(self)["_reason"], ErrorKind.PICKLE)
