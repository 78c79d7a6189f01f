"""Times as files store them, and as datetimes in UTC. Pure.

Files hold Unix microseconds as unsigned 64-bit integers. A damaged or hostile file may hold numbers that no datetime
can express. They are refused where a date is needed, with an error that says which file to restore, and never earlier:
data can still be read by snapshot, branch or tag.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from icechunk_engine.columns.tables import U64
from icechunk_engine.errors import ErrorKind, FormatError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_US = 253_402_300_800_000_000
"""The start of the year 10 000, which datetimes cannot express."""


def require_date(unix_us: int, of: str) -> None:
    """Raise FormatError (``snapshot-timestamp``) if stored Unix microseconds are not a valid date.

    Parameters
    ----------
    of
        What has this date, for the message.
    """
    if not 0 <= unix_us < _END_US:
        raise FormatError(
            f"{of} is dated {unix_us} µs after 1970, which is not a valid date: the file is damaged. The data can "
            f"be read by snapshot id, branch or tag; to see or continue the history, restore that file from a copy",
            ErrorKind.SNAPSHOT_TIMESTAMP,
        )


def utc_of_us(unix_us: int, of: str = "an entry") -> datetime:
    """Return Unix microseconds as an aware datetime in UTC. Raises FormatError, as :func:`require_date`."""
    require_date(unix_us, of)
    return _EPOCH + timedelta(microseconds=unix_us)


def utc_of_column(unix_us: U64, of: Sequence[str]) -> Iterable[datetime]:
    """Return many times as :func:`utc_of_us` does. An invalid one raises when the iteration reaches it."""
    if len(unix_us) and int(unix_us.max()) >= _END_US:
        return map(utc_of_us, unix_us.tolist(), of)
    elapsed: list[timedelta] = unix_us.astype("m8[us]").tolist()
    return [_EPOCH + time for time in elapsed]


def us_of_datetime(moment: datetime) -> int:
    """Return Unix microseconds of a datetime. Raises TypeError for a naive one, which could mean UTC or local time."""
    if moment.utcoffset() is None:
        raise TypeError(
            f"{moment!r} has no time zone: pass an aware datetime, such as datetime.now(timezone.utc) or "
            f"moment.replace(tzinfo=timezone.utc)"
        )
    elapsed = moment - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
