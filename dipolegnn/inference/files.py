"""From files of molecules to a file of predictions, with flat memory."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dipolegnn import __version__
from dipolegnn.config import COVERAGE, ConformerConfig
from dipolegnn.files import sha256_of
from dipolegnn.inference.output import Parts, require_apart
from dipolegnn.inference.pipeline import Source, answer
from dipolegnn.inference.progress import Progress
from dipolegnn.models import ModelChoice
from dipolegnn.molecules import Failure, Molecules, TableColumns
from dipolegnn.molecules.embedding import Outcome, embed_records
from dipolegnn.molecules.records import Record, RecordFile
from dipolegnn.molecules.workers import usable_cores
from dipolegnn.units import ROOM_TEMPERATURE_K

PART_RECORDS = 1000
"""Structures per part: some seconds of work on one core, and several full batches."""

PART_CONFORMERS = 500
"""Conformers to embed per part: less than a minute of work on one core, at about 0.05 s each."""

FEW_RECORDS = 200
"""A file with fewer is done before worker processes would have started."""

SHOWN_FAILURES = 10


@dataclass(frozen=True)
class BulkResult:
    """What came of the files.

    Attributes:
        molecules: Molecules in the output.
        failures: Molecules that failed.
        first_failures: The first of the failures.
        earlier: Of molecules and failures together, how many an interrupted run had done.
        seconds: How long this run took.
    """

    molecules: int
    failures: int
    first_failures: list[Failure]
    earlier: int
    seconds: float


def predict_files(
    paths: Sequence[str | Path],
    output: str | Path,
    models: ModelChoice,
    *,
    columns: TableColumns | None = None,
    conformers: ConformerConfig | None = None,
    temperature: float = ROOM_TEMPERATURE_K,
    coverage: float = COVERAGE,
    workers: int | None = None,
    device: torch.device | str | None = None,
    part_records: int | None = None,
    progress: bool = False,
) -> BulkResult:
    """Predicts the dipole moments of all molecules of files, of any size, into one file.

    A run that was killed goes on where it stopped when it is called again with the same arguments:
    nothing is done twice but what was under way, and nothing is lost. (Until it is complete, what
    is done lies in a folder beside the output.) ``workers`` and ``device`` may change in between.

    Structures in the output have the ``mol_id`` that they have in the file, else their row, from 0;
    with several files, their row, counted through.

    Args:
        paths: Files of SMILES (embedded in worker processes) or of structures.
        output: A table (``.csv``, ``.csv.gz``, ``.parquet``), a line per molecule in the order of
            the files; or structures with their predictions (``.sdf``, ``.extxyz``, ``.xyz``, also
            ``.gz``), all conformers. Failures come to lie beside it, in a file of their own.
        models: Which model predicts.
        columns: Columns of tables of SMILES.
        conformers: How SMILES are embedded.
        temperature: Temperature of the Boltzmann average, in kelvin.
        coverage: How often the error bars hold, between 0 and 1.
        workers: Processes that read and embed; 0: it is done here, where a molecule that crashes
            RDKit ends the run; None: one per core, none for a small file.
        device: Where the model computes; None: on a CUDA device if there is one.
        part_records: Records that are kept together in memory and on disk, and are done again
            after a crash; None: 1000 structures, or as many SMILES as have 500 conformers.
        progress: Show on standard error how far it is.

    Returns:
        How many there are.

    Raises:
        FileNotFoundError: There is no such file, or no such model.
        ImportError: Parquet without pyarrow.
        JobMismatch: Beside the output lie parts of another job.
        MoleculeError: A file lacks a column, or cannot be read from some place on; what was done
            until then is kept.
        OutputInUse: Another run is writing the same output.
        ValueError: An unknown suffix, an output in the place of one of the files, ``workers`` below
            0, ``part_records`` below 1, or a temperature or coverage that is none.
    """
    for name, value, least in (
        ("workers", workers or 0, 0),
        ("part_records", 1 if part_records is None else part_records, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, in kelvin, got {temperature}.")
    require_apart(Path(output), paths)
    start = time.monotonic()
    config = conformers or ConformerConfig()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with ExitStack() as stack:
        files = [stack.enter_context(RecordFile(path, columns)) for path in paths]
        if part_records is None:
            embedded = any(file.embedded for file in files)
            wanted = max(1, PART_CONFORMERS // config.conformers)
            part_records = wanted if embedded else PART_RECORDS
        job = {
            "version": __version__,
            "files": [_known_by(file.path) for file in files],
            "models": sorted({_digest(models, file.embedded) for file in files}),
            "columns": asdict(columns or TableColumns()),
            "conformers": asdict(config),
            "temperature": temperature,
            "coverage": coverage,
            "part_records": part_records,
        }
        parts = stack.enter_context(Parts(Path(output), job))
        done = parts.done()
        earlier = sum(map(sum, done.values()))
        shown = stack.enter_context(Progress(progress, earlier))
        todo = _unfinished(_parts(files, part_records), done, shown)
        if workers is None:
            todo, workers = _enough_workers(todo)
        with _threads_beside(workers):
            for part, molecules in _complete(todo, config, workers):
                asked = config.conformers if part.embedded else 0
                source = Source(part.records[0].source, asked, molecules)
                report = answer(
                    [source], models, temperature=temperature, coverage=coverage, device=device
                )
                written = parts.write(part.number, report)
                shown.advance(sum(written), len(part.records))
        first = parts.first_failures(SHOWN_FAILURES)
        total = parts.assemble()
    return BulkResult(*total, first, earlier, time.monotonic() - start)


class Part(NamedTuple):
    """Neighbouring records of a file, whose predictions are written together."""

    number: int
    embedded: bool
    records: list[Record]
    position: float
    """Fraction of all files that has been read after it, from 0 to 1."""
    offset: int | None = None
    """Rows of the files before, if there are several."""


class _Open(NamedTuple):
    """A part some of whose records are still being embedded."""

    part: Part
    outcomes: dict[int, Outcome]


def cut(file: RecordFile, first: int, size: int) -> Iterator[Part]:
    """The parts of a file; conformers of one molecule stay together.

    Args:
        file: The file.
        first: Number of the first part.
        size: Records per part; the last has fewer, and one that ends within a molecule more.
    """
    numbers = itertools.count(first)
    records: list[Record] = []
    for record in file:
        together = records and record.group and record.group == records[-1].group
        if len(records) >= size and not together:
            yield Part(next(numbers), file.embedded, records, file.position)
            records = []
        records.append(record)
    if records:
        yield Part(next(numbers), file.embedded, records, file.position)


def _parts(files: Sequence[RecordFile], size: int) -> Iterator[Part]:
    """The parts of all files; their positions are those in all files together."""
    sizes = [max(file.path.stat().st_size, 1) for file in files]
    number = offset = rows = 0
    for place, file in enumerate(files):
        for part in cut(file, number, size):
            read = sum(sizes[:place]) + part.position * sizes[place]
            yield part._replace(
                position=read / sum(sizes), offset=offset if len(files) > 1 else None
            )
            number += 1
            rows = offset + part.records[-1].row
        offset = rows


def _unfinished(parts: Iterator[Part], done: Container[int], shown: Progress) -> Iterator[Part]:
    """The parts that are not done."""
    for part in parts:
        if part.number in done:
            shown.skip(len(part.records), part.position)
        else:
            shown.read(len(part.records), part.position)
            yield part


def _enough_workers(parts: Iterator[Part]) -> tuple[Iterator[Part], int]:
    """The parts, and the number of processes that pays for them."""
    head = list(itertools.islice(parts, 2))
    few = len(head) < 2 and sum(len(part.records) for part in head) < FEW_RECORDS
    return itertools.chain(head, parts), 0 if few else usable_cores()


@contextmanager
def _threads_beside(workers: int) -> Iterator[None]:
    """Leaves the cores to the workers: with more threads than cores, they wait for each other."""
    before = torch.get_num_threads()
    if workers > 1:
        torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _complete(
    parts: Iterator[Part], config: ConformerConfig, workers: int
) -> Iterator[tuple[Part, Molecules]]:
    """The structures of each part, as soon as all of them are there."""

    def records() -> Iterator[tuple[tuple[_Open, int], Record]]:
        for part in parts:
            opened = _Open(part, {})
            for place, record in enumerate(part.records):
                yield (opened, place), record

    for (opened, place), outcome in embed_records(records(), config, workers=workers):
        opened.outcomes[place] = outcome
        if len(opened.outcomes) == len(opened.part.records):
            yield opened.part, _molecules(opened)


def _molecules(opened: _Open) -> Molecules:
    """The structures of a part, with the row of each, and what failed."""
    found = Molecules([], [], [])
    for place, record in enumerate(opened.part.records):
        outcome = opened.outcomes[place]
        if isinstance(outcome, Failure):
            found.failures.append(outcome)
        else:
            found.add(outcome, record.row)
    if opened.part.offset is not None:
        # A number that one file states may be one of another; neighbours with the same number
        # would be taken for conformers where the output is read.
        stated = [int(structure.mol_id) for structure in found.data]
        assert found.rows is not None
        for _, group in itertools.groupby(range(len(stated)), stated.__getitem__):
            places = list(group)
            for place in places:
                found.data[place].mol_id.fill_(opened.part.offset + found.rows[places[0]] - 1)
    return found


def _known_by(path: Path) -> dict[str, Any]:
    """What a file is known again by: all of its bytes."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _digest(models: ModelChoice, embedded: bool) -> str:
    """What a model is known again by: its name and its weights."""
    loaded = models.for_geometry(embedded)
    digest = hashlib.sha256()
    for name, weight in sorted(loaded.model.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    return f"{loaded.name} {digest.hexdigest()}"
