"""Molecules for the tests, as ``Data`` with coordinates in angstrom."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from dipolegnn._pyg import Data

ELEMENTS = (1, 6, 7, 8, 9, 16, 17)


def molecule(
    z: list[int] | np.ndarray,
    pos: list[list[float]] | np.ndarray,
    dtype: torch.dtype = torch.float64,
    charge: float = 0.0,
) -> Data:
    """A molecule with the fields that a model reads."""
    return Data(
        z=torch.as_tensor(np.asarray(z)),
        pos=torch.as_tensor(np.asarray(pos), dtype=dtype),
        charge=torch.tensor([charge], dtype=dtype),
    )


def random_molecule(
    atoms: int, seed: int, dtype: torch.dtype = torch.float64, charge: float = 0.0
) -> Data:
    """Atoms on a jittered grid, never closer than 0.9 Å; some 45 atoms in a sphere of 4 Å."""
    rng = np.random.default_rng(seed)
    side = math.ceil(atoms ** (1 / 3))
    grid = np.array(list(itertools.product(range(side), repeat=3)), dtype=float)
    chosen = rng.permutation(len(grid))[:atoms]
    pos = 1.5 * grid[chosen] + rng.uniform(-0.3, 0.3, size=(atoms, 3))
    return molecule(rng.choice(ELEMENTS, size=atoms), pos - pos.mean(axis=0), dtype, charge)


def moved(data: Data, matrix: Tensor | None = None, shift: Tensor | None = None) -> Data:
    """A copy with positions ``pos @ matrix.T + shift``."""
    pos = data.pos
    if matrix is not None:
        pos = pos @ matrix.to(pos.dtype).T
    if shift is not None:
        pos = pos + shift.to(pos.dtype)
    copy = data.clone()
    copy.pos = pos
    return copy


def joined(*parts: Data) -> Data:
    """All atoms as one molecule of several fragments."""
    return Data(
        z=torch.cat([part.z for part in parts]),
        pos=torch.cat([part.pos for part in parts]),
        charge=torch.stack([part.charge for part in parts]).sum(dim=0),
        fragment=torch.cat([torch.full_like(part.z, k) for k, part in enumerate(parts)]),
        fragment_charge=torch.cat([part.charge.expand(len(part.z)) for part in parts]),
    )


def random_rotation(seed: int) -> Tensor:
    """A rotation matrix ``[3, 3]`` with determinant 1, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q)


def random_reflection(seed: int) -> Tensor:
    """A rotation and a mirror plane: determinant -1."""
    return random_rotation(seed) @ torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))


_TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / math.sqrt(3)


def methane(dtype: torch.dtype = torch.float64) -> Data:
    """CH4, a tetrahedron."""
    return molecule([6, 1, 1, 1, 1], np.vstack([np.zeros(3), 1.09 * _TETRAHEDRON]), dtype)


def fluoromethane(dtype: torch.dtype = torch.float64) -> Data:
    """CH3F: methane with one symmetry broken, so that there is a dipole."""
    pos = np.vstack([np.zeros(3), 1.09 * _TETRAHEDRON])
    pos[1] *= 1.38 / 1.09
    return molecule([6, 9, 1, 1, 1], pos, dtype)


def carbon_dioxide(dtype: torch.dtype = torch.float64) -> Data:
    """CO2, linear."""
    return molecule([8, 6, 8], [[0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]], dtype)


def benzene(dtype: torch.dtype = torch.float64) -> Data:
    """C6H6, a flat hexagon."""
    angle = np.arange(6) * math.pi / 3
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(6)], axis=1)
    return molecule([6] * 6 + [1] * 6, np.vstack([1.395 * ring, 2.482 * ring]), dtype)


def chiral(dtype: torch.dtype = torch.float64) -> Data:
    """CHFClBr, which differs from its mirror image."""
    lengths = np.array([1.09, 1.35, 1.76, 1.94])
    pos = np.vstack([np.zeros(3), lengths[:, None] * _TETRAHEDRON])
    return molecule([6, 1, 9, 17, 35], pos, dtype)
