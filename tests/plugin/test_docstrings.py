"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["writer", "dask_writer"])
def test_examples_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"xarray_icechunk.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
