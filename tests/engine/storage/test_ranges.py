"""Ranges are cut into parts that cover them once, in order, as the settings say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.config import StorageConcurrencySettings, StorageSettings
from icechunk_engine.storage.ranges import PartSizes

SIZES = st.builds(PartSizes, ideal_bytes=st.integers(0, 100), most=st.integers(0, 20))


@given(SIZES, st.integers(0, 1000), st.integers(0, 1000))
def test_parts_cover_a_range(sizes: PartSizes, start: int, size: int) -> None:
    stop = start + size
    parts = sizes.cut(start, stop)
    assert [at for part in parts for at in range(*part)] == list(range(start, stop))
    assert len(parts) <= max(sizes.most, 1)
    lengths = [part_stop - part_start for part_start, part_stop in parts]
    assert size == 0 or min(lengths) > 0
    assert max(lengths) - min(lengths) <= 1
    if len(parts) < sizes.most:
        assert max(lengths) <= max(sizes.ideal_bytes, 1)
    if len(parts) > 1:
        assert (len(parts) - 1) * sizes.ideal_bytes < size


def test_settings_say_how_large_parts_are() -> None:
    def of(*given: int | None) -> PartSizes:
        return PartSizes.of(StorageSettings(concurrency=StorageConcurrencySettings(*given)))

    assert PartSizes.of(StorageSettings()) == of() == PartSizes() == (12 * 2**20, 18)
    assert of(3, 1000) == (1000, 3)
    assert of(3) == (12 * 2**20, 3)
    assert of(None, 1000) == (1000, 18)


@given(SIZES, st.integers(1, 5 * 2**40))
def test_uploads_have_parts_that_stores_take(sizes: PartSizes, size: int) -> None:
    part = sizes.upload_bytes(size)
    assert part >= 5 * 2**20
    assert -(-size // part) <= 10_000
