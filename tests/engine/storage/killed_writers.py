"""Run by test_killed_writers.py in a process of its own: fork writers, kill them at random points, look at the rest.

Usage: ``killed_writers.py ROOT N_ROUNDS MAX_SECONDS``. Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import struct
import sys
import time
from contextlib import suppress

from icechunk_engine.errors import ObjectNotFoundError, VersionMismatchError
from icechunk_engine.storage import LocalStorage

N_WRITERS = 3
RECORD = struct.Struct("<Q")


def content(value: int) -> bytes:
    """A counter in a page or more of text that shows any damage."""
    body = b"%d " % value * (200 + value % 1000)
    return hashlib.sha256(body).digest() + body


def value_of(data: bytes) -> int:
    """The counter; raises on a torn or mixed object."""
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise SystemExit(f"torn object of {len(data)} bytes")
    return int(data[32:].split(b" ", 1)[0])


def write_for_ever(storage: LocalStorage, acknowledge: int, me: str) -> None:
    """Increment, and acknowledge every increment that returned, until killed."""
    n = 0
    while True:
        storage.put(f"chunks/{me}-{n % 4}", content(n))
        n += 1
        data, version = storage.get_versioned("repo")
        value = value_of(data) + 1
        try:
            storage.replace("repo", content(value), version)
        except VersionMismatchError:
            continue
        os.write(acknowledge, RECORD.pack(value))


def start_writer(storage: LocalStorage, me: str) -> tuple[int, int]:
    """Process id of a writer, and the pipe of its acknowledgements."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            write_for_ever(storage, write_end, me)
        finally:
            os._exit(1)
    os.close(write_end)
    return pid, read_end


def acknowledged(pipe: int) -> list[int]:
    """Everything a dead writer said."""
    data = b""
    while part := os.read(pipe, 65536):
        data += part
    os.close(pipe)
    return [value for (value,) in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])]


def main(root: str, n_rounds: int, max_s: float) -> None:
    rng = random.Random()
    storage = LocalStorage(root)
    storage.create("repo", content(0))
    all_acknowledged: list[int] = []
    n_own = n_reads = 0
    started_at = time.monotonic()
    for n_round in range(n_rounds):
        if time.monotonic() > started_at + max_s:
            break
        written = LocalStorage(root, durable=n_round % 2 == 0)
        writers = [start_writer(written, f"{me}") for me in range(N_WRITERS)]
        stop_at = time.monotonic() + rng.uniform(0, 0.02)
        last = 0
        while time.monotonic() < stop_at:
            value = value_of(storage.get("repo"))
            if value < last:
                raise SystemExit(f"the counter went back from {last} to {value}")
            last = value
            n_reads += 1
        for pid, _ in writers:
            os.kill(pid, signal.SIGKILL)
        for pid, _ in writers:
            os.waitpid(pid, 0)
        said = [value for _, pipe in writers for value in acknowledged(pipe)]
        all_acknowledged += said
        # Nothing is locked, nothing acknowledged is lost, everything is whole.
        data, version = storage.get_versioned("repo")
        value = value_of(data)
        if said and value < max(said):
            raise SystemExit(f"round {n_round}: {max(said)} was acknowledged, {value} is there")
        storage.replace("repo", content(value + 1), version)
        n_own += 1
        all_acknowledged.append(value + 1)
        for me in range(N_WRITERS):
            for n in range(4):
                with suppress(ObjectNotFoundError):
                    value_of(storage.get(f"chunks/{me}-{n}"))
    final = value_of(storage.get("repo"))
    print(
        json.dumps(
            {
                "final": final,
                "n_acknowledged": len(all_acknowledged),
                "n_distinct": len(set(all_acknowledged)),
                "by_writers": len(all_acknowledged) - n_own,
                "n_reads": n_reads,
                "n_kills": n_own * N_WRITERS,
                "listed": sorted(info.key for info in storage.list()),
                "n_strays": sum("#" in name for _, _, names in os.walk(root) for name in names),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
