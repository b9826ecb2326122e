"""Labelling of one molecule with an ASE calculator."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    CalculatorError,
    PropertyNotImplementedError,
)
from ase.data import chemical_symbols, covalent_radii
from ase.optimize import LBFGS
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.molecules import MoleculeError, to_ase
from dipolegnn.molecules.molecule import relabelled
from dipolegnn.units import DEBYE_PER_E_ANGSTROM, KCAL_PER_MOL_PER_EV, centre_of_mass, move_origin

CHARGE_TOLERANCE = 0.05
"""Largest accepted difference between the sum of partial charges and the total charge (e)."""

BONDED = 1.25
"""Atoms closer than this factor times the sum of their covalent radii are bonded ..."""

APART = 1.45
"""... and atoms beyond this factor are not. In between, both are possible."""


def label(
    data: Data,
    calculator: BaseCalculator,
    *,
    optimize: bool = False,
    fmax: float = 0.02,
    max_steps: int = 500,
) -> Data:
    """Labels a molecule with dipole, energy and (if the calculator has them) partial charges.

    ASE's calculators return the dipole in e·angstrom about the origin of the coordinates; it is
    converted to debye and, which matters for ions, to the centre of mass. The energy is that of the
    calculator in kcal/mol; only differences between conformers are meaningful.

    Args:
        data: Molecule; not changed.
        calculator: Any ASE calculator with the property ``dipole``, set up for the charge of the
            molecule.
        optimize: True to optimize the geometry first with the same calculator (L-BFGS).
        fmax: Convergence threshold of the forces, in eV/angstrom.
        max_steps: Maximum number of optimization steps.

    Returns:
        A new molecule, with the optimized ``pos`` if ``optimize`` is True.

    Raises:
        MoleculeError: The calculation failed or was for another charge, or the optimization did not
            converge or led to another molecule (bonds were broken or formed).
        ValueError: The calculator has no dipole.

    Example:
        >>> from dipolegnn.config import XTBConfig
        >>> from dipolegnn.labels import xtb_calculator
        >>> from dipolegnn.molecules import from_smiles
        >>> ammonia, = from_smiles("N")
        >>> round(label(ammonia, xtb_calculator(XTBConfig())).dipole_magnitude.item(), 1)
        1.9
    """
    name = data.name or data.smiles
    atoms = to_ase(data)
    start = atoms.positions.copy()
    atoms.calc = calculator
    try:
        if optimize and len(atoms) > 1:
            _relax(atoms, fmax, max_steps)
            _check_same_molecule(atoms, start)
        dipole = np.asarray(atoms.get_dipole_moment(), dtype=np.float64)  # [3] e·Å
        energy = float(atoms.get_potential_energy())
        has_charges = "charges" in calculator.implemented_properties
        charges = np.asarray(atoms.get_charges(), dtype=np.float64) if has_charges else None
        _check_results(dipole, energy, charges, data.charge.item())
    except PropertyNotImplementedError as error:
        raise ValueError(
            f"The calculator {type(calculator).__name__} does not give what a label needs (dipole "
            f"and energy; forces to relax): {error}. Take one that does, for instance "
            f"xtb_calculator or dft_calculator."
        ) from error
    except (CalculatorError, RuntimeError, np.linalg.LinAlgError) as error:
        raise MoleculeError(
            f"The calculation failed: {' '.join(str(error).split()) or type(error).__name__}",
            remedy="Check the geometry and the charge, or take another level of theory",
            molecule=name,
        ) from error
    except MoleculeError as error:
        raise error.located(molecule=name) from None
    centre = centre_of_mass(atoms.numbers, atoms.positions)
    return relabelled(
        data,
        pos=atoms.positions if optimize else None,
        dipole=move_origin(dipole, data.charge.item(), centre) * DEBYE_PER_E_ANGSTROM,
        atomic_charges=charges,
        energy=energy * KCAL_PER_MOL_PER_EV,
    )


def _relax(atoms: Atoms, fmax: float, max_steps: int) -> None:
    # The fastest of ASE's optimizers for small molecules: 17 steps from MMFF94s to 0.02 eV/Å and,
    # unlike BFGS, without a diagonalization, which is slow for large molecules.
    optimizer = LBFGS(atoms, logfile=None)  # type: ignore[arg-type]  # ASE forgets None here
    if not optimizer.run(fmax=fmax, steps=max_steps):
        force = np.linalg.norm(atoms.get_forces(), axis=1).max()
        raise MoleculeError(
            f"The relaxation did not converge in {max_steps} steps: the largest force is "
            f"{force:.3f} eV/angstrom, the threshold is {fmax}",
            remedy="Allow more steps, a larger force, or start from a better geometry",
        )


def _check_same_molecule(atoms: Atoms, start: NDArray[np.float64]) -> None:
    changed = changed_bonds(atoms.numbers, start, atoms.positions)
    if changed:
        numbered = [f"{chemical_symbols[z]}{k}" for k, z in enumerate(atoms.numbers, start=1)]
        names = ", ".join(f"{numbered[i]}-{numbered[j]}" for i, j in changed[:4])
        raise MoleculeError(
            f"The relaxation broke or formed bonds ({names}): it has become another molecule",
            remedy="It is not stable at this level of theory; leave it out, or do not relax it",
        )


def changed_bonds(
    z: NDArray[np.int64], before: NDArray[np.float64], after: NDArray[np.float64]
) -> list[tuple[int, int]]:
    """Returns pairs of atoms whose bond was broken or formed between two geometries of a molecule.

    A small change across one threshold does not count: the distance has to change from clearly
    bonded to clearly not bonded, or the reverse.

    Args:
        z: Atomic numbers ``[N]``.
        before: Coordinates ``[N, 3]`` in angstrom.
        after: Coordinates of the second geometry ``[N, 3]`` in angstrom.

    Source: covalent radii of Cordero et al., Dalton Trans. 2832 (2008), as in ASE.
    """
    first, second = _relative_distances(z, before), _relative_distances(z, after)
    broken = (first < BONDED) & (second > APART)
    formed = (first > APART) & (second < BONDED)
    pairs = np.argwhere(np.triu(broken | formed, k=1))
    return [(int(i), int(j)) for i, j in pairs]


def _relative_distances(z: NDArray[np.int64], pos: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances divided by the sum of the covalent radii ``[N, N]``."""
    radii = covalent_radii[z]
    distances = np.linalg.norm(pos[:, None] - pos[None], axis=-1)
    ratio: NDArray[np.float64] = distances / (radii[:, None] + radii[None])
    return ratio


def _check_results(
    dipole: NDArray[np.float64], energy: float, charges: NDArray[np.float64] | None, total: float
) -> None:
    values = [dipole, np.array([energy])] + ([] if charges is None else [charges])
    if not all(np.isfinite(value).all() for value in values):
        raise MoleculeError(
            "The calculation gave numbers that are not finite",
            remedy="Check the geometry, or take another level of theory",
        )
    if charges is not None and abs(charges.sum() - total) > CHARGE_TOLERANCE:
        raise MoleculeError(
            f"The calculation is for a total charge of {charges.sum():+.2f} e, and the molecule's "
            f"is {total:+.0f} e",
            remedy="Set the charge of the calculator, or of the molecule",
        )
