"""Importers: other descriptions of arrays become nodes and chunk references of a repository.

=================  ====================================================================
:mod:`.kerchunk`   kerchunk reference sets, from JSON to a session
:mod:`.zarr_v2`    Zarr v2 metadata as Zarr v3: data types, codecs, fill values
:mod:`.limits`     how far an imported document may expand
:mod:`.short_repr` values from a document, shortened for error messages
=================  ====================================================================
"""
