"""Size of the search for the conformers of a molecule, from its bonds and rings."""

from __future__ import annotations

from functools import cache

from rdkit import Chem

MOST_CONFORMERS = 128
"""Maximum number of conformers embedded."""

FEWEST_CONFORMERS = 4
"""Minimum number of conformers embedded of a molecule that is not rigid."""

SEARCH_BUDGET_S = 0.5
"""Time in seconds on one core that the search of a molecule should take."""

# Embedding and minimization of a conformer: 1.5 ms for 15 atoms, 51 ms for 55 (one core of 2026).
_SECONDS_OF_55_ATOMS, _POWER = 0.05, 2.7


def search_size(mol: Chem.Mol) -> tuple[int, int]:
    """Number of conformers with which a search begins, and its maximum.

    (1, 1) for a rigid molecule. Else it begins with m + 3 for m rotatable bonds and flexible rings,
    and the maximum is as many as half a second on one core allows, from 4 to 128. The time is
    estimated from the number of atoms and not measured, so that the result depends only on the
    molecule.

    Args:
        mol: Molecule, hydrogens not explicit.

    Example:
        >>> [search_size(Chem.MolFromSmiles(s)) for s in ("c1ccccc1", "CCO", "OCCO")]
        [(1, 1), (4, 128), (6, 128)]
    """
    motions = motions_of(mol)
    if motions == 0:
        return 1, 1
    atoms = mol.GetNumAtoms() + sum(atom.GetTotalNumHs() for atom in mol.GetAtoms())
    affordable = int(SEARCH_BUDGET_S / (_SECONDS_OF_55_ATOMS * (atoms / 55) ** _POWER))
    most = max(FEWEST_CONFORMERS, min(MOST_CONFORMERS, affordable))
    return min(motions + 3, most), most


def motions_of(mol: Chem.Mol) -> int:
    """Number of rotatable bonds and flexible rings.

    A ring of n > 6 bonds that can turn counts as n - 5.
    A ring is flexible if more than three of its bonds are single, not conjugated, and in no other
    ring; norbornane and adamantane have no such ring.
    """
    rings = mol.GetRingInfo()
    turning = [
        sum(
            rings.NumBondRings(bond) == 1
            and mol.GetBondWithIdx(bond).GetBondType() == Chem.BondType.SINGLE
            and not mol.GetBondWithIdx(bond).GetIsConjugated()
            for bond in ring
        )
        for ring in rings.BondRings()
    ]
    return len(rotatable_bonds(mol)) + sum(max(1, bonds - 5) for bonds in turning if bonds > 3)


def rotatable_bonds(mol: Chem.Mol) -> set[frozenset[int]]:
    """Pairs of atoms of the rotatable bonds.

    Single bonds outside rings with further substituents at both ends, including hydroxyl hydrogens;
    bonds to methyl groups do not count.
    """
    return {frozenset(atoms) for atoms in mol.GetSubstructMatches(_turning_bond())}


@cache
def _turning_bond() -> Chem.Mol:
    # Not an atom of a linear group (triple bond), with more than one neighbour, or with hydrogens
    # of oxygen, sulphur or an amine.
    end = "[!$([#6]#*);!$([CX2]);$([!D1]),$([OX2H]),$([SX2H]),$([NX3;H2;!$(N-[#6]=,:*)])]"
    return Chem.MolFromSmarts(f"{end}-;!@{end}")
