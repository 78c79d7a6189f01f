"""Columns of byte strings, compared with lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from icechunk_engine.catalog.dates import utc_of_column, utc_of_us
from icechunk_engine.columns.tables import BytesTable, gather_ranges, insert_ragged, starts_of
from icechunk_engine.ids import base32_of_rows, encode_base32

STRINGS = st.lists(st.binary(max_size=5), max_size=12)


@given(STRINGS, STRINGS, st.data())
def test_strings_are_inserted(ours: list[bytes], others: list[bytes], data: st.DataObject) -> None:
    skipped = data.draw(st.integers(0, len(ours)), "skipped")
    place = data.draw(st.integers(0, len(ours) - skipped), "place")
    whole = BytesTable.of(ours)
    part = BytesTable(whole.data, whole.starts[skipped:])
    kept = ours[skipped:]
    found = part.insert(place, BytesTable.of(others))
    assert found.raws() == kept[:place] + others + kept[place:]


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5), st.data())
def test_lists_are_inserted(lists: list[list[int]], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(lists)), "place")
    items = np.array([item for some in lists for item in some], np.int64)
    starts = starts_of(np.array([len(some) for some in lists], np.int64))
    found, found_starts = insert_ragged(items, starts, place, np.array([7, 8]), np.array([0, 2]))
    expected = [*lists[:place], [7, 8], *lists[place:]]
    assert [found[a:b].tolist() for a, b in zip(found_starts, found_starts[1:], strict=False)] == expected


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=20), st.sampled_from([np.int64, np.uint64]))
def test_ranges_are_gathered(ranges: list[tuple[int, int]], dtype: type) -> None:
    items = np.arange(50)
    pairs: NDArray[Any] = np.array(ranges, dtype).reshape(-1, 2)
    starts, lengths = pairs[:, 0], pairs[:, 1]
    expected = [item for start, length in ranges for item in range(start, start + length)]
    assert gather_ranges(items, starts, lengths).tolist() == expected


@given(STRINGS, st.lists(st.integers(0, 11), max_size=20))
def test_strings_are_taken(strings: list[bytes], rows: list[int]) -> None:
    chosen = [row for row in rows if row < len(strings)]
    assert BytesTable.of(strings).take(np.array(chosen, np.int64)).raws() == [strings[row] for row in chosen]


@given(st.sampled_from([8, 12, 16]), st.data())
def test_names_of_ids(size: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.binary(min_size=size, max_size=size), max_size=5))
    rows = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, size)
    assert base32_of_rows(rows) == [encode_base32(one) for one in ids]


@given(st.lists(st.integers(0, 253_402_300_799_999_999), max_size=5))
def test_times(times: list[int]) -> None:
    assert list(utc_of_column(np.array(times, np.uint64), [""] * len(times))) == [utc_of_us(time) for time in times]
