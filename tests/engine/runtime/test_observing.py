"""Log records, spans, and the trail of an error."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zarr
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import icechunk_engine as ic
from icechunk_engine._runtime.observing import TRACE
from icechunk_engine.errors import IcechunkError, RefNotFoundError
from icechunk_engine.repository import Repository
from icechunk_engine.storage import requests
from icechunk_engine.storage.wrappers import LimitedStorage, ObservingStorage, StorageCall
from icechunk_engine.testing.latency import LatencyStorage


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Put back what a test sets."""
    loggers = [
        logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("icechunk_engine")
    ]
    before = [(logger, logger.level) for logger in loggers]
    yield
    for name in logging.root.manager.loggerDict:
        if name.startswith("icechunk_engine"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    for logger, level in before:
        logger.setLevel(level)


def use(repo: ic.Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", data=np.arange(1000), chunks=(500,), compressors=None)
    session.commit("one array")
    zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]


def test_silent_unless_asked(repo: ic.Repository, caplog: pytest.LogCaptureFixture) -> None:
    use(repo)
    assert not caplog.records


def test_operations_and_requests(repo: ic.Repository, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "icechunk_engine")
    use(repo)
    operations = "\n".join(record.getMessage() for record in caplog.records)
    assert "committing a session on branch 'main'" in operations
    assert "chunks/" not in operations
    ic.set_logs_filter("trace")
    caplog.handler.setLevel(TRACE)
    caplog.clear()
    use_again = repo.readonly_session("main")
    zarr.open_array(use_again.store, path="a", mode="r")[:]
    assert sum(record.getMessage().startswith("get chunks/") for record in caplog.records) == 2
    with pytest.raises(RefNotFoundError):
        repo.readonly_session("nowhere")
    assert "failed" in caplog.records[-1].getMessage()


def test_filters() -> None:
    ic.set_logs_filter("icechunk::session=debug, icechunk.storage=off, aws=trace, error")
    assert logging.getLogger("icechunk_engine.session").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("icechunk_engine.storage").isEnabledFor(logging.CRITICAL)
    assert not logging.getLogger("icechunk_engine.assets").isEnabledFor(logging.WARNING)
    assert logging.getLogger("icechunk_engine.assets").isEnabledFor(logging.ERROR)
    assert "aws" not in logging.root.manager.loggerDict
    ic.set_logs_filter("warn")
    assert not logging.getLogger("icechunk_engine.session").isEnabledFor(logging.DEBUG)
    ic.set_logs_filter("icechunk::storage")
    assert logging.getLogger("icechunk_engine.storage").isEnabledFor(TRACE)
    assert not logging.getLogger("icechunk_engine.session").isEnabledFor(logging.INFO)
    ic.set_logs_filter("WARNING,icechunk.session=4")
    assert logging.getLogger("icechunk_engine.session").getEffectiveLevel() == logging.DEBUG
    assert logging.getLogger("icechunk_engine").level == logging.WARNING
    ic.set_logs_filter("debug,")
    assert logging.getLogger("icechunk_engine").level == logging.DEBUG


@pytest.mark.parametrize("wrong", ["loud", "=debug", "icechunk=", "false", "icechunk:debug", "[a]=b", "foo bar"])
def test_what_is_no_filter_is_left_out_with_a_warning(wrong: str) -> None:
    with pytest.warns(UserWarning, match=f"ignoring '{re.escape(wrong)}'.*trace, debug, info"):
        ic.set_logs_filter(f"{wrong},icechunk.session=debug")
    assert logging.getLogger("icechunk_engine.session").isEnabledFor(logging.DEBUG)
    with pytest.raises(TypeError, match="such as 'debug'"):
        ic.set_logs_filter(3)  # type: ignore[arg-type]


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


USE = "repo = ic.Repository.create(ic.in_memory_storage()); repo.list_branches();"


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_the_environment_variable(stream: str) -> None:
    code = (
        f"import icechunk_engine as ic; {USE} ic.initialize_logs(); repo.create_tag('v1', repo.lookup_branch('main'))"
    )
    to_stdout = {"ICECHUNK_LOG_TO_STDOUT": "1"} if stream == "stdout" else {}
    done = run(code, ICECHUNK_LOG="icechunk=debug", **to_stdout)
    assert done.returncode == 0, done.stderr
    lines = getattr(done, stream).splitlines()
    assert sum("creating tag 'v1'" in line for line in lines) == 1
    assert all("icechunk_engine" in line for line in lines)


@pytest.mark.parametrize("value", ["false", "icechunk:debug", "", "off,nonsense=loud"])
def test_importing_does_not_fail_because_of_the_environment(value: str) -> None:
    done = run(f"import icechunk_engine as ic, xarray_icechunk; {USE}", ICECHUNK_LOG=value)
    assert done.returncode == 0, done.stderr
    refused = value.removeprefix("off,")
    assert (f"in ICECHUNK_LOG: ignoring '{refused}'" in done.stderr) == bool(value)
    assert done.stderr.count("\n") == bool(value)


def test_telemetry_that_cannot_be_set_up_stops_nothing() -> None:
    code = (
        f"import icechunk_engine as ic; {USE} ic.shutdown_telemetry(); ic.set_logs_filter('debug'); repo.list_tags()"
    )
    done = run(code, OTEL_PYTHON_TRACER_PROVIDER="nonsense", OTEL_PYTHON_CONTEXT="nonsense")
    assert done.returncode == 0, done.stderr


def test_errors_carry_their_trail(repo: ic.Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="group/a", shape=(4,), chunks=(2,), dtype="i4")
    other = repo.writable_session("main")
    zarr.create_array(other.store, name="group/b", shape=(4,), chunks=(2,), dtype="i4")
    other.commit("first")
    with pytest.raises(ic.ConflictError) as caught:
        session.commit("second")
    assert any("committing a session on branch 'main' of" in note for note in caught.value.__notes__)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.__notes__ == caught.value.__notes__
    assert str(copy) == str(caught.value)
    assert "while" not in str(copy)


def test_a_lost_chunk_says_where_it_was(repo: ic.Repository) -> None:
    use(repo)
    repo.storage.delete([info.key for info in repo.storage.list("chunks/")])
    array = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")
    with pytest.raises(IcechunkError) as caught:
        array[:]
    (note,) = caught.value.__notes__
    assert "reading chunk" in note
    assert "of array /a" in note
    assert repo.lookup_branch("main") in note


def test_spans(repo: ic.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that run on other threads are children of the operation that made them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    slow = ic.Repository.create(LatencyStorage(ic.in_memory_storage(), write_latency_ms=1, read_latency_ms=1))
    use(slow)
    ic.shutdown_telemetry()
    spans = exporter.get_finished_spans()
    commit = next(span for span in spans if span.name == "icechunk.commit")
    below = [span for span in spans if span.parent is not None and span.context.trace_id == commit.context.trace_id]
    assert "committing a session on branch 'main'" in str(commit.attributes)
    assert {"icechunk.storage.put", "icechunk.storage.replace"} <= {span.name for span in below}
    written = {str(span.attributes["icechunk.what"]).partition("/")[0] for span in below if span.attributes}
    assert {"snapshots", "transactions", "manifests", "repo"} <= written


class _Guarded(ObservingStorage):
    """A storage behind a network that notes the requests which skip the reports or the limit."""

    def __init__(self, inner: ic.Storage, inside: Mapping[str, Inside]) -> None:
        super().__init__(inner)
        self.is_remote = True
        self.inside = inside
        self.methods: set[str] = set()
        self.skipped: list[str] = []

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        self.methods.add(call.method)
        # A listing is reported until its first object is there, and is not limited.
        needed = ["report"] if call.method == "list" else ["report", "limit"]
        self.skipped += [f"{call.method} {call.keys}: no {name}" for name in needed if not self.inside[name].depth]
        return function()


class Inside(threading.local):
    """How many calls of one function this thread is in."""

    depth = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> _Guarded:
    inside = {"report": Inside(), "limit": Inside()}
    around = LimitedStorage.around

    def limited(self: LimitedStorage, call: StorageCall, function: Callable[[], Any]) -> Any:
        def counted() -> Any:
            with inside["limit"]():
                return function()

        return around(self, call, counted)

    monkeypatch.setattr(LimitedStorage, "around", limited)
    monkeypatch.setattr(requests, "request", lambda log, verb, key: inside["report"]())
    return _Guarded(ic.in_memory_storage(), inside)


def use_all(storage: ic.Storage, spec_version: int) -> ic.Repository:
    """What can be done with a repository of either spec version."""
    config = ic.RepositoryConfig(max_concurrent_requests=2)
    repo = Repository.open_or_create(storage, config, create_version=spec_version)
    repo.save_config()
    repo.save_config()
    use(repo)
    repo = Repository.open(storage, config)
    tip = repo.lookup_branch("main")
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[:] = 7
    session.commit("other data")
    repo.create_branch("dev", tip)
    repo.create_tag("v1", tip)
    assert (repo.list_branches(), repo.list_tags()) == ({"main", "dev"}, {"v1"})
    repo.lookup_tag("v1")
    repo.reset_branch("dev", repo.lookup_branch("main"))
    repo.delete_tag("v1")
    repo.delete_branch("dev")
    assert len(list(repo.ancestry(branch="main"))) == 3
    str(repo.ancestry_graph())
    repo.lookup_snapshot(tip)
    repo.list_manifest_files(tip)
    repo.inspect_snapshot(tip)
    repo.inspect_transaction_log(tip)
    repo.diff(from_snapshot_id=tip, to_branch="main")
    repo._repr_html_()
    with pytest.raises(RefNotFoundError):
        repo.lookup_branch("dev")
    with pytest.raises(ic.InvalidInputError):
        Repository.create(storage, config, spec_version=spec_version)
    return Repository.open(storage, config)


@pytest.mark.parametrize("spec_version", [1, 2])
def test_every_request_is_reported_and_limited(guarded: _Guarded, spec_version: int) -> None:
    repo = use_all(guarded, spec_version)
    if spec_version == 1:
        repo = ic.upgrade_icechunk_repository(repo, dry_run=False)
    repo.set_metadata({"a": 1})
    repo.set_feature_flag("create_tag", None)
    repo.set_status(ic.RepoStatus(ic.RepoAvailability.online))
    assert repo.status.availability is ic.RepoAvailability.online
    repo.inspect_repo_info()
    repo = repo.reopen(ic.RepositoryConfig(num_updates_per_repo_info_file=1))
    repo.update_metadata({"b": 2})
    assert len(list(repo.ops_log())) > 5
    moves = repo.rearrange_session("main")
    moves.move("/a", "/b")
    moves.commit("moved")
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="b", mode="r+")[:] = 8
    session.amend("amended")
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="b", mode="r+")[:] = 9
    session.flush("detached")
    assert guarded.skipped == []
    assert Repository.exists(guarded)
    stored = Repository.fetch_config(guarded)
    assert stored is not None
    assert stored.max_concurrent_requests == 2
    assert all("no limit" in skipped for skipped in guarded.skipped)  # before the persisted limit is known
    assert guarded.methods >= {"get", "get_range", "get_versioned", "put", "create", "replace", "copy", "info", "list"}
