"""Search with regular expressions in the syntax of Rust's ``regex`` crate, which the reference implementation uses.

Conditions in a stored configuration have such expressions.

Invariant: an expression matches here exactly if it matches in the reference implementation, or it matches nothing and
:func:`problem` says why. Readers must agree, because the condition decides how manifests are split. So this module
parses by Rust's rules and never passes a whole expression to :mod:`re`, whose syntax looks the same but differs
(``$``, ``\\Z``, ``\\b{start}``, nested classes). :mod:`re` only tests single characters against a class.
:mod:`.automaton` runs the search in linear time.

Not supported are ``\\p{…}`` other than general categories, the flag ``-u``, expressions nested more than 64 levels
deep, and expressions with more than 10 000 steps, counting each repetition. They match nothing, like invalid
expressions.
"""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from functools import cache, lru_cache

from icechunk_engine.config.automaton import (
    MAX_SIZE,
    Assertion,
    Before,
    Node,
    Predicate,
    Program,
    TooLarge,
    char,
    choice,
    position,
    repeat,
    sequence,
)

_LOG = logging.getLogger(__name__)

_MAX_DEPTH = 64
_MAX_LENGTH = 100_000
_PERL_CLASSES = {letter: "\\" + letter for letter in "dDsSwW"}
_ASCII_CLASSES = {
    "alnum": "[0-9A-Za-z]",
    "alpha": "[A-Za-z]",
    "ascii": r"[\x00-\x7F]",
    "blank": r"[\t ]",
    "cntrl": r"[\x00-\x1F\x7F]",
    "digit": "[0-9]",
    "graph": "[!-~]",
    "lower": "[a-z]",
    "print": "[ -~]",
    "punct": r"[!-/:-@\[-`{-~]",
    "space": r"[\t-\r ]",
    "upper": "[A-Z]",
    "word": "[0-9A-Za-z_]",
    "xdigit": "[0-9A-Fa-f]",
}
_CONTROL_ESCAPES = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_MINOR_CATEGORIES = {"L": "ultmo", "M": "nce", "N": "dlo", "P": "cdseifo", "S": "mcko", "Z": "slp", "C": "cfon"}
_CATEGORIES = [major + minor for major, minors in _MINOR_CATEGORIES.items() for minor in minors]


def _is_before_word(before: Before, after: str) -> bool:
    return bool(after and _is_word(after))


def _is_after_word(before: Before, after: str) -> bool:
    return before is Before.WORD


_is_word: Predicate = re.compile(r"\w").match  # type: ignore[assignment]

_ASSERTIONS: dict[str, Assertion] = {
    "A": lambda before, after: before is Before.NOTHING,
    "z": lambda before, after: not after,
    "b": lambda before, after: _is_after_word(before, after) != _is_before_word(before, after),
    "B": lambda before, after: _is_after_word(before, after) == _is_before_word(before, after),
    "<": lambda before, after: _is_before_word(before, after) and not _is_after_word(before, after),
    ">": lambda before, after: _is_after_word(before, after) and not _is_before_word(before, after),
}
_WORD_BOUNDARIES: dict[str, Assertion] = {
    "b{start}": _ASSERTIONS["<"],
    "b{end}": _ASSERTIONS[">"],
    "b{start-half}": lambda before, after: not _is_after_word(before, after),
    "b{end-half}": lambda before, after: not _is_before_word(before, after),
}
_LINE_STARTS: dict[str, Assertion] = {
    "": _ASSERTIONS["A"],
    "m": lambda before, after: before in (Before.NOTHING, Before.NEWLINE),
    "mR": lambda before, after: (
        before in (Before.NOTHING, Before.NEWLINE) or (before is Before.RETURN and after != "\n")
    ),
}
_LINE_ENDS: dict[str, Assertion] = {
    "": _ASSERTIONS["z"],
    "m": lambda before, after: after in ("", "\n"),
    "mR": lambda before, after: after in ("", "\r") or (after == "\n" and before is not Before.RETURN),
}
_REPETITIONS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_MAX_DIGITS = 9
_IS_LITERAL = re.compile(r"[\w/ -]*").fullmatch
_COUNTED = re.compile(r"\{(\d+)(?:(,)(\d*))?\}", re.ASCII)
_FLAGS = re.compile(r"\(\?([imsxUuR]*)(-[imsxUuR]+)?([:)])")
_GROUP_NAME = re.compile(r"\(\?P?<[A-Za-z_][A-Za-z0-9_.\[\]]*>")


@lru_cache(maxsize=4096)
def search(pattern: str, text: str) -> bool:
    """Return True if the expression can be evaluated and matches anywhere in ``text``."""
    if _IS_LITERAL(pattern):
        return pattern in text
    program = _compiled(pattern)
    return isinstance(program, Program) and program.search(text)


def is_valid(pattern: str) -> bool:
    """Return True if this module can evaluate the expression."""
    return isinstance(_compiled(pattern), Program)


def problem(pattern: str) -> str | None:
    """Return why a valid expression cannot be evaluated here. Return None for all others, even for invalid ones."""
    found = _compiled(pattern)
    return str(found) if isinstance(found, Unsupported) else None


@lru_cache(maxsize=32)
def _compiled(pattern: str) -> Program | _Invalid:
    try:
        return Program(_Parser(pattern).parse(), _is_word)
    except Unsupported as error:
        _LOG.warning("the expression %.200r of the configuration matches nothing here: %s", pattern, error)
        return error
    except _Invalid as error:
        return error


class _Invalid(Exception):
    """The expression is invalid in Rust, too."""


class Unsupported(_Invalid):
    """The expression uses an unsupported feature. The message names it."""


@lru_cache(maxsize=1024)
def _one_of(members: str) -> Predicate:
    """Return the predicate of a regular expression for one character."""
    return re.compile(members).fullmatch  # type: ignore[return-value]


def _none_of(accepts: Predicate) -> Predicate:
    return lambda char: not accepts(char)


def _any_of(classes: list[Predicate]) -> Predicate:
    return classes[0] if len(classes) == 1 else lambda char: any(accepts(char) for accepts in classes)


class _Parser:
    """Recursive descent parser. Each method returns its part of the automaton."""

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.depth = 0
        self.flags: frozenset[str] = frozenset()

    def parse(self) -> Node:
        if len(self.text) > _MAX_LENGTH:
            raise Unsupported(f"it is longer than {_MAX_LENGTH} characters")
        try:
            expression = self._alternation()
        except TooLarge:
            raise Unsupported(f"it has more than {MAX_SIZE} steps") from None
        except RecursionError:
            raise Unsupported("it is nested too deeply") from None
        if self.at < len(self.text):
            raise _Invalid("unopened group")
        return expression

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unsupported(f"it is nested more than {_MAX_DEPTH} levels deep")

    def _peek(self, n: int = 1) -> str:
        return self.text[self.at : self.at + n]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise _Invalid("unexpected end")
        self.at += 1
        return char

    def _skip_space(self) -> None:
        while "x" in self.flags and self.at < len(self.text):
            if self._peek().isspace():
                self.at += 1
            elif self._peek() == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end + 1
            else:
                return

    def _alternation(self) -> Node:
        self._deeper()
        outer_flags = self.flags
        branches = [self._concatenation()]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._concatenation())
        self.flags = outer_flags
        self.depth -= 1
        return choice(branches)

    def _concatenation(self) -> Node:
        items: list[Node | None] = []
        while True:
            self._skip_space()
            char = self._peek()
            if char in ("", "|", ")"):
                return sequence([item for item in items if item is not None])
            if char in "*+?{":
                operand = items[-1] if items else None
                if operand is None:
                    raise _Invalid("nothing to repeat")
                items[-1] = self._repetition(operand)
            else:
                items.append(self._atom())

    def _repetition(self, operand: Node) -> Node:
        operator = self._take()
        if operator == "{":
            match = _COUNTED.match(self.text, self.at - 1)
            if match is None:
                raise _Invalid("bad repetition count")
            self.at = match.end()
            low, comma, high = match.groups()
            if max(len(low), len(high or "")) > _MAX_DIGITS:
                raise Unsupported(f"it has more than {MAX_SIZE} steps")
            bounds = int(low), (int(high) if high else None) if comma else int(low)
            if bounds[1] is not None and bounds[1] < bounds[0]:
                raise _Invalid("repetition count out of order")
        else:
            bounds = _REPETITIONS[operator]
        if self._peek() == "?":  # a lazy repetition matches the same texts
            self.at += 1
        repeated = repeat(operand, *bounds)
        if repeated.depth > _MAX_DEPTH:
            raise Unsupported(f"it is nested more than {_MAX_DEPTH} levels deep")
        return repeated

    def _atom(self) -> Node | None:
        """Parse one item. Return None for flags, which cannot be repeated."""
        taken = self._take()
        if taken == "(":
            return self._group()
        if taken == "[":
            return char(self._char_class())
        if taken == "\\":
            return self._escape()
        if taken == ".":
            return char(_one_of(r"[\s\S]" if "s" in self.flags else r"[^\r\n]" if "R" in self.flags else r"[^\n]"))
        if taken in "^$":
            kind = ("mR" if "R" in self.flags else "m") if "m" in self.flags else ""
            return position((_LINE_STARTS if taken == "^" else _LINE_ENDS)[kind])
        return char(self._folded(taken))

    def _folded(self, literal: str) -> Predicate:
        """Return the predicate of one character, or of both its cases."""
        return self._class_of(re.escape(literal)) if "i" in self.flags else literal.__eq__

    def _class_of(self, members: str) -> Predicate:
        return _one_of(f"(?i:{members})" if "i" in self.flags else members)

    def _group(self) -> Node | None:
        start = self.at - 1
        flags = _FLAGS.match(self.text, start)
        name = _GROUP_NAME.match(self.text, start)
        inner = self.flags
        if flags is not None:
            self.at = flags.end()
            inner = self._new_flags(flags)
            if flags[3] == ")":  # for the rest of the enclosing group
                self.flags = inner
                return None
        elif name is not None:
            self.at = name.end()
        elif self._peek() == "?":
            raise _Invalid("no such group")
        outer, self.flags = self.flags, inner
        inside = self._alternation()
        self.flags = outer
        if self._take() != ")":
            raise _Invalid("unclosed group")
        return inside

    def _new_flags(self, match: re.Match[str]) -> frozenset[str]:
        on, off = match[1], (match[2] or "-")[1:]
        if "u" in off:
            raise Unsupported("the flag -u is not supported")
        if len(set(on + off)) != len(on + off) or not (on or off or match[3] == ":"):
            raise _Invalid("no such flags")
        return (self.flags | set(on)) - set(off)

    def _escape(self) -> Node:
        for name, holds in _WORD_BOUNDARIES.items():
            if self.text.startswith(name, self.at):
                self.at += len(name)
                return position(holds)
        if self._peek() in _ASSERTIONS:
            return position(_ASSERTIONS[self._take()])
        members = self._class_escape()
        return char(self._folded(self._escaped_char()) if members is None else self._class_of(members))

    def _class_escape(self) -> str | None:
        """Return the class of ``\\d``, ``\\pL`` etc. in the syntax of :mod:`re`, or None for a single character."""
        char = self._peek()
        if char in _PERL_CLASSES:
            self.at += 1
            return _PERL_CLASSES[char]
        if char not in ("p", "P"):
            return None
        self.at += 1
        name = self._take()
        if name == "{":
            end = self.text.find("}", self.at)
            if end < 0:
                raise _Invalid("unclosed class name")
            name, self.at = self.text[self.at : end], end + 1
        negated = (char == "P") != name.startswith("^")
        members = _category(name.removeprefix("^"))
        return f"[^{members}]" if negated else f"[{members}]"

    def _escaped_char(self) -> str:
        char = self._take()
        if char in _CONTROL_ESCAPES:
            return _CONTROL_ESCAPES[char]
        if char in _HEX_DIGITS:
            if self._peek() == "{":
                end = self.text.find("}", self.at)
                digits, self.at = self.text[self.at + 1 : end], end + 1
            else:
                digits = self._peek(_HEX_DIGITS[char])
                self.at += _HEX_DIGITS[char]
                if len(digits) != _HEX_DIGITS[char]:
                    raise _Invalid("too few digits")
            return _code_point(digits)
        if not char.isascii() or char.isalnum() or char in "<>":
            raise _Invalid("no such escape")
        return char

    def _char_class(self) -> Predicate:
        """Parse a class after its ``[``."""
        self._deeper()
        negated = self._peek() == "^"
        if negated:
            self.at += 1
        members: list[str] = []
        while self._peek() == "-":  # literal in front
            self.at += 1
            members.append("-")
        if not members and self._peek() == "]":
            self.at += 1
            members.append("\\]")
        accepts = self._class_operations(members)
        self.depth -= 1
        return _none_of(accepts) if negated else accepts

    def _class_operations(self, members: list[str]) -> Predicate:
        left: Predicate | None = None
        operator = ""
        while True:
            right = self._class_items(members)
            left = right if left is None else _combine(left, operator, right)
            if self._peek() == "]":
                self.at += 1
                return left
            operator, members = self._peek(2), []
            self.at += 2

    def _class_items(self, members: list[str]) -> Predicate:
        """Parse a union of characters, ranges and nested classes up to ``]`` or an operator."""
        nested: list[Predicate] = []
        while self._peek() != "]" and self._peek(2) not in ("&&", "--", "~~"):
            if "x" in self.flags and (self._peek().isspace() or self._peek() == "#"):
                before = self.at
                self._skip_space()
                if self.at > before:
                    continue
            char = self._take()
            if char == "[":
                known = self._ascii_class()
                if known is None:
                    nested.append(self._char_class())
                else:
                    members.append(known)
                continue
            if char == "\\" and (known := self._class_escape()) is not None:
                nested.append(self._class_of(known))
                if self._peek() == "-" and self._peek(2) not in ("-]", "--"):
                    raise _Invalid("a class bounds no range")
                continue
            first = self._escaped_char() if char == "\\" else char
            members.append(self._range(first))
        if members:
            nested.append(self._class_of("(?:" + "|".join(members) + ")"))
        return _any_of(nested) if nested else lambda char: False

    def _range(self, first: str) -> str:
        if self._peek() != "-" or self._peek(2) in ("-]", "--"):
            return re.escape(first)
        self.at += 1
        char = self._take()
        if char == "[" or (char == "\\" and self._peek() in ("p", "P", *_PERL_CLASSES)):
            raise _Invalid("a class bounds no range")
        last = self._escaped_char() if char == "\\" else char
        if last < first:
            raise _Invalid("range out of order")
        return f"[{re.escape(first)}-{re.escape(last)}]"

    def _ascii_class(self) -> str | None:
        match = re.compile(r":(\^?)([a-z]+):\]").match(self.text, self.at)
        if match is None or match[2] not in _ASCII_CLASSES:
            return None
        self.at = match.end()
        members = _ASCII_CLASSES[match[2]]
        return f"[^{members[1:]}" if match[1] else members


def _combine(left: Predicate, operator: str, right: Predicate) -> Predicate:
    match operator:
        case "&&":
            return lambda char: bool(left(char) and right(char))
        case "--":
            return lambda char: bool(left(char) and not right(char))
        case _:
            return lambda char: bool(left(char)) != bool(right(char))


def _code_point(digits: str) -> str:
    try:
        code = int(digits, 16) if digits.isalnum() else -1
    except ValueError:
        code = -1
    if not 0 <= code <= sys.maxunicode or 0xD800 <= code < 0xE000:
        raise _Invalid("no such code point")
    return chr(code)


@cache
def _category(name: str) -> str:
    """Return the characters of a general category such as ``L`` or ``Lu`` in the syntax of a character class."""
    names = frozenset(full for full in _CATEGORIES if full.startswith(name))
    if not names or not 1 <= len(name) <= 2:
        raise Unsupported(f"the class \\p{{{name}}} is not supported")
    code_points = map(chr, range(sys.maxunicode + 1))
    members = bytes(map(names.__contains__, map(unicodedata.category, code_points)))
    runs = re.finditer(b"\x01+", members)
    return "".join([f"\\U{run.start():08X}-\\U{run.end() - 1:08X}" for run in runs])
