"""Progress of a training run: a bar on a terminal, a line per epoch in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from dipolegnn.nn import HeadMetric
from dipolegnn.training.callbacks import Row, TimeLimit
from dipolegnn.units import duration


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

    def on_train_end(self, *_: Any) -> None:
        """Stops the bar."""
        self._bar.stop()

    def on_exception(self, *_: Any) -> None:
        """Stops the bar."""
        self._bar.stop()

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
