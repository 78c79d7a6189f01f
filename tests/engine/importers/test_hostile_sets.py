"""Hostile reference sets: none hangs or fills the memory, and each raises an error that says what to do."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk_engine import Repository, in_memory_storage
from icechunk_engine.errors import InvalidInputError
from icechunk_engine.importers.kerchunk import import_kerchunk
from icechunk_engine.importers.limits import ReferenceLimits
from icechunk_engine.session import Session, workspace_of
from tests.engine.importers import hostile_sets

MEMORY_BAR_MB = 300
WATCHDOG_S = 120


@pytest.fixture
def session() -> Session:
    return Repository.create(in_memory_storage()).writable_session("main")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """The outcome of each hostile set. One process with a time limit imports them one after the other."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(hostile_sets.__file__)
    try:
        run = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, timeout=WATCHDOG_S
        )
        lines = run.stdout
    except subprocess.TimeoutExpired as stopped:
        lines = stopped.stdout.decode() if isinstance(stopped.stdout, bytes) else ""
    return {outcome["name"]: outcome for outcome in map(json.loads, lines.splitlines())}


@pytest.mark.parametrize("name", hostile_sets.HOSTILE)
def test_hostile_sets_are_refused(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert name in outcomes, "the import did not end, or took the process with it"
    outcome = outcomes[name]
    assert outcome["found"] == "InvalidInputError", outcome["message"]
    assert re.search(hostile_sets.HOSTILE[name][1], outcome["message"], re.DOTALL), outcome["message"]
    assert len(outcome["message"]) < 1500
    assert not outcome["changed"]
    assert outcome["peak_mb"] < MEMORY_BAR_MB


# --- limits can be raised --------------------------------------------------------------------------------------------


def imported(refs: Any, session: Session, **limits: int) -> None:
    import_kerchunk(refs, session, validate_containers=False, limits=ReferenceLimits(**limits))


RAISED: dict[str, tuple[Any, dict[str, int], dict[str, int]]] = {
    "items of gen": (
        {
            "version": 1,
            "gen": [hostile_sets.gen("a/{{i}}.0", "s3://b/x", i={"stop": 3})],
            "refs": hostile_sets.small_set(),
        },
        {"items": 2},
        {"items": 3},
    ),
    "groups that keys name": ({"x/y/z/.zgroup": "{}"}, {"items": 29}, {"items": 30}),
    "depth of keys": ({"x/y/z/.zgroup": "{}"}, {"depth": 2}, {"depth": 3}),
    "depth of documents": ({".zattrs": hostile_sets.nested(150)}, {"depth": 149}, {"depth": 150}),
    "compressed text": (
        gzip.compress(json.dumps(hostile_sets.small_set()).encode()),
        {"expanded_bytes": 200},
        {"expanded_bytes": 1000},
    ),
    "long elements": (
        hostile_sets.with_array(dtype="|V4", fill_value=None),
        {"expanded_bytes": 63},
        {"expanded_bytes": 64},
    ),
}


@pytest.mark.parametrize("case", RAISED)
def test_limits_can_be_raised(case: str, session: Session) -> None:
    refs, too_low, enough = RAISED[case]
    with pytest.raises(InvalidInputError, match=rf"limits=ReferenceLimits\({next(iter(too_low))}="):
        imported(refs, session, **too_low)
    assert not session.has_uncommitted_changes
    imported(refs, session, **enough)
    assert session.has_uncommitted_changes


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"depth": 201}, {"items": -1}, {"items": 1.5}, {"expanded_bytes": 0}])
def test_limits_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        ReferenceLimits(**wrong)


# --- what is not refused ---------------------------------------------------------------------------------------------


def test_keys_below_an_array_that_are_no_chunks_are_reported(session: Session) -> None:
    refs = hostile_sets.small_set(**{"a/README": "hello", "a/.DS_Store": "x", "a/notes/1": "x", "b/00": "x"})
    report = import_kerchunk(refs, session, validate_containers=False)
    assert set(report.stray) == {"a/README", "a/.DS_Store", "a/notes/1", "b/00"}


def test_keys_of_an_array_without_elements_are_reported(session: Session) -> None:
    refs = hostile_sets.with_array(shape=[0, 4], chunks=[1, 4])
    assert import_kerchunk(refs, session, validate_containers=False).num_stray == 3


def test_a_set_of_33_dimensions(session: Session) -> None:
    refs = {
        "a/.zarray": json.dumps(hostile_sets.ZARRAY | {"shape": [1] * 33, "chunks": [1] * 33}),
        "a/" + ".".join("0" * 33): "\x01\x02\x03\x04",
    }
    import_kerchunk(refs, session)
    assert session.store.get_sync("a/c/" + "/".join("0" * 33)) is not None


def test_a_large_product_is_generated_in_order(session: Session) -> None:
    """More rows than one block, with arithmetic, functions and string dimensions."""
    refs = {"a/.zarray": json.dumps(hostile_sets.ZARRAY | {"shape": [60, 200, 4], "chunks": [1, 1, 4]})}
    item = {
        "key": "a/{{i}}.{{j}}.0",
        "url": "{{f(c=p)}}{{i // 10}}.bin",
        "offset": "{{(i * 200 + j) * 16}}",
        "length": 16,
        "dimensions": {"p": ["x"], "i": {"stop": 60}, "j": {"start": 199, "stop": -1, "step": -1}},
    }
    document = {"version": 1, "templates": {"f": "s3://b/{{c}}-{{c}}"}, "gen": [item], "refs": refs}
    report = import_kerchunk(document, session, validate_containers=False)
    assert report.num_virtual == 12_000
    found = workspace_of(session).chunk_refs("/a")
    rows = np.lexsort(found.indices.T[::-1])
    indices, offsets = found.indices[rows], found.offsets[rows]
    np.testing.assert_array_equal(offsets, (indices[:, 0].astype(np.uint64) * 200 + indices[:, 1]) * 16)
    row = int(np.flatnonzero((indices[:, 0] == 37) & (indices[:, 1] == 5))[0])
    assert found.row(int(rows[row])).location == "s3://b/x-x3.bin"


# --- all or nothing --------------------------------------------------------------------------------------------------


def test_an_import_that_is_cut_short_leaves_the_session_as_it_was(session: Session) -> None:
    zarr.create_group(session.store, attributes={"before": 1})
    zarr.create_array(session.store, name="a", shape=(3,), chunks=(1,), dtype="i4")[:] = 7
    refs = hostile_sets.small_set(**{".zattrs": '{"after": 1}', "b/.zarray": json.dumps(hostile_sets.ZARRAY)})

    def stop(path: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_kerchunk(refs, session, validate_containers=False, overwrite=True, progress=stop)
    assert workspace_of(session).get_node("/b") is None
    assert dict(zarr.open_group(session.store, mode="r").attrs) == {"before": 1}
    np.testing.assert_array_equal(zarr.open_array(session.store, path="a", mode="r")[:], [7, 7, 7])
