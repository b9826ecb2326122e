"""Conversion of records to structures in worker processes, for lists, files and blocks of rows.

The result does not depend on the number of processes. A record that crashes its process, or keeps
it busy for too long, costs only itself.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules.chemistry import embed, formal_charge, parse_smiles
from dipolegnn.molecules.conformers import FEWEST_CONFORMERS
from dipolegnn.molecules.molecule import Failure, MoleculeError, Molecules, from_arrays, to_arrays
from dipolegnn.molecules.records import Record, SmilesRow
from dipolegnn.molecules.sdf import read_record
from dipolegnn.molecules.total_charge import agreed_charge
from dipolegnn.molecules.workers import Lost, Pool
from dipolegnn.molecules.xyz import read_frame

STRUCTURES_PER_TASK = 32
"""Number of structures per task of a worker; SMILES are one per task, because embedding is slow."""

AHEAD = 2
"""Number of queued tasks per worker, which keep it busy while the caller is busy."""

WINDOW = 4000
"""Maximum number of records that are read ahead, which bounds the memory."""

_LIMITS = "Give a smaller molecule or, for a SMILES, a 3D structure (.sdf, .xyz); or raise {}"

Outcome = list[Data] | Failure
"""Structures of a record (conformers of a molecule), or its failure."""

_Packed = list[list[dict[str, Any]] | Failure]
EmbeddingPool = Pool[list[Record], _Packed]
"""Worker processes that embed and read records."""


def structures(record: Record, config: ConformerConfig) -> Outcome:
    """Returns the conformers of a SMILES, or the structure of a record.

    ``mol_id`` is that of the record, else what its text states, else ``row - 1``.

    Args:
        record: The record.
        config: How SMILES are embedded.
    """
    if isinstance(record.content, Failure):
        return record.content
    mol_id = record.row - 1 if record.mol_id is None else record.mol_id
    stage = "read"
    try:
        match record.content:
            case SmilesRow(smiles=smiles, name=name, dipole_magnitude=magnitude, charges=charges):
                mol = parse_smiles(smiles, name=name, several=config.largest_fragment)
                agreed_charge([("the SMILES", formal_charge(mol)), *charges])
                stage = "embed"
                found = embed(mol, smiles.strip(), config, name=name, mol_id=mol_id)
                if magnitude is not None:
                    for data in found:
                        data.dipole_magnitude.fill_(magnitude)
                return found
            case str(text):
                data = read_record(text, mol_id)
            case frame:
                data = read_frame(frame, mol_id, extended=record.suffix == ".extxyz")
    except MoleculeError as error:
        return error.failure(stage, molecule=record.title, row=record.row, source=record.source)
    except MemoryError:
        return MoleculeError(
            "There is not enough memory for it", remedy=_LIMITS.format("--embed-memory-limit")
        ).failure(stage, molecule=record.title, row=record.row, source=record.source)
    if record.mol_id is not None:
        data.mol_id.fill_(record.mol_id)
    return [data]


def embed_records(
    records: Iterable[Record], config: ConformerConfig, *, workers: int
) -> Iterator[tuple[Record, Outcome]]:
    """Yields each record with its structures, in the order of the records.

    Records are read as they are needed, at most ``WINDOW`` ahead of the one that is returned.

    Args:
        records: The records.
        config: How SMILES are embedded.
        workers: Processes; 0: the calling process, where a crash of RDKit is not caught.
    """
    if workers == 0:
        for record in records:
            yield record, structures(record, config)
        return
    with embedding_pool(config, workers) as pool:
        yield from embed_in(pool, records)


def embedding_pool(config: ConformerConfig, workers: int) -> EmbeddingPool:
    """Returns the worker processes for :func:`embed_in`."""
    # Of molecules whose conformers take seconds, the automatic search embeds the fewest.
    most = FEWEST_CONFORMERS if config.conformers == "auto" else config.conformers
    return Pool(
        partial(_packed, config=config),
        workers=workers,
        # Two embeddings of two attempts each, the minimizations, and some slack.
        time_limit=(5.0 + most) * config.stereoisomers * config.embed_time_limit,
        memory_limit=round(config.embed_memory_limit * 1e9),
        ahead=AHEAD,
    )


def embed_in(pool: EmbeddingPool, records: Iterable[Record]) -> Iterator[tuple[Record, Outcome]]:
    """As :func:`embed_records`, with a given pool of processes, which is kept."""
    todo = _tasks(records)
    # Tasks by the position of their first record.
    given: dict[int, list[Record]] = {}
    done: dict[int, list[tuple[Record, Outcome]]] = {}
    read = returned = 0
    at_end = False

    def give(first: int, task: list[Record]) -> None:
        given[first] = task
        pool.give(first, task)

    try:
        while given or done or not at_end:
            while not (at_end or pool.full or read - returned >= WINDOW):
                task = next(todo, [])
                if task:
                    give(read, task)
                read += len(task)
                at_end = not task
            for first, found in pool.results():
                task = given.pop(first)
                if isinstance(found, Lost):
                    if len(task) > 1:  # one by one: only the record at fault is lost
                        for place, record in enumerate(task, start=first):
                            give(place, [record])
                        continue
                    found = [_lost(task[0], found)]
                done[first] = list(zip(task, map(_unpacked, found), strict=True))
            while returned in done:
                complete = done.pop(returned)
                returned += len(complete)
                yield from complete
    except BaseException:  # unfinished tasks must not be taken for the next results
        pool.stop()
        raise


def embed_smiles(
    rows: Sequence[SmilesRow],
    config: ConformerConfig,
    *,
    workers: int = 1,
    progress: bool = False,
    source: str = "",
) -> Molecules:
    """Embeds many molecules; returns conformers in order, and failures.

    ``mol_id`` is the position in ``rows``, from 0.

    Args:
        rows: The molecules.
        config: Number of conformers and seed.
        workers: Number of processes, which affects only the speed; 1: the calling process, where a
            crash of RDKit is not caught.
        progress: Show a progress bar on standard error.
        source: Name of the file that the rows are from, for the failures.

    Raises:
        ValueError: ``workers`` below 1.
    """
    records = [Record(row.row, row, source=source, mol_id=place) for place, row in enumerate(rows)]
    return molecules_of(records, config, workers=workers, progress=progress)


def molecules_of(
    records: Sequence[Record],
    config: ConformerConfig,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Molecules:
    """Returns the structures of all records; see :func:`embed_smiles`.

    Values that look like a charge or a dipole and are not used give a warning.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    smiles = sum(isinstance(record.content, SmilesRow) for record in records)
    outcomes = embed_records(records, config, workers=workers if workers > 1 and smiles > 1 else 0)
    rows: list[int] = []
    found = Molecules([], [], rows)
    for record, outcome in track(
        outcomes,
        description="Conformers",
        total=len(records),
        console=Console(stderr=True),
        disable=not (progress and smiles),
    ):
        if isinstance(outcome, Failure):
            found.failures.append(outcome)
        else:
            found.data.extend(outcome)
            rows.extend([record.row] * len(outcome))
    remarks = Counter((record.source, remark) for record in records for remark in record.remarks)
    for (source, remark), count in remarks.items():
        where = f"{source or 'input'}, {count} record{'s' * (count > 1)}"
        warnings.warn(f"{where}: {remark}", stacklevel=3)
    return found


def _tasks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Groups consecutive records into tasks of a worker."""
    task: list[Record] = []
    for record in records:
        task.append(record)
        if isinstance(record.content, SmilesRow) or len(task) == STRUCTURES_PER_TASK:
            yield task
            task = []
    if task:
        yield task


def _packed(records: list[Record], *, config: ConformerConfig) -> _Packed:
    """Processes a task in a worker."""
    outcomes = (structures(record, config) for record in records)
    return [
        outcome if isinstance(outcome, Failure) else [to_arrays(data) for data in outcome]
        for outcome in outcomes
    ]


def _unpacked(outcome: list[dict[str, Any]] | Failure) -> Outcome:
    return outcome if isinstance(outcome, Failure) else [from_arrays(data) for data in outcome]


def _lost(record: Record, lost: Lost) -> Failure:
    """Failure of a record whose worker crashed or exceeded the time limit."""
    smiles = isinstance(record.content, SmilesRow)
    return MoleculeError(
        f"{'No 3D structure can be built' if smiles else 'It cannot be read'}: {lost.reason}",
        remedy="Give a 3D structure (.sdf, .xyz), or raise --embed-time-limit"
        if smiles
        else "Correct or remove the record",
    ).failure(
        "embed" if smiles else "read",
        molecule=record.title,
        row=record.row,
        source=record.source,
    )
