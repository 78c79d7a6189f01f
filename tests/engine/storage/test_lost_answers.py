"""What a conditional write's object says about the write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.storage.base import Version
from icechunk_engine.storage.object_store.lost_answers import Attempt, FoundObject, Outcome, outcome_of

VERSIONS = st.sampled_from("abc").map(Version)
IDS = st.sampled_from(["mine", "theirs", "others"])
ATTEMPTS = st.builds(Attempt, write_id=st.just("mine"), expected=st.none() | VERSIONS)
FOUND = st.none() | st.builds(FoundObject, version=VERSIONS, write_id=st.none() | IDS)


@given(ATTEMPTS, FOUND)
def test_judgements(attempt: Attempt, found: FoundObject | None) -> None:
    outcome = outcome_of(attempt, found)
    # Nothing but our own id proves that it was us.
    assert (outcome is Outcome.WON) == (found is not None and found.write_id == "mine")
    # A write may be repeated only where its condition still holds.
    present = None if found is None else found.version
    if outcome is Outcome.UNTOUCHED:
        assert present == attempt.expected
    if outcome is Outcome.LOST:
        assert present != attempt.expected
