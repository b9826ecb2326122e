"""What is done to blocks of rows that may lie on any machine: Arrow table in, more columns out.

Three steps: SMILES to structures, and structures to predictions or to labels. Whatever runs them
(:mod:`dipolegnn.inference.ray`) need know nothing about molecules. A molecule that fails keeps its
row, with the reason in ``stage``, ``problem`` and ``remedy``, and nothing in the other columns.

Columns have their types even where a whole block has nothing in them: blocks of a data set that
differ in type could not be put together.
"""

from __future__ import annotations

import atexit
import pickle
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from ase.data import chemical_symbols

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig, DFTConfig, XTBConfig
from dipolegnn.inference.pipeline import Source, answer
from dipolegnn.inference.table import Line, arrow_schema, lines
from dipolegnn.labels.batch import label_one, label_time_limit, lost_label
from dipolegnn.labels.calculators import engine_version
from dipolegnn.labels.journal import Label, with_label
from dipolegnn.models import ModelChoice
from dipolegnn.molecules import Failure, MoleculeError, Molecules, SmilesRow
from dipolegnn.molecules.embedding import AHEAD, EmbeddingPool, embed_in, embedding_pool
from dipolegnn.molecules.molecule import from_arrays, to_arrays
from dipolegnn.molecules.records import Record
from dipolegnn.molecules.tables import import_pyarrow
from dipolegnn.molecules.workers import Lost, Pool, Result, Task

STRUCTURES = "dipolegnn_structures"
"""Column between two steps: the conformers of a molecule; null where there are none."""

FAILURE_COLUMNS = ("stage", "problem", "remedy")
"""Columns that say why a molecule failed; null where it did not."""

PREDICTION_COLUMNS = tuple(
    name for name in Line._fields if name not in ("source", "row", "name", "smiles")
)
"""Columns of a prediction: those of :class:`~dipolegnn.inference.table.Line` that the rows lack."""


class LabelCells(NamedTuple):
    """What a labelled structure adds to a row; ``conformer`` counts from 1, the lowest."""

    conformer: int
    charge_e: int
    magnitude_D: float
    dipole_x_D: float
    dipole_y_D: float
    dipole_z_D: float
    energy_kcal_per_mol: float
    symbols: str
    positions_angstrom: list[float]
    atomic_charges_e: list[float]
    program: str


LABEL_COLUMNS = LabelCells._fields
"""Columns of a label."""


def embed_block(block: Any, *, smiles_column: str, config: ConformerConfig) -> Any:
    """Adds the structures of the molecules, and why some have none.

    It works in a process of its own, which stays for the next block: a molecule that crashes RDKit
    (twice), or keeps it busy for too long, costs only itself.

    Args:
        block: Arrow table.
        smiles_column: Its column of SMILES; an empty cell is an empty text.
        config: How they are embedded.
    """
    cells = enumerate(block.column(smiles_column).to_pylist(), start=1)
    rows = [SmilesRow(row, "" if cell is None else str(cell).strip()) for row, cell in cells]
    outcomes = dict(embed_in(_embedder(config), ((row.row, Record(row.row, row)) for row in rows)))
    found: list[bytes | None] = []
    failures: list[Failure | None] = []
    for row in rows:
        outcome = outcomes[row.row]
        if isinstance(outcome, Failure):
            found.append(None)
            failures.append(outcome)
        else:
            found.append(pickle.dumps([to_arrays(data) for data in outcome]))
            failures.append(None)
    arrow, _ = import_pyarrow()
    block = block.append_column(STRUCTURES, arrow.array(found, arrow.binary()))
    return _with_failures(block, failures)


class PredictBlock:
    """Replaces structures by predictions.

    Args:
        models: Which model predicts.
        conformers: How many each SMILES was to have.
        temperature: Temperature of the Boltzmann average, in kelvin.
        coverage: How often the error bars hold, between 0 and 1.
        device: Where to compute.
    """

    def __init__(
        self,
        models: ModelChoice,
        conformers: int,
        temperature: float,
        coverage: float,
        device: str,
    ) -> None:
        self.models = models
        self.conformers = conformers
        self.temperature = temperature
        self.coverage = coverage
        self.device = device

    def __call__(self, block: Any) -> Any:
        """The block with ``PREDICTION_COLUMNS`` and ``FAILURE_COLUMNS``."""
        structures = []
        for place, conformers in enumerate(_structures(block)):
            for data in conformers:
                data.mol_id.fill_(place)  # conformers of one molecule are known by their number
                structures.append(data)
        report = answer(
            [Source("", self.conformers, Molecules(structures, []))],
            self.models,
            temperature=self.temperature,
            coverage=self.coverage,
            device=self.device,
        )
        rows: list[dict[str, Any]] = [{} for _ in range(block.num_rows)]
        for line in lines(report):
            rows[line.row - 1] = line._asdict()
        failures = _failures(block)
        for failure in report.failures:
            failures[(failure.row or 0) - 1] = failure
        return _with_failures(_with_cells(block, rows, PREDICTION_COLUMNS), failures)


def label_block(block: Any, *, method: XTBConfig | DFTConfig) -> Any:
    """Replaces structures by labels: a row for each, so that a molecule may come to several.

    As with :func:`embed_block`, a process of its own does it.

    Args:
        block: Arrow table with structures.
        method: Level of theory, and whether to relax first.

    Returns:
        The block with ``LABEL_COLUMNS`` and ``FAILURE_COLUMNS``.
    """
    # A molecule without structures has one row, with the reason.
    places: list[int] = []
    structures: list[tuple[int, Data] | None] = []
    for place, conformers in enumerate(_structures(block)):
        structures += enumerate(conformers, start=1) if conformers else [None]
        places += [place] * (len(structures) - len(places))
    todo = [structure[1] for structure in structures if structure is not None]
    found = dict(_labeller(method).run(todo))
    outcomes = (found[place] for place in range(len(todo)))
    arrow, _ = import_pyarrow()
    block = block.take(arrow.array(places, arrow.int64()))
    rows: list[dict[str, Any]] = []
    failures = _failures(block)
    for row, structure in enumerate(structures):
        rows.append({})
        if structure is None:
            continue
        conformer, data = structure
        outcome = next(outcomes)
        if isinstance(outcome, Lost):
            outcome = lost_label(outcome)
        if isinstance(outcome, MoleculeError):
            failures[row] = Failure.from_error(outcome, "label")
            rows[row] = {"conformer": conformer}
        else:
            rows[row] = _label_cells(conformer, data, outcome, method)._asdict()
    return _with_failures(_with_cells(block, rows, LABEL_COLUMNS), failures)


def _label_cells(
    conformer: int, data: Data, outcome: Label, method: XTBConfig | DFTConfig
) -> LabelCells:
    labelled = with_label(data, outcome)
    x, y, z = labelled.dipole[0].tolist()
    return LabelCells(
        conformer=conformer,
        charge_e=round(float(labelled.charge)),
        magnitude_D=float(labelled.dipole_magnitude),
        dipole_x_D=x,
        dipole_y_D=y,
        dipole_z_D=z,
        energy_kcal_per_mol=float(labelled.energy),
        symbols=" ".join(chemical_symbols[z] for z in labelled.z.tolist()),
        positions_angstrom=labelled.pos.flatten().tolist(),
        atomic_charges_e=labelled.atomic_charges.tolist(),
        program=engine_version(method),
    )


# Kept for the next block that the same process is given: starting a worker takes seconds.
@cache
def _embedder(config: ConformerConfig) -> EmbeddingPool:
    return _kept(embedding_pool(config, workers=1))


@cache
def _labeller(method: XTBConfig | DFTConfig) -> Pool[Data, Label | MoleculeError]:
    label = partial(label_one, method=method)
    return _kept(Pool(label, workers=1, time_limit=label_time_limit(method), ahead=AHEAD))


def _kept(pool: Pool[Task, Result]) -> Pool[Task, Result]:
    atexit.register(pool.stop)
    return pool


def _structures(block: Any) -> list[list[Data]]:
    """The conformers of each molecule; none where it failed."""
    packed = block.column(STRUCTURES).to_pylist()
    return [
        [from_arrays(arrays) for arrays in pickle.loads(cell)] if cell else [] for cell in packed
    ]


def _failures(block: Any) -> list[Failure | None]:
    """The failures of an earlier step."""
    rows = block.select(FAILURE_COLUMNS).to_pylist()
    return [None if row["problem"] is None else Failure("", None, "", **row) for row in rows]


def _with_failures(block: Any, failures: Sequence[Failure | None]) -> Any:
    """The block with its failure columns at the end, in place of those that it has."""
    rows = [
        {} if failure is None else {name: getattr(failure, name) for name in FAILURE_COLUMNS}
        for failure in failures
    ]
    known = [name for name in FAILURE_COLUMNS if name in block.column_names]
    return _appended(block.drop_columns(known), rows, FAILURE_COLUMNS)


def _with_cells(block: Any, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Any:
    """The block with columns in place of the structures."""
    return _appended(block.drop_columns([STRUCTURES]), rows, names)


def _appended(block: Any, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Any:
    arrow, _ = import_pyarrow()
    for field in arrow_schema(names):
        column = arrow.array([row.get(field.name) for row in rows], field.type)
        block = block.append_column(field, column)
    return block
