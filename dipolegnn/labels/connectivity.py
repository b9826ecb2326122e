"""Which atoms are bonded, judged by distance alone."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

BONDED = 1.25
"""Atoms nearer than this times the sum of their covalent radii are bonded ..."""

APART = 1.45
"""... and beyond this they are not. Between the two it is left open."""


def changed_bonds(
    z: NDArray[np.int64], before: NDArray[np.float64], after: NDArray[np.float64]
) -> list[tuple[int, int]]:
    """Pairs of atoms whose bond was broken or formed between two geometries of one molecule.

    A bond that merely stretches from one side of a threshold to the other does not count: it has
    to go from clearly bonded to clearly apart, or back.

    Args:
        z: Atomic numbers ``[N]``.
        before: Coordinates ``[N, 3]`` in angstrom.
        after: The same atoms later ``[N, 3]`` in angstrom.

    Source: covalent radii of Cordero et al., Dalton Trans. 2832 (2008), as in ASE.
    """
    first, second = _relative_distances(z, before), _relative_distances(z, after)
    broken = (first < BONDED) & (second > APART)
    formed = (first > APART) & (second < BONDED)
    pairs = np.argwhere(np.triu(broken | formed, k=1))
    return [(int(i), int(j)) for i, j in pairs]


def _relative_distances(z: NDArray[np.int64], pos: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances over the sum of the covalent radii ``[N, N]``."""
    radii = covalent_radii[z]
    distances = np.linalg.norm(pos[:, None] - pos[None], axis=-1)
    ratio: NDArray[np.float64] = distances / (radii[:, None] + radii[None])
    return ratio
