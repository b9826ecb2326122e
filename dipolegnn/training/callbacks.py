"""Lightning callbacks: history, progress, checkpoints, stopping, average of the weights."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from torch import Tensor

from dipolegnn.nn import HeadMetric
from dipolegnn.training.run_folder import write_history
from dipolegnn.units import duration


def history_columns(metrics: Iterable[str]) -> tuple[str, ...]:
    """Columns of ``history.csv`` for these metrics; step and lr are those at the end."""
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
        trainer.should_stop |= trainer.strategy.broadcast(self.seconds_left() < self._longest)


class ShownProgress(Callback):
    """Shows the progress of a run: time left and metrics of the last epoch.

    Lightning's progress bar restarts with each epoch and does not show the time left for the run.

    Args:
        wanted: False to show nothing.
        metrics: Metrics of the head; the first is shown.
        limit: Time limit of the run, or None.
    """

    def __init__(
        self, wanted: bool, metrics: Mapping[str, HeadMetric], limit: TimeLimit | None
    ) -> None:
        self.metrics = metrics
        self.limit = limit
        self._console = Console(file=sys.stdout, quiet=not wanted)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=12),  # The line fits into 80 columns.
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            refresh_per_second=4,
            disable=not (wanted and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", epoch="", left="?", numbers="")
        self._numbers = ""
        self._started = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the bar, in the first process only."""
        self._started, self._first_step = time.monotonic(), trainer.global_step
        self._bar.disable |= not trainer.is_global_zero
        self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Updates the bar."""
        self._update(trainer)

    def epoch(self, trainer: pl.Trainer, row: Row) -> None:
        """Shows the metrics of an epoch; called in the first process only."""
        metric = next((name for name in self.metrics if f"val/{name}" in row), None)
        value = "" if metric is None else self.metrics[metric].text.format(row[f"val/{metric}"])
        shown = f"val {value}  " if value else ""
        self._numbers = f"{shown}loss {row['train/loss']:.4f}"
        left = self._update(trainer)
        if self._bar.disable:
            number = f"{trainer.current_epoch + 1:>{len(str(trainer.max_epochs))}}"
            self._console.print(
                f"epoch {number}/{trainer.max_epochs}  train loss {row['train/loss']:.4f}  "
                f"val loss {row['val/loss']:.4f}  {shown}lr {row['lr']:.1e}  {left} left",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stops the bar."""
        self._bar.stop()

    on_exception = on_train_end

    def _update(self, trainer: pl.Trainer) -> str:
        """Updates the bar and returns the time left."""
        assert trainer.max_epochs is not None
        total = trainer.max_epochs * int(trainer.num_training_batches)
        speed = (time.monotonic() - self._started) / (trainer.global_step - self._first_step)
        seconds = speed * (total - trainer.global_step)
        if self.limit is not None:
            seconds = min(seconds, max(self.limit.seconds_left(), 0.0))
        left = duration(seconds)
        self._bar.update(
            self._task,
            total=total,
            completed=trainer.global_step,
            epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
            left=left,
            numbers=self._numbers,
        )
        return left


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
        trainer.should_stop |= self.stopped


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


class WarmedUpEMA(WeightAveraging):
    r"""Moving average of the weights with a warm-up, for validation and for the saved model.

    .. math::
        \bar w_t = d_t \bar w_{t-1} + (1 - d_t)\, w_t, \qquad
        d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    The base class, Lightning's ``WeightAveraging`` (2.6.6), validates with the average, stores the
    average in ``state_dict`` of a checkpoint and the current weights in ``current_model_state``,
    and restores both. Differences from Lightning's ``EMAWeightAveraging``:

    - ``EMAWeightAveraging`` has no warm-up. Its average starts with the weights after the first
      step; with a decay of 0.999 their share is still 90 % after 100 steps and 37 % after 1,000.
      (Validation loss of a toy model after 100 steps: 0.011 without an average, 3.9 with
      Lightning's, 0.012 with this one.)
    - It averages buffers with ``d * a + (1 - d) * b``, whose rounding changes constants (centres of
      a radial basis, atomic weights). Here buffers are copied.

    Limitations of both:

    - The copy for the average is made before Lightning converts the module to
      ``precision="64-true"``. The copy would stay in float32 and round the weights at each
      validation; therefore ``fit`` converts the model first.
    - A trainer that has fitted and then loads a checkpoint to validate or test
      (``ckpt_path="best"``) uses the current weights, not their average. Evaluate with a trainer
      without this callback, as ``fit`` does.

    Args:
        decay: Decay d per step after the warm-up, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

    def _average(
        self, averages: Sequence[Tensor], weights: Sequence[Tensor], num_averaged: Tensor
    ) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(
                list(averages), list(weights), 1 - warmed_up_decay(self.decay, int(num_averaged))
            )


def warmed_up_decay(decay: float, step: int) -> float:
    """Decay at a step, which increases from 0.1 to ``decay``."""
    return min(decay, (1 + step) / (10 + step))
