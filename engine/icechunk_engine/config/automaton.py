"""Search for a regular expression by simulating an automaton.

Expressions are stored with a repository, so someone else may have chosen them. A backtracking matcher takes
exponential time for some of them, such as ``(a+)+$``.

Invariant: a search takes time linear in the length of the text, and memory bounded by constants, whatever the
expression. It holds for three reasons:

- All ways through the expression advance together, one character at a time (Thompson's construction). A character
  therefore costs at most as many steps as the program has, which is at most :data:`MAX_SIZE`.
- The sets of steps that occur are remembered (a lazy deterministic automaton), so a character usually costs one
  dictionary lookup. The memory for them is bounded, and starts anew when it is full.
- :data:`MAX_WORK` bounds the steps that one search takes beyond the remembered ones.

Features that depend on earlier parts of the match, such as back references, would break it. Greediness does not exist
here, because a search only asks *whether* something matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

Predicate = Callable[[str], bool]
"""A test of one character: does it belong to a class?"""

MAX_SIZE = 10_000
"""Maximum number of steps of an expression, with counted repetitions written out."""

MAX_WORK = 200_000
"""Maximum number of steps of one search beyond the remembered ones. They take about a tenth of a second."""

_MAX_REMEMBERED = 30_000
"""Maximum number of steps in all remembered sets together."""


class TooLarge(ValueError):
    """The expression has more than :data:`MAX_SIZE` steps."""


class Before(IntEnum):
    """The kind of the character before a position, as far as assertions need it."""

    NOTHING = 0
    NEWLINE = 1
    RETURN = 2
    WORD = 3
    OTHER = 4


Assertion = Callable[[Before, str], bool]
"""A test of the position between two characters. The second character is empty at the end of the text."""


@dataclass(frozen=True, slots=True)
class Node:
    """Part of an expression.

    Attributes
    ----------
    size
        Number of steps of its program.
    depth
        Depth of nesting.
    """

    size: int
    depth: int


@dataclass(frozen=True, slots=True)
class Char(Node):
    """One character of a class."""

    accepts: Predicate


@dataclass(frozen=True, slots=True)
class Position(Node):
    """A position that an assertion allows. It takes no character."""

    holds: Assertion


@dataclass(frozen=True, slots=True)
class Sequence_(Node):
    """Parts one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice(Node):
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat(Node):
    """A part, ``low`` to ``high`` times. None means without limit."""

    part: Node
    low: int
    high: int | None


def char(accepts: Predicate) -> Node:
    """See :class:`Char`."""
    return Char(1, 1, accepts)


def position(holds: Assertion) -> Node:
    """See :class:`Position`."""
    return Position(1, 1, holds)


def sequence(parts: Sequence[Node]) -> Node:
    """See :class:`Sequence_`."""
    return parts[0] if len(parts) == 1 else Sequence_(_sum(parts), _depth(parts), tuple(parts))


def choice(parts: Sequence[Node]) -> Node:
    """See :class:`Choice`."""
    return parts[0] if len(parts) == 1 else Choice(_sum(parts) + 2 * len(parts), _depth(parts) + 1, tuple(parts))


def repeat(part: Node, low: int, high: int | None) -> Node:
    """See :class:`Repeat`."""
    copies = low + 1 if high is None else high
    return Repeat(_checked((part.size + 2) * max(copies, 1)), part.depth + 1, part, low, high)


def _sum(parts: Sequence[Node]) -> int:
    return _checked(sum([part.size for part in parts]))


def _depth(parts: Sequence[Node]) -> int:
    return max([part.depth for part in parts], default=0)


def _checked(size: int) -> int:
    if size > MAX_SIZE:
        raise TooLarge
    return size


# --- the program -------------------------------------------------------------------------------------------------


class Program:
    """A compiled expression.

    Step ``i`` is a class (continue at ``i + 1`` after a matching character), an assertion (continue at ``i + 1`` if it
    holds), or a fork (continue at several steps). Reaching the step after the last one is a match.

    Parameters
    ----------
    is_word
        Whether a character is part of a word, for assertions.
    """

    def __init__(self, expression: Node, is_word: Predicate) -> None:
        self._is_word = is_word
        self._chars: dict[int, Predicate] = {}
        self._assertions: dict[int, Assertion] = {}
        self._jumps: dict[int, tuple[int, ...]] = {}
        self._match = self._write(expression, 0)
        self._states: dict[frozenset[int], _State] = {}
        self._n_remembered = 0
        self._start = self._state(frozenset([0]))

    def _write(self, node: Node, at: int) -> int:
        """Write the program of a part from step ``at``. Return the step after it."""
        match node:
            case Char(accepts=accepts):
                self._chars[at] = accepts
                return at + 1
            case Position(holds=holds):
                self._assertions[at] = holds
                return at + 1
            case Sequence_(parts=parts):
                for part in parts:
                    at = self._write(part, at)
                return at
            case Choice(parts=parts):
                return self._write_choice(parts, at)
            case Repeat(part=part, low=low, high=high):
                return self._write_repeat(part, low, high, at)
        raise AssertionError(node)

    def _write_choice(self, parts: Sequence[Node], at: int) -> int:
        fork, starts, ends = at, [], []
        at += 1
        for part in parts:
            starts.append(at)
            at = self._write(part, at)
            ends.append(at)
            at += 1
        self._jumps[fork] = tuple(starts)
        self._jumps |= dict.fromkeys(ends, (at,))
        return at

    def _write_repeat(self, part: Node, low: int, high: int | None, at: int) -> int:
        for _ in range(low):
            at = self._write(part, at)
        if high is None:
            end = self._write(part, at + 1)
            self._jumps[at] = (at + 1, end + 1)
            self._jumps[end] = (at,)
            return end + 1
        forks = []
        for _ in range(high - low):
            forks.append(at)
            at = self._write(part, at + 1)
        self._jumps |= {fork: (fork + 1, at) for fork in forks}
        return at

    def search(self, text: str) -> bool:
        """Return True if the expression matches anywhere in the text. Return False if the search takes too long."""
        work = MAX_WORK
        state, before = self._start, Before.NOTHING
        for after in (*text, ""):
            following = state.following.get((before, after))
            if following is None:
                following, n_steps = self._advance(state.places, before, after)
                state.following[before, after] = following
                work -= n_steps
                if work < 0:
                    return False
            if following is _MATCH:
                return True
            state = following
            before = self._kind(after)
        return False

    def _kind(self, char: str) -> Before:
        if char == "\n":
            return Before.NEWLINE
        if char == "\r":
            return Before.RETURN
        return Before.WORD if self._is_word(char) else Before.OTHER

    def _advance(self, places: frozenset[int], before: Before, after: str) -> tuple[_State, int]:
        """Return the state after a character, or the match before it, and the number of steps taken."""
        seen: set[int] = set()
        following: set[int] = {0}  # a match may begin anywhere
        to_do = list(places)
        while to_do:
            step = to_do.pop()
            if step in seen:
                continue
            seen.add(step)
            if step == self._match:
                return _MATCH, len(seen)
            if (accepts := self._chars.get(step)) is not None:
                if after and accepts(after):
                    following.add(step + 1)
            elif (holds := self._assertions.get(step)) is not None:
                if holds(before, after):
                    to_do.append(step + 1)
            else:
                to_do.extend(self._jumps[step])
        return self._state(frozenset(following)), len(seen)

    def _state(self, places: frozenset[int]) -> _State:
        known = self._states.get(places)
        if known is None:
            self._n_remembered += len(places)
            if self._n_remembered > _MAX_REMEMBERED:
                # Other threads may be searching. They continue with the states that they have.
                self._states, self._n_remembered = {}, len(places)
                self._start = _State(frozenset([0]))
            known = self._states[places] = _State(places)
        self._n_remembered += 1
        return known


class _State:
    """Steps that are reached together, and the known next state for each character."""

    __slots__ = ("following", "places")

    def __init__(self, places: frozenset[int]) -> None:
        self.places = places
        self.following: dict[tuple[Before, str], _State] = {}


_MATCH = _State(frozenset())
