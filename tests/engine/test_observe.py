"""Log records, spans, and the trail of an error."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator

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
from icechunk_engine.storage.wrappers import LatencyStorage


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
        ic.set_logs_filter(3)


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
