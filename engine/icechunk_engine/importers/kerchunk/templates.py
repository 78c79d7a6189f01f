"""Render the templates of kerchunk reference sets.

This module supports ``{{name}}``, integer arithmetic, and calls of templates with keyword arguments. kerchunk uses
jinja2, but a reference set is untrusted data. So this module evaluates the few forms that the kerchunk specification
shows and refuses everything else by name.

:func:`render` makes many texts at once. Variables are columns of Python objects, arithmetic runs on whole columns with
Python's integers (``//`` and ``%`` as in Python), and C code joins the pieces.

Invariant: the budget accepts the length of every text before the text is built, and no number exceeds
:data:`MAX_INTEGER`. Without this, calls within calls and products of products would grow exponentially.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.limits import Budget
from icechunk_engine.importers.short_repr import short_repr

type Column = NDArray[np.object_]
"""Column of ``str``, ``int`` or ``float`` values."""

type Number = int | float | Column
type Value = str | Number

MAX_EXPRESSION_CHARS = 1000
MAX_EXPRESSIONS = 100
"""Maximum number of expressions in one text. Each makes a column."""
MAX_NESTING = 64
MAX_INTEGER = 2**126
"""Far larger than any offset."""

_OTHER_SYNTAX = re.compile(r"\{%|\{#")


def bad_template(text: str, reason: str) -> InvalidInputError:
    """Return the error for a template that cannot be rendered."""
    return InvalidInputError(
        f"the template {short_repr(text)} in the reference set cannot be rendered: {reason}. Only {{{{name}}}}, "
        f"integer arithmetic (+ - * / // %) and calls like {{{{f(c='text')}}}} are evaluated. Expand the "
        f"templates before you import the set",
        ErrorKind.INVALID_VIRTUAL_REF,
    )


def is_template(text: str) -> bool:
    """Return True if the text contains ``{{``."""
    return "{{" in text


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that a template can use.

    Attributes
    ----------
    templates
        Templates of the set by name. A template that contains ``{{`` is a function of keyword arguments.
    variables
        Loop variables as columns of ``n`` values. They hide templates of the same name.
    n
        Length of every column.
    budget
        Charged for the texts.
    """

    templates: Mapping[str, str]
    variables: Mapping[str, Column]
    n: int = 1
    budget: Budget = field(default_factory=Budget)


def render(source: str, scope: Scope) -> list[str]:
    """Render a template to ``scope.n`` texts.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: the template uses unsupported syntax. ``deserialization``: it exceeds the budget.
    """
    if _OTHER_SYNTAX.search(source):
        raise bad_template(source, "it has a jinja2 statement or comment")
    parts: list[list[str]] = []
    for position, (is_expression, piece) in enumerate(_pieces(source)):
        if position > 2 * MAX_EXPRESSIONS:
            raise bad_template(source, f"it has more than {MAX_EXPRESSIONS} expressions")
        part = _texts(source, piece, scope) if is_expression else [piece] * scope.n
        num_chars = sum(map(len, part)) if is_expression else len(piece) * scope.n
        # The pointer to each text takes eight bytes, even if the text is empty.
        scope.budget.charge_bytes(num_chars + 8 * scope.n, f"the template {short_repr(source)} is rendered")
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return list(map("".join, zip(*parts, strict=True))) if parts else [""] * scope.n


def render_one(source: str, templates: Mapping[str, str], budget: Budget) -> str:
    """Render a template without loop variables."""
    return render(source, Scope(templates, {}, 1, budget))[0]


def _pieces(source: str) -> Iterator[tuple[bool, str]]:
    """Split a template into literals (False) and expressions (True)."""
    position = 0
    while (start := source.find("{{", position)) >= 0:
        end = source.find("}}", start)
        literal = source[position:start]
        if end < 0 or "}}" in literal:
            raise bad_template(source, "its braces do not match")
        if literal:
            yield False, literal
        yield True, source[start + 2 : end].strip()
        position = end + 2
    rest = source[position:]
    if "}}" in rest:
        raise bad_template(source, "its braces do not match")
    if rest:
        yield False, rest


def _texts(source: str, expression: str, scope: Scope) -> list[str]:
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise bad_template(source, "the expression is too long")
    node = _parse(expression)
    if node is None:
        raise bad_template(source, f"{short_repr(expression)} is not understood")
    return list(map(str, _values(source, node, scope)))


@lru_cache(maxsize=1024)
def _parse(expression: str) -> ast.expr | None:
    """Parse an expression. Return None if it is invalid or nested too deeply."""
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    level: list[ast.AST] = [tree]
    for _ in range(MAX_NESTING):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tree
    return None


def require_small(where: str, *values: str | int | float) -> None:
    """Refuse integers that are larger than any offset.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: an integer is too large. ``where`` begins the message.
    """
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise InvalidInputError(
                f"{where} in the reference set has the integer {short_repr(value)}, which is larger than any offset",
                ErrorKind.INVALID_VIRTUAL_REF,
            )


def _values(source: str, node: ast.expr, scope: Scope) -> list[str | int | float]:
    value = _evaluate(source, node, scope)
    return value.tolist() if isinstance(value, np.ndarray) else [value] * scope.n


def _evaluate(source: str, node: ast.expr, scope: Scope) -> Value:
    """Evaluate an expression to a column, or to one value for all rows."""
    match node:
        case ast.Constant(value=bool()):
            raise bad_template(source, f"{ast.unparse(node)!r} is not understood")
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.Name(id=name):
            return _variable(source, name, scope)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _number(source, operand, scope)
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(left=left, op=operator, right=right):
            return _arithmetic(source, operator, _number(source, left, scope), _number(source, right, scope))
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return _call(source, name, keywords, scope)
    raise bad_template(source, f"{ast.unparse(node)!r} is not understood")


def _variable(source: str, name: str, scope: Scope) -> str | Column:
    if name in scope.variables:
        return scope.variables[name]
    template = scope.templates.get(name)
    if template is None:
        raise bad_template(source, f"the set has no template {short_repr(name)}")
    if is_template(template):
        raise bad_template(source, f"the template {name!r} takes arguments: call it like {name}(c='text')")
    return template


def _number(source: str, node: ast.expr, scope: Scope) -> Number:
    value = _evaluate(source, node, scope)
    values: list[int | float] = []
    if not isinstance(value, str):
        values = value.tolist() if isinstance(value, np.ndarray) else [value]
    if isinstance(value, str) or not set(map(type, values)) <= {int, float}:
        raise bad_template(source, f"{ast.unparse(node)!r} is not a number")
    if values and not (max(values) <= MAX_INTEGER and min(values) >= -MAX_INTEGER):
        raise bad_template(source, f"{ast.unparse(node)!r} is a number larger than any offset")
    return value


def _arithmetic(source: str, operator: ast.operator, left: Number, right: Number) -> Number:
    try:
        match operator:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
            case ast.FloorDiv():
                return left // right
            case ast.Mod():
                return left % right
    except (ZeroDivisionError, OverflowError) as error:
        raise bad_template(source, str(error)) from None
    raise bad_template(source, f"the operator {type(operator).__name__} is not understood")


def _call(source: str, name: str, keywords: list[ast.keyword], scope: Scope) -> Column:
    template = scope.templates.get(name)
    if template is None or not is_template(template):
        raise bad_template(source, f"the set has no template {name!r} that takes arguments")
    variables: dict[str, Column] = {}
    for keyword in keywords:
        if keyword.arg is None:
            raise bad_template(source, "'**' is not understood")
        variables[keyword.arg] = object_column(_values(source, keyword.value, scope))
    # A called template sees only its arguments.
    return object_column(render(template, Scope({}, variables, scope.n, scope.budget)))


def object_column(values: Sequence[str | int | float]) -> Column:
    """Return a column of values without converting them."""
    column = np.empty(len(values), object)
    column[:] = values
    return column
