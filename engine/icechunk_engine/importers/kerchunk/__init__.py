"""Import kerchunk reference sets.

An import runs in three steps. Each step finishes before the next one starts, so a bad set never reaches the session.

1. Read: :mod:`.reference_set` turns JSON into columns, with the help of :mod:`.json_members`, :mod:`.templates`,
   :mod:`.gen_items` and :mod:`.reference_columns`.
2. Plan: :mod:`.plan` checks the whole set. :mod:`.groups_and_arrays` converts metadata, :mod:`.chunk_keys` assigns
   store keys to arrays, :mod:`.target_urls` and :mod:`.files_on_disk` check the files, and :mod:`.chunk_columns`
   builds the chunk references.
3. Write: :mod:`.importing` writes the plan into a session.
"""

from icechunk_engine.importers.kerchunk.importing import import_kerchunk, write_plan
from icechunk_engine.importers.kerchunk.plan import ImportReport

__all__ = ["ImportReport", "import_kerchunk", "write_plan"]
