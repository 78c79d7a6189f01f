"""Every setting of the effective configuration is acted on."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import icechunk_engine
from icechunk_engine.config import resolved

ENGINE = Path(icechunk_engine.__file__).parent


def attributes_read() -> Iterator[str]:
    """Names of all attributes that the engine's code reads, but for the code of the configuration itself."""
    for path in ENGINE.rglob("*.py"):
        if path.is_relative_to(ENGINE / "config"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                yield node.attr


def test_no_setting_is_resolved_and_never_read() -> None:
    read = set(attributes_read())
    classes = [
        value for value in vars(resolved).values() if isinstance(value, type) and dataclasses.is_dataclass(value)
    ]
    own = [cls for cls in classes if cls.__module__ == resolved.__name__]
    assert resolved.ResolvedConfig in own
    unread = {f"{cls.__name__}.{field.name}" for cls in own for field in dataclasses.fields(cls)} - {
        f"{cls.__name__}.{name}" for cls in own for name in read
    }
    assert unread == set()
