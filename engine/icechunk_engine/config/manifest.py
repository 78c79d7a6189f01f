"""Configuration of manifests: splitting, loading ahead, compression of virtual locations."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icechunk_engine.config.array_conditions import (
    NEVER_SPLIT,
    ConditionKind,
    ManifestPreloadCondition,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    SplitSizes,
)
from icechunk_engine.config.base import I32, U16, U32, Kind, Part, Settings, setting

_COORDINATE_NAMES = (
    r"^\bt\b$|^(time|min|hour|day|week|month|year)[0-9]*$",
    r"^(z|nav_lev|gdep|lv_|[o]*lev|bottom_top|sigma|h(ei)?ght|altitude|depth|isobaric|pres|isotherm)[a-z_]*[0-9]*$",
    r"^(y|j|nlat|rlat|nj)$",
    r"^y?(nav_lat|lat|gphi)[a-z0-9]*$",
    r"^x?(nav_lon|lon|glam)[a-z0-9]*$",
    r"^(x|i|nlon|rlon|ni)$",
)
"""Names by which the CF conventions' coordinate variables usually go."""


def default_preload_condition() -> ManifestPreloadCondition:
    """Small manifests of arrays that look like coordinates."""
    condition = ManifestPreloadCondition
    return condition.or_conditions([condition.name_matches(names) for names in _COORDINATE_NAMES]) & (
        condition.from_plain({"num_refs": {"from": "Unbounded", "to": {"Included": 1000}}})
    )


class _SplitSizesKind(Kind):
    __slots__ = ()

    def check(self, value: Any) -> SplitSizes:
        try:
            sizes = [(condition, [(rule, size) for rule, size in rules]) for condition, rules in value]
        except (TypeError, ValueError):
            sizes = None
        if sizes is None or not all(
            isinstance(condition, ManifestSplitCondition)
            and all(isinstance(rule, ManifestSplitDimCondition) for rule, _ in rules)
            for condition, rules in sizes
        ):
            raise TypeError(
                "must be pairs of a ManifestSplitCondition and pairs of a ManifestSplitDimCondition and a size"
            )
        return [(condition, [(rule, _check_size(size)) for rule, size in rules]) for condition, rules in sizes]

    def to_plain(self, value: Any) -> Any:
        return [
            [condition.to_plain(), [{"condition": rule.to_plain(), "num_chunks": size} for rule, size in rules]]
            for condition, rules in value
        ]

    def from_plain(self, plain: Any) -> Any:
        try:
            return [
                (
                    ManifestSplitCondition.from_plain(condition),
                    [
                        # A stored size of 0 makes no sense and must not keep anybody from opening the repository.
                        (ManifestSplitDimCondition.from_plain(rule["condition"]), rule["num_chunks"] or NEVER_SPLIT)
                        for rule in rules
                    ],
                )
                for condition, rules in plain
            ]
        except (TypeError, KeyError):
            raise ValueError("must be a list of [condition, [{'condition': …, 'num_chunks': …}, …]]") from None


type ManifestSplitValues = dict[ManifestSplitDimCondition, int]
"""Split sizes, in chunks, by the axes that they are for; the first that matches an axis counts."""

type SplitSizesDict = dict[ManifestSplitCondition, ManifestSplitValues]
"""Split sizes by the arrays that they are for; see :meth:`ManifestSplittingConfig.from_dict`."""


def _check_size(size: Any) -> int:
    number = U32.check(size)
    if number == 0:
        raise ValueError("needs split sizes of at least one chunk")
    return number


@dataclass(slots=True, repr=False)
class ManifestSplittingConfig(Settings):
    """How the references of one array are divided among manifests.

    The rules of every entry whose array condition matches are used, in order; each axis takes its size, in chunks,
    from the first rule that matches it. An axis that no rule matches stays whole.
    """

    split_sizes: SplitSizes | None = setting(_SplitSizesKind())

    @staticmethod
    def from_dict(
        split_sizes: Mapping[ManifestSplitCondition, Mapping[ManifestSplitDimCondition, int]],
    ) -> ManifestSplittingConfig:
        """Rules as nested dicts, whose order counts."""
        return ManifestSplittingConfig(
            tuple((condition, tuple(rules.items())) for condition, rules in split_sizes.items())
        )

    def to_dict(self) -> dict[ManifestSplitCondition, dict[ManifestSplitDimCondition, int]]:
        """Inverse of :meth:`from_dict`."""
        return {condition: dict(rules) for condition, rules in self.split_sizes or ()}

    def edges_for(
        self, path: str, ndim: int, dimension_names: tuple[str | None, ...] | None = None
    ) -> tuple[int, ...] | None:
        """Split size along each axis of an array, in chunks (spec, *Manifest splitting*).

        Returns
        -------
        ``2**32 - 1`` for an axis that stays whole; None when no rule is about any axis of this array.
        """
        names = dimension_names if dimension_names is not None else (None,) * ndim
        edges: dict[int, int] = {}
        for condition, rules in self.split_sizes or ():
            if len(edges) < ndim and condition.matches(path):
                for axis in range(ndim):
                    size = next((size for rule, size in rules if rule.matches(axis, names[axis])), None)
                    if size is not None:
                        edges.setdefault(axis, size)
        return tuple([edges.get(axis, NEVER_SPLIT) for axis in range(ndim)]) if edges else None


@dataclass(slots=True, repr=False)
class ManifestPreloadConfig(Settings):
    """Which manifests are loaded when a session starts; only warms the cache."""

    max_total_refs: int | None = setting(U32, effective=10_000)
    preload_if: ManifestPreloadCondition | None = setting(
        ConditionKind(ManifestPreloadCondition), effective=default_preload_condition()
    )
    max_arrays_to_scan: int | None = setting(U32, effective=50)


@dataclass(slots=True, repr=False)
class ManifestVirtualChunkLocationCompressionConfig(Settings):
    """When and how locations of virtual chunks are compressed with a dictionary."""

    min_num_chunks: int | None = setting(U16, effective=1000)
    dictionary_max_training_samples: int | None = setting(U16, effective=100, kw_only=True)
    dictionary_max_size_bytes: int | None = setting(U32, effective=2048, kw_only=True)
    compression_level: int | None = setting(I32, effective=3, kw_only=True)


@dataclass(slots=True, repr=False)
class ManifestConfig(Settings):
    """Configuration of manifests."""

    # Merged as official does it: the newer preload configuration replaces the older one.
    preload: ManifestPreloadConfig | None = setting(Part(ManifestPreloadConfig, whole=True))
    splitting: ManifestSplittingConfig | None = setting(Part(ManifestSplittingConfig, whole=True))
    virtual_chunk_location_compression: ManifestVirtualChunkLocationCompressionConfig | None = setting(
        Part(ManifestVirtualChunkLocationCompressionConfig)
    )
    max_concurrent_manifest_fetches_during_commit: int | None = setting(U16, effective=16)
