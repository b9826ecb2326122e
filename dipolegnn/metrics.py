"""Metrics of predictions over an epoch, and errors grouped by kinds of molecules.

Metrics take one molecule per row, skip molecules without a label (NaN), and are accumulated in
float64, so that the result does not depend on the size or the order of batches. Without labelled
molecules a metric is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric


class _Mean(Metric):
    """A sum and a count, accumulated over all devices."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """Always True: the mean of an empty set is NaN, without a warning of torchmetrics."""
        return True

    def compute(self) -> Tensor:
        """The mean so far; NaN if there was no molecule with a label."""
        return self.total / self.count


class MeanLoss(_Mean):
    """Mean of the loss over labelled molecules.

    ``MeanMetric`` of torchmetrics (1.9) ignores the weights if its check for NaN is disabled, and
    that check synchronizes with the GPU in each step.
    """

    def update(self, losses: Tensor, labelled: Tensor) -> None:
        """Adds a batch.

        Args:
            losses: Loss of each molecule ``[B]``, 0 without a label.
            labelled: True for molecules with a label ``[B]``.
        """
        self.total += losses.detach().double().sum()
        self.count += labelled.sum()


class MeanError(_Mean):
    """Mean of the errors of the labelled molecules.

    Args:
        error: Function of predictions ``[B, ...]`` and labels of the same shape that returns errors
            ``[B]``, NaN for molecules without a label; see :mod:`dipolegnn.nn.errors`.
        root: True to take the square root of the mean (for squared errors).
    """

    def __init__(self, error: Callable[[Tensor, Tensor], Tensor], root: bool = False) -> None:
        super().__init__()
        self.error = error
        self.root = root

    def update(self, predicted: Tensor, reference: Tensor) -> None:
        """Adds a batch.

        Args:
            predicted: Predictions ``[B, ...]``, such as magnitudes ``[B]`` or vectors ``[B, 3]``.
            reference: Labels of the same shape; NaN for molecules without a label.

        Raises:
            ValueError: If the shapes differ.
        """
        if predicted.shape != reference.shape:
            raise ValueError(
                f"{self.error.__name__} compares arrays of one shape, got predicted "
                f"{list(predicted.shape)} and reference {list(reference.shape)}."
            )
        value = self.error(predicted.detach().double(), reference.detach().double())
        known = ~value.isnan()
        self.total += value.where(known, 0.0).sum()
        self.count += known.sum()

    def compute(self) -> Tensor:
        """The mean so far; NaN if there was no molecule with a label."""
        mean = super().compute()
        return mean.sqrt() if self.root else mean


By = Literal["size", "element", "magnitude"]

OPEN_END = 10**9

SIZES = ((1, 3), (4, 6), (7, 9), (10, 14), (15, 24), (25, OPEN_END))
"""Groups by the number of heavy atoms, both ends included."""

MAGNITUDES = (0.0, 1.0, 2.0, 4.0, 6.0, 10.0, np.inf)
"""Bounds of groups by the reference magnitude in debye; the upper bound is excluded."""


@dataclass(frozen=True)
class Group:
    """Errors of a group of molecules.

    Attributes:
        by: Property by which molecules are grouped: number of heavy atoms, element, or reference
            magnitude.
        name: Value of the property: ``"4–6"`` heavy atoms, ``"N"``, ``"2–4 D"``.
        molecules: Number of molecules.
        mae: Mean absolute error of the magnitude, in debye.
        bias: Mean of predicted minus reference magnitude, in debye.
    """

    by: By
    name: str
    molecules: int
    mae: float
    bias: float


def breakdown(
    numbers: Sequence[Sequence[int]], reference: ArrayLike, predicted: ArrayLike
) -> list[Group]:
    """Computes errors of the magnitude, grouped by size, element and magnitude.

    Args:
        numbers: Atomic numbers of each molecule.
        reference: Reference magnitudes ``[B]`` in debye; molecules with NaN are skipped.
        predicted: Predicted magnitudes ``[B]`` in debye; molecules with NaN are skipped.

    Returns:
        The groups that are not empty. Groups by size and by magnitude do not overlap. A molecule is
        in the group of each of its elements other than H and C, or else in ``"C, H only"``.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> found = breakdown([[8, 1, 1], [6, 1, 1, 1, 1]], [1.85, 0.0], [1.95, 0.2])
        >>> [(group.by, group.name, group.molecules, round(group.mae, 2)) for group in found]
        ... # doctest: +NORMALIZE_WHITESPACE
        [('size', '1–3', 2, 0.15), ('element', 'C, H only', 1, 0.2), ('element', 'O', 1, 0.1),
         ('magnitude', '0–1 D', 1, 0.2), ('magnitude', '1–2 D', 1, 0.1)]
    """
    x, y = np.asarray(reference, dtype=float), np.asarray(predicted, dtype=float)
    if not len(numbers) == len(x) == len(y):
        raise ValueError(
            "numbers, reference and predicted must be of the same molecules, got "
            f"{len(numbers)}, {len(x)} and {len(y)}."
        )
    error = y - x
    known = np.isfinite(error)
    found = []
    for by, name, mask in groupings(numbers, x):
        some = error[mask & known]
        if len(some):
            mae, bias = float(np.abs(some).mean()), float(some.mean())
            found.append(Group(by, name, len(some), mae, bias))
    return found


def groupings(
    numbers: Sequence[Sequence[int]], reference: ArrayLike
) -> Iterator[tuple[By, str, NDArray[np.bool_]]]:
    """Groups of :func:`breakdown`, including empty ones.

    Args:
        numbers: Atomic numbers of each molecule.
        reference: Reference magnitudes ``[B]`` in debye; NaN is in no group by magnitude.

    Yields:
        Property, name and mask ``[B]`` of each group.
    """
    heavy = np.array([sum(z > 1 for z in molecule) for molecule in numbers], dtype=int)
    for low, high in SIZES:
        name = f"{low}–{high}" if high < OPEN_END else f"{low} or more"
        # Molecules of hydrogen only are in the group of the smallest.
        yield "size", name, (heavy >= (low if low > 1 else 0)) & (heavy <= high)

    sets = [{*molecule} - {1, 6} for molecule in numbers]
    yield "element", "C, H only", np.array([not some for some in sets], dtype=bool)
    for z in sorted(set[int]().union(*sets)):
        yield "element", chemical_symbols[z], np.array([z in some for some in sets])

    magnitude = np.asarray(reference, dtype=float)
    for start, end in pairwise(MAGNITUDES):
        name = f"{start:g}–{end:g} D" if end < np.inf else f"{start:g} D or more"
        yield "magnitude", name, (magnitude >= start) & (magnitude < end)
