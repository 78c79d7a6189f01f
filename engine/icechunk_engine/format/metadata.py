"""The metadata of snapshots and of the repository: lists of named JSON values (spec, *Metadata*).

Values stay encoded until they are needed, because every update of a repository copies the metadata of all its
snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self, cast

import numpy as np

from icechunk_engine.columns.tables import I64, BytesTable, Integers, ragged_positions, starts_of
from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.flatbuf import flexbuffers
from icechunk_engine.flatbuf.flexbuffers import FlexValue
from icechunk_engine.flatbuf.reader import Vectors
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout, TableWriter
from icechunk_engine.format import message_pack, schema
from icechunk_engine.types import Json, JsonObject

_MIN_ITEM_BYTES = 20
"""The fewest bytes that an item takes in a file: an offset, a table and a value. Names may be shared."""
_ITEM = TableLayout.of({schema.MetadataItem.NAME: OFFSET, schema.MetadataItem.VALUE: OFFSET})


@dataclass(frozen=True, slots=True)
class MetadataColumns:
    """``n`` lists of named values.

    Attributes
    ----------
    starts
        ``int64 (n + 1,)``: list ``i`` has the items ``starts[i]:starts[i + 1]``.
    names
        Name of each item, UTF-8.
    values
        Encoded value of each item.
    """

    starts: I64
    names: BytesTable
    values: BytesTable

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, object]], spec_version: int = 2) -> Self:
        """Encode dictionaries, with items sorted by name. Raises InvalidInputError (``bad-metadata``)."""
        dumps = _codec(spec_version)[0]
        listed = [sorted((_name(name), value) for name, value in row.items()) for row in rows]
        for row in listed:
            require_few(value for _, value in row)
        items = [item for row in listed for item in row]
        return cls(
            starts_of(np.fromiter(map(len, listed), np.int64, len(listed))),
            BytesTable.of([name for name, _ in items]),
            BytesTable.of([dumps(value) for _, value in items]),
        )

    @classmethod
    def read(cls, vectors: Vectors) -> Self:
        """Read the lists of a field. Absent lists are empty. Raises FormatError."""
        items = vectors.tables(_MIN_ITEM_BYTES)
        return cls(
            starts_of(vectors.lengths),
            items.strings(schema.MetadataItem.NAME, "the name of a metadata item"),
            items.vectors(schema.MetadataItem.VALUE, 1, "the value of a metadata item").bytes_table(),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> I64:
        """Number of items of each list, ``int64 (n,)``."""
        return self.starts[1:] - self.starts[:-1]

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.starts.nbytes) + self.names.nbytes + self.values.nbytes

    def decode(self, row: int, spec_version: int = 2) -> JsonObject:
        """Return one list as a dictionary. Raises FormatError.

        Both encodings can also hold bytes, which JSON cannot. No known writer stores them; they stay ``bytes``.
        """
        loads = _codec(spec_version)[1]
        items = range(int(self.starts[row]), int(self.starts[row + 1]))
        left = [flexbuffers.MAX_VALUES]  # one limit for all values of the list
        return {self.names.text(i): cast(Json, loads(self.values.raw(i), left)) for i in items}

    def take(self, rows: Integers) -> MetadataColumns:
        """Return the lists at ``rows``."""
        lengths = self.lengths[rows]
        items = ragged_positions(self.starts[:-1][rows], lengths)
        return MetadataColumns(starts_of(lengths), self.names.take(items), self.values.take(items))

    def insert(self, place: int, other: MetadataColumns) -> MetadataColumns:
        """Insert all lists of ``other`` before list ``place``."""
        item, n_added = int(self.starts[place]), int(other.starts[-1])
        return MetadataColumns(
            np.concatenate([self.starts[:place], other.starts + item, self.starts[place + 1 :] + n_added]),
            self.names.insert(item, other.names),
            self.values.insert(item, other.values),
        )

    def write(self, arena: Arena, owners: TableWriter, slot: int) -> None:
        """Write one list for each table of ``owners``, and point its field ``slot`` at the list."""
        vectors = arena.offset_vectors(self.lengths)
        owners.point(slot, vectors.positions)
        items = arena.tables(_ITEM, len(self.names))
        vectors.point(items.positions)
        items.point(schema.MetadataItem.NAME, arena.strings(self.names))
        items.point(schema.MetadataItem.VALUE, arena.byte_vectors(self.values))


def require_few(values: Iterable[object]) -> None:
    """Raise InvalidInputError (``bad-metadata``) if one list has more values, nested ones included, than are read."""
    n = 0
    to_do = list(values)
    while to_do:
        value = to_do.pop()
        n += 1
        if isinstance(value, dict):
            to_do.extend(value.values())
        elif isinstance(value, list | tuple):
            to_do.extend(value)
        elif isinstance(value, bytes):
            n += len(value)
        if n + len(to_do) > flexbuffers.MAX_VALUES:
            raise InvalidInputError(
                f"metadata has more than {flexbuffers.MAX_VALUES} values. Store them as an array instead",
                ErrorKind.BAD_METADATA,
            )


def _codec(spec_version: int) -> tuple[Callable[[object], bytes], Callable[[bytes, list[int]], FlexValue]]:
    return (message_pack.dumps, message_pack.loads) if spec_version == 1 else (flexbuffers.dumps, flexbuffers.loads)


def _name(name: object) -> bytes:
    if not isinstance(name, str):
        raise InvalidInputError(f"metadata names must be strings, not {name!r}", ErrorKind.BAD_METADATA)
    return encode_text(name, "a metadata name")


def encode_text(text: str, what: str) -> bytes:
    """Encode a string for a file. Raises InvalidInputError (``bad-metadata``) for lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"{what} is not valid Unicode text: {text!r}. Remove lone surrogates", ErrorKind.BAD_METADATA
        ) from None


def decode_config(raw: bytes) -> JsonObject:
    """Decode the persisted configuration, a FlexBuffers map. Raises FormatError (``config-deserialization``)."""
    try:
        config = flexbuffers.loads(raw)
    except FormatError as error:
        raise FormatError(f"the stored configuration is damaged: {error}", ErrorKind.CONFIG_DESERIALIZATION) from None
    if not isinstance(config, dict):
        raise FormatError(
            "the stored configuration is not a map. Restore the object 'repo' from a copy under overwritten/",
            ErrorKind.CONFIG_DESERIALIZATION,
        )
    return cast(JsonObject, config)
