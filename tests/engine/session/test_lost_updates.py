"""No update is lost: random writers each set a bit of their own in the chunks, and every bit is in the commit."""

from __future__ import annotations

import pickle
from contextlib import suppress

import numpy as np
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zarr.buffer import default_buffer_prototype

import icechunk_engine as ic
from icechunk_engine import ErrorKind, ForkSession, Repository
from tests.profiles import by_profile

CHUNKS = 3
_EMPTY = 0

steps = st.tuples(
    st.sampled_from(["store", "fork", "travel", "set", "set", "set", "merge", "look"]),
    st.integers(0, 7),  # which actor
    st.integers(0, CHUNKS - 1),
    st.integers(0, CHUNKS - 1),
)


def get(session: ic.Session, chunk: int) -> int:
    found = session.store.get_sync(f"a/c/{chunk}", prototype=default_buffer_prototype())
    return _EMPTY if found is None else int(np.frombuffer(found.to_bytes(), np.int64)[0])


def put(session: ic.Session, chunk: int, value: int) -> None:
    data = default_buffer_prototype().buffer.from_bytes(np.int64(value).tobytes())
    session.store.set_sync(f"a/c/{chunk}", data)


def sent[T](thing: T) -> T:
    copied: T = pickle.loads(pickle.dumps(thing))
    return copied


@settings(max_examples=by_profile(quick=40, thorough=1500), deadline=None)
@example([("fork", 0, 0, 0), ("store", 1, 0, 0), ("set", 1, 0, 0), ("set", 2, 0, 0)])  # marks are no edits
@example(
    [("store", 0, 0, 0), ("set", 0, 0, 0), ("set", 1, 1, 0), ("fork", 1, 0, 0), ("set", 2, 0, 0)]
)  # a fork's fork
@example([("store", 0, 0, 0), ("set", 0, 0, 0), ("store", 0, 0, 0), ("set", 1, 0, 0), ("set", 2, 0, 0)])  # hidden
@given(st.lists(steps, min_size=4, max_size=25))
def test_no_bit_is_lost(plan: list[tuple[str, int, int, int]]) -> None:
    repo = Repository.create(ic.in_memory_storage())
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(CHUNKS,), chunks=(1,), dtype="int64", fill_value=0, compressors=None)
    home = repo.writable_session("main")
    actors: list[ic.Session] = [home]
    written, attempted = [0] * CHUNKS, [0] * CHUNKS
    for n, (step, which, chunk, other) in enumerate(plan):
        actor = actors[which % len(actors)]
        # Conflicts are found at home, and stay until they are settled.
        with suppress(ic.SessionStateError):
            if step == "store":
                actors.append(sent(actor.store).session)
            elif step == "fork":
                actors.append(sent(actor.fork()))
            elif step == "travel" and isinstance(actor, ForkSession):
                actors.append(sent(actor))
            elif step == "look":
                get(actor, chunk)
            elif step == "merge" and isinstance(actor, ForkSession):
                home.merge(actor)
            elif step == "set":
                value = get(actor, chunk)
                if actor is not home:
                    get(actor, other)  # which may bring in edits of others
                attempted[chunk] |= 1 << n
                put(actor, chunk, value | 1 << n)
                written[chunk] |= 1 << n
    try:
        home.merge(*[actor for actor in actors if isinstance(actor, ForkSession)])
        home.commit("all", allow_empty=True)
    except ic.SessionStateError as error:
        if error.kind not in (ErrorKind.MERGE_FAILED, ErrorKind.COMMIT_NOT_ALLOWED):
            raise
        home.discard_changes()
        return
    reader = repo.readonly_session("main")
    for chunk in range(CHUNKS):
        found = get(reader, chunk)
        assert found & written[chunk] == written[chunk]
        assert found & attempted[chunk] == found  # a write that raised may be there or not
