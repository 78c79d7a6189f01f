"""Virtual datasets: chunks that stay in other files."""

from __future__ import annotations

from icechunk_engine.importers.kerchunk import import_kerchunk
from icechunk_engine.importers.limits import ReferenceLimits

__all__ = ["ReferenceLimits", "import_kerchunk"]
