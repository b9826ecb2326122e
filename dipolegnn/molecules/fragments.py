"""Fragments of a structure: parts without bonds to each other, and their charges.

The charge of a fragment is not in a structure file without bonds. It follows from the total charge
and from the rule that every fragment has an even number of electrons, or else from the bonds that
RDKit finds for each possible charge, of which those without charged carbon atoms are preferred.
"""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

BOND_TOLERANCE = 0.45
"""Atoms are bonded if their distance exceeds the sum of their covalent radii by no more than this,
in angstrom: the rule of Open Babel (O'Boyle et al., J. Cheminf. 3, 33, 2011)."""

STRETCHED = 1.3
"""The same for bonds that may be stretched, if the charges of the parts are not determined."""

BROKEN = 0.6
"""The same for bonds that are broken. No displaced molecule of datasets/organic_xtb (35,863) has a
longer bond whose atoms are not connected otherwise."""

_CLOSED_ATOMS = frozenset({2, 10, 18, 36, 54, 86, 28, 46, 78, 4, 12, 20, 30, 38, 48, 56, 80})
"""Numbers of electrons of atoms and ions without unpaired electrons: those of noble gases, with
filled d shells, and of the elements of the groups 2 and 12."""

_CATIONS = frozenset({1, 3, 11, 19, 37, 55})
_ANIONS = frozenset({9, 17, 35, 53})
"""Atomic numbers of single atoms whose charge is +1 (group 1) or -1 (group 17)."""


def fragments_of(
    numbers: NDArray[np.int64], pos: NDArray[np.float64], charge: int
) -> tuple[NDArray[np.int64], list[int] | None]:
    """Finds the fragments of a structure and their charges.

    Parts whose charges are not determined become one fragment if they are so close that the bond
    between them may be stretched.

    Args:
        numbers: Atomic numbers ``[N]``.
        pos: Positions ``[N, 3]`` in angstrom.
        charge: Total charge in e.

    Returns:
        Number of the fragment of each atom ``[N]``, in the order of the first atoms, and the charge
        of each fragment in e; None if there are several possibilities.
    """
    for tolerance in (BOND_TOLERANCE, STRETCHED):
        fragment = _connected(numbers, pos, tolerance)
        charges = _charges(numbers, pos, fragment, charge)
        if charges is not None:
            break
    return fragment, charges


def broken_bonds(
    numbers: NDArray[np.int64],
    pos: NDArray[np.float64],
    molecule: NDArray[np.int64],
    fragment: NDArray[np.int64],
    fragment_charge: NDArray[np.float64],
) -> dict[int, str]:
    """Finds structures with a broken or stretched bond.

    A fragment of one atom has to be an atom or ion with closed shells, such as argon or Na+. Bonds
    that are not broken (:data:`BROKEN`) have to connect the atoms of each other fragment. Broken
    bonds in rings, and fragments with an even number of electrons, are not found.

    Args:
        numbers: Atomic numbers ``[N]`` of all structures.
        pos: Positions ``[N, 3]`` in angstrom.
        molecule: Structure of each atom ``[N]``, from 0.
        fragment: Fragment of each atom within its structure ``[N]``, from 0.
        fragment_charge: Charge of the fragment of each atom ``[N]`` in e.

    Returns:
        The first such bond of each structure that has one, in words.
    """
    # One search for all structures: a fourth coordinate keeps them apart.
    apart = 2 * covalent_radii[numbers].max() + 2 * BROKEN
    bonded = _connected(numbers, np.column_stack([pos, molecule * apart]), BROKEN)
    keys = molecule * len(numbers) + fragment
    _, first, whose, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    alone = sizes[whose] == 1
    electrons = (numbers - fragment_charge.round()).astype(int)
    open_atoms = alone & ~np.isin(electrons, list(_CLOSED_ATOMS))
    torn = bonded != bonded[first][whose]
    found: dict[int, str] = {}
    for atom in np.flatnonzero(open_atoms | torn).tolist():
        place = int(molecule[atom])
        if place in found:
            continue
        start = int(np.searchsorted(molecule, place))

        def title(k: int, start: int = start) -> str:
            return f"{chemical_symbols[numbers[k]]}{k - start + 1}"

        if open_atoms[atom]:
            found[place] = f"the atom {title(atom)} has no bond"
            continue
        here = np.flatnonzero((whose == whose[atom]) & (bonded == bonded[atom]))
        rest = np.flatnonzero((whose == whose[atom]) & (bonded != bonded[atom]))
        distances = cdist(pos[here], pos[rest])
        radii = covalent_radii[numbers]
        excess = distances - radii[here][:, None] - radii[rest]
        i, j = np.unravel_index(int(excess.argmin()), excess.shape)
        found[place] = (
            f"the bond between {title(here[i])} and {title(rest[j])} is broken or stretched "
            f"({distances[i, j]:.2f} Å)"
        )
    return found


def _connected(
    numbers: NDArray[np.int64], pos: NDArray[np.float64], tolerance: float
) -> NDArray[np.int64]:
    radii = covalent_radii[numbers]
    pairs = cKDTree(pos).query_pairs(2 * radii.max() + tolerance, output_type="ndarray")
    i, j = pairs.T
    bonded = np.linalg.norm(pos[i] - pos[j], axis=1) < radii[i] + radii[j] + tolerance
    edges = coo_array((bonded[bonded], (i[bonded], j[bonded])), shape=(len(numbers),) * 2)
    labels: NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)
    return labels


def _charges(
    numbers: NDArray[np.int64],
    pos: NDArray[np.float64],
    fragment: NDArray[np.int64],
    charge: int,
) -> list[int] | None:
    """Charge of each fragment: 0 if its number of protons is even, else +1 or -1."""
    odd = np.bincount(fragment, weights=numbers).astype(int) % 2
    if len(odd) == 1:
        return [charge]
    ions = np.flatnonzero(odd)
    if (np.bincount(fragment)[fragment[numbers == 1]] == 1).any():
        return None  # no bare protons: the bond of a hydrogen atom is broken
    positive, rest = divmod(len(ions) + charge, 2)
    if rest or not 0 <= positive <= len(ions):
        return None
    if 0 < positive < len(ions):
        signs = {k: _sign(numbers[fragment == k], pos[fragment == k]) for k in ions.tolist()}
    else:
        signs = dict.fromkeys(ions.tolist(), 0)
    missing = positive - sum(sign > 0 for sign in signs.values())
    open_ones = [k for k, sign in signs.items() if sign == 0]
    if missing not in (0, len(open_ones)):
        return None
    signs |= dict.fromkeys(open_ones, 1 if missing else -1)
    return [signs.get(k, 0) for k in range(len(odd))] if sum(signs.values()) == charge else None


def _sign(numbers: NDArray[np.int64], pos: NDArray[np.float64]) -> int:
    """Sign of the charge of an ion with charge +1 or -1; 0 if both are possible."""
    if len(numbers) == 1:
        return int(numbers[0] in _CATIONS) - int(numbers[0] in _ANIONS)
    charged = {sign: _charged_carbons(numbers, pos, sign) for sign in (1, -1)}
    possible = {sign: count for sign, count in charged.items() if count is not None}
    best = [sign for sign, count in possible.items() if count == min(possible.values())]
    return best[0] if len(best) == 1 else 0


def _charged_carbons(
    numbers: NDArray[np.int64], pos: NDArray[np.float64], charge: int
) -> int | None:
    """Number of carbon atoms with a formal charge in the bonds that RDKit finds for a charge.

    None if there are no such bonds, or only with unpaired electrons.
    """
    block = f"{len(numbers)}\n\n" + "".join(
        f"{chemical_symbols[z]} {x:.6f} {y:.6f} {w:.6f}\n"
        for z, (x, y, w) in zip(numbers.tolist(), pos.tolist(), strict=True)
    )
    with rdBase.BlockLogs():
        mol = Chem.MolFromXYZBlock(block)
        try:
            rdDetermineBonds.DetermineBonds(mol, charge=charge)
        except (ValueError, RuntimeError):
            return None
    atoms = list(mol.GetAtoms())
    if any(atom.GetNumRadicalElectrons() for atom in atoms):
        return None
    return sum(atom.GetAtomicNum() == 6 and atom.GetFormalCharge() != 0 for atom in atoms)
