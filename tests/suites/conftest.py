"""What xarray's own test configuration gives its tests, as far as the suites here need it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make the marks known that this version of xarray uses; nothing of its tests can be imported before that."""
    spec = importlib.util.find_spec("xarray")
    assert spec is not None
    assert spec.origin is not None
    tests = Path(spec.origin).parent / "tests"
    for name in ("__init__.py", "conftest.py", "test_backends.py"):
        for mark in set(re.findall(r"pytest\.mark\.(\w+)", (tests / name).read_text(encoding="utf-8"))):
            config.addinivalue_line("markers", f"{mark}: xarray's mark")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        for mark in item.iter_markers("skip_if_param"):
            wanted = dict(mark.kwargs)
            reason, condition = wanted.pop("reason"), wanted.pop("condition", True)
            if condition and all(params.get(name) == value for name, value in wanted.items()):
                item.add_marker(pytest.mark.skip(reason=reason))
