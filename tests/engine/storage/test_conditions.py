"""What is found out about places is found out once for each, and for no other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from icechunk_engine.storage.object_store.condition_probes import ProbeResults


def test_a_place_that_does_not_answer_keeps_no_other_waiting() -> None:
    results, asked, answers = ProbeResults(), threading.Event(), threading.Event()

    def slowly() -> None:
        asked.set()
        assert answers.wait(60)

    with ThreadPoolExecutor(2) as threads:
        try:
            slow = threads.submit(results.require, "slow", slowly)
            assert asked.wait(60)
            threads.submit(results.require, "fast", lambda: None).result(60)
            assert not slow.done()
        finally:
            answers.set()
        slow.result(60)


def test_a_place_is_asked_once_by_many_threads() -> None:
    results, together, asked = ProbeResults(), threading.Barrier(8), []

    def require() -> None:
        together.wait(60)
        results.require("place", lambda: asked.append(1))

    with ThreadPoolExecutor(8) as threads:
        for one in [threads.submit(require) for _ in range(8)]:
            one.result(60)
    assert len(asked) == 1
