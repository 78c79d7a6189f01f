"""Enumerations compare, print and construct members like official's."""

from __future__ import annotations

import copy
import pickle
from enum import Enum
from typing import Any

import icechunk as official
import numpy as np
import pytest

import icechunk_engine as ours

ENUMS = [
    "ChecksumAlgorithm",
    "ChunkType",
    "CompressionAlgorithm",
    "ConflictType",
    "RepoAvailability",
    "SessionMode",
    "SpecVersion",
    "VersionSelection",
]
EQUAL_TO_INTEGERS = {"ChecksumAlgorithm", "ChunkType", "CompressionAlgorithm", "RepoAvailability", "SpecVersion"}


def names(enum: Any) -> list[str]:
    return [name for name in dir(enum) if not name.startswith("_") and isinstance(getattr(enum, name), enum)]


def pairs() -> list[tuple[str, str]]:
    return [(enum, member) for enum in ENUMS for member in names(getattr(official, enum))]


def classes(package: Any) -> dict[str, type]:
    return {name: thing for name, thing in vars(package).items() if isinstance(thing, type)}


def test_no_enum_is_forgotten() -> None:
    """Members of official's enumerations are instances of the class."""
    found = {name for name, cls in classes(official).items() if names(cls)}
    assert found == {name for name, cls in classes(ours).items() if issubclass(cls, Enum)} == {*ENUMS, "ErrorKind"}


@pytest.mark.parametrize(("enum", "member"), pairs())
class TestMembers:
    def test_number(self, enum: str, member: str) -> None:
        theirs, own = getattr(getattr(official, enum), member), getattr(getattr(ours, enum), member)
        assert int(own) == int(theirs) == own.value
        assert f"{own:}" == f"{theirs:}"
        assert str(own) == str(theirs)
        assert "%d" % own == "%d" % theirs  # noqa: UP031
        assert repr(own) == repr(theirs).removesuffix(" (current)")
        assert bool(own) is bool(theirs) is True

    def test_equality(self, enum: str, member: str) -> None:
        theirs, own = getattr(getattr(official, enum), member), getattr(getattr(ours, enum), member)
        number = int(theirs)
        assert (theirs == number) is (enum in EQUAL_TO_INTEGERS)
        column = np.array([number, number + 1], "u1")
        for other in (
            number,
            number + 1,
            np.uint8(number),
            np.int64(number),
            np.array(number),
            None,
            str(number),
            1 << 70,
        ):
            assert (own == other) == (theirs == other), other
            assert (other == own) == (other == theirs), other
            assert (own != other) == (theirs != other), other
        for one, another in ((column, column), (column.astype("i8"), column.astype("i8"))):
            np.testing.assert_array_equal(one == own, another == theirs)
            np.testing.assert_array_equal(own == one, theirs == another)
            np.testing.assert_array_equal(np.isin(one, own), np.isin(another, theirs))
        assert own == getattr(getattr(ours, enum), member)
        if enum in EQUAL_TO_INTEGERS:
            assert hash(own) == hash(number)

    def test_copies(self, enum: str, member: str) -> None:
        own = getattr(getattr(ours, enum), member)
        assert pickle.loads(pickle.dumps(own)) is copy.copy(own) is copy.deepcopy(own) is own


def test_members_are_the_same() -> None:
    for enum in ENUMS:
        extra = {"offline"} if enum == "RepoAvailability" else set()
        assert set(names(getattr(ours, enum))) == set(names(getattr(official, enum))) | extra


def test_numbers_of_different_subjects_are_not_mixed() -> None:
    assert ours.ChunkType.native != ours.SpecVersion.v1
    assert ours.SpecVersion.v1 != ours.ChunkType.native
    assert ours.ChunkType.native != ours.RepoAvailability.read_only


def test_made_from_numbers() -> None:
    assert ours.ConflictType(6) is ours.ConflictType.ChunkDoubleUpdate
    assert repr(official.ConflictType(6)) == "ChunkDoubleUpdate"
    for enum in (ours.ConflictType, official.ConflictType):
        with pytest.raises(ValueError):
            enum(0)
    compression: Any = ours.CompressionAlgorithm
    assert compression() is compression.default()
    theirs: Any = official.CompressionAlgorithm
    assert int(theirs()) == int(compression())
    with pytest.raises(ValueError):
        ours.CompressionAlgorithm(1)


def test_versions_have_an_order() -> None:
    for package in (ours, official):
        version = package.SpecVersion
        assert version.v1 < version.v2
        assert version.v1 < 2
        assert sorted([version.v2, version.v1]) == [version.v1, version.v2] == [1, 2]
        assert str(version.current()) == "SpecVersion.v2 (current)"


def test_reprs_evaluate() -> None:
    for enum in sorted(set(ENUMS) - {"ConflictType"}):
        for member in getattr(ours, enum):
            assert eval(repr(member), vars(ours)) is member
