"""Progress of a training run: a bar on a terminal, a line per epoch in a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from dipolegnn.nn import HeadMetric
from dipolegnn.training.callbacks import Row, TimeLimit
from dipolegnn.units import duration


class Silence(Callback):
    """Shows nothing."""

    def epoch(self, trainer: pl.Trainer, row: Row) -> None:
        """Takes in the numbers of an epoch, and keeps them to itself."""


class EpochLines(Callback):
    """Writes one line per epoch, for logs and for terminals that cannot redraw.

    Args:
        console: Where to write.
        metrics: Metrics of the head; the first is shown.
        limit: The time limit of the run, if there is one.
    """

    def __init__(
        self, console: Console, metrics: Mapping[str, HeadMetric], limit: TimeLimit | None
    ) -> None:
        self.console = console
        self.metrics = metrics
        self.limit = limit
        self._seconds = 0.0
        self._epochs = 0

    def epoch(self, trainer: pl.Trainer, row: Row) -> None:
        """Writes the line of an epoch."""
        self._seconds += row["seconds"]
        self._epochs += 1
        assert trainer.max_epochs is not None
        to_go = trainer.max_epochs - trainer.current_epoch - 1
        left = self._seconds / self._epochs * to_go
        if self.limit is not None:
            left = min(left, max(self.limit.seconds_left(), 0.0))
        self.console.print(
            f"epoch {trainer.current_epoch + 1:>{len(str(trainer.max_epochs))}}"
            f"/{trainer.max_epochs}  {_numbers(row, self.metrics)}  {duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )


class ProgressBar(Callback):
    """A bar over all epochs of a run, with time left and the numbers of the last epoch.

    Lightning's own bar starts anew with each epoch, and so never says when the run will end.

    Args:
        console: The terminal.
        metrics: Metrics of the head; the first is shown.
        limit: The time limit of the run, if there is one.
    """

    def __init__(
        self, console: Console, metrics: Mapping[str, HeadMetric], limit: TimeLimit | None
    ) -> None:
        self.metrics = metrics
        self.limit = limit
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=12),  # The line fits into 80 columns.
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self._numbers = ""

    def epoch(self, trainer: pl.Trainer, row: Row) -> None:
        """Shows the numbers of an epoch."""
        shown = _first(row, self.metrics)
        self._numbers = "  ".join([*shown, f"loss {row['train/loss']:.4f}"])
        self._show(trainer, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the bar, in the first process alone."""
        self._progress.disable = not trainer.is_global_zero
        assert trainer.max_epochs is not None
        self._task = self._progress.add_task(
            "", total=None, epoch=self._count(trainer), left="?", numbers=""
        )
        total = trainer.max_epochs * int(trainer.num_training_batches)
        self._progress.update(self._task, total=total, completed=trainer.global_step)
        self._progress.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Moves the bar on."""
        self._show(trainer, 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the bar as it is."""
        self._progress.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leaves the bar as it is."""
        self._progress.stop()

    def _show(self, trainer: pl.Trainer, steps: int) -> None:
        assert self._task is not None
        task = self._progress.tasks[self._task]
        left = task.time_remaining
        if self.limit is not None:
            limit = max(self.limit.seconds_left(), 0.0)
            left = limit if left is None else min(left, limit)
        self._progress.update(
            self._task,
            advance=steps,
            epoch=self._count(trainer),
            left="?" if left is None else duration(left),
            numbers=self._numbers,
        )

    @staticmethod
    def _count(trainer: pl.Trainer) -> str:
        return f"{trainer.current_epoch + 1}/{trainer.max_epochs}"


def _numbers(row: Row, metrics: Mapping[str, HeadMetric]) -> str:
    """The numbers of an epoch on one line, with units."""
    losses = [f"train loss {row['train/loss']:.4f}", f"val loss {row['val/loss']:.4f}"]
    return "  ".join([*losses, *_first(row, metrics), f"lr {row['lr']:.1e}"])


def _first(row: Row, metrics: Mapping[str, HeadMetric]) -> list[str]:
    """The first metric of the head on the validation molecules, if there is one."""
    for name, metric in metrics.items():
        if f"val/{name}" in row:
            return [f"val {metric.text.format(row[f'val/{name}'])}"]
    return []
