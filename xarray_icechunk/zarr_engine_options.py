"""Arguments that programs carry over from xarray's Zarr engine, and that say nothing here."""

from __future__ import annotations

from icechunk_engine.errors import ErrorKind, InvalidInputError

__all__ = ["check_zarr_engine_options"]


def check_zarr_engine_options(*, consolidated: bool | None, zarr_format: int | None) -> None:
    """Accept what is so anyway, or left open, and refuse the rest.

    Raises
    ------
    InvalidInputError
        Consolidated metadata, or another Zarr format.
    """
    if consolidated:
        raise InvalidInputError(
            "consolidated=True: a repository has no consolidated metadata and needs none, since one file, the "
            "snapshot, holds the metadata of all groups and arrays. Leave the argument out, or pass False",
            ErrorKind.NOT_ALLOWED,
        )
    if zarr_format not in (None, 3):
        raise InvalidInputError(
            f"zarr_format={zarr_format!r}: repositories hold Zarr format 3 only. Leave the argument out, or pass 3",
            ErrorKind.NOT_ALLOWED,
        )
