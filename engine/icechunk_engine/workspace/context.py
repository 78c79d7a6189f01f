"""What all sessions of one opened repository share, and how it travels to other processes.

**What is always true.** A context never changes. So it is pickled once, and each session that travels carries the same
bytes. A process makes one context of equal bytes: a thousand forks that it unpickles share one set of files, caches
and clients. Two openings of one repository with equal settings pickle to equal bytes. dask relies on that, because it
derives the names of tasks from pickles.

**Why it holds.** The bytes do not depend on which objects happen to be shared: nothing is memoised while they are
made. They hold only objects of the engine and of Python itself. A context with objects of a user (a storage class, an
option of fsspec) is pickled anew each time, by the pickler that asked for it: cloudpickle can handle what pickle
cannot, and such objects may change.

**What would break it.** A storage of the engine that pickles differently after it was used. Keeping the memoised bytes
in the pickle itself. Finding a context by anything that equal storages can share, such as their identity: two storages
of one place can have different credentials.
"""

from __future__ import annotations

import io
import pickle
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType

from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine.assets import AssetManager
from icechunk_engine.config import RepositoryConfig, ResolvedConfig, resolve
from icechunk_engine.credentials import AnyCredential
from icechunk_engine.storage.base import Storage
from icechunk_engine.types import Json
from icechunk_engine.virtual.resolver import VirtualResolver

_KEPT = 4
"""Contexts that a process keeps after it unpickled them. A worker's tasks come one after the other. Without this, each
task would fetch the snapshot again. Four are enough for tasks that read some repositories and write another."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class RepositoryContext:
    """The files, settings and virtual chunk credentials of one opened repository."""

    assets: AssetManager
    config: RepositoryConfig
    resolver: VirtualResolver
    default_commit_metadata: Mapping[str, Json]
    _pickled: bytes | None = field(default=None, init=False, repr=False)
    """None: not pickled yet. Empty: holds objects that are pickled each time."""

    def __reduce__(self) -> tuple[object, ...]:
        pickled = self._pickled
        if pickled is None:
            pickled = _pickled_alone(self._parts())
            _remember(pickled, self)
        return (_shared, (pickled,)) if pickled else (_opened, self._parts())

    def _parts(self) -> tuple[object, ...]:
        """Return the arguments of :func:`_opened`, without defaults at the end."""
        assets = self.assets
        # The user may have changed the configuration since. It takes effect only when the repository is reopened.
        changed = assets.config if resolve(self.config) != assets.config else None
        parts = [
            assets.given_storage,
            self.config if self.config != RepositoryConfig() else None,
            self.resolver.authorized,
            dict(self.default_commit_metadata),
            assets.spec_version,
            changed,
        ]
        while parts[-1] == _DEFAULTS[len(parts) - 1]:
            parts.pop()
        return tuple(parts)


_DEFAULTS: tuple[object, ...] = (..., None, {}, {}, 2, None)
"""Of the arguments of :func:`_opened`."""


def _opened(
    storage: Storage,
    config: RepositoryConfig | None = None,
    authorized: Mapping[str, AnyCredential | None] | None = None,
    default_commit_metadata: Mapping[str, Json] | None = None,
    spec_version: int = 2,
    resolved: ResolvedConfig | None = None,
) -> RepositoryContext:
    config = config or RepositoryConfig()
    resolved = resolved or resolve(config)
    return RepositoryContext(
        assets=AssetManager(storage, resolved, spec_version),
        config=config,
        resolver=VirtualResolver(resolved.virtual_chunk_containers, authorized),
        default_commit_metadata=default_commit_metadata or {},
    )


# --- one context for equal bytes -------------------------------------------------------------------------------------

_CONTEXTS: weakref.WeakValueDictionary[bytes, RepositoryContext] = weakref.WeakValueDictionary()
_CONTEXTS_LOCK = memory_lock()
_recent: deque[RepositoryContext] = deque(maxlen=_KEPT)


def _shared(pickled: bytes) -> RepositoryContext:
    """Return the context of this process that has these bytes. Make it if there is none."""
    with _CONTEXTS_LOCK:
        context = _CONTEXTS.get(pickled)
    if context is None:
        context = _remember(pickled, _opened(*pickle.loads(pickled)))
        _recent.append(context)
    return context


def _remember(pickled: bytes, context: RepositoryContext) -> RepositoryContext:
    object.__setattr__(context, "_pickled", pickled)
    if not pickled:
        return context
    with _CONTEXTS_LOCK:
        return _CONTEXTS.setdefault(pickled, context)


# --- bytes that do not depend on the pickler -------------------------------------------------------------------------


class _UsersObjectError(Exception):
    """An object of a user was to be pickled."""


class _PicklerOfOurs(pickle.Pickler):
    """Pickles objects of the engine and of Python, and refuses all others."""

    def persistent_id(self, obj: object) -> None:
        named = obj if isinstance(obj, type | FunctionType | BuiltinFunctionType) else type(obj)
        module = named.__module__ or ""
        # Storages for tests count and can be changed.
        ours = module.startswith("icechunk_engine.") and not module.startswith("icechunk_engine.testing")
        if not ours and module not in ("builtins", "datetime"):
            raise _UsersObjectError


def _pickled_alone(parts: tuple[object, ...]) -> bytes:
    """Return the pickle of some objects; empty if one of them is of a user."""
    out = io.BytesIO()
    pickler = _PicklerOfOurs(out, protocol=5)
    pickler.fast = True  # no memo: equal objects give equal bytes, whether they are shared or not
    try:
        pickler.dump(parts)
    except _UsersObjectError:
        return b""
    return out.getvalue()
