"""Testing a storage location: can you read and write there, and are commits safe?"""

from __future__ import annotations

import os
import statistics
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from icechunk_engine.catalog.spec_1_ref_files import RefFileCatalog
from icechunk_engine.errors import ErrorKind, IcechunkError, ObjectNotFoundError, VersionMismatchError
from icechunk_engine.format import layout
from icechunk_engine.format.repo_info import decode_repo_info
from icechunk_engine.storage import storage_from_url
from icechunk_engine.storage.base import PROBE_PREFIX, Storage, Version

_COMPETITORS = 8
_ROUNDS = 3
_LATENCY_PROBES = 5
_CLOCK_TOLERANCE_S = 60
_CONDITIONAL_WRITES = "conditional writes"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one test. ``ok`` is None if the test was skipped or only informs."""

    name: str
    ok: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "    "}[self.ok]
        return f"{mark} {self.name}: {self.text}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results of :func:`doctor`."""

    location: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if no test failed."""
        return all(finding.ok is not False for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([self.location, *(f"  {finding}" for finding in self.findings)])


def doctor(
    location: str | os.PathLike[str] | Storage,
    *,
    storage_options: Mapping[str, Any] | None = None,
    write: bool = False,
) -> Diagnosis:
    """Test a storage location, print the results, and return them.

    Parameters
    ----------
    location, storage_options
        A storage, or a path or URL with its options.
    write
        Also test writing, below ``doctor/``. The objects are removed afterwards. Without it nothing is changed.

    Raises
    ------
    InvalidInputError
        The location or an option is not valid. If the store refuses something, that is a finding, not an error.
    """
    storage = location if isinstance(location, Storage) else storage_from_url(location, storage_options)
    findings = [_try("read", lambda: _read(storage))]
    if findings[0].ok:
        findings.append(_try("byte ranges", lambda: _ranges(storage)))
        findings.append(_try("latency", lambda: _latency(storage)))
        findings.append(_try("list", lambda: _list(storage)))
    if storage.read_only:
        findings.append(Finding("write", None, "this storage is read-only"))
    elif not write:
        findings.append(Finding("write", None, "not tried; pass write=True"))
    elif findings[0].ok:
        findings.extend(_write_findings(storage))
    diagnosis = Diagnosis(storage.identity, tuple(findings))
    print(diagnosis)
    return diagnosis


class _Failed(Exception):
    """A test got a wrong answer."""


def _try(name: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, probe())
    except _NotTried as reason:
        return Finding(name, None, str(reason))
    except (_Failed, IcechunkError) as error:
        if isinstance(error, IcechunkError) and error.kind is ErrorKind.NO_CONDITIONAL_WRITES:
            name = _CONDITIONAL_WRITES  # any write may be the first to find out
        return Finding(name, False, str(error))


class _NotTried(Exception):
    """A test has nothing to work on."""


def _read(storage: Storage) -> str:
    try:
        data, _ = storage.get_versioned(layout.REPO)
    except ObjectNotFoundError:
        if storage.info(RefFileCatalog.entry_key()) is not None:
            return "a repository of spec version 1"
        return "reachable; it holds no repository"
    info = decode_repo_info(data)
    return (
        f"a repository of spec version {info.spec_version} with {len(info.snapshots)} snapshots, "
        f"{len(info.branches)} branches and {len(info.tags)} tags ('repo' has {len(data)} bytes)"
    )


def _ranges(storage: Storage) -> str:
    try:
        data = storage.get(layout.REPO)
    except ObjectNotFoundError:
        raise _NotTried("not tried: it holds no object 'repo'") from None
    middle = len(data) // 2
    if storage.get_range(layout.REPO, 1, middle) != data[1:middle]:
        raise _Failed("the store returned other bytes than those asked for: it cannot be read from safely")
    return "right"


def _latency(storage: Storage) -> str:
    times_ms = []
    for _ in range(_LATENCY_PROBES):
        start = time.perf_counter()
        storage.info(layout.REPO)
        times_ms.append((time.perf_counter() - start) * 1000)
    return f"{statistics.median(times_ms):.1f} ms for a small request ({min(times_ms):.1f} to {max(times_ms):.1f})"


def _list(storage: Storage) -> str:
    first = next(iter(storage.list("snapshots/")), None)
    return "allowed" + ("" if first is not None else "; it holds no snapshots")


def _write_findings(storage: Storage) -> list[Finding]:
    place = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    keys = [f"{place}/object", *(f"{place}/race{n}" for n in range(_ROUNDS))]
    try:
        findings = [_try("write", lambda: _put(storage, keys[0]))]
        if findings[0].ok:
            findings.append(_try("clock", lambda: _clock(storage, keys[0])))
            findings.append(_try(_CONDITIONAL_WRITES, lambda: _conditions(storage, keys[0])))
            findings.append(_try("one winner", lambda: _races(storage, keys[1:])))
    finally:
        removed = _try("remove", lambda: _remove(storage, keys))
    return [*findings, removed]


def _put(storage: Storage, key: str) -> str:
    data = os.urandom(1000)
    storage.put(key, data)
    if storage.get(key) != data:
        raise _Failed("what was written was not read back: the store is not consistent, and unsafe")
    return "allowed, and read back at once"


def _clock(storage: Storage, key: str) -> str:
    found = storage.info(key)
    assert found is not None
    ahead_s = found.last_modified_us / 1e6 - time.time()
    if abs(ahead_s) > _CLOCK_TOLERANCE_S:
        raise _Failed(
            f"the store's clock and this machine's differ by {abs(ahead_s):.0f} s: set this machine's clock, or "
            f"garbage collection may spare too much or too little"
        )
    return "that of this machine, within a minute"


def _conditions(storage: Storage, key: str) -> str:
    version = storage.get_versioned(key)[1]
    _must_lose("create an object that exists", lambda: storage.create(key, b"1"))
    newer = storage.replace(key, b"2", version)
    _must_lose("replace an old version", lambda: storage.replace(key, b"3", version))
    if storage.get_versioned(key) != (b"2", newer):
        raise _Failed("a refused write has changed the object: commits are not safe here")
    return "kept"


def _must_lose(action: str, write: Callable[[], object]) -> None:
    try:
        write()
    except VersionMismatchError:
        return
    raise _Failed(f"the store let us {action}: it ignores conditions, and commits would be lost. Do not write there")


def _races(storage: Storage, keys: list[str]) -> str:
    """Let several writers compete, in rounds: a store that checks first and writes later fails only now and then."""

    def won(key: str, me: int) -> Version | None:
        try:
            return storage.create(key, b"%d" % me)
        except VersionMismatchError:
            return None

    with ThreadPoolExecutor(_COMPETITORS) as pool:
        for key in keys:
            versions = list(pool.map(won, [key] * _COMPETITORS, range(_COMPETITORS)))
            n_winners = sum(version is not None for version in versions)
            if n_winners != 1:
                raise _Failed(f"{n_winners} of {_COMPETITORS} writers won one object: commits are not safe here")
    return f"of {_COMPETITORS} writers, {len(keys)} times"


def _remove(storage: Storage, keys: list[str]) -> str:
    storage.delete(keys)
    left = [found.key for found in storage.list(keys[0].rpartition("/")[0] + "/")]
    if left:
        raise _Failed(f"these objects were left: {', '.join(left)}. Remove them")
    return "allowed"
