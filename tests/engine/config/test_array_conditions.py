"""Conditions: expressions and splitting, compared with official."""

from __future__ import annotations

import math
import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from icechunk_engine import config as ours
from icechunk_engine.config import automaton, rust_regex
from icechunk_engine.config.array_conditions import ManifestPreloadCondition, ManifestSplitCondition
from tests.bounded import run_bounded


def manifests_by_official(
    splitting: Any, path: str, grid: tuple[int, ...], names: list[str | None] | None = None
) -> set[tuple[tuple[int, int], ...]]:
    """Return the extents of the manifests that official writes for an array with all its chunks."""
    config = official.RepositoryConfig(manifest=official.ManifestConfig(splitting=splitting))
    repo = official.Repository.create(official.in_memory_storage(), config=config)
    session = repo.writable_session("main")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            session.store,
            name=path.strip("/") or None,
            shape=grid,
            chunks=(1,) * len(grid),
            dtype="i1",
            fill_value=0,
            dimension_names=names,
        )
    array[...] = 1
    nodes = repo.inspect_snapshot(session.commit("all chunks"))["nodes"]
    (node,) = [node for node in nodes if node["path"] == path]
    return {tuple((start, stop) for start, stop in ref["extents"]) for ref in node["manifest_refs"]}


def official_search(regex: str, path: str) -> bool:
    condition, axis = official.ManifestSplitCondition, official.ManifestSplitDimCondition
    splitting = official.ManifestSplittingConfig.from_dict({condition.path_matches(regex): {axis.Any(): 1}})
    return len(manifests_by_official(splitting, path, (2,))) == 2


@pytest.mark.parametrize(
    ("regex", "path"),
    [
        ("a", "/a"),
        ("^a$", "/a"),
        ("^/a$", "/a"),
        ("(", "/a"),
        ("a++", "/a"),
        ("a{,2}", "/a"),
        ("a{", "/a"),
        ("{", "/a"),
        ("a{0}", "/a"),
        ("a{1,2}{2}", "/aa"),
        ("a{2,1}", "/aa"),
        ("*", "/a"),
        ("a|*", "/a"),
        ("", "/a"),
        ("^*", "/a"),
        ("()", "/a"),
        ("a|", "/b"),
        ("(?=a)", "/a"),
        ("(?!b)", "/a"),
        ("(?<=/)a", "/a"),
        (r"(a)\1", "/aa"),
        ("(?<n>a)", "/a"),
        ("(?P<n>a)", "/a"),
        ("(?P=n)", "/a"),
        ("(?#c)a", "/a"),
        ("(?>a)", "/a"),
        ("a*?", "/a"),
        ("[[:alpha:]]$", "/a"),
        ("[[:^alpha:]]$", "/a"),
        ("[[:foo:]]$", "/f"),
        (r"\p{L}", "/a"),
        (r"\pL", "/a"),
        (r"\PL$", "/a"),
        (r"\p{^L}$", "/a"),
        (r"[\p{Lu}]$", "/A"),
        (r"\p{Lu}$", "/a"),
        ("[a&&[^b]]", "/a"),
        ("[a&&b]", "/a"),
        ("[a-z--a]$", "/a"),
        ("[a-z--b]$", "/a"),
        ("[ab~~bc]$", "/c"),
        ("[ab~~bc]$", "/b"),
        ("[a-z&&b-y--c]$", "/c"),
        ("[^a-c&&b]$", "/b"),
        ("[[a]b]", "/b"),
        ("[]", "/a"),
        ("[]a]", "/a"),
        ("[^]a]", "/b"),
        ("[a-]", "/-"),
        ("[--a]$", "/b"),
        ("[z-a]", "/a"),
        (r"[\d-z]", "/-"),
        (r"[\d\-z]", "/-"),
        (r"[a\]]$", "/]"),
        (r"[\b]", "/a"),
        (r"[\w&&[^\d]]$", "/3"),
        ("[", "/["),
        ("]", "/]"),
        ("}", "/}"),
        ("(?i)A", "/a"),
        ("/(?i)A", "/a"),
        ("(?i:A)B", "/ab"),
        ("((?i)A)B", "/aB"),
        ("((?i)A)B", "/ab"),
        ("(?i)[A-C]$", "/b"),
        ("(?i)[^a]$", "/A"),
        ("(?i-i)A", "/a"),
        ("(?ii)a", "/a"),
        ("(?z)a", "/a"),
        ("(?i", "/a"),
        ("(?)a", "/a"),
        ("(?U)a+", "/a"),
        ("(?x) a # c", "/a"),
        ("(?x)[ a ]$", "/a"),
        ("(?s).", "/a"),
        ("(?m)^a$", "/a"),
        ("(?m)^b$", "/a\nb"),
        ("(?m)a$", "/a\nb"),
        ("(?m)a$", "/a\r\nb"),
        ("(?mR)a$", "/a\r\nb"),
        ("(?mR)^b", "/a\r\nb"),
        ("(?mR)^b", "/a\rb"),
        ("(?mR)\r$", "/a\r\nb"),
        ("(?R)a.", "/a\r"),
        ("(?:a|b){2,3}$", "/xab"),
        ("^/(a{2}){2}$", "/aaaa"),
        ("^/(?:a?){3}a{3}$", "/aaa"),
        ("(a*)*$", "/b"),
        ("(|a)+$", "/aa"),
        ("^/a{0}$", "/"),
        ("(?:)*a", "/a"),
        (r"(?i)\p{Lu}$", "/a"),
        (r"[^\W\d]$", "/1"),
        ("[a[^b&&[a-c]]]$", "/b"),
        ("[a-c~~[b-d~~c]]$", "/c"),
        (r"\Aa", "/a"),
        (r"a\z", "/a"),
        (r"a\Z", "/a"),
        (r"\ba\b", "/a"),
        (r"\<a\>", "/a"),
        (r"\b{start}a", "/a"),
        (r"\b{end}a", "/a"),
        (r"a\b{end-half}", "/a"),
        (r"\B", "/a"),
        (r"\x61", "/a"),
        (r"\x{61}", "/a"),
        (r"\x6", "/a"),
        (r"\u0061", "/a"),
        (r"\u{61}", "/a"),
        (r"\U00000061", "/a"),
        (r"\u{d800}", "/a"),
        (r"\x{110000}", "/a"),
        (r"\o", "/a"),
        (r"\0", "/a"),
        (r"\e", "/a"),
        (r"\-\/\:", "/-/:"),
        (r"\é", "/é"),
        (r"\w$", "/é"),
        (r"\d$", "/٣"),
        (r"\s", "/a b"),
        ("(?i:É)", "/é"),
        (r"^(time|lat)[0-9]*$", "/time"),
        (r"/(time|lat)[0-9]*$", "/x/lat12"),
    ],
)
def test_expressions_match_what_they_match_in_rust(regex: str, path: str) -> None:
    assert rust_regex.search(regex, path) == official_search(regex, path)


@given(st.text(alphabet="ab[]{}()|*+?^$.\\-&~:,12dwpLxi<>=!#PBbA", max_size=10), st.text(alphabet="ab1-", max_size=4))
def test_any_text_is_an_expression(regex: str, text: str) -> None:
    assert rust_regex.search(regex, text) in (True, False)
    assert rust_regex.is_valid(regex) or not rust_regex.search(regex, text)


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", r"\b", "^", "$", "/", "(?i:A)", ""])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map("|".join)
        | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0}", "{2,}"])).map(
            lambda parts: f"({parts[0]}){parts[1]}"
        )
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, st.text(alphabet="ab", min_size=1, max_size=4))
@settings(max_examples=60)
def test_made_up_expressions_match_what_they_match_in_rust(regex: str, text: str) -> None:
    assert rust_regex.search(regex, f"/{text}") == official_search(regex, f"/{text}")


@given(EXPRESSIONS, st.text(alphabet="abAé\n", max_size=30))
@settings(max_examples=500)
def test_the_automaton_finds_what_backtracking_finds(regex: str, text: str) -> None:
    python = re.compile(regex.replace("$", r"\Z"))
    assert rust_regex.search(regex, text) == (python.search(text) is not None)


@pytest.mark.parametrize(
    ("regex", "named"),
    [
        (r"\p{Greek}", "Greek"),
        ("(?-u)a", "flag -u"),
        ("(" * 100 + "a" + ")" * 100, "64 levels"),
        ("a" + "*" * 100, "64 levels"),
        ("[" * 100 + "a" + "]" * 100, "64 levels"),
        ("((a{100}){100}){100}", "10000 steps"),
        ("a{99999999999999999999}", "10000 steps"),
        ("(?:){999999999}", "10000 steps"),
        ("a" * 20_000, "10000 steps"),
        ("a" * 200_000, "longer"),
    ],
)
def test_unsupported_expressions_match_nothing_and_are_named(
    regex: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    rust_regex._compiled.cache_clear()
    assert not rust_regex.search(regex, "a" * 10)
    assert not rust_regex.is_valid(regex)
    assert named in (rust_regex.problem(regex) or "")
    assert named in caplog.text
    for condition in (ManifestSplitCondition, ManifestPreloadCondition):
        for make in (condition.path_matches, condition.name_matches):
            with pytest.raises(ValueError, match=re.escape(named)):
                make(regex)
    with pytest.raises(ValueError, match=re.escape(named)):
        ours.ManifestSplitDimCondition.DimensionName(regex)
    # A stored one does not prevent opening the repository.
    assert not ManifestSplitCondition.from_plain({"path_matches": {"regex": regex}}).matches("/a")
    axis = ours.ManifestSplitDimCondition.from_plain({"DimensionName": regex})
    assert not axis.matches(0, "a")
    assert pickle.loads(pickle.dumps(axis)) == axis


def test_invalid_expressions_are_not_named() -> None:
    assert rust_regex.problem("(") is None
    assert not ManifestSplitCondition.path_matches("(").matches("/a")


CATASTROPHES = [
    ("^/(a+)+$", "/" + "a" * 5000 + "!"),
    ("^(a|a)*$", "a" * 5000 + "!"),
    ("(.*)*=(.*)*", "a" * 5000),
    ("a*" * 30 + "b", "a" * 5000),
    ("^(?:a?){1000}a{1000}$", "a" * 1000),
    ("([ab]|[bc]|[a-c]){100}d", "abc" * 1000),
    ("(a|b|ab)*" * 20 + "x", "ab" * 2000),
    ("[a~~" * 60 + "a" + "]" * 60, "b" * 5000),
    ("[ab]*a" + "[ab]" * 500 + "c", "abbabaababba" * 1000),
    ("".join(rf"[\\pL{chr(0x4E00 + i)}]" for i in range(3000)) + "!", "a" * 4000),
    ("(" * 60 + "a" + "*)" * 60 + "b", "a" * 1000),
]


def search_all() -> list[bool]:
    return [rust_regex.search(regex, text) for regex, text in CATASTROPHES]


def test_no_expression_takes_long() -> None:
    """A backtracking matcher takes exponential or quadratic time for each of these."""
    assert run_bounded(search_all, seconds=20, megabytes=150) == [False] * len(CATASTROPHES)


def test_threads_share_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remembered states are dropped while other threads search."""
    program = rust_regex._compiled("[ab]*a[ab]{12}c")
    monkeypatch.setattr(automaton, "_MAX_REMEMBERED", 1000)
    monkeypatch.setattr(automaton, "MAX_WORK", 10**9)
    assert isinstance(program, automaton.Program)
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(["a", "b"], 100)) + "c" * (i % 2) for i in range(50)]
    expected = [re.search("a[ab]{12}c", text) is not None for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(program.search, texts * 2)) == expected * 2


# --- splitting -------------------------------------------------------------------------------------------------------

CONDITIONS = st.sampled_from(
    [
        lambda lib: lib.ManifestSplitCondition.AnyArray(),
        lambda lib: lib.ManifestSplitCondition.path_matches("g/a"),
        lambda lib: lib.ManifestSplitCondition.path_matches("b"),
        lambda lib: lib.ManifestSplitCondition.name_matches("^a$"),
        lambda lib: lib.ManifestSplitCondition.name_matches("g"),
        lambda lib: lib.ManifestSplitCondition.path_matches("("),
        lambda lib: lib.ManifestSplitCondition.name_matches("a") & lib.ManifestSplitCondition.path_matches("b"),
        lambda lib: lib.ManifestSplitCondition.name_matches("a") | lib.ManifestSplitCondition.path_matches("b"),
        lambda lib: lib.ManifestSplitCondition.or_conditions([]),
        lambda lib: lib.ManifestSplitCondition.and_conditions([]),
    ]
)
RULES = st.sampled_from(
    [
        lambda lib: lib.ManifestSplitDimCondition.Any(),
        lambda lib: lib.ManifestSplitDimCondition.Axis(0),
        lambda lib: lib.ManifestSplitDimCondition.Axis(1),
        lambda lib: lib.ManifestSplitDimCondition.Axis(7),
        lambda lib: lib.ManifestSplitDimCondition.DimensionName("x"),
        lambda lib: lib.ManifestSplitDimCondition.DimensionName("^y$"),
    ]
)


@given(
    st.lists(
        st.tuples(CONDITIONS, st.lists(st.tuples(RULES, st.sampled_from([1, 2, 3, 2**32 - 1])), max_size=3)),
        max_size=3,
    ),
    st.sampled_from([(5,), (3, 4), (1, 2, 3)]),
    st.booleans(),
    st.sampled_from(["/g/a", "/b"]),
)
def test_boxes_are_officials(entries: list[Any], grid: tuple[int, ...], named: bool, path: str) -> None:
    names: list[str | None] | None = ["x1", "y", None][: len(grid)] if named else None

    def splitting(lib: Any) -> Any:
        return lib.ManifestSplittingConfig(
            tuple((condition(lib), tuple((rule(lib), size) for rule, size in rules)) for condition, rules in entries)
        )

    edges = splitting(ours).edges_for(path, len(grid), tuple(names) if names is not None else None)
    edges = edges if edges is not None else (ours.NEVER_SPLIT,) * len(grid)
    boxes: list[tuple[tuple[int, int], ...]] = [()]
    for n_chunks, edge in zip(grid, edges, strict=True):
        spans = [(start, min(start + edge, n_chunks)) for start in range(0, n_chunks, min(edge, n_chunks))]
        boxes = [(*box, span) for box in boxes for span in spans]
    assert manifests_by_official(splitting(official), path, grid, names) == set(boxes)
    assert math.prod(-(-n // e) for n, e in zip(grid, edges, strict=True)) == len(boxes)


def test_an_array_at_the_root_has_no_name() -> None:
    condition, axis = official.ManifestSplitCondition, official.ManifestSplitDimCondition
    splitting = official.ManifestSplittingConfig.from_dict({condition.name_matches(""): {axis.Any(): 1}})
    assert len(manifests_by_official(splitting, "/", (2,))) == 1
    assert not ManifestSplitCondition.name_matches("").matches("/")
    assert ManifestSplitCondition.path_matches("^/$").matches("/")


def test_nothing_configured_for_an_array_is_none() -> None:
    condition, axis = ours.ManifestSplitCondition, ours.ManifestSplitDimCondition
    splitting = ours.ManifestSplittingConfig.from_dict({condition.path_matches("^/b$"): {axis.Axis(0): 2}})
    assert splitting.edges_for("/a", 2) is None
    assert splitting.edges_for("/b", 2) == (2, ours.NEVER_SPLIT)
    assert splitting.edges_for("/b", 0) is None
    assert ours.ManifestSplittingConfig().edges_for("/b", 2) is None
    assert splitting.to_dict() == {condition.path_matches("^/b$"): {axis.Axis(0): 2}}


# --- preloading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "inside"),
    [((None, None), range(6)), ((2, 4), (2, 3)), ((2, None), (2, 3, 4, 5)), ((None, 2), (0, 1)), ((3, 3), ())],
)
def test_num_refs(bounds: tuple[int | None, int | None], inside: Any) -> None:
    condition = ManifestPreloadCondition.num_refs(*bounds)
    assert [n for n in range(6) if condition.matches("/a", n)] == list(inside)
    assert eval(repr(condition)) == condition


def test_stored_bounds_of_either_kind() -> None:
    stored: Any = {"num_refs": {"from": {"Excluded": 2}, "to": {"Included": 4}}}
    condition = ManifestPreloadCondition.from_plain(stored)
    assert [n for n in range(6) if condition.matches("/a", n)] == [3, 4]
    assert condition.to_plain() == stored


def test_conditions_are_values() -> None:
    condition = ManifestPreloadCondition
    one = condition.name_matches("a") & (condition.true() | condition.num_refs(1, 2))
    two = condition.and_conditions(
        [condition.name_matches("a"), condition.or_conditions([condition.true(), condition.num_refs(1, 2)])]
    )
    assert one == two == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(two)
    assert eval(repr(one)) == one
    assert one != one & one
    assert condition.path_matches("a") != ManifestSplitCondition.path_matches("a")
    with pytest.raises(TypeError):
        one & ManifestSplitCondition.AnyArray()  # type: ignore[operator]
    with pytest.raises(TypeError):
        ManifestSplitCondition()
    with pytest.raises(AttributeError):
        one.x = 1
