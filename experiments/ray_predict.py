"""Dipole moments of a data set of SMILES on a cluster of machines, with Ray Data.

It reads Parquet and writes a folder of Parquet files: the rows with the columns that
``dipolegnn.inference.ray.predict_dataset`` adds. Every machine has dipolegnn[ray] installed, and
sees input and output under the same path or address (a shared disk, ``s3://...``). The head is
started with ``ray start --head``, the others with ``ray start --address=HEAD:6379``, and then, on
any of them: ``experiments/ray_predict.py --input FOLDER --output FOLDER --address auto``. Without
an address it is a cluster of the cores of this machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import ray
import tyro

from dipolegnn.config import ConformerConfig, PredictConfig
from dipolegnn.inference.ray import ROWS_PER_TASK, predict_dataset, write_rows
from dipolegnn.models import ModelChoice
from dipolegnn.units import duration


@dataclass(frozen=True, kw_only=True)
class Options:
    """Predict the dipole moments of a Parquet file or folder on many machines."""

    input: Annotated[str, tyro.conf.arg(metavar="PATH")]
    """Parquet file, folder of them, or address of either."""
    output: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder for the results, which must not exist."""
    smiles: str = "smiles"
    """Column of the SMILES."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """A pretrained model's name, a model file, the folder of a run; left out: the default."""
    conformers: Annotated[ConformerConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: PredictConfig.embedding
    )
    actors: tuple[int, int] = (1, 1)
    """Processes with a model, at least and at most."""
    gpus: float = 0.0
    """GPUs for each of them; 0: a core."""
    rows_per_task: int = ROWS_PER_TASK
    """Molecules that are done at a time, and again if a machine is lost."""
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Address of the cluster, or auto; left out: one of the cores of this machine."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the pipeline."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    # Ray sends usage statistics by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # "local": do not join a cluster that runs on this machine.
    ray.init(address=options.address or "local", include_dashboard=False)
    try:
        start = time.monotonic()
        rows = predict_dataset(
            ray.data.read_parquet(options.input),
            ModelChoice(options.model),
            smiles_column=options.smiles,
            conformers=options.conformers,
            actors=options.actors,
            gpus_per_actor=options.gpus,
            rows_per_task=options.rows_per_task,
        )
        molecules, failures = write_rows(rows, options.output)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    finally:
        ray.shutdown()
    seconds = time.monotonic() - start
    print(
        f'{molecules:,} molecules and {failures:,} failures (column "problem") in '
        f"{options.output}: {duration(seconds)}, {(molecules + failures) / seconds:.1f} per second."
    )


if __name__ == "__main__":
    main()
