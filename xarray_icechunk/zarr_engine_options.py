"""Options of xarray's Zarr engine that programs still pass, although they have no effect here."""

from __future__ import annotations

from icechunk_engine.errors import ErrorKind, InvalidInputError

__all__ = ["check_zarr_engine_options"]


def check_zarr_engine_options(*, consolidated: bool | None, zarr_format: int | None) -> None:
    """Accept the values that describe every repository, and refuse the others.

    Raises
    ------
    InvalidInputError
        The caller asks for consolidated metadata, or for another Zarr format.
    """
    if consolidated:
        raise InvalidInputError(
            "consolidated=True is not supported: a repository needs no consolidated metadata, because one file, the "
            "snapshot, holds the metadata of all groups and arrays. Leave the argument out, or pass False",
            ErrorKind.NOT_ALLOWED,
        )
    if zarr_format not in (None, 3):
        raise InvalidInputError(
            f"zarr_format={zarr_format!r} is not supported: repositories hold Zarr format 3 only. Leave the argument "
            f"out, or pass 3",
            ErrorKind.NOT_ALLOWED,
        )
