"""What two processes do for test_ddp.py, started by torchrun.

Each writes what it has seen to ``rank0.json`` or ``rank1.json`` in the folder that it is given.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dipolegnn.cli import main
from dipolegnn.config import TrainConfig
from dipolegnn.data import Split
from dipolegnn.training import TrainingInterrupted, fit
from tests.training.toy import ToyDataset, toy_model

TWO = TrainConfig(max_epochs=3, batch_size=4, lr=5e-3, accelerator="cpu", precision=64)
"""The recipe of each of two devices."""

ONE = replace(TWO, batch_size=8)
"""What is the same on one device."""

IMPATIENT = replace(
    TWO, max_epochs=30, lr=0.5, ema_decay=None, scheduler="plateau", early_stopping_patience=1
)

TRAIN_WORDS = [
    *("--accelerator", "cpu", "--batch-size", "4", "--scheduler", "plateau", "--lr", "1e-3"),
    *("--hidden-channels", "8", "--num-interactions", "1", "--num-rbf", "5"),
]
"""Options of ``dipolegnn train``; this schedule does not depend on the number of epochs."""

VALIDATION = range(24, 31)
TEST = range(31, 40)


class Seen(Callback):
    """Writes down the molecules of validation and test, epoch by epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.epochs.append([])

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.epochs[-1] += batch.mol_id.tolist()


def data(transform: Callable[[Any], Any] | None = None) -> tuple[ToyDataset, Split]:
    """24 training molecules, which fill three batches of eight; 7 for validation, 9 for test.

    Three have no label, so that at least one batch has not as many labels on both devices. With a
    transform the batches are not cut out of the arrays of the whole data set.
    """
    dataset = ToyDataset(40)
    for field in ("dipole", "dipole_magnitude"):
        dataset._data[field][[3, 10, 17]] = torch.nan
    dataset.transform = transform
    split = Split(torch.arange(24), torch.tensor(VALIDATION), torch.tensor(TEST))
    return dataset, split


def as_it_is(molecule: Any) -> Any:
    return molecule


def everything(folder: Path, rank: int) -> dict[str, Any]:
    """All that needs no process to end: starting two takes far longer than what they do here.

    ``data`` in the folder is the data set of the command.
    """
    seen = Seen()
    usual = fit(toy_model(), *data(), TWO, folder / "usual", test=True, devices=2, callbacks=[seen])
    single = fit(toy_model(), *data(as_it_is), TWO, folder / "loader", progress=False, devices=2)
    # By the clock of the second process there would be time left.
    limit = 0.0 if rank == 0 else 1e6
    cut = fit(
        toy_model(), *data(), TWO, folder / "cut", progress=False, devices=2, time_limit=limit
    )
    resumed = fit(toy_model(), *data(), TWO, folder / "cut", progress=False, devices=2, resume=True)
    early = fit(toy_model(), *data(), IMPATIENT, folder / "early", progress=False, devices=2)
    try:
        fit(toy_model(), *data(), TWO, folder / "usual", devices=2)
        refused = "not at all"
    except (FileExistsError, RuntimeError) as error:
        refused = f"{type(error).__name__}: {error}"
    try:
        fit(toy_model(), *data(), TWO, folder / "alone", progress=False)
        alone = "not at all"
    except ValueError as error:
        alone = str(error)
    finished = fit(toy_model(), *data(), TWO, folder / "usual", devices=2, resume=True)
    words = ["--data", str(folder / "data"), "--output", str(folder / "command"), *TRAIN_WORDS]
    status = main(["train", *words, "--devices", "2", "--max-epochs", "2"])
    return {
        "pid": os.getpid(),
        "status": status,
        "seen": seen.epochs,
        "metrics": usual.metrics,
        "best_epoch": usual.best_epoch,
        "stopped_by": [run.stopped_by for run in (usual, single, cut, resumed, early, finished)],
        "refused": refused,
        "alone": alone,
    }


def endless(folder: Path) -> None:
    """Trains until it is stopped, and prints why."""
    config = replace(TWO, max_epochs=100_000)
    try:
        fit(toy_model(), *data(), config, folder / "endless", progress=False, devices=2)
    except TrainingInterrupted as interrupt:
        print(f"process {os.environ['RANK']}: {interrupt}", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    this = int(os.environ["RANK"])
    (out / f"rank{this}.json").write_text(json.dumps(everything(out, this)))
    endless(out)
