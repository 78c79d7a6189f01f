"""What xarray's own conftest gives its tests, as far as the suites here need it."""

from __future__ import annotations

import pytest
from xarray.tests.conftest import use_dask

__all__ = ["use_dask"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "skip_if_param(**params): xarray's mark: skip where fixtures have these params")
    config.addinivalue_line("markers", "flaky: xarray's mark")
    config.addinivalue_line("markers", "slow: xarray's mark")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        for mark in item.iter_markers("skip_if_param"):
            wanted = dict(mark.kwargs)
            reason, condition = wanted.pop("reason"), wanted.pop("condition", True)
            if condition and all(params.get(name) == value for name, value in wanted.items()):
                item.add_marker(pytest.mark.skip(reason=reason))
