"""What each kind of session may do, and while it is committed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from icechunk_engine.errors import ErrorKind, IcechunkError
from icechunk_engine.workspace.permissions import Permissions, SessionMode

KINDS: dict[str, Callable[[], Permissions]] = {
    "readonly": lambda: Permissions(SessionMode.readonly),
    "writable": lambda: Permissions(SessionMode.writable, branch="main"),
    "fork": lambda: Permissions(SessionMode.writable, is_fork=True),
    "rearrange": lambda: Permissions(SessionMode.rearrange, branch="main"),
}
ALLOWED = {
    "require_editable": {"writable", "fork", "rearrange"},
    "require_writable": {"writable", "fork"},
    "require_rearranging": {"rearrange"},
    "require_forkable": {"writable", "fork"},
    "require_committable": {"writable", "rearrange"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", ALLOWED)
def test_each_kind_of_session_may_do_its_own(action: str, kind: str) -> None:
    permissions = KINDS[kind]()
    if kind in ALLOWED[action]:
        getattr(permissions, action)()
    else:
        with pytest.raises(IcechunkError):
            getattr(permissions, action)()


@pytest.mark.parametrize("action", ALLOWED)
def test_nothing_is_allowed_while_a_thread_commits(action: str) -> None:
    for kind in ALLOWED[action]:
        permissions = KINDS[kind]()
        permissions.is_committing = True
        with pytest.raises(IcechunkError, match="another thread is committing") as caught:
            getattr(permissions, action)()
        assert caught.value.kind is ErrorKind.CONCURRENCY


def test_a_commit_goes_to_the_branch() -> None:
    assert KINDS["writable"]().require_committable() == "main"
