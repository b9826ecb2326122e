"""Units: conversion constants and the unit of each field of a molecule's ``Data``.

Inside the package lengths are in angstrom, dipole moments in debye, charges in
elementary charges and conformer energies in kcal/mol. Conversions happen once, where
numbers enter or leave.

A dipole moment points from negative to positive charge. For a neutral molecule it does
not depend on the origin; for an ion it does, and the origin is then the centre of mass
(standard atomic weights). ASE's origin is that of the coordinates: :func:`move_origin` converts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# CODATA 2018: e * 1e-10 m / (1e-21 C m^2 s^-1 / c).
DEBYE_PER_E_ANGSTROM = 4.803204712570263
"""1 e·Å in debye."""

BOHR_IN_ANGSTROM = 0.529177210903
"""1 bohr in angstrom (CODATA 2018)."""

DEBYE_PER_E_BOHR = DEBYE_PER_E_ANGSTROM * BOHR_IN_ANGSTROM
"""1 atomic unit of dipole moment (e·a0) in debye, about 2.5417."""

KCAL_PER_MOL_PER_EV = 23.060547830619026
"""1 eV per particle in kcal/mol (CODATA 2018)."""

DECIMALS_D = 4
"""Decimals of debye in text files. Predictions in single precision are reproducible to about
1e-5 D: the order of a sum depends on the batch, the number of threads and the processor."""

DECIMALS_E_OR_ANGSTROM = 5
"""Decimals of e and angstrom: at 5 angstrom and 1 e, half of the last one is 1e-4 D at most."""

BOLTZMANN_KCAL_PER_MOL_K = 1.987204258640832e-3
"""Boltzmann's constant (gas constant) in kcal/(mol K)."""

ROOM_TEMPERATURE_K = 298.15
"""Default temperature of Boltzmann weights, in kelvin."""

FIELD_UNITS: dict[str, str] = {
    "z": "atomic number",
    "pos": "angstrom",
    "charge": "e",
    "dipole": "debye",
    "dipole_magnitude": "debye",
    "atomic_charges": "e",
    "energy": "kcal/mol",
    "fragment": "1",
    "fragment_charge": "e",
    "mol_id": "1",
    "smiles": "1",
    "name": "1",
}
"""Unit of each field of a molecule's ``Data``; ``"1"`` where there is none."""


def centre_of_mass(numbers: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Centre of mass ``[3]`` of a molecule, with standard atomic weights (also for isotopes).

    Args:
        numbers: Atomic numbers ``[N]``.
        positions: Positions ``[N, 3]``, in any unit of length.

    Example:
        >>> centre_of_mass([8, 1], [[0, 0, 0], [1, 0, 0]]).round(4).tolist()
        [0.0593, 0.0, 0.0]
    """
    from ase.data import atomic_masses  # here: importing ASE takes 0.1 s

    masses = np.asarray(atomic_masses[np.asarray(numbers)], dtype=np.float64)  # [N]
    return masses @ np.asarray(positions, dtype=np.float64) / masses.sum()


def move_origin(dipole: ArrayLike, charge: float, shift: ArrayLike) -> NDArray[np.float64]:
    r"""Dipole moment about an origin that is displaced by ``shift``.

    .. math:: \mu' = \mu - Q d

    Args:
        dipole: Dipole moment ``[3]`` in e·angstrom about the old origin.
        charge: Total charge Q in e.
        shift: Displacement d ``[3]`` of the origin in angstrom: ``centre_of_mass(z, pos)`` from the
            origin of the coordinates (ASE) to the centre of mass (dipolegnn), and its negative for
            the reverse.

    Returns:
        The dipole moment ``[3]`` in e·angstrom about the new origin.

    Example:
        >>> move_origin([0, 0, 0], charge=1, shift=[0.5, 0, 0]).tolist()
        [-0.5, 0.0, 0.0]
    """
    return np.asarray(dipole, dtype=np.float64) - charge * np.asarray(shift, dtype=np.float64)


def duration(seconds: float) -> str:
    """Formats a duration.

    Example:
        >>> duration(75), duration(3700)
        ('1 min 15 s', '1 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
