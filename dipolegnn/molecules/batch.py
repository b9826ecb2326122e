"""Conformers of many molecules, in processes.

The result does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules.chemistry import parse_smiles
from dipolegnn.molecules.conformers import TIME_LIMIT_S, embed
from dipolegnn.molecules.errors import Failure, MoleculeError
from dipolegnn.molecules.molecule import Molecules
from dipolegnn.molecules.workers import Lost, run_tasks


class SmilesRow(NamedTuple):
    """One molecule of a list.

    Args:
        row: 1-based row in its source.
        smiles: SMILES.
        name: Name, or ``""``.
        dipole_magnitude: Reference dipole in debye, or ``None``; given to every conformer.
    """

    row: int
    smiles: str
    name: str = ""
    dipole_magnitude: float | None = None


def embed_smiles(
    rows: Sequence[SmilesRow],
    config: ConformerConfig,
    *,
    workers: int = 1,
    progress: bool = False,
    source: str = "",
) -> Molecules:
    """Conformers of many molecules, in order, with a failure for each molecule that has none.

    ``mol_id`` is the position in ``rows``, from 0. With several workers a molecule that crashes
    RDKit, or keeps it busy for too long, costs only itself.

    Args:
        rows: The molecules.
        config: Number of conformers and seed.
        workers: Processes; the result does not depend on it.
        progress: Show a progress bar on standard error.
        source: Name of the file that the rows are from, for the failures.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    task = partial(_embed_numbered, config=config, source=source)
    numbered = list(enumerate(rows))
    outcomes: dict[int, list[Data] | Failure] = {}
    for index, outcome in track(
        _results(task, numbered, workers, config),
        description="Conformers",
        total=len(rows),
        console=Console(stderr=True),
        disable=not progress,
    ):
        if isinstance(outcome, Lost):
            outcome = lost_row(rows[index], outcome, source)
        outcomes[index] = outcome
    data: list[Data] = []
    failures: list[Failure] = []
    places: list[int] = []
    for index, row in enumerate(rows):
        outcome = outcomes[index]
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            data.extend(outcome)
            places += [row.row] * len(outcome)
    return Molecules(data, failures, places)


def lost_row(row: SmilesRow, lost: Lost, source: str) -> Failure:
    """What became of a molecule that crashed its worker or kept it busy for too long."""
    return Failure(
        source=source,
        row=row.row,
        molecule=row.name or row.smiles,
        stage="embed",
        problem=f"No 3D structure of it can be built: {lost.reason}",
        remedy="Give a 3D structure (.sdf, .xyz)",
    )


def _results(
    task: partial[list[Data] | Failure],
    numbered: list[tuple[int, SmilesRow]],
    workers: int,
    config: ConformerConfig,
) -> Iterator[tuple[int, list[Data] | Failure | Lost]]:
    if workers == 1 or len(numbered) < 2:
        return ((index, task((index, row))) for index, row in numbered)
    return run_tasks(task, numbered, workers=workers, time_limit=time_limit_of(config))


def time_limit_of(config: ConformerConfig) -> float:
    """Seconds after which a molecule is given up that a worker embeds."""
    # Two embeddings of two attempts each, the minimizations, and some slack.
    return (5.0 + config.conformers) * TIME_LIMIT_S


def _embed_numbered(
    numbered: tuple[int, SmilesRow], *, config: ConformerConfig, source: str
) -> list[Data] | Failure:
    mol_id, row = numbered
    return embed_row(row, mol_id, config=config, source=source)


def embed_row(
    row: SmilesRow, mol_id: int, *, config: ConformerConfig, source: str
) -> list[Data] | Failure:
    """The conformers of one molecule of a list, or why there are none.

    Args:
        row: The molecule.
        mol_id: Its number.
        config: Number of conformers and seed.
        source: Name of the file that it is from, for the failure.
    """
    stage = "read"
    try:
        mol = parse_smiles(row.smiles, name=row.name)
        stage = "embed"
        found = embed(
            mol, row.smiles.strip(), config.conformers, config.conformer_seed, row.name, mol_id
        )
    except MoleculeError as error:
        located = error.located(molecule=row.name or row.smiles, row=row.row, source=source)
        return Failure.from_error(located, stage)
    if row.dipole_magnitude is not None:
        for data in found:
            data.dipole_magnitude.fill_(row.dipole_magnitude)
    return found
