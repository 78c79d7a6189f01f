"""Manifests of one array hold every chunk once and never overlap, whatever is written, deleted, resized and split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.session import workspace_of
from icechunk_engine.storage import MemoryStorage, Storage
from icechunk_engine.storage.wrappers import ObservingStorage, StorageCall
from icechunk_engine.transaction import splitting
from tests.engine.zarr_store.support import array_document
from tests.profiles import by_profile

GRID = (6, 5)

cells = st.tuples(st.integers(0, GRID[0] - 1), st.integers(0, GRID[1] - 1))
boxes = st.tuples(cells, cells).map(
    lambda corners: list(itertools.product(*(range(min(a, b), max(a, b) + 1) for a, b in zip(*corners, strict=True))))
)
writes = st.one_of(
    st.tuples(st.just("set"), st.one_of(boxes, st.lists(cells, max_size=6))),
    st.tuples(st.just("delete"), st.one_of(boxes, st.lists(cells, max_size=6))),
    st.tuples(st.just("resize"), st.tuples(st.integers(1, GRID[0]), st.just(GRID[1]))),
)
edges = st.one_of(st.none(), st.sampled_from([(2, 2), (1, 5), (6, 1), (4, 3)]))


def configured(split: tuple[int, int] | None) -> ic.RepositoryConfig:
    config = ic.RepositoryConfig.default()
    if split is not None:
        sizes: dict[Any, int] = {ic.ManifestSplitDimCondition.Axis(axis): edge for axis, edge in enumerate(split)}
        config.manifest = ic.ManifestConfig(
            splitting=ic.ManifestSplittingConfig.from_dict({ic.ManifestSplitCondition.AnyArray(): sizes})
        )
    return config


@settings(max_examples=by_profile(quick=100, thorough=1000))
@given(commits=st.lists(st.tuples(edges, st.lists(writes, min_size=1, max_size=4)), min_size=1, max_size=6))
def test_layout(commits: list[tuple[Any, list[tuple[str, Any]]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "AUTO_TARGET_REFS", 5)
        storage = MemoryStorage()
        repo = Repository.create(storage)
        session = repo.writable_session("main")
        workspace_of(session).set_metadata("/a", array_document(GRID))
        session.commit("empty")
        model: dict[tuple[int, ...], bytes] = {}
        for number, (split, steps) in enumerate(commits):
            session = Repository.open(storage, config=configured(split)).writable_session("main")
            shape: tuple[int, ...] = GRID
            workspace_of(session).set_metadata("/a", array_document(shape))
            for kind, value in steps:
                if kind == "resize":
                    shape = value
                    workspace_of(session).set_metadata("/a", array_document(shape))
                    continue
                for cell in value:
                    if not all(position < length for position, length in zip(cell, shape, strict=True)):
                        continue
                    if kind == "set":
                        model[cell] = b"%d:%d:%d" % (number, *cell)
                        workspace_of(session).set_chunk("/a", cell, model[cell])
                    else:
                        model.pop(cell, None)
                        workspace_of(session).delete_chunk("/a", cell)
            session.commit(str(number), allow_empty=True)
            model = {cell: value for cell, value in model.items() if cell[0] < shape[0]}
            check(repo, model)


class Interrupting(ObservingStorage):
    """Calls a function once, before the next snapshot file is written: when the manifests are on their way."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.interrupt: Callable[[], None] | None = None

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        interrupt = self.interrupt
        if interrupt is not None and call.method == "put" and call.keys[0].startswith("snapshots/"):
            self.interrupt = None
            interrupt()
        return function()


@settings(max_examples=by_profile(quick=80, thorough=1000))
@given(
    split=edges,
    before=boxes,
    ours=st.lists(cells, min_size=1, max_size=4),
    theirs=st.lists(st.lists(cells, min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_layout_when_another_commit_came_first(
    split: tuple[int, int] | None, before: list[Any], ours: list[Any], theirs: list[list[Any]]
) -> None:
    """Manifests written for a commit that is lost serve the next try only where nobody has replaced what they hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "AUTO_TARGET_REFS", 5)
        storage = Interrupting(MemoryStorage())
        repo = Repository.create(storage, configured(split))
        session = repo.writable_session("main")
        workspace_of(session).set_metadata("/a", array_document(GRID))
        model: dict[tuple[int, ...], bytes] = {}

        def write(session: ic.Session, cells: list[Any], who: str) -> None:
            for cell in cells:
                model[cell] = f"{who} {cell}".encode()
                workspace_of(session).set_chunk("/a", cell, model[cell])

        write(session, before, "before")
        session.commit("start")
        session = repo.writable_session("main")

        def others() -> None:
            for number, cells in enumerate(theirs):
                theirs_session = repo.writable_session("main")
                write(theirs_session, cells, f"theirs {number}")
                theirs_session.commit("theirs")

        storage.interrupt = others
        for cell in ours:
            workspace_of(session).set_chunk("/a", cell, f"ours {cell}".encode())
        session.commit("ours", rebase_with=ic.BasicConflictSolver(on_chunk_conflict=ic.VersionSelection.UseOurs))
        model.update({cell: f"ours {cell}".encode() for cell in ours})
        check(repo, model)


def check(repo: Repository, model: dict[tuple[int, ...], bytes]) -> None:
    session = repo.readonly_session("main")
    node = workspace_of(session).get_node("/a")
    assert node is not None
    extents = [np.array(ref.extents) for ref in node.manifests]
    for one, other in itertools.combinations(extents, 2):
        assert not ((one[:, 0] < other[:, 1]) & (one[:, 1] > other[:, 0])).all(), "manifests overlap"
    refs = workspace_of(session).chunk_refs("/a")
    found = {tuple(index): refs.row(row).inline for row, index in enumerate(refs.indices.tolist())}
    assert found == model
    for cell, value in model.items():
        ref = workspace_of(session).locate_chunk("/a", cell)
        assert ref is not None
        assert ref.inline == value
    counts = {info.id: info.num_chunk_refs for info in repo.list_manifest_files(session.snapshot_id)}
    assert sorted(counts) == sorted(str(ref.manifest_id) for ref in node.manifests)
    assert sum(counts.values()) == len(model)
