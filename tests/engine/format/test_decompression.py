"""Bounded decompression: correct results, typed errors for damage, and bombs that cost nothing."""

from __future__ import annotations

import contextlib
import gzip
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.format.decompression import DamagedError, TooLargeError, decompress_gzip, decompress_zstd

TEXT = b"some text that recurs, " * 5000
MAGIC = struct.pack("<I", 0xFD2FB528)


def zstd(data: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(data)


def rle_bomb(n_blocks: int, announced: int | None) -> bytes:
    """Make a frame whose blocks of 4 bytes hold 128 KiB each."""
    # Descriptor: 8 bytes of content size in a single segment, or none and a window of 128 KiB.
    start = b"\xe0" + struct.pack("<Q", announced) if announced is not None else b"\x00\x38"
    block = (2**17 << 3) | 2
    return MAGIC + start + (struct.pack("<I", block)[:3] + b"x") * n_blocks + struct.pack("<I", 1)[:3]


FORMS: dict[str, tuple[Callable[[bytes], bytes], Callable[[Any, int], bytes | bytearray]]] = {
    "gzip": (gzip.compress, decompress_gzip),
    "zstd": (zstd, decompress_zstd),
    "unsized": (lambda x: zstd(x, sized=False), decompress_zstd),
}


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary() | st.just(TEXT), n_more=st.integers(0, 2))
def test_both_ways_and_several_in_a_row(form: str, data: bytes, n_more: int) -> None:
    compress, decompress = FORMS[form]
    parts = [data, b"more", b"", b"and more"][: 1 + n_more]
    assert decompress(b"".join(map(compress, parts)), 10**6) == b"".join(parts)


@pytest.mark.parametrize("form", FORMS)
def test_the_limit_is_exact(form: str) -> None:
    compress, decompress = FORMS[form]
    assert decompress(compress(TEXT), len(TEXT)) == TEXT
    with pytest.raises(TooLargeError) as caught:
        decompress(compress(TEXT), len(TEXT) - 1)
    assert caught.value.limit == len(TEXT) - 1


@pytest.mark.parametrize("form", FORMS)
def test_damage(form: str) -> None:
    compress, decompress = FORMS[form]
    whole = compress(TEXT)
    for length in range(len(whole)):
        with pytest.raises(DamagedError):
            decompress(whole[:length], 10**6)
    with pytest.raises(DamagedError):
        decompress(whole + b"more", 10**6)
    with pytest.raises(DamagedError):
        decompress(b"neither of them", 10**6)


@pytest.mark.parametrize("form", FORMS)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_changed_bytes_end_in_typed_errors_or_bytes(form: str, at: int, byte: int) -> None:
    compress, decompress = FORMS[form]
    changed = bytearray(compress(TEXT))
    changed[at % len(changed)] = byte
    with contextlib.suppress(DamagedError, TooLargeError):
        assert len(decompress(changed, 10**6)) <= 10**6


def test_zeros_after_a_gzip_member_are_padding() -> None:
    assert decompress_gzip(gzip.compress(TEXT) + bytes(1000), 10**6) == TEXT


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("announced", [2**30, 2**34, 2**63, 2**64 - 3, None])
def test_a_lie_costs_nothing(announced: int | None) -> None:
    """Some frames announce more than they hold, others hold 16 GiB in half a megabyte."""
    short, bomb = rle_bomb(3, announced), rle_bomb(2**17, announced)

    def read() -> None:
        with pytest.raises(TooLargeError if announced is None or announced > 2**32 else DamagedError):
            decompress_zstd(short if announced else bomb, 2**32 if announced else 2**24)
        with pytest.raises(TooLargeError):
            decompress_zstd(bomb, 2**24)

    assert peak_of(read) < 2**26


def test_a_gzip_bomb_is_stopped() -> None:
    bomb = gzip.compress(bytes(10**8))

    def read() -> None:
        with pytest.raises(TooLargeError):
            decompress_gzip(bomb, 2**24)

    assert peak_of(read) < 2**26
