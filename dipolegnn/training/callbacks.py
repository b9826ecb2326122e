"""Lightning callbacks at the end of an epoch: history, checkpoints, stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from dipolegnn.training.run_folder import write_history


def history_columns(metrics: Iterable[str]) -> tuple[str, ...]:
    """Columns of ``history.csv``. Epochs count from 1; step and lr are those at the end.

    Args:
        metrics: Names of the metrics of the head.
    """
    names = ("loss", *metrics)
    measured = [f"{stage}/{name}" for stage in ("train", "val") for name in names]
    return ("epoch", "step", "lr", "seconds", *measured)


Row = dict[str, float]
"""Values of one epoch by column of ``history.csv``; columns without a value are missing."""


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class History(Callback):
    """Records the metrics of each epoch, in the checkpoint and as CSV.

    The metrics are those of all devices; only the first process writes and shows them.

    Args:
        path: The CSV file, rewritten after each epoch, so that it contains each epoch once after
            resuming.
        columns: Columns, from :func:`history_columns`.
        on_epoch: Function called with each new row.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], on_epoch: Callable[[pl.Trainer, Row], None]
    ) -> None:
        self.path = path
        self.columns = columns
        self.on_epoch = on_epoch
        self.rows: list[Row] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records the start time of the epoch."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds a row.

        Raises:
            TrainingDiverged: If training or validation loss is not finite.
        """
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.monotonic() - self._started, 3),
        }
        row.update(
            {
                name: logged[name]
                for name in self.columns
                if "/" in name and name in logged and not math.isnan(logged[name])
            }
        )
        for name in ("train/loss", "val/loss"):
            if not math.isfinite(row.get(name, math.nan)):
                raise TrainingDiverged(
                    f"{name} became {logged.get(name)} in epoch {trainer.current_epoch + 1}. Lower "
                    "the learning rate, clip the gradient, or look for a wrong label. The best "
                    f"model so far, if any, is in {self.path.parent / 'checkpoints'}."
                )
        self.rows.append(row)
        if trainer.is_global_zero:
            write_history(self.path, self.rows, self.columns)
            self.on_epoch(trainer, row)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores earlier rows."""
        self.rows = list(state_dict["rows"])


class TimeLimit(Callback):
    """Stops after an epoch if the next one would exceed the time limit.

    Args:
        seconds: Limit, from the start of this call of ``fit`` (also when resuming).
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reached = False
        self._started = time.monotonic()
        self._epoch_started = 0.0
        self._longest = 0.0

    def seconds_left(self) -> float:
        """Seconds until the limit."""
        return self.seconds - (time.monotonic() - self._started)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records the start time of the epoch."""
        self._epoch_started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decides whether there is time for another epoch."""
        self._longest = max(self._longest, time.monotonic() - self._epoch_started)
        # Clocks differ: the first process decides for all, or some would wait for processes that
        # have stopped.
        self.reached = trainer.strategy.broadcast(self.seconds_left() < self._longest)
        if self.reached:
            trainer.should_stop = True


class PatientEarlyStopping(EarlyStopping):
    """Early stopping by the validation loss that also applies when a run is resumed.

    Lightning's callback restores the number of epochs without improvement, but not that training
    has stopped: a run killed right after its last epoch would train one more epoch when resumed.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/loss", patience=patience)

    @property
    def stopped(self) -> bool:
        """True if there were ``patience`` epochs without improvement."""
        return self.wait_count >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops immediately if the resumed run had stopped."""
        if self.stopped:
            trainer.should_stop = True


class BestCheckpoint(ModelCheckpoint):
    """Checkpoint of the epoch with the lowest validation loss: ``best.ckpt``.

    Lightning's callback loses the best loss if the folder of the run has been moved; this one
    stores file names only.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor="val/loss",
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best loss, with paths in the current folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": here(state_dict["best_model_path"]),
                "kth_best_model_path": here(state_dict["kth_best_model_path"]),
                "best_k_models": {
                    here(path): score for path, score in state_dict["best_k_models"].items()
                },
            }
        )


class LastCheckpoint(ModelCheckpoint):
    """Checkpoint of the last complete epoch: ``last.ckpt``.

    ``save_last`` of Lightning (2.6.6) skips epochs that are not the best so far.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            monitor=None,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: there is no state to restore."""
