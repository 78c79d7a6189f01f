"""No cycle of imports, not even of imports for types only."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp


def test_modules_import_each_other_without_cycles() -> None:
    """The contracts of import-linter compare siblings; this also finds a cycle of a package with its own modules."""
    graph = grimp.build_graph(
        "icechunk_engine", "xarray_icechunk", exclude_type_checking_imports=False, cache_dir=None
    )
    assert len(graph.modules) > 100
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise AssertionError(f"these modules import each other: {cycle}") from None
