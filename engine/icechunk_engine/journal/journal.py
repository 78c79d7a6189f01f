"""The journal of one session: objects below ``journals/<token>/`` in the repository.

============================================== =======================================================
object                                         meaning
============================================== =======================================================
``journals/<token>/session``                   the record: the session takes reports while this exists
``journals/<token>/<writer>.<seq>.<lamport>``  one entry (:mod:`.entry_format`)
``journals/<token>/shared``                    how to join or resume the session (:mod:`.sharing`)
``journals/<token>/done/…``                    finished regions (:mod:`.finished_regions`)
============================================== =======================================================

The invariant: *an entry whose writer was told that it is stored is collected before the commit.*

Two rules make it hold, on any storage where every later read and listing sees a finished write:

- A writer puts its entry, **then** looks for the record. The report has succeeded only if the record exists.
- The session deletes the record, **then** lists the entries for the last time.

If the writer found the record, it looked before the deletion, so its entry existed before the listing. If it did not,
the session may already have listed. The writer then removes its entry and raises an error. The commit can still
contain such an entry, if the last listing came in between. So the error only says that you must not rely on it.

What would break it: looking for the record before the entry is put, listing before the record is deleted, or giving
two entries of a writer the same number, because the session reads each name only once.

If the commit fails, the session writes its record again. Reports that were refused in between raised an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from icechunk_engine._runtime.pools import map_requests
from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError, ObjectNotFoundError, SessionStateError
from icechunk_engine.format import layout
from icechunk_engine.ids import SnapshotId
from icechunk_engine.journal.entries import JournalEntry
from icechunk_engine.journal.entry_format import decode_entry, encode_entry
from icechunk_engine.storage.base import Storage

_RECORD = "session"
_TOKEN = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z_-]{0,62}[0-9A-Za-z])?")
_ENTRY_NAME = re.compile(r"([0-9a-f]{8,64})\.([0-9]{1,19})\.([0-9]{1,19})")
_MAX_RECORD_SIZE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """The description of a session that takes reports.

    Attributes
    ----------
    origin_id
        The committed snapshot that the session is based on.
    branch
        The branch that it will commit to.
    created_at
        When the record was first written, by the clock of the session's host.
    host
        Name of that host.
    """

    origin_id: SnapshotId
    branch: str | None
    created_at: datetime
    host: str

    def to_bytes(self) -> bytes:
        """Return the record as JSON."""
        fields = {
            "version": 1,
            "origin": str(self.origin_id),
            "branch": self.branch,
            "created_at": self.created_at.astimezone(UTC).isoformat(),
            "host": self.host,
        }
        return json.dumps(fields, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> SessionRecord:
        """Return the record in some bytes. Raises FormatError; ``name`` is the object's key, for the message."""
        try:
            if len(data) > _MAX_RECORD_SIZE:
                raise ValueError(f"it has {len(data)} bytes")
            fields = json.loads(data)
            if not isinstance(fields, dict) or fields.get("version") != 1:
                raise ValueError("it is not an object of version 1")
            branch, host = fields["branch"], fields["host"]
            if not (branch is None or isinstance(branch, str)) or not isinstance(host, str):
                raise ValueError("branch and host are not texts")
            created_at = datetime.fromisoformat(fields["created_at"])
            if created_at.tzinfo is None:
                raise ValueError("its time has no time zone")
            origin_id = SnapshotId.from_str(fields["origin"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(
                f"the record {name or 'of a session'} is damaged ({error}). Restore the object from a backup, or "
                f"begin a new session",
            ) from None
        return cls(origin_id=origin_id, branch=branch, created_at=created_at, host=host)


def is_token(text: str) -> bool:
    """Return True if a text can name a session."""
    return _TOKEN.fullmatch(text) is not None


def require_token(token: object) -> str:
    """Return a session token that names an object safely. Raises InvalidInputError."""
    if not isinstance(token, str) or not is_token(token):
        raise InvalidInputError(
            f"{token!r} is not a session token: those have up to 64 letters, digits, '-' and '_', with a letter or "
            f"digit first and last",
            ErrorKind.INVALID_KEY,
        )
    return token


class Journal:
    """The record and the entries of one session. Holds nothing in memory; methods may be called from any thread.

    Parameters
    ----------
    storage
        The place of the repository.
    token
        Names the session in this repository.

    Notes
    -----
    Reads wait for the network in the calling thread, several at a time on the pool; so never call from a task of the
    pool, except :meth:`put_entry` and :meth:`is_open`, which make single requests.
    """

    def __init__(self, storage: Storage, token: str) -> None:
        self.storage = storage
        self.token = require_token(token)
        self.prefix = f"{layout.JOURNALS}{token}/"

    @property
    def record_key(self) -> str:
        """Key of the record."""
        return self.prefix + _RECORD

    def entry_key(self, entry: JournalEntry) -> str:
        """Return the key of an entry."""
        return f"{self.prefix}{entry.writer}.{entry.seq}.{entry.lamport}"

    # --- the record ------------------------------------------------------------------------------------------------

    def open(self, record: SessionRecord) -> None:
        """Take reports from now on. One PUT."""
        self.storage.put(self.record_key, record.to_bytes())

    def close(self) -> None:
        """Take no more reports. One DELETE. Entries stay, and the next listing of them is complete."""
        self.storage.delete([self.record_key])

    def is_open(self) -> bool:
        """Return True if the session takes reports. One HEAD."""
        return self.storage.info(self.record_key) is not None

    def record(self) -> SessionRecord | None:
        """Return the record; None if the session takes no reports. One GET.

        Raises
        ------
        FormatError
            The record is damaged.
        """
        try:
            return SessionRecord.from_bytes(self.storage.get(self.record_key), self.record_key)
        except ObjectNotFoundError:
            return None

    # --- entries ---------------------------------------------------------------------------------------------------

    def put_entry(self, entry: JournalEntry, *, durable: bool = False) -> None:
        """Store an entry. One PUT and one HEAD; one DELETE more if the session has ended.

        An entry without edits is a mark: it only says that its writer wrote, and needs no record. One PUT.

        Parameters
        ----------
        durable
            On a local disk, also wait until the entry survives a crash of the machine, and everything before it that
            this process wrote. On other storages, a finished write always does.

        Raises
        ------
        SessionStateError
            ``session-ended``: the session takes no reports any more. The entry was removed.
        """
        key, data = self.entry_key(entry), encode_entry(entry)
        if durable and not self.storage.is_remote:
            self.storage.create(key, data)  # flushes what was written before, then shows the entry whole or not at all
        else:
            self.storage.put(key, data)
        if entry.has_edits:
            self.require_open([key])

    def require_open(self, written: Iterable[str]) -> None:
        """Check that the session took reports when the objects ``written`` were put. One HEAD.

        Raises
        ------
        SessionStateError
            ``session-ended``: it does not, or no longer. The objects were removed.
        """
        if not self.is_open():
            self.storage.delete(written)
            raise SessionStateError(
                f"this write came too late: its session {self.token} in {self.storage.identity} was committed or "
                f"discarded in the meantime. Do not rely on it being part of the commit. Write it again in a new "
                f"session, and commit only when all tasks are done",
                ErrorKind.SESSION_ENDED,
            )

    def list_entries(self, after: Collection[str] = ()) -> list[str]:
        """Return the keys of the entries that are not in ``after``, in no particular order. One LIST.

        Other objects below the prefix are ignored.
        """
        listed = (found.key for found in self.storage.list(self.prefix))
        return [key for key in listed if key not in after and self.is_entry(key)]

    def last_numbers(self) -> tuple[dict[str, int], int]:
        """Return the number of each writer's newest entry, and the highest Lamport time of all. One LIST."""
        last: dict[str, int] = {}
        highest = 0
        for key in self.list_entries():
            writer, seq, lamport = key.removeprefix(self.prefix).split(".")
            last[writer] = max(last.get(writer, 0), int(seq))
            highest = max(highest, int(lamport))
        return last, highest

    def is_entry(self, key: str) -> bool:
        """Return True if a key below the prefix is that of an entry."""
        return _ENTRY_NAME.fullmatch(key, len(self.prefix)) is not None

    def fetch_entries(self, keys: Iterable[str]) -> list[JournalEntry]:
        """Return entries in the order in which to apply them: by Lamport time, writer and number.

        One GET each, many at a time behind a network. Entries that their writers removed are left out.

        Raises
        ------
        FormatError
            An entry is damaged, or belongs to another name.
        """
        found = [entry for entry in map_requests(self.storage, self._fetch, keys) if entry is not None]
        return sorted(found, key=lambda entry: (entry.lamport, entry.writer, entry.seq))

    def _fetch(self, key: str) -> JournalEntry | None:
        try:
            entry = decode_entry(self.storage.get(key), key)
        except ObjectNotFoundError:
            return None
        if self.entry_key(entry) != key:
            raise FormatError(
                f"{key} holds another journal entry: {self.entry_key(entry)}. Somebody renamed or "
                f"copied it. Remove it, and repeat the work of its task in a new session",
                ErrorKind.DESERIALIZATION,
            )
        return entry

    def remove_all(self) -> int:
        """Remove the record and all entries; return how many objects. One LIST, and one DELETE for 1 000 objects.

        The record goes first, so that a writer who comes late notices.
        """
        self.close()
        return self.storage.delete([found.key for found in self.storage.list(self.prefix)])
