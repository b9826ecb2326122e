"""Where a model's errors lie: by the size, the elements and the dipole of the molecules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

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
