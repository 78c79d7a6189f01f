"""Search with regular expressions in the syntax of the format's reference implementation (Rust's ``regex`` crate).

Conditions of the configuration hold such expressions, so every reader must agree on what they match. An expression is
parsed here by Rust's rules and rewritten for :mod:`re`: lookaround, backreferences and possessive operators do not
exist there, while stacked repetitions, nested character classes with ``&&``, ``--`` and ``~~``, mid-pattern flags and
``$`` as the very end do. Only *whether* something matches is asked, so greediness does not matter.

Not known here, and so matching nothing, as an invalid expression does: ``\\p{…}`` other than general categories,
the flag ``-u``, and ``m`` together with ``R``.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache, lru_cache

_MAX_DEPTH = 250  # of nesting, as in Rust
_ANY = r"[\s\S]"
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
_ASSERTIONS = {"A": r"\A", "z": r"\Z", "b": r"\b", "B": r"\B", "<": r"(?<!\w)(?=\w)", ">": r"(?<=\w)(?!\w)"}
_WORD_BOUNDARIES = {
    "b{start}": r"(?<!\w)(?=\w)",
    "b{end}": r"(?<=\w)(?!\w)",
    "b{start-half}": r"(?<!\w)",
    "b{end-half}": r"(?!\w)",
}
_COUNTED = re.compile(r"\{(\d+)(?:(,)(\d*))?\}", re.ASCII)
_FLAGS = re.compile(r"\(\?([imsxUuR]*)(-[imsxUuR]+)?([:)])")
_GROUP_NAME = re.compile(r"\(\?P?<[A-Za-z_][A-Za-z0-9_.\[\]]*>")


def search(pattern: str, text: str) -> bool:
    """True when the expression matches anywhere in ``text``; False when it is invalid."""
    compiled = _compiled(pattern)
    return compiled is not None and compiled.search(text) is not None


def is_valid(pattern: str) -> bool:
    """True when the expression is one that this module can evaluate."""
    return _compiled(pattern) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(_Parser(pattern).parse())
    except (_Invalid, re.error, RecursionError, OverflowError):
        return None


class _Invalid(Exception):
    """The expression is not valid Rust, or uses what cannot be evaluated here."""


class _Parser:
    """Recursive descent over one expression; every method returns the equivalent for :mod:`re`."""

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.depth = 0
        self.flags: frozenset[str] = frozenset()

    def parse(self) -> str:
        translated = self._alternation()
        if self.at < len(self.text):
            raise _Invalid("unopened group")
        return translated

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

    def _alternation(self) -> str:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Invalid("nested too deeply")
        outer_flags = self.flags
        branches = [self._concatenation()]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._concatenation())
        self.flags = outer_flags
        self.depth -= 1
        return "|".join(branches)

    def _concatenation(self) -> str:
        items: list[str] = []
        while True:
            self._skip_space()
            char = self._peek()
            if char in ("", "|", ")"):
                return "".join(items)
            if char in "*+?{":
                if not items or not items[-1]:
                    raise _Invalid("nothing to repeat")
                items[-1] = self._repetition(items[-1])
            else:
                items.append(self._atom())

    def _repetition(self, operand: str) -> str:
        operator = self._take()
        if operator == "{":
            match = _COUNTED.match(self.text, self.at - 1)
            if match is None:
                raise _Invalid("bad repetition count")
            self.at = match.end()
            low, comma, high = match.groups()
            if high and int(high) < int(low):
                raise _Invalid("repetition count out of order")
            operator = f"{{{low},{high}}}" if comma else f"{{{low}}}"
        if self._peek() == "?":  # lazy: the same set of matching texts
            self.at += 1
        return f"(?:{operand}){operator}"

    def _atom(self) -> str:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return self._folded(self._char_class())
        if char == "\\":
            return self._folded(self._escape())
        if char == ".":
            return _ANY if "s" in self.flags else (r"[^\r\n]" if "R" in self.flags else r"[^\n]")
        if char in "^$":
            if {"m", "R"} <= self.flags:
                raise _Invalid("CRLF lines are not supported")
            return f"(?m:{char})" if "m" in self.flags else (r"\A" if char == "^" else r"\Z")
        return self._folded(re.escape(char))

    def _folded(self, translated: str) -> str:
        return f"(?i:{translated})" if "i" in self.flags else translated

    def _group(self) -> str:
        start = self.at - 1
        flags = _FLAGS.match(self.text, start)
        name = _GROUP_NAME.match(self.text, start)
        inner = self.flags
        if flags is not None:
            self.at = flags.end()
            inner = self._new_flags(flags)
            if flags[3] == ")":  # for the rest of the enclosing group
                self.flags = inner
                return ""
        elif name is not None:
            self.at = name.end()
        elif self._peek() == "?":
            raise _Invalid("no such group")
        outer, self.flags = self.flags, inner
        translated = self._alternation()
        self.flags = outer
        if self._take() != ")":
            raise _Invalid("unclosed group")
        return f"(?:{translated})"

    def _new_flags(self, match: re.Match[str]) -> frozenset[str]:
        on, off = match[1], (match[2] or "-")[1:]
        if "u" in off or len(set(on + off)) != len(on + off) or not (on or off or match[3] == ":"):
            raise _Invalid("unsupported flags")
        return (self.flags | set(on)) - set(off)

    def _escape(self) -> str:
        for name, translated in _WORD_BOUNDARIES.items():
            if self.text.startswith(name, self.at):
                self.at += len(name)
                return translated
        if self._peek() in _ASSERTIONS:
            return _ASSERTIONS[self._take()]
        return self._class_escape() or re.escape(self._escaped_char())

    def _class_escape(self) -> str | None:
        """``\\d``, ``\\pL`` and their like; None when the escape is a single character."""
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

    def _char_class(self) -> str:
        """After ``[``: an expression for exactly one character."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Invalid("nested too deeply")
        negated = self._peek() == "^"
        if negated:
            self.at += 1
        items: list[str] = []
        while self._peek() == "-":  # literal in front
            self.at += 1
            items.append("-")
        if not items and self._peek() == "]":
            self.at += 1
            items.append("\\]")
        result = self._class_operations(items)
        self.depth -= 1
        return f"(?:(?!{result}){_ANY})" if negated else result

    def _class_operations(self, items: list[str]) -> str:
        left, operator = "", ""
        while True:
            self._class_items(items)
            right = "(?:" + "|".join(items) + ")" if items else r"(?!)"
            left = _combine(left, operator, right)
            if self._peek() == "]":
                self.at += 1
                return left
            operator, items = self._peek(2), []
            self.at += 2

    def _class_items(self, items: list[str]) -> None:
        """Union of characters, ranges and nested classes up to ``]`` or an operator."""
        while self._peek() != "]" and self._peek(2) not in ("&&", "--", "~~"):
            if "x" in self.flags and (self._peek().isspace() or self._peek() == "#"):
                before = self.at
                self._skip_space()
                if self.at > before:
                    continue
            char = self._take()
            if char == "[":
                items.append(self._ascii_class() or self._char_class())
                continue
            if char == "\\" and (translated := self._class_escape()) is not None:
                items.append(translated)
                if self._peek() == "-" and self._peek(2) not in ("-]", "--"):
                    raise _Invalid("a class bounds no range")
                continue
            first = self._escaped_char() if char == "\\" else char
            items.append(self._range(first))

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
        return f"(?:(?!{members}){_ANY})" if match[1] else members


def _combine(left: str, operator: str, right: str) -> str:
    match operator:
        case "&&":
            return f"(?:(?={left}){right})"
        case "--":
            return f"(?:(?!{right}){left})"
        case "~~":
            return f"(?:(?!{right}){left}|(?!{left}){right})"
        case _:
            return right


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
    """Members of a general category such as ``L`` or ``Lu``, as the inside of a character class."""
    names = frozenset(full for full in _CATEGORIES if full.startswith(name))
    if not names or not 1 <= len(name) <= 2:
        raise _Invalid("unsupported class name")
    code_points = map(chr, range(sys.maxunicode + 1))
    members = bytes(map(names.__contains__, map(unicodedata.category, code_points)))
    runs = re.finditer(b"\x01+", members)
    return "".join([f"\\U{run.start():08X}-\\U{run.end() - 1:08X}" for run in runs])
