"""What a training run has come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter

from dipolegnn.config import TrainConfig
from dipolegnn.models import load_model
from dipolegnn.nn import PropertyModel
from dipolegnn.training.run_folder import RunFolder, read_json

StoppedBy = Literal["max_epochs", "early_stopping", "time_limit"]
"""What ended a run."""


Model = TypeVar("Model", bound=PropertyModel[Any])


@dataclass(frozen=True)
class FitResult(Generic[Model]):
    """What a training run has come to.

    Attributes:
        model: The model of the best epoch, with averaged weights, on the CPU.
        model_path: The file that it was saved to.
        best_epoch: The epoch with the lowest validation loss, counted from 1.
        best_val_loss: Its validation loss, in debye (debye squared for mse).
        metrics: ``{"val": {"loss": ..., "dipole_mae": ...}}`` of this model, and ``"test"`` if it
            was tested; the units are those of ``model.head.metrics``.
        stopped_by: What ended the run.
    """

    model: Model
    model_path: Path
    best_epoch: int
    best_val_loss: float
    metrics: Mapping[str, Mapping[str, float]]
    stopped_by: StoppedBy


@dataclass(frozen=True)
class Summary:
    """What ``metrics.json`` holds: the metrics of the saved model and what the run came to."""

    val: dict[str, float]
    test: dict[str, float] | None
    best_epoch: int
    epochs: int
    stopped_by: StoppedBy


def is_finished(summary: Summary, config: TrainConfig, test: bool) -> bool:
    """Whether a run has nothing left to do."""
    complete = summary.epochs >= config.max_epochs or summary.stopped_by == "early_stopping"
    return complete and not (test and summary.test is None)


def read_summary(folder: RunFolder) -> Summary:
    """Reads ``metrics.json``."""
    return TypeAdapter(Summary).validate_python(read_json(folder.metrics))


def read_result(folder: RunFolder, model: Model, summary: Summary) -> FitResult[Model]:
    """Reads the model of a finished run, which has the same parts as the given one."""
    parts = (type(model.representation), type(model.head))
    metrics = {"val": summary.val}
    if summary.test is not None:
        metrics["test"] = summary.test
    return FitResult(
        model=load_model(folder.model, parts),
        model_path=folder.model,
        best_epoch=summary.best_epoch,
        best_val_loss=summary.val["loss"],
        metrics=metrics,
        stopped_by=summary.stopped_by,
    )
