"""ASE ``Atoms`` <-> ``Data``.

ASE has energies in eV and dipoles in e·angstrom about the origin of the coordinates. ``Data`` has
kcal/mol, and debye about the centre of mass, which makes a difference for ions.
"""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.molecules.molecule import MoleculeError, make_data
from dipolegnn.units import DEBYE_PER_E_ANGSTROM, KCAL_PER_MOL_PER_EV, centre_of_mass, move_origin

MAGNITUDE_KEY = "dipole_magnitude_debye"
"""Key in ``Atoms.info`` of a magnitude without a vector, for which ASE has no name."""


def from_ase(
    atoms: Atoms, *, charge: float | None = None, name: str = "", mol_id: int | None = None
) -> Data:
    """Converts ASE ``Atoms`` to ``Data``, including labels.

    Labels are what its calculator holds for this geometry (nothing is calculated): ``dipole``,
    ``charges``, ``energy``; else a dipole in ``atoms.info["dipole"]``, in e·angstrom.

    Args:
        atoms: Molecule; not changed.
        charge: Total charge in e; by default ``atoms.info["charge"]``, else the sum of the initial
            charges.
        name: Name; by default ``atoms.info["name"]``.
        mol_id: Number of the molecule; by default ``atoms.info["mol_id"]``, else 0.

    Raises:
        MoleculeError: A periodic structure, or anything that ``make_data`` refuses.
    """
    info = atoms.info
    name = name or str(info.get("name", ""))
    smiles = str(info.get("smiles", ""))
    try:
        if atoms.pbc.any():
            raise MoleculeError(
                "The structure is periodic, and only molecules are supported",
                remedy='If it is one molecule in a box: atoms.pbc = False (pbc="F F F")',
            )
        if charge is None:
            charge = _number(info.get("charge", atoms.get_initial_charges().sum()), "charge")
        if mol_id is None:
            mol_id = round(_number(info.get("mol_id", 0), "mol_id"))
        dipole = _result(atoms, "dipole")
        if dipole is None and "dipole" in info:
            dipole = np.asarray(info["dipole"])
        if dipole is not None:
            dipole = _about_centre_of_mass(dipole, atoms, charge) * DEBYE_PER_E_ANGSTROM
        energy = _result(atoms, "energy")
        magnitude = info.get(MAGNITUDE_KEY)
        return make_data(
            atoms.numbers,
            atoms.positions,
            charge=charge,
            dipole=dipole,
            dipole_magnitude=None if magnitude is None else _number(magnitude, MAGNITUDE_KEY),
            atomic_charges=_result(atoms, "charges"),
            energy=None if energy is None else float(energy) * KCAL_PER_MOL_PER_EV,
            mol_id=mol_id,
            smiles=smiles,
            name=name,
        )
    except MoleculeError as error:
        raise error.located(molecule=name or smiles or str(atoms.symbols)) from None


def to_ase(data: Data) -> Atoms:
    """Converts ``Data`` to ASE ``Atoms``, with known labels in a ``SinglePointCalculator``.

    ``info`` holds ``charge``, ``mol_id`` and, where there are any, ``name`` and ``smiles``.
    """
    charge = data.charge.item()
    info: dict[str, object] = {"charge": round(charge), "mol_id": int(data.mol_id.item())}
    if data.name:
        info["name"] = data.name
    if data.smiles:
        info["smiles"] = data.smiles
    numbers = data.z.cpu().numpy()
    atoms = Atoms(numbers, data.pos.detach().cpu().numpy().astype(np.float64), info=info)
    results: dict[str, object] = {}
    dipole = data.dipole.detach().cpu().numpy().reshape(3).astype(np.float64)
    if np.isfinite(dipole).all():
        dipole = dipole / DEBYE_PER_E_ANGSTROM
        centre = centre_of_mass(numbers, atoms.positions)
        results["dipole"] = move_origin(dipole, charge, -centre)
    elif math.isfinite(data.dipole_magnitude.item()):
        info[MAGNITUDE_KEY] = data.dipole_magnitude.item()
        atoms.info = info
    charges = data.atomic_charges.detach().cpu().numpy().astype(np.float64)
    if np.isfinite(charges).all():
        results["charges"] = charges
    if math.isfinite(data.energy.item()):
        results["energy"] = data.energy.item() / KCAL_PER_MOL_PER_EV
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _result(atoms: Atoms, name: str) -> NDArray[np.float64] | None:
    if atoms.calc is None:
        return None
    try:
        value = atoms.calc.get_property(name, atoms, allow_calculation=False)
    except PropertyNotImplementedError:
        return None
    return None if value is None else np.asarray(value, dtype=np.float64)


def _number(value: object, what: str) -> float:
    try:
        return float(np.asarray(value, dtype=np.float64).item())
    except (TypeError, ValueError):
        raise MoleculeError(
            f"The {what} is {value!r}, expected a number", remedy=f"Correct {what}=..."
        ) from None


def _about_centre_of_mass(
    dipole: NDArray[np.float64], atoms: Atoms, charge: float
) -> NDArray[np.float64]:
    if dipole.shape != (3,):
        raise MoleculeError(
            f"The dipole has the shape {list(dipole.shape)}, expected 3 numbers",
            remedy="Give x, y and z in e*angstrom",
        )
    return move_origin(dipole, charge, centre_of_mass(atoms.numbers, atoms.positions))
