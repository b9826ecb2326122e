"""Stereochemistry that a SMILES does not define, and the stereoisomers."""

from __future__ import annotations

from itertools import combinations, product
from typing import NamedTuple

from rdkit import Chem

StereoElement = tuple[str, int]
"""Kind and index of a tetrahedral centre (atom) or a double bond."""

_CENTRE = str(Chem.StereoType.Atom_Tetrahedral)
_DOUBLE_BOND = str(Chem.StereoType.Bond_Double)

_LARGEST_CAGE_RING = 8
"""Bridgeheads of larger rings may point inwards, so that their configurations are independent."""

_CIS_FUSED_SIZES = 9
"""Two rings with a common bond, whose sizes have at most this sum, are fused cis only."""


def specified_stereo(mol: Chem.Mol) -> dict[StereoElement, str]:
    """Tetrahedral centres and double bonds with specified stereochemistry."""
    return {
        (str(info.type), info.centeredOn): str(info.descriptor)
        for info in Chem.FindPotentialStereo(mol)
        if info.specified == Chem.StereoSpecified.Specified
        and str(info.type) in (_CENTRE, _DOUBLE_BOND)
    }


class OpenStereo(NamedTuple):
    """Stereo elements that the SMILES does not define.

    Attributes:
        centres: Groups of stereocentres (atom indices) whose configurations depend on each other.
        bonds: Indices of double bonds.
        diastereomers: False if all stereoisomers are mirror images, or the same: their dipole
            moments have equal magnitude.
    """

    centres: list[list[int]]
    bonds: list[int]
    diastereomers: bool

    def described(self, mol: Chem.Mol) -> str:
        """The elements, with the numbers of their atoms from 1 in the order of the SMILES."""

        def title(atom: int) -> str:
            return f"{mol.GetAtomWithIdx(atom).GetSymbol()}{atom + 1}"

        centres = [title(atom) for group in self.centres for atom in group]
        bonds = [
            "=".join(map(title, sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))))
            for bond in map(mol.GetBondWithIdx, self.bonds)
        ]
        return " and ".join(
            f"{kind}{'s' * (len(names) > 1)} {', '.join(names)}"
            for kind, names in (("stereocentre", centres), ("double bond", bonds))
            if names
        )


def open_stereo(given: Chem.Mol, embedded: Chem.Mol) -> OpenStereo:
    """Stereo elements of a 3D structure that the molecule from the SMILES does not define.

    One stereocentre, or the bridgeheads of a small cage, which depend on each other, have two
    configurations, which are mirror images; with another stereocentre there are diastereomers.

    Args:
        given: Molecule from a SMILES.
        embedded: The same molecule with the stereochemistry of a 3D structure of it.
    """
    defined, present = specified_stereo(given), specified_stereo(embedded)
    bonds = [k for kind, k in present if kind == _DOUBLE_BOND and (kind, k) not in defined]
    groups = _dependent(embedded, [k for kind, k in present if kind == _CENTRE])
    centres = [group for group in groups if all((_CENTRE, k) not in defined for k in group)]
    return OpenStereo(centres, bonds, bool(bonds) or (bool(centres) and len(groups) > 1))


def _dependent(mol: Chem.Mol, centres: list[int]) -> list[list[int]]:
    """Groups of centres: those where small rings are bridged or fused depend on each other."""
    groups = [{centre} for centre in centres]
    if len(groups) < 2:
        return [sorted(group) for group in groups]
    for one, other in combinations(map(set, mol.GetRingInfo().AtomRings()), 2):
        common = one & other
        cage = len(common) > 2 and max(len(one), len(other)) <= _LARGEST_CAGE_RING
        fused = len(common) == 2 and len(one) + len(other) <= _CIS_FUSED_SIZES
        if cage or fused:
            linked = [group for group in groups if group & common]
            groups = [group for group in groups if not group & common]
            groups += [set().union(*linked)] if linked else []
    return sorted(sorted(group) for group in groups)


class Stereoisomer(NamedTuple):
    """A stereoisomer; its mirror image has the same magnitude of the dipole moment.

    Attributes:
        mol: Molecule with the atoms of the given one.
        smiles: Canonical SMILES.
        mirror_image: SMILES of the mirror image; equal to ``smiles`` if it is not chiral.
    """

    mol: Chem.Mol
    smiles: str
    mirror_image: str

    @classmethod
    def of(cls, mol: Chem.Mol) -> Stereoisomer:
        """Completes the fields of a molecule with explicit hydrogens."""
        mirrored = Chem.Mol(mol)
        for atom in mirrored.GetAtoms():
            atom.InvertChirality()
        return cls(mol, isomeric_smiles(mol), isomeric_smiles(mirrored))


def isomeric_smiles(mol: Chem.Mol) -> str:
    """Canonical SMILES of a molecule with explicit hydrogens."""
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def stereoisomers(
    embedded: Chem.Mol, left_open: OpenStereo, most: int
) -> tuple[list[Stereoisomer], bool]:
    """Stereoisomers that differ in undefined elements, one of each pair of mirror images.

    RDKit's ``EnumerateStereoisomers`` treats all centres as independent; cages then have isomers
    that cannot exist, and seconds are spent to embed them.

    Args:
        embedded: The molecule with the stereochemistry of a 3D structure, the first isomer.
        left_open: The elements that are not defined.
        most: Maximum number of isomers.

    Returns:
        The isomers, and False if there are more.
    """
    found: list[Stereoisomer] = []
    flips: list[list[int] | int] = [*left_open.centres, *left_open.bonds]
    for flipped in product((False, True), repeat=len(flips)):
        mol = Chem.Mol(embedded)
        mol.RemoveAllConformers()
        for element, flip in zip(flips, flipped, strict=True):
            if flip:
                _flip(mol, element)
        # RDKit reads the configuration of double bonds from the directions of their neighbours.
        for bond in mol.GetBonds():
            bond.SetBondDir(Chem.BondDir.NONE)
        Chem.SetDoubleBondNeighborDirections(mol)
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        isomer = Stereoisomer.of(mol)
        if all(isomer.smiles not in (known.smiles, known.mirror_image) for known in found):
            if len(found) == most:
                return found, False
            found.append(isomer)
    return found, True


def _flip(mol: Chem.Mol, element: list[int] | int) -> None:
    """Inverts a group of centres or a double bond, in place."""
    if isinstance(element, list):
        for atom in element:
            mol.GetAtomWithIdx(atom).InvertChirality()
        return
    bond = mol.GetBondWithIdx(element)
    cis = bond.GetStereo() in (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
    bond.SetStereo(Chem.BondStereo.STEREOTRANS if cis else Chem.BondStereo.STEREOCIS)
