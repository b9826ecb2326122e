"""Results of a training run."""

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
"""Reason why a run ended."""


Model = TypeVar("Model", bound=PropertyModel[Any])


@dataclass(frozen=True)
class FitResult(Generic[Model]):
    """Result of a training run.

    Attributes:
        model: Model of the best epoch, with averaged weights, on the CPU.
        model_path: File of the model.
        best_epoch: Epoch with the lowest validation loss, from 1.
        best_val_loss: Validation loss of the best epoch, in debye (debye squared for mse).
        metrics: ``{"val": {"loss": ..., "dipole_mae": ...}}`` of the model, and ``"test"`` if it
            was tested, in the units of ``model.head.metrics``.
        stopped_by: Reason why the run ended.
    """

    model: Model
    model_path: Path
    best_epoch: int
    best_val_loss: float
    metrics: Mapping[str, Mapping[str, float]]
    stopped_by: StoppedBy


@dataclass(frozen=True)
class Summary:
    """Content of ``metrics.json``: metrics of the saved model and the end of the run."""

    val: dict[str, float]
    test: dict[str, float] | None
    best_epoch: int
    epochs: int
    stopped_by: StoppedBy


def is_finished(summary: Summary, config: TrainConfig, test: bool) -> bool:
    """True if a run is complete, including the test."""
    complete = summary.epochs >= config.max_epochs or summary.stopped_by == "early_stopping"
    return complete and not (test and summary.test is None)


def read_summary(folder: RunFolder) -> Summary:
    """Reads ``metrics.json``."""
    return TypeAdapter(Summary).validate_python(read_json(folder.metrics))


def read_result(folder: RunFolder, model: Model, summary: Summary) -> FitResult[Model]:
    """Reads the result of a finished run of a model with the same parts."""
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
