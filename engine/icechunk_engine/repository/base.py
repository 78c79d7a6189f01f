"""What all methods of a repository share: its place, its settings, and the refs that they take as arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.config import RepositoryConfig, resolve
from icechunk_engine.credentials import AnyCredential
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.ids import SnapshotId
from icechunk_engine.storage.base import Storage
from icechunk_engine.types import Attribution, SpecVersion
from icechunk_engine.virtual.resolver import VirtualResolver
from icechunk_engine.workspace.context import RepositoryContext

Authorizations = Mapping[str, AnyCredential | None]


class RepositoryBase:
    """The state of an opened repository. It holds no connection and no lock."""

    def __init__(
        self,
        storage: Storage,
        config: RepositoryConfig,
        authorize_virtual_chunk_access: Authorizations | None = None,
        *,
        default_commit_metadata: Mapping[str, Any] | None = None,
        attribution: Attribution | None = None,
        spec_version: SpecVersion | int = SpecVersion.v2,
    ) -> None:
        self._config = config
        self._authorized = dict(authorize_virtual_chunk_access or {})
        self._default_commit_metadata = dict(default_commit_metadata or {})
        self._attribution = require_type(attribution, Attribution, "attribution") or Attribution()
        resolved = resolve(config)
        self._storage = storage.with_settings(resolved.storage)
        self._assets = AssetManager(self._storage, resolved, int(spec_version))
        self._resolver = VirtualResolver(resolved.virtual_chunk_containers, self._authorized)
        self._known_context: RepositoryContext | None = None

    @property
    def storage(self) -> Storage:
        """The repository's place."""
        return self._storage

    @property
    def spec_version(self) -> SpecVersion:
        """Format version on disk, as it was when the repository was opened."""
        return SpecVersion(self._assets.spec_version)

    def _catalog(self) -> Catalog:
        """Return a new look at refs, history and settings."""
        return open_catalog(self._assets)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "storage": self._storage,
            "config": self._config,
            "authorized": self._authorized,
            "default_commit_metadata": self._default_commit_metadata,
            "attribution": self._attribution,
            "spec_version": self.spec_version,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        RepositoryBase.__init__(
            self,
            state["storage"],
            state["config"],
            state["authorized"],
            default_commit_metadata=state["default_commit_metadata"],
            attribution=state["attribution"],
            spec_version=state["spec_version"],
        )

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "icechunk-repository", self._storage.identity

    def __repr__(self) -> str:
        return f"<Repository {self._storage.identity}>"


def resolve_ref(catalog: Catalog, branch: str | None, tag: str | None, snapshot_id: str | None) -> SnapshotId:
    """Return the snapshot that exactly one of three arguments names.

    Raises
    ------
    InvalidInputError
        ``invalid-ref-type``: none or several are given.
    RefNotFoundError
        The branch or tag does not exist.
    """
    arguments = {"branch": branch, "tag": tag, "snapshot_id": snapshot_id}
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        raise InvalidInputError(
            f"Must provide one of branch, tag, or snapshot_id, and only one; got {' and '.join(given) or 'none'}",
            ErrorKind.INVALID_REF_TYPE,
        )
    if branch is not None:
        return catalog.branch_tip(branch)
    if tag is not None:
        return catalog.tag_target(tag)
    assert snapshot_id is not None
    return SnapshotId.from_str(snapshot_id)


def show_arguments(arguments: tuple[object, ...], named: Mapping[str, object]) -> str:
    """Return the arguments of an operation for messages, without those that are None."""
    given = (f"{name}={value!r}" for name, value in named.items() if value is not None)
    return ", ".join([*map(repr, arguments), *given])


def require_type[T](value: T | None, kind: type[T], name: str) -> T | None:
    """Return an argument if it is None or of the right type. Raises TypeError."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {describe(value)}")
    return value
