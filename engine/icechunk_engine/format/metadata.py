"""Metadata of snapshots and of the repository: lists of named JSON values (spec, *Metadata*).

Values stay encoded until somebody asks, because the repo info carries the metadata of every snapshot through every
update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, BytesTable, ragged_positions, starts_of
from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.flatbuf import flexbuffers
from icechunk_engine.flatbuf.reader import Vectors
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout, TableWriter
from icechunk_engine.format import schema, v1

_LEAST_ITEM = 20  # bytes: offset, table, value; names are shared
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
    def of(cls, rows: Iterable[Mapping[str, Any]], spec_version: int = 2) -> Self:
        """Encode dictionaries, items sorted by name. Raises InvalidInputError (``bad-metadata``)."""
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
        """The lists that a field holds; an absent list is empty. Raises FormatError."""
        items = vectors.tables(_LEAST_ITEM)
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
        """Memory held."""
        return int(self.starts.nbytes) + self.names.nbytes + self.values.nbytes

    def decode(self, row: int, spec_version: int = 2) -> dict[str, Any]:
        """One list as a dictionary. Raises FormatError."""
        loads = _codec(spec_version)[1]
        items = range(int(self.starts[row]), int(self.starts[row + 1]))
        left = [flexbuffers.MAX_VALUES]
        return {self.names.text(i): loads(self.values.raw(i), left) for i in items}

    def take(self, rows: NDArray[Any]) -> MetadataColumns:
        """The lists at ``rows``."""
        lengths = self.lengths[rows]
        items = ragged_positions(self.starts[:-1][rows], lengths)
        return MetadataColumns(starts_of(lengths), self.names.take(items), self.values.take(items))

    def insert(self, place: int, other: MetadataColumns) -> MetadataColumns:
        """With all lists of the other before list ``place``."""
        item, n_added = int(self.starts[place]), int(other.starts[-1])
        return MetadataColumns(
            np.concatenate([self.starts[:place], other.starts + item, self.starts[place + 1 :] + n_added]),
            self.names.insert(item, other.names),
            self.values.insert(item, other.values),
        )

    def write(self, arena: Arena, owners: TableWriter, slot: int) -> None:
        """Write one list for each of the ``owners`` and point their field ``slot`` at it."""
        vectors = arena.offset_vectors(self.lengths)
        owners.point(slot, vectors.positions)
        items = arena.tables(_ITEM, len(self.names))
        vectors.point(items.positions)
        items.point(schema.MetadataItem.NAME, arena.strings(self.names))
        items.point(schema.MetadataItem.VALUE, arena.byte_vectors(self.values))


def require_few(values: Iterable[Any]) -> None:
    """Raise InvalidInputError (``bad-metadata``) for values of one list that nobody would read: too many in all."""
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
                f"metadata hold more than {flexbuffers.MAX_VALUES} values. Store them as an array instead",
                ErrorKind.BAD_METADATA,
            )


def _codec(spec_version: int) -> tuple[Callable[[Any], bytes], Callable[[bytes, list[int]], Any]]:
    return (v1.dumps, v1.loads) if spec_version == 1 else (flexbuffers.dumps, flexbuffers.loads)


def _name(name: Any) -> bytes:
    if not isinstance(name, str):
        raise InvalidInputError(f"metadata names are strings, not {name!r}", ErrorKind.BAD_METADATA)
    return encode_text(name, "a metadata name")


def encode_text(text: str, what: str) -> bytes:
    """UTF-8 of a string that goes into a file. Raises InvalidInputError (``bad-metadata``) for lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"{what} is not valid Unicode text: {text!r}. Remove lone surrogates", ErrorKind.BAD_METADATA
        ) from None


def decode_config(raw: bytes) -> dict[str, Any]:
    """The persisted configuration: one FlexBuffers map. Raises FormatError (``config-deserialization``)."""
    try:
        config = flexbuffers.loads(raw)
    except FormatError as error:
        raise FormatError(f"the stored configuration: {error}", ErrorKind.CONFIG_DESERIALIZATION) from None
    if not isinstance(config, dict):
        raise FormatError(
            "the stored configuration is not a map. Restore the object 'repo' from a copy under overwritten/",
            ErrorKind.CONFIG_DESERIALIZATION,
        )
    return config
