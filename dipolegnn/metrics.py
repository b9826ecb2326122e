"""Errors of predicted dipole moments: metrics over an epoch, and errors by group of molecules.

Each metric takes one molecule per row, skips those without the label that it needs (NaN), and
adds up in float64, so that neither the size nor the order of the batches shows in the result.
Of no molecule at all it is NaN.
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
    """A sum and the number of what was summed, over all devices."""

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
        """Always true: the mean over nothing is NaN, which needs no warning of torchmetrics."""
        return True

    def compute(self) -> Tensor:
        """The mean so far; NaN if there was no molecule with a label."""
        return self.total / self.count


class MeanLoss(_Mean):
    """Mean of the loss over labelled molecules.

    Torchmetrics' ``MeanMetric`` (1.9) forgets the weights if it is not to look for NaN, for which
    it would wait for a GPU in each step.
    """

    def update(self, losses: Tensor, labelled: Tensor) -> None:
        """Adds a batch.

        Args:
            losses: Of each molecule ``[B]``, 0 without a label.
            labelled: Which have a label ``[B]``.
        """
        self.total += losses.detach().double().sum()
        self.count += labelled.sum()


class MeanError(_Mean):
    """Mean of the errors of the labelled molecules.

    Args:
        error: Maps predictions ``[B, ...]`` and labels of the same shape to errors ``[B]``, NaN
            where a molecule has no label; :mod:`dipolegnn.nn.errors` has some.
        root: Whether to take the root of the mean: for squared errors.
    """

    def __init__(self, error: Callable[[Tensor, Tensor], Tensor], root: bool = False) -> None:
        super().__init__()
        self.error = error
        self.root = root

    def update(self, predicted: Tensor, reference: Tensor) -> None:
        """Adds a batch.

        Args:
            predicted: Predictions ``[B, ...]``, such as magnitudes ``[B]`` or vectors ``[B, 3]``.
            reference: Labels of the same shape; NaN where a molecule has none.

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
"""Groups by the reference magnitude in debye: from one number to below the next."""


@dataclass(frozen=True)
class Group:
    """The errors of some molecules.

    Attributes:
        by: What the molecules have in common: number of heavy atoms, an element, or the size of
            the reference magnitude.
        name: Which: ``"4–6"`` heavy atoms, ``"N"``, ``"2–4 D"``.
        molecules: How many.
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
    """Errors of the magnitude by size, by element and by magnitude.

    Args:
        numbers: Atomic numbers of each molecule.
        reference: Reference magnitudes ``[B]`` in debye; molecules with NaN are left out.
        predicted: Predicted magnitudes ``[B]`` in debye; so are they.

    Returns:
        The groups that have molecules. Those by size and by magnitude do not overlap; a molecule
        is in the group of each of its elements other than H and C, or else in ``"C, H only"``.

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
    """The groups that :func:`breakdown` takes errors of, empty ones among them.

    Args:
        numbers: Atomic numbers of each molecule.
        reference: Reference magnitudes ``[B]`` in debye; NaN is in no group by magnitude.

    Yields:
        What the molecules of a group have in common, its name, and which they are ``[B]``.
    """
    heavy = np.array([sum(z > 1 for z in molecule) for molecule in numbers], dtype=int)
    for low, high in SIZES:
        name = f"{low}–{high}" if high < OPEN_END else f"{low} or more"
        # Molecules of hydrogen alone count as small.
        yield "size", name, (heavy >= (low if low > 1 else 0)) & (heavy <= high)

    sets = [{*molecule} - {1, 6} for molecule in numbers]
    yield "element", "C, H only", np.array([not some for some in sets], dtype=bool)
    for z in sorted(set[int]().union(*sets)):
        yield "element", chemical_symbols[z], np.array([z in some for some in sets])

    magnitude = np.asarray(reference, dtype=float)
    for start, end in pairwise(MAGNITUDES):
        name = f"{start:g}–{end:g} D" if end < np.inf else f"{start:g} D or more"
        yield "magnitude", name, (magnitude >= start) & (magnitude < end)
