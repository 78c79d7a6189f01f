"""Settings of a repository: configuration, metadata, status and feature flags."""

from __future__ import annotations

from typing import Any

from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.catalog.changes import SetConfig, SetFeatureFlag, SetMetadata, SetStatus
from icechunk_engine.catalog.ops_log_entries import public_status
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors.foreign import describe
from icechunk_engine.format.repo_info import Availability
from icechunk_engine.repository.base import RepositoryBase
from icechunk_engine.types import Attribution, FeatureFlag, RepoStatus, feature_flag_id, feature_flags


class SettingsMethods(RepositoryBase):
    """The methods of :class:`Repository` about settings. All but the configuration need spec version 2."""

    @property
    def config(self) -> RepositoryConfig:
        """Settings in force: the persisted ones and those given on opening."""
        return self._config

    @property
    def attribution(self) -> Attribution:
        """The person or program that requests are made for."""
        return self._attribution

    @property
    def authorized_virtual_container_prefixes(self) -> set[str]:
        """URL prefixes whose virtual chunks may be read."""
        return set(self._resolver.authorized)

    def save_config(self) -> None:
        """Persist the settings in force."""
        self._catalog().publish(SetConfig(self._config.to_dict()))

    save_config_async = async_twin(save_config)

    def set_default_commit_metadata(self, metadata: dict[str, Any]) -> None:
        """Set metadata that new sessions add to each commit. A commit's own metadata takes precedence."""
        self._default_commit_metadata = dict(metadata)

    def default_commit_metadata(self) -> dict[str, Any]:
        """Return the metadata of :meth:`set_default_commit_metadata`."""
        return dict(self._default_commit_metadata)

    # --- metadata ----------------------------------------------------------------------------------------------

    def get_metadata(self) -> dict[str, Any]:
        """Return the repository's metadata."""
        return dict(self._catalog().repo_info("repository metadata").metadata)

    get_metadata_async = async_twin(get_metadata)

    @property
    def metadata(self) -> dict[str, Any]:
        """The repository's metadata."""
        return self.get_metadata()

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the repository's metadata (JSON-like values)."""
        self._catalog().publish(SetMetadata(metadata))

    set_metadata_async = async_twin(set_metadata)

    def update_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Add to the repository's metadata, and return all of it."""
        changed = self._catalog().publish(SetMetadata(metadata, merge=True))
        return dict(changed.repo_info("repository metadata").metadata)

    update_metadata_async = async_twin(update_metadata)

    # --- status ------------------------------------------------------------------------------------------------

    def get_status(self) -> RepoStatus:
        """Return whether the repository can be written to."""
        return public_status(self._catalog().repo_info("repository status").status)

    get_status_async = async_twin(get_status)

    @property
    def status(self) -> RepoStatus:
        """Availability of the repository, since when, and why."""
        return self.get_status()

    def set_status(self, status: RepoStatus) -> None:
        """Make the repository read-only, or writable again."""
        if not isinstance(status, RepoStatus):
            raise TypeError(f"status must be a RepoStatus, not {describe(status)}")
        availability = Availability[status.availability.name.upper()]
        self._catalog().publish(SetStatus(availability, status.limited_availability_reason))

    set_status_async = async_twin(set_status)

    # --- feature flags -----------------------------------------------------------------------------------------

    def feature_flags(self) -> list[FeatureFlag]:
        """Return all features that can be switched, with their setting."""
        info = self._catalog().repo_info("feature flags")
        return feature_flags(info.enabled_flags, info.disabled_flags)

    feature_flags_async = async_twin(feature_flags)

    def enabled_feature_flags(self) -> list[FeatureFlag]:
        """Return the features that are on, by setting or by default."""
        return [flag for flag in self.feature_flags() if flag.enabled]

    enabled_feature_flags_async = async_twin(enabled_feature_flags)

    def disabled_feature_flags(self) -> list[FeatureFlag]:
        """Return the features that are off, by setting or by default."""
        return [flag for flag in self.feature_flags() if not flag.enabled]

    disabled_feature_flags_async = async_twin(disabled_feature_flags)

    def set_feature_flag(self, name: str, setting: bool | None) -> None:
        """Switch a feature on or off. None restores its default."""
        self._catalog().publish(SetFeatureFlag(feature_flag_id(name), setting))

    set_feature_flag_async = async_twin(set_feature_flag)
