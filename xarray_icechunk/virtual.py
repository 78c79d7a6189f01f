"""Virtual datasets: references to chunks that lie in other files."""

from __future__ import annotations

from icechunk_engine.importers.kerchunk import import_kerchunk

__all__ = ["import_kerchunk"]
