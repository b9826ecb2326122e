"""Calculators whose results can be written down by hand, and molecules to label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from dipolegnn._pyg import Data
from dipolegnn.molecules import make_data


class PointCharges(Calculator):
    """Fixed charges: mu = sum of q_i r_i about the origin, in e·Å; the energy is given."""

    implemented_properties = ["energy", "dipole", "charges"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, charges: Sequence[float], energy: float = 0.0) -> None:
        super().__init__()
        self.charges = np.array(charges)
        self.energy = energy

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        self.results = {
            "energy": self.energy,
            "dipole": self.charges @ self.atoms.positions,
            "charges": self.charges,
        }


class Spring(Calculator):
    """One harmonic bond between two atoms, with a rest length; no charges at all."""

    implemented_properties = ["energy", "forces", "dipole"]  # noqa: RUF012

    def __init__(self, length: float, stiffness: float = 5.0) -> None:
        super().__init__()
        self.length = length
        self.stiffness = stiffness

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        bond = self.atoms.positions[1] - self.atoms.positions[0]
        distance = float(np.linalg.norm(bond))
        pull = self.stiffness * (distance - self.length) * bond / distance
        self.results = {
            "energy": 0.5 * self.stiffness * (distance - self.length) ** 2,
            "forces": np.array([pull, -pull]),
            "dipole": np.zeros(3),
        }


def diatomic(z: tuple[int, int], distance: float, *, charge: int = 0, name: str = "") -> Data:
    """Two atoms along x, the first at the origin."""
    return make_data(z, [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]], charge=charge, name=name)


def water(shift: float = 0.0, mol_id: int = 0) -> Data:
    """Water with its axis along z, hydrogens up, slightly distorted by `shift` (angstrom)."""
    return make_data(
        [8, 1, 1],
        [[0.0, 0.0, 0.0], [0.757, 0.0, 0.587 + shift], [-0.757, 0.0, 0.587]],
        mol_id=mol_id,
        smiles="O",
        name=f"water {mol_id}",
    )


def uranium(mol_id: int = 0) -> Data:
    """An atom that GFN2-xTB has no parameters for."""
    return make_data([92], [[0, 0, 0]], mol_id=mol_id, name="uranium")
