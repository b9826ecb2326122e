"""Conformers from SMILES: ETKDGv3 embedding and MMFF94s (else UFF) minimization.

The result depends on the SMILES, the number of conformers, the seed and the version of RDKit.
Specified stereochemistry is preserved, which is checked in 3D. Unspecified stereochemistry is
determined by the seed; all conformers of a molecule are of the same stereoisomer.
"""

from __future__ import annotations

import time

from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules.chemistry import captured_log, conformer_data, parse_smiles
from dipolegnn.molecules.molecule import MoleculeError

TIME_LIMIT_S = 60
"""Time limit in seconds for embedding a molecule, and for minimizing it; 0.1 s is usual."""

MINIMIZER_STEPS = 10_000
"""Maximum number of minimizer steps for a conformer; hundreds are usual."""

ATTEMPTS = 10
"""Number of consecutive seeds tried: unspecified stereochemistry may first be assigned as an isomer
that cannot exist, such as a trans-fused small ring, and that minimization does not preserve."""

DUPLICATE_RMSD = 0.1
"""Conformers with a smaller RMSD (angstrom, without hydrogens on carbon) are duplicates ..."""

DUPLICATE_ENERGY = 0.1
"""... if their energies also differ by less than this (kcal/mol)."""

# Symmetry-equivalent numberings tried per comparison. More exist only in molecules with many
# equivalent groups, where the worst case is that a duplicate is kept.
_MAX_MATCHES = 1000


def from_smiles(
    smiles: str,
    *,
    conformers: int = 1,
    seed: int = 7,
    name: str = "",
    row: int | None = None,
    mol_id: int = 0,
) -> list[Data]:
    """Generates conformers of a molecule, lowest force-field energy first.

    Atoms are in the order of the SMILES, followed by the hydrogens in RDKit's order (those of the
    first atom first). Explicit hydrogens (``[H]O[H]``) are treated as added hydrogens; isotopes
    (``[2H]``) keep their position.

    Duplicates, and conformers that do not converge or lose their stereochemistry, are removed, so
    that fewer conformers than requested may be returned (one for water).
    ``energy`` is that of MMFF94s or, where that lacks parameters, UFF.

    Args:
        smiles: SMILES of one molecule.
        conformers: Number of conformers to embed.
        seed: Seed of the embedding.
        name: Name; the SMILES by default.
        row: Row in the source, for error messages.
        mol_id: Number of the molecule.

    Raises:
        MoleculeError: Invalid SMILES or valence, several fragments, a dummy atom, a radical, an
            element without force field, or no 3D structure found.

    Example:
        >>> water, = from_smiles("O")
        >>> round(float((water.pos[0] - water.pos[1]).norm()), 2)
        0.97

    Source: Wang et al., J. Chem. Inf. Model. 60, 2044 (2020) (ETKDGv3); Halgren, J. Comput. Chem.
    20, 720 (1999) (MMFF94s); Rappé et al., J. Am. Chem. Soc. 114, 10024 (1992) (UFF).
    """
    config = ConformerConfig(conformers, seed)
    try:
        mol = parse_smiles(smiles, name=name)
        return embed(mol, smiles.strip(), config, name=name, mol_id=mol_id)
    except MoleculeError as error:
        raise error.located(molecule=name or smiles.strip(), row=row) from None


def embed(
    mol: Chem.Mol, smiles: str, config: ConformerConfig, *, name: str, mol_id: int
) -> list[Data]:
    """Generates the conformers of a parsed SMILES."""
    with captured_log() as reason:
        try:
            embedded, energies = _embed(Chem.AddHs(mol), config)
            return [
                conformer_data(
                    embedded, k, energy=energies[k], mol_id=mol_id, smiles=smiles, name=name
                )
                for k in _distinct(embedded, energies)
            ]
        except MoleculeError:
            raise
        except (RuntimeError, ValueError) as error:  # internal errors of RDKit
            raise MoleculeError(
                f"No 3D structure of it can be built: {reason(str(error))}",
                remedy="Give a 3D structure (.sdf, .xyz)",
            ) from None


def _embed(mol: Chem.Mol, config: ConformerConfig) -> tuple[Chem.Mol, dict[int, float]]:
    """A copy of ``mol`` with conformers; energies of those that keep its stereochemistry."""
    for attempt in range(ATTEMPTS):
        embedded = Chem.Mol(mol)
        energies = _stereoisomer(embedded, config.conformers, config.conformer_seed + attempt)
        if energies:
            return embedded, energies
    raise MoleculeError(
        "The stereochemistry of the SMILES is not that of any structure found",
        remedy="Check the stereo centres and double bonds, or give a 3D structure",
    )


def _stereoisomer(mol: Chem.Mol, conformers: int, seed: int) -> dict[int, float]:
    """Adds minimized conformers of one stereoisomer to ``mol``; energies of those that keep it."""
    specified = _specified_stereo(mol)
    _make_conformers(mol, 1, seed)
    Chem.AssignStereochemistryFrom3D(mol)
    if conformers > 1:
        _make_conformers(mol, conformers, seed)
    energies = _minimize(mol)
    wanted = _specified_stereo(mol) | specified
    return {k: e for k, e in energies.items() if _stereo_in_3d(mol, k, wanted) == wanted}


def _make_conformers(mol: Chem.Mol, conformers: int, seed: int) -> None:
    """Replaces the conformers of ``mol`` by newly embedded ones."""
    params = rdDistGeom.ETKDGv3()
    # RDKit's stubs have no setters.
    params.randomSeed = seed  # type: ignore[assignment]
    params.timeout = TIME_LIMIT_S  # type: ignore[assignment]
    start = time.monotonic()
    found = rdDistGeom.EmbedMultipleConfs(mol, conformers, params)
    if not found:
        # Random starting coordinates succeed for crowded cages and long chains.
        params.useRandomCoords = True  # type: ignore[assignment]
        found = rdDistGeom.EmbedMultipleConfs(mol, conformers, params)
    if not found:
        taken = time.monotonic() - start
        limit = f" within {TIME_LIMIT_S} s" if taken > TIME_LIMIT_S else ""
        raise MoleculeError(
            f"No 3D structure of it can be built{limit}",
            remedy="Check it for impossible rings or stereo, or give a 3D structure (.sdf, .xyz)",
        )


def _minimize(mol: Chem.Mol) -> dict[int, float]:
    """Minimizes all conformers in place; energies in kcal/mol of those that converged."""
    ids = [conformer.GetId() for conformer in mol.GetConformers()]
    if mol.GetNumAtoms() == 1:
        return dict.fromkeys(ids, 0.0)
    mmff = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    if mmff is None and not rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        raise MoleculeError(
            "Neither MMFF94s nor UFF has parameters for all of its atoms",
            remedy="Give a 3D structure (.sdf, .xyz)",
        )
    deadline = time.monotonic() + TIME_LIMIT_S * len(ids)
    energies = {}
    for conformer in ids:
        if mmff is not None:
            field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, mmff, confId=conformer)
        else:
            field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol, confId=conformer)
        field.Initialize()
        # Minimize returns 0 on convergence. It runs in stages so that the time can be checked.
        for _ in range(MINIMIZER_STEPS // 500):
            if field.Minimize(maxIts=500) == 0:
                energies[conformer] = field.CalcEnergy()
                break
            if time.monotonic() > deadline:
                break
    if not energies:
        raise MoleculeError(
            f"The force field did not reach a minimum in {MINIMIZER_STEPS} steps or "
            f"{TIME_LIMIT_S} s a conformer",
            remedy="Give a 3D structure (.sdf, .xyz)",
        )
    return energies


StereoElement = tuple[str, int]


def _specified_stereo(mol: Chem.Mol) -> dict[StereoElement, str]:
    """Tetrahedral centres and double bonds with specified stereochemistry, by kind and index."""
    return {
        (str(info.type), info.centeredOn): str(info.descriptor)
        for info in Chem.FindPotentialStereo(mol)
        if info.specified == Chem.StereoSpecified.Specified
        and info.type in (Chem.StereoType.Atom_Tetrahedral, Chem.StereoType.Bond_Double)
    }


def _stereo_in_3d(
    mol: Chem.Mol, conformer: int, wanted: dict[StereoElement, str]
) -> dict[StereoElement, str]:
    """Stereochemistry of the elements of ``wanted`` in the geometry of ``conformer``."""
    if not wanted:
        return {}
    copy = Chem.Mol(mol, confId=conformer)
    Chem.AssignStereochemistryFrom3D(copy, conformer)
    found = _specified_stereo(copy)
    return {element: found.get(element, "undefined") for element in wanted}


def _distinct(mol: Chem.Mol, energies: dict[int, float]) -> list[int]:
    """Conformers without duplicates, lowest energy first."""
    ordered = sorted(energies, key=lambda k: energies[k])
    if len(ordered) == 1:
        return ordered
    # Hydrogens on carbon are determined by the skeleton and increase the number of symmetries;
    # those on O, N and S distinguish rotamers, whose dipoles differ.
    skeleton = Chem.RWMol(mol)
    skeleton.BeginBatchEdit()
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 1 and any(n.GetAtomicNum() == 6 for n in atom.GetNeighbors()):
            skeleton.RemoveAtom(atom.GetIdx())
    skeleton.CommitBatchEdit()
    kept: list[int] = []
    for conformer in ordered:
        near = (k for k in kept if energies[conformer] - energies[k] < DUPLICATE_ENERGY)
        if all(_rmsd(skeleton, conformer, k) >= DUPLICATE_RMSD for k in near):
            kept.append(conformer)
    return kept


def _rmsd(skeleton: Chem.Mol, conformer: int, other: int) -> float:
    probe = Chem.Mol(skeleton, confId=conformer)  # a copy, as alignment moves it
    return float(rdMolAlign.GetBestRMS(probe, skeleton, conformer, other, maxMatches=_MAX_MATCHES))
