"""Configuration of manifests: splitting, preloading, compression of virtual locations."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from icechunk_engine.config.array_conditions import (
    NEVER_SPLIT,
    ConditionKind,
    ManifestPreloadCondition,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    SplitSizes,
)
from icechunk_engine.config.base import I32, U16, U32, Kind, Part, Settings, setting
from icechunk_engine.types import Json

_COORDINATE_NAMES = (
    r"^\bt\b$|^(time|min|hour|day|week|month|year)[0-9]*$",
    r"^(z|nav_lev|gdep|lv_|[o]*lev|bottom_top|sigma|h(ei)?ght|altitude|depth|isobaric|pres|isotherm)[a-z_]*[0-9]*$",
    r"^(y|j|nlat|rlat|nj)$",
    r"^y?(nav_lat|lat|gphi)[a-z0-9]*$",
    r"^x?(nav_lon|lon|glam)[a-z0-9]*$",
    r"^(x|i|nlon|rlon|ni)$",
)
"""Usual names of coordinate variables in the CF conventions."""


def default_preload_condition() -> ManifestPreloadCondition:
    """Return the default condition: small manifests of arrays that look like coordinates."""
    condition = ManifestPreloadCondition
    return condition.or_conditions([condition.name_matches(names) for names in _COORDINATE_NAMES]) & (
        condition.from_plain({"num_refs": {"from": "Unbounded", "to": {"Included": 1000}}})
    )


class _SplitSizesKind(Kind[SplitSizes]):
    __slots__ = ()

    def check(self, value: object) -> SplitSizes:
        if not isinstance(value, Iterable):
            raise TypeError(_SPLIT_SIZES)
        try:
            sizes = [(condition, [(rule, size) for rule, size in rules]) for condition, rules in value]
        except (TypeError, ValueError):
            raise TypeError(_SPLIT_SIZES) from None
        if not all(
            isinstance(condition, ManifestSplitCondition)
            and all(isinstance(rule, ManifestSplitDimCondition) for rule, _ in rules)
            for condition, rules in sizes
        ):
            raise TypeError(_SPLIT_SIZES)
        return [(condition, [(rule, _check_size(size)) for rule, size in rules]) for condition, rules in sizes]

    def to_plain(self, value: SplitSizes) -> Json:
        return [
            [condition.to_plain(), [{"condition": rule.to_plain(), "num_chunks": size} for rule, size in rules]]
            for condition, rules in value
        ]

    def from_plain(self, plain: Json) -> SplitSizes:
        if not isinstance(plain, list):
            raise ValueError(_STORED_SPLIT_SIZES)
        return [_stored_entry(entry) for entry in plain]


_SPLIT_SIZES = "must be pairs of a ManifestSplitCondition and pairs of a ManifestSplitDimCondition and a size"
_STORED_SPLIT_SIZES = "must be a list of [condition, [{'condition': …, 'num_chunks': …}, …]]"


def _stored_entry(entry: Json) -> tuple[ManifestSplitCondition, list[tuple[ManifestSplitDimCondition, int]]]:
    match entry:
        case [condition, [*rules]]:
            return ManifestSplitCondition.from_plain(condition), [_stored_rule(rule) for rule in rules]
    raise ValueError(_STORED_SPLIT_SIZES)


def _stored_rule(rule: Json) -> tuple[ManifestSplitDimCondition, int]:
    match rule:
        case {"condition": condition, "num_chunks": size}:
            # A stored size of 0 makes no sense, but must not prevent anyone from opening the repository.
            return ManifestSplitDimCondition.from_plain(condition), U32.check(size or NEVER_SPLIT)
    raise ValueError(_STORED_SPLIT_SIZES)


type ManifestSplitValues = dict[ManifestSplitDimCondition, int]
"""Split sizes, in chunks, by condition on the axis. The first condition that matches an axis counts."""

type SplitSizesDict = dict[ManifestSplitCondition, ManifestSplitValues]
"""Split sizes by condition on the array. See :meth:`ManifestSplittingConfig.from_dict`."""


def _check_size(size: object) -> int:
    number = U32.check(size)
    if number == 0:
        raise ValueError("needs split sizes of at least one chunk")
    return number


@dataclass(slots=True, repr=False)
class ManifestSplittingConfig(Settings):
    """How the chunk references of an array are split into manifests.

    All entries whose array condition matches apply, in order. Each axis takes its size, in chunks, from the first rule
    that matches it. An axis without a matching rule is not split.
    """

    split_sizes: SplitSizes | None = setting(_SplitSizesKind())

    @staticmethod
    def from_dict(
        split_sizes: Mapping[ManifestSplitCondition, Mapping[ManifestSplitDimCondition, int]],
    ) -> ManifestSplittingConfig:
        """Make rules from nested dicts. Their order counts."""
        return ManifestSplittingConfig(
            tuple((condition, tuple(rules.items())) for condition, rules in split_sizes.items())
        )

    def to_dict(self) -> dict[ManifestSplitCondition, dict[ManifestSplitDimCondition, int]]:
        """Invert :meth:`from_dict`."""
        return {condition: dict(rules) for condition, rules in self.split_sizes or ()}

    def edges_for(
        self, path: str, ndim: int, dimension_names: tuple[str | None, ...] | None = None
    ) -> tuple[int, ...] | None:
        """Return the split size along each axis of an array, in chunks (spec, *Manifest splitting*).

        Returns
        -------
        Sizes, with ``2**32 - 1`` for an axis that is not split, or None if no rule matches any axis.
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
    """Which manifests are loaded into the cache when a session starts."""

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

    # As in official, a newer preload or splitting configuration replaces the older one as a whole.
    preload: ManifestPreloadConfig | None = setting(Part(ManifestPreloadConfig, whole=True))
    splitting: ManifestSplittingConfig | None = setting(Part(ManifestSplittingConfig, whole=True))
    virtual_chunk_location_compression: ManifestVirtualChunkLocationCompressionConfig | None = setting(
        Part(ManifestVirtualChunkLocationCompressionConfig)
    )
    max_concurrent_manifest_fetches_during_commit: int | None = setting(U16, effective=16)
