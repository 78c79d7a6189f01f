"""Drawing the history for terminals and notebooks: one line for each snapshot, one lane for each branch. Pure."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from icechunk_engine.format.repo_info import SnapshotRecord
from icechunk_engine.ids import SnapshotId

_COLORS = ("#B7E400", "#A653FF", "#5EC4F7", "#FF8C42", "#F72585", "#2EC4B6", "#FFD166")
_TAG_COLOR = "#5EC4F7"
_LANE_WIDTH, _ROW_HEIGHT, _MARGIN, _RADIUS = 20, 28, 15, 5
_LETTER_WIDTH = 8
_SHORT_ID = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One snapshot of the picture."""

    id: str
    parent_id: str | None
    message: str
    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: SnapshotRecord, branches: tuple[str, ...], tags: tuple[str, ...]) -> Entry:
        """Make the entry of a snapshot from its record and the refs that point to it."""
        parent_id = None if record.parent_id is None else str(record.parent_id)
        return cls(id=str(record.id), parent_id=parent_id, message=record.message, branches=branches, tags=tags)

    @property
    def headline(self) -> str:
        """The first line of the message."""
        return self.message.split("\n", 1)[0]


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the picture.

    Attributes
    ----------
    lane
        The lane of the snapshot's dot.
    joining
        Lanes of branches that began at this snapshot. They end here.
    passing
        Lanes with a line beside the dot.
    below
        Lanes with a line between this row and the next.
    """

    entry: Entry
    lane: int
    joining: tuple[int, ...]
    passing: frozenset[int]
    below: frozenset[int]


class AncestryGraph:
    """The history of one ref or of all branches as a picture.

    Get it from :meth:`Repository.ancestry_graph`. Print it, or show it in a notebook.

    Parameters
    ----------
    entries
        Children before their parents.
    first
        Id of the snapshot in the first lane.
    plain
        Draw without colours.
    """

    def __init__(self, entries: Sequence[Entry], first: str, *, plain: bool = False) -> None:
        self._rows = tuple(_rows(entries, first))
        self._plain = plain

    @property
    def _num_lanes(self) -> int:
        return 1 + max((max(row.passing | {row.lane, *row.joining}) for row in self._rows), default=0)

    def __str__(self) -> str:
        return "\n".join(line for row in self._rows for line in self._lines(row)) + "\n"

    __repr__ = __str__

    def _lines(self, row: _Row) -> Iterator[str]:
        last_joining = max(row.joining, default=-1)
        cells = []
        for lane in range(self._num_lanes):
            if lane == row.lane:
                mark = "●"
            elif lane in row.joining:
                mark = "╯" if lane == last_joining else "┴"
            elif row.lane < lane < last_joining:
                mark = "┼" if lane in row.passing else "─"
            else:
                mark = "│" if lane in row.passing else " "
            cells.append(self._colored(mark, lane) + ("─" if row.lane <= lane < last_joining else " "))
        yield ("".join(cells) + self._label(row)).rstrip()
        if row is not self._rows[-1]:
            between = [self._colored("│", lane) if lane in row.below else " " for lane in range(self._num_lanes)]
            yield " ".join(between).rstrip()

    def _label(self, row: _Row) -> str:
        entry = row.entry
        names = [self._styled(name, "1", _COLORS[row.lane % len(_COLORS)]) for name in entry.branches]
        names += [self._styled(name, "1;3", _TAG_COLOR) for name in entry.tags]
        refs = f" ({', '.join(names)})" if names else ""
        return f"{self._styled(entry.id[:_SHORT_ID], '2')}{refs} {entry.headline}"

    def _colored(self, mark: str, lane: int) -> str:
        return mark if mark in " ─" else self._styled(mark, "", _COLORS[lane % len(_COLORS)])

    def _styled(self, text: str, style: str, color: str = "") -> str:
        if self._plain:
            return text
        rgb = ";".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5)) if color else ""
        codes = ";".join(filter(None, [style, f"38;2;{rgb}" if rgb else ""]))
        return f"\x1b[{codes}m{text}\x1b[0m"

    def _repr_svg_(self) -> str:
        """The picture for notebooks."""
        text_x = _MARGIN + self._num_lanes * _LANE_WIDTH
        longest = max((len(_plain_label(row.entry)) for row in self._rows), default=0)
        width, height = text_x + longest * _LETTER_WIDTH + _MARGIN, len(self._rows) * _ROW_HEIGHT
        parts = [part for i, row in enumerate(self._rows) for part in self._svg_row(i, row, text_x)]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'style="font-family: monospace; font-size: 13px;">{"".join(parts)}</svg>'
        )

    def _svg_row(self, i: int, row: _Row, text_x: int) -> Iterator[str]:
        y = i * _ROW_HEIGHT + _MARGIN
        for lane in sorted(row.below):
            x = _MARGIN + lane * _LANE_WIDTH
            yield self._svg_line(lane, x, y, x, y + _ROW_HEIGHT)
        for lane in row.joining:
            yield self._svg_line(
                lane, _MARGIN + lane * _LANE_WIDTH, y - _ROW_HEIGHT // 2, _MARGIN + row.lane * _LANE_WIDTH, y
            )
        color = self._svg_color(row.lane)
        yield f'<circle cx="{_MARGIN + row.lane * _LANE_WIDTH}" cy="{y}" r="{_RADIUS}" fill="{color}"/>'
        yield f'<text x="{text_x}" y="{y + 4}" fill="#888">{html.escape(_plain_label(row.entry))}</text>'

    def _svg_line(self, lane: int, x1: int, y1: int, x2: int, y2: int) -> str:
        color = self._svg_color(lane)
        return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="2"/>'

    def _svg_color(self, lane: int) -> str:
        return "#888" if self._plain else _COLORS[lane % len(_COLORS)]


def _plain_label(entry: Entry) -> str:
    names = ", ".join([*entry.branches, *entry.tags])
    return f"{entry.id[:_SHORT_ID]}{f' ({names})' if names else ''} {entry.headline}"


def children_first(records: Mapping[SnapshotId, SnapshotRecord]) -> Iterator[SnapshotRecord]:
    """Yield snapshots newest first, but none before its children, even if clocks were wrong.

    The parents must not form a circle.
    """
    n_children = Counter(record.parent_id for record in records.values())
    ready = [(-record.flushed_at_us, record.id.raw) for record in records.values() if not n_children[record.id]]
    heapify(ready)
    while ready:
        record = records[SnapshotId(heappop(ready)[1])]
        yield record
        parent = None if record.parent_id is None else records.get(record.parent_id)
        if parent is not None:
            n_children[parent.id] -= 1
            if not n_children[parent.id]:
                heappush(ready, (-parent.flushed_at_us, parent.id.raw))


def _rows(entries: Sequence[Entry], first: str) -> Iterator[_Row]:
    """Give each snapshot the leftmost lane that waits for it, or else the first free one."""
    waiting: dict[int, str] = {0: first}
    for entry in entries:
        mine = sorted(lane for lane, wanted in waiting.items() if wanted == entry.id)
        lane = mine[0] if mine else next(i for i in range(len(waiting) + 1) if i not in waiting)
        drawn = {other for other in waiting if other != 0 or waiting[0] != first or entry.id == first}
        for done in mine:
            del waiting[done]
        passing = frozenset(drawn - set(mine) - {lane})
        if entry.parent_id is not None:
            waiting[lane] = entry.parent_id
        below = passing | ({lane} if entry.parent_id is not None else set())
        yield _Row(entry, lane, tuple(mine[1:]), passing, frozenset(below))
