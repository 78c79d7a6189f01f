"""Change flatbuffers into ones that no writer would make."""

from __future__ import annotations

import struct
from collections.abc import Collection

import numpy as np


def repeated(body: bytes, slot: int, n: int, offset_slots: Collection[int], item: int = 0) -> bytes:
    """Return the file with a list in its root table that contains one item ``n`` times.

    Parameters
    ----------
    slot
        The field of the list.
    offset_slots
        All fields of the root that are offsets.
    item
        The item to repeat.
    """
    (root,) = struct.unpack_from("<I", body, 0)
    vtable = root - struct.unpack_from("<i", body, root)[0]
    vtable_size, table_size = struct.unpack_from("<HH", body, vtable)
    fields = struct.unpack_from(f"<{vtable_size // 2 - 2}H", body, vtable + 4)
    new_vtable = 8
    new_root = new_vtable + vtable_size + -vtable_size % 8
    vector = new_root + table_size + -table_size % 8 + 4
    shift = vector + 4 + 4 * n + -(vector + 4 + 4 * n) % 8

    table = bytearray(body[root : root + table_size])
    struct.pack_into("<i", table, 0, new_root - new_vtable)
    for each in offset_slots:
        if each < len(fields) and fields[each]:
            at = fields[each]
            target = root + at + struct.unpack_from("<I", body, root + at)[0]
            struct.pack_into("<I", table, at, (vector if each == slot else shift + target) - new_root - at)
            if each == slot:
                place = target + 4 + 4 * item
                repeated_item = shift + place + struct.unpack_from("<I", body, place)[0]

    front = bytearray(shift)
    struct.pack_into("<I", front, 0, new_root)
    front[new_vtable : new_vtable + vtable_size] = body[vtable : vtable + vtable_size]
    front[new_root : new_root + table_size] = table
    struct.pack_into("<I", front, vector, n)
    places = vector + 4 + 4 * np.arange(n, dtype=np.int64)
    front[vector + 4 : vector + 4 + 4 * n] = (repeated_item - places).astype("<u4").tobytes()
    return bytes(front) + body
