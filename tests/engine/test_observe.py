"""Log records, spans, and the trail of an error."""

from __future__ import annotations

import logging
import os
import pickle
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
from icechunk_engine._observe import TRACE
from icechunk_engine.errors import IcechunkError, InvalidInputError, RefNotFoundError
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
    assert "committing to branch 'main'" in operations
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
    for wrong in ("loud", "=debug", "icechunk=", "debug,"):
        with pytest.raises(InvalidInputError, match="trace, debug, info"):
            ic.set_logs_filter(wrong)


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_the_environment_variable(stream: str) -> None:
    code = (
        "import icechunk_engine as ic; repo = ic.Repository.create(ic.in_memory_storage()); repo.list_branches();"
        "ic.initialize_logs(); repo.create_tag('v1', repo.lookup_branch('main'))"
    )
    environment = {**os.environ, "ICECHUNK_LOG": "icechunk=debug", "PYTHONPATH": os.pathsep.join(sys.path)}
    if stream == "stdout":
        environment["ICECHUNK_LOG_TO_STDOUT"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    lines = getattr(done, stream).splitlines()
    assert sum("creating tag 'v1'" in line for line in lines) == 1
    assert all("icechunk_engine" in line for line in lines)


def test_errors_carry_their_trail(repo: ic.Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="group/a", shape=(4,), chunks=(2,), dtype="i4")
    other = repo.writable_session("main")
    zarr.create_array(other.store, name="group/b", shape=(4,), chunks=(2,), dtype="i4")
    other.commit("first")
    with pytest.raises(ic.ConflictError) as caught:
        session.commit("second")
    assert any("committing to branch 'main' of" in note for note in caught.value.__notes__)
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
    assert "committing to branch 'main'" in str(commit.attributes)
    assert {"icechunk.storage.put", "icechunk.storage.replace"} <= {span.name for span in below}
    written = {str(span.attributes["icechunk.what"]).partition("/")[0] for span in below if span.attributes}
    assert {"snapshots", "transactions", "manifests", "repo"} <= written
