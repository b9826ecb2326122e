"""From the records of files to structures, part by part, in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import Failure
from dipolegnn.molecules.batch import SmilesRow, lost_row, time_limit_of
from dipolegnn.molecules.molecule import from_arrays, to_arrays
from dipolegnn.molecules.records import Record, RecordFile, structures
from dipolegnn.molecules.workers import Lost, Pool

STRUCTURES_PER_TASK = 32
"""Structures that a worker reads at a time; SMILES, which take longer, it embeds one by one."""

OPEN_PARTS = 4
"""Parts that are worked on at a time: while the last molecule of one takes long, others go on."""

AHEAD = 2
"""Tasks that wait for each worker, for it goes on while the model is at work."""

Outcome = list[Data] | Failure
"""The structures of a record, or why there are none."""


class Part(NamedTuple):
    """Neighbouring records of a file."""

    number: int
    source: str
    suffix: str
    embedded: bool
    records: list[Record]
    position: float
    """How much of the file has been read after it, from 0 to 1."""
    offset: int | None = None
    """Rows of the files before, if there are several."""


def cut(file: RecordFile, first: int, size: int) -> Iterator[Part]:
    """The parts of a file; conformers of one molecule stay together.

    Args:
        file: The file.
        first: Number of the first part.
        size: Records per part; the last has fewer, and one that ends within a molecule more.
    """
    number = first
    records: list[Record] = []

    def part() -> Part:
        return Part(number, file.path.name, file.suffix, file.embedded, records, file.position)

    for record in file:
        together = records and record.group and record.group == records[-1].group
        if len(records) >= size and not together:
            yield part()
            number += 1
            records = []
        records.append(record)
    if records:
        yield part()


class _Piece(NamedTuple):
    """What a worker is given at a time."""

    records: list[Record]
    suffix: str
    source: str


class _Home(NamedTuple):
    """Where the results of a piece belong."""

    part: int
    first: int
    piece: _Piece
    again: bool = False
    """Whether its process died the first time."""


def prepare(
    parts: Iterator[Part], config: ConformerConfig, workers: int
) -> Iterator[tuple[Part, list[Outcome]]]:
    """What the records of each part come to; parts come as they are complete.

    Args:
        parts: The parts.
        config: How SMILES are embedded.
        workers: Processes; with 0 it is done here.
    """
    if workers == 0:
        for part in parts:
            piece = _Piece(part.records, part.suffix, part.source)
            yield part, [structures_of(record, piece, config) for record in piece.records]
        return
    started: dict[int, tuple[Part, list[Outcome | None]]] = {}
    homes: dict[int, _Home] = {}
    todo = _homes(parts, started)
    function = partial(_read, config=config)
    with Pool(function, workers=workers, time_limit=time_limit_of(config), ahead=AHEAD) as pool:
        count = 0
        at_end = False
        while not at_end or pool.unfinished:
            while not (at_end or pool.full or len(started) > OPEN_PARTS):
                home = next(todo, None)
                if home is None:
                    at_end = True
                else:
                    homes[count] = home
                    pool.give(count, home.piece)
                    count += 1
            for index, found in pool.results():
                home = homes.pop(index)
                if isinstance(found, Lost) and (retried := _retried(home, found)):
                    for again in retried:
                        homes[count] = again
                        pool.give(count, again.piece)
                        count += 1
                    continue
                part, outcomes = started[home.part]
                for place, outcome in enumerate(_unpacked(found, home), start=home.first):
                    outcomes[place] = outcome
                complete = [outcome for outcome in outcomes if outcome is not None]
                if len(complete) == len(outcomes):
                    del started[home.part]
                    yield part, complete


def structures_of(record: Record, piece: _Piece, config: ConformerConfig) -> Outcome:
    """What one record comes to."""
    return structures(record, suffix=piece.suffix, config=config, source=piece.source)


def _homes(
    parts: Iterator[Part], started: dict[int, tuple[Part, list[Outcome | None]]]
) -> Iterator[_Home]:
    """The pieces of all parts; a part is among those started when its first piece is handed out."""
    for part in parts:
        started[part.number] = (part, [None] * len(part.records))
        size = 1 if part.embedded else STRUCTURES_PER_TASK
        for first in range(0, len(part.records), size):
            records = part.records[first : first + size]
            yield _Home(part.number, first, _Piece(records, part.suffix, part.source))


def _retried(home: _Home, lost: Lost) -> list[_Home]:
    """What is tried again: each record by itself, so that it costs only the one it was.

    One whose process died is tried once more: it may have died of something else on the machine,
    for instance a lack of memory.
    """
    if len(home.piece.records) > 1:
        return [
            _Home(home.part, place, home.piece._replace(records=[record]))
            for place, record in enumerate(home.piece.records, start=home.first)
        ]
    return [home._replace(again=True)] if lost.died and not home.again else []


def _read(piece: _Piece, *, config: ConformerConfig) -> list[list[dict[str, Any]] | Failure]:
    """What a worker does."""
    found: list[list[dict[str, Any]] | Failure] = []
    for record in piece.records:
        outcome = structures_of(record, piece, config)
        if isinstance(outcome, Failure):
            found.append(outcome)
        else:
            found.append([to_arrays(data) for data in outcome])
    return found


def _unpacked(found: list[list[dict[str, Any]] | Failure] | Lost, home: _Home) -> list[Outcome]:
    if isinstance(found, Lost):
        return [_lost(record, found, home.piece.source) for record in home.piece.records]
    return [
        outcome if isinstance(outcome, Failure) else [from_arrays(arrays) for arrays in outcome]
        for outcome in found
    ]


def _lost(record: Record, lost: Lost, source: str) -> Failure:
    if isinstance(record.content, SmilesRow):
        return lost_row(record.content, lost, source)
    return Failure(
        source=source,
        row=record.row,
        molecule="",
        stage="read",
        problem=f"It cannot be read: {lost.reason}",
        remedy="Correct or remove the record",
    )
