"""Structures as they come from a SMILES, beside given geometries of the same molecules.

Either embedded as ``predict`` does it, whichever conformer that gives, or relaxed with MMFF94s from
the given geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from ase.data import chemical_symbols
from rdkit import Chem, RDLogger
from rdkit.Chem import rdDetermineBonds, rdForceFieldHelpers, rdMolAlign
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow, embed_smiles
from dipolegnn.molecules.workers import Lost, run_tasks, usable_cores

SAME_CONFORMER = 0.5
"""A structure that has moved further than this (RMSD of all atoms, in angstrom) may have become
another conformer, whose dipole is not that of the label."""

ALIKE = 0.25
"""Embedded structures further from the given one than this (RMSD of heavy atoms and of hydrogens of
heteroatoms, in angstrom) are other conformers: a hydroxyl group that has turned is enough."""

STEPS = 5000
"""Steps of the minimizer at most; hundreds are usual."""

CHUNK = 200
"""Molecules that a worker process gets at a time ..."""

TIME_LIMIT_S = 5
"""... and seconds for each of them, of which it needs a few thousandths."""


def perceived(data: Data) -> Chem.Mol:
    """The neutral molecule with the bonds that its geometry suggests, and that geometry.

    Raises:
        MoleculeError: If no Lewis structure fits, or it falls into fragments.
    """
    lines = [
        f"{chemical_symbols[z]} {x:.6f} {y:.6f} {w:.6f}"
        for z, (x, y, w) in zip(data.z.tolist(), data.pos.tolist(), strict=True)
    ]
    mol = Chem.MolFromXYZBlock(f"{len(lines)}\n\n" + "\n".join(lines) + "\n")
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    try:
        rdDetermineBonds.DetermineBonds(mol, charge=0, allowChargedFragments=True)
    except ValueError as error:
        raise MoleculeError("No Lewis structure fits the geometry", molecule=data.name) from error
    finally:
        RDLogger.EnableLog("rdApp.*")  # type: ignore[attr-defined]
    if len(Chem.GetMolFrags(mol)) > 1:
        raise MoleculeError("The geometry is that of several fragments", molecule=data.name)
    return mol


def smiles_of(data: Data) -> str:
    """A SMILES of the neutral molecule at this geometry, with its stereo.

    Raises:
        MoleculeError: If there is none.
    """
    mol = perceived(data)
    Chem.AssignStereochemistryFrom3D(mol)
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def relaxed(data: Data) -> Data:
    """The structure at the next minimum of MMFF94s, laid upon the one given.

    Returns:
        A copy with other ``pos``; labels stay, and a dipole vector still fits.

    Raises:
        MoleculeError: If bonds or force field are missing, the minimizer does not arrive, or the
            molecule may have become another conformer.
    """
    mol = perceived(data)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    if properties is None:
        raise MoleculeError("MMFF94s has no parameters for it", molecule=data.name)
    start = Chem.Mol(mol)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    field.Initialize()
    if field.Minimize(maxIts=STEPS) != 0:
        raise MoleculeError(f"No minimum of MMFF94s within {STEPS} steps", molecule=data.name)
    same = [(k, k) for k in range(mol.GetNumAtoms())]
    moved = rdMolAlign.AlignMol(mol, start, atomMap=same)
    if moved > SAME_CONFORMER:
        raise MoleculeError(
            f"MMFF94s moves the atoms by {moved:.2f} angstrom (RMSD): another conformer, maybe",
            molecule=data.name,
        )
    found = data.clone()
    found.pos = torch.from_numpy(np.array(mol.GetConformer().GetPositions())).float()
    return found


def from_their_smiles(molecules: Sequence[Data]) -> list[tuple[Data, Data]]:
    """One structure each, embedded as ``predict`` does it, with the label of the given one.

    It may be another conformer, whose dipole the label is not (:func:`same_conformer`).

    Returns:
        Embedded and given structures, of those that can be embedded.
    """
    rows: list[SmilesRow] = []
    kept: list[Data] = []
    for data in molecules:
        with suppress(MoleculeError):  # no Lewis structure
            rows.append(SmilesRow(len(rows) + 1, smiles_of(data)))
            kept.append(data)
    found = embed_smiles(rows, ConformerConfig(), workers=usable_cores(), progress=True)
    print(f"{len(found.failures)} of {len(rows)} SMILES cannot be embedded")
    pairs = [(data, kept[int(data.mol_id)]) for data in found.data]
    for data, given in pairs:
        data.dipole_magnitude = given.dipole_magnitude
    return pairs


def same_conformer(one: Data, other: Data) -> bool:
    """Whether two structures of a molecule differ by little, their atoms in whatever order.

    Hydrogens of carbon do not count, and mirror images, which have the same dipole, do.

    Raises:
        MoleculeError: If bonds cannot be perceived, or they are not those of the same molecule.
    """
    first, second = (_skeleton(data) for data in (one, other))
    mirrored = Chem.Mol(first)
    conformer = mirrored.GetConformer()
    for atom, (x, y, z) in enumerate(conformer.GetPositions().tolist()):
        conformer.SetAtomPosition(atom, (x, y, -z))
    try:
        apart = [rdMolAlign.GetBestRMS(mol, second) for mol in (first, mirrored)]
    except RuntimeError as error:
        raise MoleculeError("The structures have other bonds", molecule=other.name) from error
    return bool(min(apart) < ALIKE)


def _skeleton(data: Data) -> Chem.Mol:
    """The molecule without the hydrogens of its carbons, which would be told apart at length."""
    mol = Chem.RWMol(perceived(data))
    for atom in reversed(list(mol.GetAtoms())):
        bound = [neighbour.GetAtomicNum() for neighbour in atom.GetNeighbors()]
        if atom.GetAtomicNum() == 1 and bound == [6] and mol.GetNumAtoms() > 1:
            mol.RemoveAtom(atom.GetIdx())
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)
    Chem.SanitizeMol(mol)
    return mol.GetMol()


def relax_all(molecules: Sequence[Data]) -> tuple[list[Data | None], list[Failure]]:
    """Each structure as :func:`relaxed` gives it, None where it cannot, and why it cannot."""
    found: list[Data | None] = [None] * len(molecules)
    failures: list[Failure] = []
    chunks = [molecules[k : k + CHUNK] for k in range(0, len(molecules), CHUNK)]
    done = run_tasks(relax_chunk, chunks, workers=usable_cores(), time_limit=CHUNK * TIME_LIMIT_S)
    for number, results in track(done, "MMFF94s", total=len(chunks), transient=True):
        if isinstance(results, Lost):
            raise SystemExit(f"Relaxing with MMFF94s failed: {results.reason}.")
        for row, result in enumerate(results, start=CHUNK * number):
            if isinstance(result, Failure):
                failures.append(replace(result, row=row + 1))
            else:
                found[row] = result
    return found, sorted(failures, key=lambda failure: failure.row or 0)


def relax_chunk(molecules: Sequence[Data]) -> list[Data | Failure]:
    """What a worker process does."""
    found: list[Data | Failure] = []
    for data in molecules:
        try:
            found.append(relaxed(data))
        except MoleculeError as error:
            found.append(Failure.from_error(error, "relax"))
    return found
