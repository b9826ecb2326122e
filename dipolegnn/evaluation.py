"""Evaluation of a model on labelled molecules."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dipolegnn._pyg import Data
from dipolegnn.inference.structures import Prediction, predict
from dipolegnn.metrics import Group, MeanError, breakdown
from dipolegnn.nn import BaseDipoleHead, DipoleModel, HeadMetric, Target
from dipolegnn.units import DECIMALS_D

METRIC_UNITS = {name: metric.unit for name, metric in BaseDipoleHead.metrics.items()}
"""Unit of each metric; see :mod:`dipolegnn.metrics`."""

_COLUMNS = (
    *("mol_id", "name", "smiles", "reference_D", "predicted_D", "error_D"),
    *("reference_x_D", "reference_y_D", "reference_z_D"),
    *("predicted_x_D", "predicted_y_D", "predicted_z_D"),
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Errors of a model on labelled structures.

    Attributes:
        metrics: ``dipole_mae`` and ``dipole_rmse`` of the magnitude and ``vector_mae`` in debye,
            ``angle`` in degrees. Metrics for which no structure has a label are missing.
        predictions: Predictions in the order of the structures; ``data`` contains the labels.
    """

    metrics: dict[str, float]
    predictions: list[Prediction]

    @property
    def labelled(self) -> list[Prediction]:
        """Predictions for structures with a reference magnitude."""
        return [p for p in self.predictions if math.isfinite(float(p.data.dipole_magnitude))]

    @property
    def groups(self) -> list[Group]:
        """Errors grouped by size, element and magnitude."""
        labelled = self.labelled
        return breakdown(
            [p.data.z.tolist() for p in labelled],
            [float(p.data.dipole_magnitude) for p in labelled],
            [p.magnitude for p in labelled],
        )


def evaluate(
    model: DipoleModel,
    molecules: Sequence[Data],
    *,
    level: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Predicts labelled structures and compares the predictions with the labels.

    Args:
        model: The model.
        molecules: Structures with ``dipole_magnitude [1]`` and ``dipole [1, 3]`` in debye, NaN
            where unknown.
        level: Level of theory, as for :func:`dipolegnn.predict`.
        progress: Show a progress bar on standard error.

    Raises:
        ValueError: If no structure has a label, or the model does not have the level.
    """
    _require_labels(molecules)
    return score(predict(model, molecules, level=level, progress=progress))


def score(predictions: Sequence[Prediction]) -> Evaluation:
    """Compares predictions with the labels of their structures.

    Args:
        predictions: Predictions of labelled structures, as for :func:`evaluate`.

    Raises:
        ValueError: If no structure has a label.
    """
    _require_labels([prediction.data for prediction in predictions])
    vectors = [p for p in predictions if p.has_vector]
    targets = {
        "magnitude": Target(
            torch.tensor([p.magnitude for p in predictions]),
            torch.cat([p.data.dipole_magnitude for p in predictions]),
        )
    }
    if vectors:
        targets["vector"] = Target(
            torch.stack([torch.from_numpy(p.dipole) for p in vectors]),
            torch.cat([p.data.dipole for p in vectors]),
        )
    metrics = {}
    for name, described in BaseDipoleHead.metrics.items():
        if described.target in targets:
            metric = MeanError(described.error, described.root)
            metric.update(*targets[described.target])
            value = float(metric.compute())
            if not math.isnan(value):
                metrics[name] = value
    return Evaluation(metrics, list(predictions))


def _require_labels(molecules: Sequence[Data]) -> None:
    if not any(bool(data.dipole_magnitude.isfinite()) for data in molecules):
        raise ValueError(
            f"None of the {len(molecules)} structures has a reference dipole; label them "
            "(`dipolegnn build --label xtb`)."
        )


def describe_metrics(
    metrics: Mapping[str, float], known: Mapping[str, HeadMetric] = BaseDipoleHead.metrics
) -> str:
    """Formats metrics with their units in one line.

    Args:
        metrics: Values by name.
        known: The metrics of the head.

    Example:
        >>> describe_metrics({"dipole_mae": 0.1234, "vector_mae": 0.1, "angle": 3.21})
        'magnitude MAE 0.1234 D, vector MAE 0.1000 D, angle 3.2°'
    """
    parts, before = [], ""
    for name, metric in known.items():
        if name in metrics:
            target = "" if metric.target == before else f"{metric.target} "
            parts.append(target + metric.text.format(metrics[name]))
            before = metric.target
    return ", ".join(parts)


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """Writes one line per structure as CSV; unknown values are empty.

    The names of columns end in the unit: ``_D`` is debye. ``error_D`` is predicted minus reference
    magnitude.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for prediction in predictions:
            data = prediction.data
            reference = float(data.dipole_magnitude)
            vector = prediction.dipole.tolist()
            numbers = (
                reference,
                prediction.magnitude,
                prediction.magnitude - reference,
                *data.dipole.flatten().tolist(),
                *vector,
            )
            cells = ["" if math.isnan(number) else f"{number:.{DECIMALS_D}f}" for number in numbers]
            writer.writerow((int(data.mol_id), data.name, data.smiles, *cells))
