"""Predictions and labels for data sets on several machines: pipelines of Ray Data.

The steps and the results are the same as on one machine. Conformers and labels are computed in
tasks with one core each, predictions in actors on a CPU or a GPU. Ray repeats the tasks of a lost
machine or process. Rows keep all their columns; their order is not preserved unless
``DataContext.execution_options.preserve_order`` is set, so include a column that identifies them.
A molecule that fails keeps its row, with the reason in ``stage``, ``problem`` and ``remedy``, and
null in the other columns.

Blocks of rows are Arrow tables. All columns have explicit types, because blocks with different
types, such as those of empty columns, cannot be concatenated.
"""

from __future__ import annotations

import atexit
import itertools
import pickle
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ase.data import chemical_symbols

from dipolegnn._pyg import Data
from dipolegnn.config import (
    COVERAGE,
    ConformerConfig,
    DFTConfig,
    EnergyMethod,
    PredictConfig,
    XTBConfig,
)
from dipolegnn.inference.output import Line, arrow_schema
from dipolegnn.inference.pipeline import predict_batches
from dipolegnn.labels.batch import Label, label_one, label_time_limit, lost_label, with_label
from dipolegnn.labels.calculators import engine_version
from dipolegnn.models import ModelChoice
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow
from dipolegnn.molecules.embedding import AHEAD, EmbeddingPool, embed_in, embedding_pool
from dipolegnn.molecules.molecule import from_arrays, to_arrays
from dipolegnn.molecules.records import Record, find_column, import_pyarrow
from dipolegnn.molecules.workers import Lost, Pool, Result, Task
from dipolegnn.units import ROOM_TEMPERATURE_K

try:
    import ray.data
except ImportError:
    raise ImportError(
        "Pipelines over several machines need Ray Data, which is not installed: "
        "pip install 'dipolegnn[ray]'."
    ) from None

ROWS_PER_TASK = 256
"""Molecules that a task embeds: some seconds of work."""

LABELS_PER_TASK = 16
"""Molecules that a task labels, by default."""

ACTOR_MEMORY = 1.5 * 2**30
"""Bytes that Ray reserves for a model. With the same resources as the tasks before, Ray would run
these inside the actors, one after the other."""

STRUCTURES = "dipolegnn_structures"
"""Column between two steps: the conformers of a molecule; null if there are none."""

FAILURE_COLUMNS = ("stage", "problem", "remedy")
"""Columns with the reason of a failure; null for other molecules."""

PREDICTION_COLUMNS = tuple(
    name for name in Line.columns(levels=False) if name not in ("source", "row", "name", "smiles")
)
"""Columns of a prediction: those of :class:`~dipolegnn.inference.output.Line` that are added."""

LEVEL_COLUMN = "level"
"""Further column, if the model distinguishes levels of theory."""


LABEL_COLUMNS = (
    *("conformer", "charge_e", "magnitude_D", "dipole_x_D", "dipole_y_D", "dipole_z_D"),
    *("energy_kcal_per_mol", "symbols", "positions_angstrom", "atomic_charges_e", "program"),
)
"""Columns of a label; ``conformer`` counts from 1, the lowest."""


def predict_dataset(
    dataset: ray.data.Dataset,
    models: ModelChoice,
    *,
    smiles_column: str = "smiles",
    conformers: ConformerConfig | None = None,
    temperature: float = ROOM_TEMPERATURE_K,
    coverage: float = COVERAGE,
    level: str | None = None,
    energies: EnergyMethod | Literal["auto"] = PredictConfig.energies,
    actors: int | tuple[int, int] = 1,
    gpus_per_actor: float = 0.0,
    rows_per_task: int = ROWS_PER_TASK,
) -> ray.data.Dataset:
    """Adds the predicted dipole moments to rows of SMILES; nothing is computed yet.

    The columns, ``PREDICTION_COLUMNS``, are those of the table of
    :func:`dipolegnn.inference.predict_files`, except those that repeat the row; symbols are
    separated by spaces, positions are ``[3N]`` and charges ``[N]``. For failed molecules they are
    null, and ``stage``, ``problem`` and ``remedy`` state the reason. If the model distinguishes
    levels of theory, there is also a column ``level``. With ``conformers.stereoisomers``, a row is
    repeated for each stereoisomer, whose SMILES is among the notes.

    A cluster needs at least two cores: one for a model, one for conformers.

    Args:
        dataset: Rows of SMILES.
        models: Choice of the model; it is loaded here and need not exist on the other machines.
        smiles_column: Column of the SMILES; case-insensitive.
        conformers: Embedding of SMILES; None: as many conformers as each molecule needs.
        temperature: Temperature of the Boltzmann average, in kelvin.
        coverage: Coverage of the error bars, between 0 and 1.
        level: Level of theory; None: the first of the model.
        energies: Energies of the conformers, for their weights.
        actors: Number of processes with a model, or its minimum and maximum.
        gpus_per_actor: GPUs per process; 0: one core; a fraction: processes share a GPU.
        rows_per_task: Molecules per task; a task is repeated if a machine is lost.

    Raises:
        FileNotFoundError: The model does not exist.
        ValueError: A column is missing, or one of the new columns exists already; a number is too
            small; the file is not a model file; or the model does not have the level.
    """
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    if not 1 <= least <= most:
        raise ValueError(f"actors must be at least 1, the larger number last, got {actors}.")
    if gpus_per_actor < 0:
        raise ValueError(f"gpus_per_actor must be zero or positive, got {gpus_per_actor}.")
    model = models.model  # loaded before it is sent to other machines
    levels = [LEVEL_COLUMN] if model.level_named(level) else []
    embedding = conformers or PredictConfig.embedding
    config = PredictConfig(embedding, temperature, coverage, level, energies)
    return _embedded(
        dataset,
        smiles_column,
        config.embedding,
        rows_per_task,
        added=(*PREDICTION_COLUMNS, *levels),
    ).map_batches(
        PredictBlock,
        fn_constructor_args=(
            models,
            config,
            "cuda" if gpus_per_actor else "cpu",
        ),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=1,
        num_gpus=gpus_per_actor,
        memory=ACTOR_MEMORY,
    )


def label_dataset(
    dataset: ray.data.Dataset,
    method: XTBConfig | DFTConfig,
    *,
    smiles_column: str = "smiles",
    conformers: ConformerConfig | None = None,
    rows_per_task: int = LABELS_PER_TASK,
) -> ray.data.Dataset:
    """Adds reference dipoles to rows of SMILES; nothing is computed yet.

    Each conformer has a row; a molecule without conformers also has one row. The columns are
    ``LABEL_COLUMNS``: dipoles about the centre of mass, symbols separated by spaces, positions
    ``[3N]`` (optimized, if the method optimizes) and charges ``[N]``. For failed molecules and
    conformers they are null (except ``conformer``), and ``stage``, ``problem`` and ``remedy`` state
    the reason.

    Args:
        dataset: Rows of SMILES.
        method: Level of theory, and whether to optimize the geometries.
        smiles_column: Column of the SMILES; case-insensitive.
        conformers: Embedding of SMILES; None: one conformer each.
        rows_per_task: Molecules per task; a task is repeated if a machine is lost. Use 1 for DFT,
            which takes minutes per molecule.

    Raises:
        ImportError: The program of the method is not installed.
        ValueError: A column is missing, or one of the new columns exists already;
            ``rows_per_task`` is below 1; or stereoisomers are to be enumerated.
    """
    engine_version(method)  # a missing program is one error, not a failure of each molecule
    config = conformers or ConformerConfig()
    if config.stereoisomers > 1:
        raise ValueError(
            f"The rows of labels do not distinguish stereoisomers; expected stereoisomers=1, got "
            f"{config.stereoisomers}. Give a row with an isomeric SMILES for each."
        )
    return _embedded(
        dataset, smiles_column, config, rows_per_task, added=LABEL_COLUMNS
    ).map_batches(
        partial(label_block, method=method),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
    )


class Counts(NamedTuple):
    """Numbers of an output."""

    molecules: int
    failures: int


def write_rows(dataset: ray.data.Dataset, output: str) -> Counts:
    """Computes a data set, writes it to a folder of Parquet files, and counts the failures.

    Args:
        dataset: Data set from :func:`predict_dataset` or :func:`label_dataset`.
        output: The folder, which must not exist: on a disk that all machines share, or an address
            that pyarrow supports (``s3://...``).

    Returns:
        The numbers of rows without and with a failure.

    Raises:
        ValueError: The folder exists.
    """
    if "://" not in output and Path(output).exists():
        raise ValueError(
            f"{output} exists. Choose another folder, or remove it: an interrupted run leaves an "
            "incomplete folder and cannot be resumed."
        )
    dataset.write_parquet(output, mode=ray.data.SaveMode.ERROR)
    rows = failures = 0
    problems = ray.data.read_parquet(output).select_columns(["problem"])
    block: Any
    for block in problems.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows += block.num_rows
        failures += block.num_rows - block.column("problem").null_count
    return Counts(rows - failures, failures)


def _embedded(
    dataset: ray.data.Dataset,
    smiles_column: str,
    conformers: ConformerConfig,
    rows_per_task: int,
    *,
    added: Sequence[str],
) -> ray.data.Dataset:
    """The rows in small blocks, with structures."""
    if rows_per_task < 1:
        raise ValueError(f"rows_per_task must be at least 1, got {rows_per_task}.")
    names = dataset.columns() or []
    column = names[find_column(names, smiles_column)]
    clashing = sorted({*added, *FAILURE_COLUMNS, STRUCTURES} & set(names))
    if clashing:
        raise ValueError(
            f"The rows have columns that would be added: {', '.join(clashing)}. Rename them "
            "(rename_columns) or remove them (drop_columns) before."
        )
    # Ray reads a file as one block, and a block is one task.
    return dataset.repartition(target_num_rows_per_block=rows_per_task).map_batches(
        partial(embed_block, smiles_column=column, config=conformers),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
    )


def embed_block(block: Any, *, smiles_column: str, config: ConformerConfig) -> Any:
    """Adds the structures of the molecules, or the reasons of failures, to an Arrow table.

    A separate process, which is kept for the next block, embeds them: a molecule that crashes RDKit
    (twice) or exceeds the time limit is a failure and does not affect other molecules.
    """
    records = (
        Record(row, SmilesRow(row, "" if cell is None else str(cell).strip()))
        for row, cell in enumerate(block.column(smiles_column).to_pylist(), start=1)
    )
    rows = [
        _failed(outcome)
        if isinstance(outcome, Failure)
        else {STRUCTURES: pickle.dumps([to_arrays(data) for data in outcome])}
        for _, outcome in embed_in(_embedder(config), records)
    ]
    return _with_cells(block, rows, [STRUCTURES])


class PredictBlock:
    """Replaces structures by predictions on a device."""

    def __init__(self, models: ModelChoice, config: PredictConfig, device: str) -> None:
        self.models = models
        self.config = config
        self.device = device
        levels = models.model.levels
        self.columns = (*PREDICTION_COLUMNS, *([LEVEL_COLUMN] if levels else []))

    def __call__(self, block: Any) -> Any:
        """Returns the Arrow table with the columns of predictions and ``FAILURE_COLUMNS``."""
        embedded = (
            (Record(row, SmilesRow(row, "")), conformers)
            for row, conformers in enumerate(_structures(block), start=1)
            if conformers
        )
        batches = predict_batches(embedded, self.models, self.config, device=self.device)
        # One row without structures, with the reason; several with stereoisomers.
        found: list[list[dict[str, Any]]] = [[] for _ in range(block.num_rows)]
        for outcome in itertools.chain.from_iterable(batch.outcomes for batch in batches):
            found[(outcome.row or 0) - 1].append(
                _failed(outcome)
                if isinstance(outcome, Failure)
                else Line.of(outcome, self.config.coverage)._asdict()
            )
        failed = block.select(FAILURE_COLUMNS).to_pylist()
        rows = [cells or [failure] for cells, failure in zip(found, failed, strict=True)]
        arrow, _ = import_pyarrow()
        places = [place for place, cells in enumerate(rows) for _ in cells]
        block = block.take(arrow.array(places, arrow.int64()))
        return _with_cells(block, list(itertools.chain.from_iterable(rows)), self.columns)


def label_block(block: Any, *, method: XTBConfig | DFTConfig) -> Any:
    """Replaces structures by labels, one row per conformer, computed in a separate process.

    Returns:
        The Arrow table with ``LABEL_COLUMNS`` and ``FAILURE_COLUMNS``.
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
    rows = block.select(FAILURE_COLUMNS).to_pylist()
    for row, structure in zip(rows, structures, strict=True):
        if structure is None:
            continue
        outcome = next(outcomes)
        if isinstance(outcome, Lost):
            outcome = lost_label(outcome)
        row["conformer"] = structure[0]
        row |= (
            _failed(outcome.failure("label"))
            if isinstance(outcome, MoleculeError)
            else _label_cells(with_label(structure[1], outcome), method)
        )
    return _with_cells(block, rows, LABEL_COLUMNS)


def _label_cells(labelled: Data, method: XTBConfig | DFTConfig) -> dict[str, Any]:
    return {
        "charge_e": round(float(labelled.charge)),
        "magnitude_D": float(labelled.dipole_magnitude),
        **{f"dipole_{axis}_D": float(labelled.dipole[0, k]) for k, axis in enumerate("xyz")},
        "energy_kcal_per_mol": float(labelled.energy),
        "symbols": " ".join(chemical_symbols[z] for z in labelled.z.tolist()),
        "positions_angstrom": labelled.pos.flatten().tolist(),
        "atomic_charges_e": labelled.atomic_charges.tolist(),
        "program": engine_version(method),
    }


# Kept for the next block in the same process: starting a worker takes seconds.
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
    """The conformers of each molecule; an empty list for failures."""
    packed = block.column(STRUCTURES).to_pylist()
    return [
        [from_arrays(arrays) for arrays in pickle.loads(cell)] if cell else [] for cell in packed
    ]


def _failed(failure: Failure) -> dict[str, Any]:
    return {name: getattr(failure, name) for name in FAILURE_COLUMNS}


def _with_cells(block: Any, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Any:
    """Replaces the columns of the previous step by new ones; those of failures are the last."""
    arrow, _ = import_pyarrow()
    before = [name for name in (STRUCTURES, *FAILURE_COLUMNS) if name in block.column_names]
    block = block.drop_columns(before)
    for field in arrow_schema([*names, *FAILURE_COLUMNS]):
        kind = arrow.binary() if field.name == STRUCTURES else field.type
        column = arrow.array([row.get(field.name) for row in rows], kind)
        block = block.append_column(arrow.field(field.name, kind), column)
    return block
