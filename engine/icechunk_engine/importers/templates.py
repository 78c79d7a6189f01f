"""Templates of kerchunk reference sets: ``{{name}}``, integer arithmetic, and calls of templates that take arguments.

kerchunk gives these to jinja2. A reference set is data from elsewhere, so this module evaluates the few forms that the
kerchunk specification shows and refuses everything else by name.

A compiled :class:`Text` renders many values at once: variables are columns of Python objects, arithmetic runs on whole
columns with Python's own integers (no overflow, ``//`` and ``%`` as in Python), and the pieces are joined in C.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.errors import ErrorKind, InvalidInputError

Column = NDArray[Any]
"""Object column of ``str``, ``int`` or ``float`` values."""

MAX_DEPTH = 16
MAX_EXPRESSION_CHARS = 1000

_EXPRESSION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_OTHER_SYNTAX = re.compile(r"\{%|\{#")


def bad_template(text: str, reason: str) -> InvalidInputError:
    """The error for a template that cannot be rendered."""
    return InvalidInputError(
        f"the template {text!r} in the reference set cannot be rendered: {reason}. Only {{{{name}}}}, integer "
        f"arithmetic (+ - * / // %) and calls like {{{{f(c='text')}}}} are evaluated; expand the templates before "
        f"importing",
        ErrorKind.INVALID_VIRTUAL_REF,
    )


def is_template(text: str) -> bool:
    """True when the text holds ``{{``."""
    return "{{" in text


@dataclass(frozen=True, slots=True)
class Text:
    """A template taken apart: literal pieces (str) and expressions between them."""

    source: str
    pieces: tuple[str | ast.expr, ...]


@lru_cache(maxsize=4096)
def compile_text(source: str) -> Text:
    """Take a template apart.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: syntax that is not evaluated here.
    """
    if _OTHER_SYNTAX.search(source):
        raise bad_template(source, "it holds a jinja2 statement or comment")
    pieces: list[str | ast.expr] = []
    for i, piece in enumerate(_EXPRESSION.split(source)):
        if i % 2:
            pieces.append(_parse(source, piece.strip()))
        elif "{{" in piece or "}}" in piece:
            raise bad_template(source, "its braces do not match")
        elif piece:
            pieces.append(piece)
    return Text(source, tuple(pieces))


def _parse(source: str, expression: str) -> ast.expr:
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise bad_template(source, "the expression is too long")
    try:
        return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise bad_template(source, f"{expression!r} is not understood") from None


@dataclass(frozen=True, slots=True)
class Scope:
    """What names mean: loop variables as columns of ``n`` values, and the templates of the set.

    Attributes
    ----------
    templates
        Texts by name; one that holds ``{{`` is a function of keyword arguments.
    variables
        Columns by name; they hide templates of the same name.
    n
        Length of every column.
    """

    templates: Mapping[str, str]
    variables: Mapping[str, Column]
    n: int = 1
    depth: int = 0


def render(source: str, scope: Scope) -> list[str]:
    """The ``scope.n`` texts that a template stands for."""
    text = compile_text(source)
    if scope.depth > MAX_DEPTH:
        raise bad_template(source, "templates call each other too deeply")
    parts: list[Any] = []
    for piece in text.pieces:
        if isinstance(piece, str):
            parts.append(repeat(piece, scope.n))
        else:
            parts.append(map(str, _values(source, piece, scope)))
    if len(parts) == 1:
        return list(parts[0])
    return list(map("".join, zip(*parts, strict=True))) if parts else [""] * scope.n


def render_one(source: str, templates: Mapping[str, str]) -> str:
    """The one text that a template without loop variables stands for."""
    return render(source, Scope(templates, {}))[0]


def _values(source: str, node: ast.expr, scope: Scope) -> list[Any]:
    value = _evaluate(source, node, scope)
    return value.tolist() if isinstance(value, np.ndarray) else [value] * scope.n


def _evaluate(source: str, node: ast.expr, scope: Scope) -> Any:
    """Value of an expression: a column, or one value that holds for all rows."""
    match node:
        case ast.Constant(value=bool()):
            raise bad_template(source, f"{ast.unparse(node)!r} is not understood")
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.Name(id=name):
            return _variable(source, name, scope)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _number(source, operand, scope)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=operator, right=right):
            return _arithmetic(source, operator, _number(source, left, scope), _number(source, right, scope))
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return _call(source, name, keywords, scope)
    raise bad_template(source, f"{ast.unparse(node)!r} is not understood")


def _variable(source: str, name: str, scope: Scope) -> Any:
    if name in scope.variables:
        return scope.variables[name]
    template = scope.templates.get(name)
    if template is None:
        raise bad_template(source, f"there is no template {name!r}")
    if is_template(template):
        raise bad_template(source, f"the template {name!r} takes arguments: call it like {name}(c='text')")
    return template


def _number(source: str, node: ast.expr, scope: Scope) -> Any:
    value = _evaluate(source, node, scope)
    kinds = set(map(type, value.tolist())) if isinstance(value, np.ndarray) else {type(value)}
    if not kinds <= {int, float}:
        raise bad_template(source, f"{ast.unparse(node)!r} is no number")
    return value


def _arithmetic(source: str, operator: ast.operator, left: Any, right: Any) -> Any:
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
        raise bad_template(source, f"there is no template {name!r} that takes arguments")
    variables: dict[str, Column] = {}
    for keyword in keywords:
        if keyword.arg is None:
            raise bad_template(source, "'**' is not understood")
        variables[keyword.arg] = object_column(_values(source, keyword.value, scope))
    # A called template sees its arguments and nothing else.
    return object_column(render(template, Scope({}, variables, scope.n, scope.depth + 1)))


def object_column(values: list[Any]) -> Column:
    """Values as they are, one to a row; nothing is converted."""
    column = np.empty(len(values), object)
    column[:] = values
    return column
