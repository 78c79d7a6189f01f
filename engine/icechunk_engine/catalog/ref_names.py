"""Names of branches and tags: which ones a new ref may have, and the errors for unknown and taken names. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from icechunk_engine.errors import (
    AlreadyExistsError,
    ErrorKind,
    InvalidInputError,
    RefNotFoundError,
    SessionStateError,
)

MAIN = "main"
"""The branch that every repository has."""

_MOST_LISTED = 10


def require_ref_name(name: object) -> str:
    """Return the name if a new branch or tag may have it.

    Only new names are checked. Refs that other programs gave another name can still be read and deleted.

    Raises
    ------
    InvalidInputError
        ``invalid-ref-name``: the name is empty, or it has control characters or lone surrogates, which nobody could
        see or type. Repositories of spec version 1 also refuse ``/``.
    TypeError
        The name is not text.
    """
    text = require_text(name)
    bad = next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None)
    if text and bad is None:
        return text
    found = f"this one holds {bad!r}" if bad is not None else "this one is empty"
    raise InvalidInputError(
        f"{text!r} cannot name a branch or tag: names are text without control characters and surrogates, and "
        f"{found}. Choose another name",
        ErrorKind.INVALID_REF_NAME,
    )


def require_text(name: object) -> str:
    """Return the name if it is text. Raises TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"names of branches and tags are str, not {type(name).__name__}: {name!r}")
    return name


def require_deletable(branch: str) -> None:
    """Raise SessionStateError (``cannot-delete-main``) for the branch that every repository has."""
    if branch == MAIN:
        raise SessionStateError("the main branch cannot be deleted; reset it instead", ErrorKind.CANNOT_DELETE_MAIN)


def unknown_branch(name: str, known: Collection[str]) -> RefNotFoundError:
    """Return the error for a branch that does not exist."""
    kind = ErrorKind.BRANCH_NOT_FOUND if name == MAIN else ErrorKind.REF_NOT_FOUND
    return RefNotFoundError(f"ref not found: no branch {name!r}. {_listed('branches', known)}", kind)


def unknown_tag(name: str, known: Collection[str], *, was_deleted: bool) -> RefNotFoundError:
    """Return the error for a tag that does not exist."""
    gone = " (it was deleted)" if was_deleted else ""
    return RefNotFoundError(f"ref not found: no tag {name!r}{gone}. {_listed('tags', known)}")


def branch_taken(name: str) -> AlreadyExistsError:
    """Return the error for a new branch whose name is in use."""
    return AlreadyExistsError(
        f"branch already exists: {name!r}. Move it with repo.reset_branch, or choose another name",
        ErrorKind.BRANCH_ALREADY_EXISTS,
    )


def tag_taken(name: str, *, was_deleted: bool) -> AlreadyExistsError:
    """Return the error for a new tag whose name is in use, or was in use once."""
    if was_deleted:
        return AlreadyExistsError(
            f"tag was already deleted: {name!r}, and icechunk does not allow tag reuse. Choose another name",
            ErrorKind.TAG_PREVIOUSLY_DELETED,
        )
    return AlreadyExistsError(
        f"tag already exists, tags are immutable: {name!r}. Choose another name", ErrorKind.TAG_ALREADY_EXISTS
    )


def _listed(what: str, names: Collection[str]) -> str:
    if not names:
        return f"The repository has no {what}"
    shown = ", ".join(repr(name) for name in sorted(names)[:_MOST_LISTED])
    return f"Its {what}: {shown}" + (", …" if len(names) > _MOST_LISTED else "")
