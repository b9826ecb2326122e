"""Predictions and labels for data sets on several machines: pipelines of Ray Data.

The same steps as on one machine, with the same numbers: conformers and labels in tasks that take a
core each, the model in actors, on a CPU or a GPU. Ray runs again what was under way on a machine,
or in a process, that is lost; a molecule that cannot be computed is a row that says why. Rows keep
all their columns; their order is Ray's own unless it is told otherwise
(``DataContext.execution_options.preserve_order``), so have a column that tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dipolegnn.config import COVERAGE, ConformerConfig, DFTConfig, XTBConfig
from dipolegnn.inference.blocks import (
    FAILURE_COLUMNS,
    LABEL_COLUMNS,
    PREDICTION_COLUMNS,
    STRUCTURES,
    PredictBlock,
    embed_block,
    label_block,
)
from dipolegnn.inference.output import Counts
from dipolegnn.labels.calculators import engine_version
from dipolegnn.models import ModelChoice
from dipolegnn.molecules.tables import find_column
from dipolegnn.units import ROOM_TEMPERATURE_K

try:
    import ray.data
except ImportError:
    raise ImportError(
        "Pipelines over several machines need Ray Data, which is not installed: "
        "pip install 'dipolegnn[ray]'."
    ) from None

ROWS_PER_TASK = 256
"""Molecules that a task embeds: some seconds of work, which are lost with its machine."""

LABELS_PER_TASK = 16
"""Molecules that a task labels, by default."""

ACTOR_MEMORY = 1.5 * 2**30
"""Bytes that Ray sets aside for a model. It has to differ from what the tasks before ask for: Ray
would else run them inside the actors, one after the other."""


def predict_dataset(
    dataset: ray.data.Dataset,
    models: ModelChoice,
    *,
    smiles_column: str = "smiles",
    conformers: ConformerConfig | None = None,
    temperature: float = ROOM_TEMPERATURE_K,
    coverage: float = COVERAGE,
    actors: int | tuple[int, int] = 1,
    gpus_per_actor: float = 0.0,
    rows_per_task: int = ROWS_PER_TASK,
) -> ray.data.Dataset:
    """Adds the predicted dipole moments to rows of SMILES; nothing is computed yet.

    The columns are those of the table of :func:`dipolegnn.inference.predict_files`, except those
    that repeat the row: ``charge_e``, ``magnitude_D``, ``half_width_D``, ``smallest_D``,
    ``largest_D``, ``dipole_x_D``, ``dipole_y_D``, ``dipole_z_D``, ``conformers``, ``symbols``
    (separated by spaces), ``positions_angstrom`` ``[3N]``, ``atomic_charges_e`` ``[N]``, ``model``
    and ``notes``.
    Where a molecule failed they are null, and ``stage``, ``problem`` and ``remedy`` say why.

    A cluster needs two cores at least: one for a model, one for conformers.

    Args:
        dataset: Rows of SMILES.
        models: Which model predicts; it is loaded here, and need not be on the other machines.
        smiles_column: Column of the SMILES; upper and lower case do not matter.
        conformers: How SMILES are embedded.
        temperature: Temperature of the Boltzmann average, in kelvin.
        coverage: How often the error bars hold, between 0 and 1.
        actors: Processes with a model; of two numbers, how many at least and at most, as needed.
        gpus_per_actor: GPUs for each; 0: it computes on a core. A fraction lets actors share one.
        rows_per_task: Molecules that are done at a time, and again if a machine is lost.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: No such column, or one that would be added is there already; a number that is
            too small; or it is no model file.
    """
    _require_rows(rows_per_task)
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    if not 1 <= least <= most:
        raise ValueError(f"actors must be at least 1, the larger number last, got {actors}.")
    if gpus_per_actor < 0:
        raise ValueError(f"gpus_per_actor must be zero or positive, got {gpus_per_actor}.")
    models.for_geometry(embedded=True)  # loaded before it is sent around
    return _embedded(
        dataset, smiles_column, conformers, rows_per_task, added=PREDICTION_COLUMNS
    ).map_batches(
        PredictBlock,
        fn_constructor_args=(
            models,
            (conformers or ConformerConfig()).conformers,
            temperature,
            coverage,
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

    Each conformer has a row of its own, as each is a structure to train on; a molecule without any
    has one. The columns: ``conformer`` (from 1, the lowest of the force field), ``charge_e``,
    ``magnitude_D``, ``dipole_x_D``, ``dipole_y_D``, ``dipole_z_D`` (about the centre of mass),
    ``energy_kcal_per_mol``, ``symbols`` (with blanks between them), ``positions_angstrom``
    ``[3N]`` (relaxed, if the method says so), ``atomic_charges_e`` ``[N]`` and ``program``. Where
    a molecule or conformer failed they are null (but for ``conformer``), and ``stage``,
    ``problem`` and ``remedy`` say why.

    Args:
        dataset: Rows of SMILES.
        method: Level of theory, and whether to relax first.
        smiles_column: Column of the SMILES; upper and lower case do not matter.
        conformers: How SMILES are embedded.
        rows_per_task: Molecules that are done at a time, and again if a machine is lost: 1 where
            one takes minutes, as with DFT.

    Raises:
        ImportError: The program that calculates is not installed.
        ValueError: No such column, or one that would be added is there already; or
            ``rows_per_task`` below 1.
    """
    _require_rows(rows_per_task)
    engine_version(method)  # a missing program is one error, not a failure of every molecule
    return _embedded(
        dataset, smiles_column, conformers, rows_per_task, added=LABEL_COLUMNS
    ).map_batches(
        partial(label_block, method=method),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
    )


def write_rows(dataset: ray.data.Dataset, output: str) -> Counts:
    """Computes a data set into a folder of Parquet files, and counts rows and failures.

    Args:
        dataset: What :func:`predict_dataset` or :func:`label_dataset` gave.
        output: The folder, which must not exist: on a disk that all machines share, or an address
            that pyarrow knows (``s3://...``).

    Returns:
        How many rows are without a failure, and how many with one.

    Raises:
        ValueError: The folder exists.
    """
    if "://" not in output and Path(output).exists():
        raise ValueError(
            f"{output} exists. Name another folder, or remove it: what a run that was broken off "
            "has left in it is not complete, and is not gone on with."
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
    conformers: ConformerConfig | None,
    rows_per_task: int,
    *,
    added: Sequence[str],
) -> ray.data.Dataset:
    """The rows in small blocks, with structures."""
    names = dataset.columns() or []
    column = names[find_column(names, smiles_column)]
    clashing = sorted({*added, *FAILURE_COLUMNS, STRUCTURES} & set(names))
    if clashing:
        raise ValueError(
            f"The rows have columns that would be added: {', '.join(clashing)}. Rename them "
            "(rename_columns) or leave them out (drop_columns) before."
        )
    # A file is read as one block, and a block is the work of one task.
    return dataset.repartition(target_num_rows_per_block=rows_per_task).map_batches(
        partial(embed_block, smiles_column=column, config=conformers or ConformerConfig()),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
    )


def _require_rows(rows_per_task: int) -> None:
    if rows_per_task < 1:
        raise ValueError(f"rows_per_task must be at least 1, got {rows_per_task}.")
