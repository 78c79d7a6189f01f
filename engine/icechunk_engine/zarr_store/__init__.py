"""The machinery of the Zarr store: reads, writes, listings and virtual references over a workspace."""
