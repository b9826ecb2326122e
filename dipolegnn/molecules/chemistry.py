"""RDKit molecules and ``Data``: parsing SMILES, conversion, conformers, canonical forms.

Messages that RDKit prints on standard error are captured and included in the errors.

Conformers are embedded by ETKDGv3 and minimized with MMFF94s, else UFF. They depend on the SMILES,
their number, the seed and the version of RDKit. Specified stereochemistry is preserved, which is
checked in 3D. Unspecified stereochemistry is determined by the seed; all conformers of a molecule
are of the same stereoisomer, unless stereoisomers are enumerated.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds, rdDistGeom, rdForceFieldHelpers, rdMolAlign
from rdkit.Chem.Scaffolds import MurckoScaffold
from rdkit.ForceField.rdForceField import ForceField
from rdkit.Geometry import Point3D

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules.conformers import motions_of, rotatable_bonds, search_size
from dipolegnn.molecules.molecule import MoleculeError, make_data
from dipolegnn.molecules.stereo import (
    StereoElement,
    isomeric_smiles,
    open_stereo,
    specified_stereo,
    stereoisomers,
)

BOND_ORDER_ITERATIONS = 100_000
"""Maximum number of iterations of the search for bond orders."""

SEED_FOR_0 = 1_000_003
"""Seed of RDKit for the seed 0."""

MOST_PARSED_ATOMS = 5_000
"""Largest number of atoms in the text of a SMILES. RDKit parses 5,000 in up to 4 s, and the time is
proportional to the square of the number."""

MINIMIZER_STEPS = 10_000
"""Maximum number of minimizer steps for a conformer; hundreds are usual."""

ATTEMPTS = 10
"""Number of consecutive seeds tried: unspecified stereochemistry may first be assigned as an isomer
that cannot exist, such as a trans-fused small ring, and that minimization does not preserve."""

DUPLICATE_RMSD = 0.1
"""Conformers with a smaller RMSD (angstrom, without hydrogens on carbon) are duplicates ..."""

DUPLICATE_ENERGY = 0.1
"""... if their energies also differ by less than this (kcal/mol)."""

LOW_ENERGY = 3.0
"""A search ends when twice as many conformers bring no further one within this energy (kcal/mol) of
the lowest; the weight of a higher one is below 0.01."""

SEED_STEP = 7919
"""Step of the seeds of a search. RDKit multiplies the seed by the number of the conformer; with a
large prime, no product occurs twice."""

ENERGY_WINDOW = 6.0
"""Conformers higher than this above the lowest (kcal/mol) are dropped from an automatic search; the
weight of each at room temperature is below 1e-4, and errors of energies are 1 to 2 kcal/mol."""

# Symmetry-equivalent numberings tried per comparison. More exist only in molecules with many
# equivalent groups, where the worst case is that a duplicate is kept.
_MAX_MATCHES = 1000

_NEVER_FLAT = frozenset({"B", "C", "N", "Si", "P", "S"})
"""Elements whose atoms with four neighbours are not in one plane with them."""

_ATOM_IN_SMILES = re.compile(r"\[[^\]]*\]|Br|Cl|[BCNOPSFIbcnops*]")

# RDKit's log is one stream per process: two threads must not redirect it at the same time.
_LOG_LOCK = threading.RLock()


@contextlib.contextmanager
def captured_log() -> Iterator[Callable[[str], str]]:
    """Captures the messages of RDKit; its log settings are restored afterwards.

    Yields a function that returns the first meaningful line, or its argument if there is none.
    """
    with _LOG_LOCK, rdBase.BlockLogs(), rdBase.CaptureErrorLog() as capture:

        def reason(default: str) -> str:
            for line in capture.messages.splitlines():
                text = re.sub(r"^\[\d\d:\d\d:\d\d\]\s*(SMILES Parse Error: )?", "", line).strip()
                if text and text != "****" and not text.endswith("Violation"):
                    return text
            return default

        yield reason


def parse_smiles(smiles: str, *, name: str = "", several: bool = False) -> Chem.Mol:
    """Parses a SMILES, without adding hydrogens.

    Args:
        smiles: The SMILES.
        name: Name of the molecule, for errors.
        several: True if it may have several fragments.

    Raises:
        MoleculeError: Invalid SMILES or valence, no atoms or too many, several fragments, a dummy
            atom, or a radical.
    """
    text = smiles.strip()
    atoms = sum(1 for _ in _ATOM_IN_SMILES.finditer(text))
    if atoms > MOST_PARSED_ATOMS:
        raise MoleculeError(
            f"The SMILES has {atoms:,} atoms without hydrogens, expected up to "
            f"{MOST_PARSED_ATOMS:,}",
            remedy="Give a 3D structure (.sdf, .xyz)",
            molecule=name or f"{text[:60]}...",
        )
    params = Chem.SmilesParserParams()
    # Text after the SMILES is an error, not a name. (RDKit's stubs have no setters.)
    params.parseName = False  # type: ignore[assignment]
    with captured_log() as reason:
        mol = Chem.MolFromSmiles(text, params)
    if mol is None:
        raise MoleculeError(
            f"Not a valid SMILES: {reason('RDKit cannot read it')}",
            remedy="Correct the SMILES",
            molecule=name or text,
        )
    try:
        if mol.GetNumAtoms() == 0:
            raise MoleculeError("The SMILES is empty", remedy="Give a SMILES")
        _check_atoms(mol)
        fragments = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False)
        if len(fragments) > 1 and not several:
            parts = ", ".join(Chem.MolToSmiles(part) for part in fragments)
            raise MoleculeError(
                f"{len(fragments)} fragments ({parts}); their arrangement in space is not defined",
                remedy="Keep the largest fragment only (--largest-fragment; in Python "
                "ConformerConfig.largest_fragment), or give the complex as a 3D structure",
            )
    except MoleculeError as error:
        raise error.located(molecule=name or text) from None
    return mol


def largest_fragment(mol: Chem.Mol) -> tuple[Chem.Mol, list[str]]:
    """Returns the fragment with most atoms, hydrogens last, and the SMILES of the others.

    Example:
        >>> acetate, others = largest_fragment(Chem.MolFromSmiles("[Na+].CC(=O)[O-].O"))
        >>> Chem.MolToSmiles(acetate), others
        ('CC(=O)[O-]', ['[Na+]', 'O'])
    """
    fragments = list(Chem.GetMolFrags(mol, asMols=True))
    if len(fragments) == 1:
        return mol, []
    largest = max(
        fragments,
        key=lambda part: (part.GetNumHeavyAtoms(), sum(a.GetTotalNumHs() for a in part.GetAtoms())),
    )
    return largest, [Chem.MolToSmiles(part) for part in fragments if part is not largest]


def formal_charge(mol: Chem.Mol) -> float:
    """Total charge in e, the sum of the formal charges."""
    return float(Chem.GetFormalCharge(mol))


def _check_flat(mol: Chem.Mol) -> None:
    """An error for a 2D drawing that is marked as 3D: z is 0 and a tetrahedral atom is flat."""
    if all(conformer.GetPositions()[:, 2].any() for conformer in mol.GetConformers()):
        return
    for atom in mol.GetAtoms():
        if atom.GetSymbol() in _NEVER_FLAT and atom.GetTotalDegree() == 4:
            raise MoleculeError(
                f"All z coordinates are 0, and atom {atom.GetIdx() + 1} ({atom.GetSymbol()}) has 4 "
                "neighbours: the structure is a 2D drawing that is marked as 3D",
                remedy="Give its SMILES, or a 3D structure",
            )


def _check_atoms(mol: Chem.Mol) -> None:
    """Refuses dummy atoms and radicals."""
    for atom in mol.GetAtoms():
        title = f"Atom {atom.GetIdx() + 1} ({atom.GetSymbol()})"
        if atom.GetAtomicNum() == 0:
            raise MoleculeError(
                f"{title} is a dummy atom, not an element",
                remedy="Replace it by an element, or cap the open bond with hydrogen",
            )
        if unpaired := atom.GetNumRadicalElectrons():
            raise MoleculeError(
                f"{title} has {unpaired} unpaired electron(s), and only closed-shell molecules are "
                f"supported",
                remedy="Add the missing hydrogens, or give the atom its formal charge",
            )


def from_rdkit(mol: Chem.Mol, *, name: str = "", mol_id: int = 0) -> list[Data]:
    """Converts the conformers of a molecule with explicit hydrogens; the order of atoms is kept.

    ``Data.smiles`` is the canonical isomeric SMILES; ``Data.mol_block`` keeps bonds, stereo,
    isotopes and charges. ``mol`` is not changed.

    Args:
        mol: Molecule with 3D conformers.
        name: Name; default: the title of the molecule (``_Name``), else the SMILES.
        mol_id: Number of the molecule, shared by its conformers.

    Raises:
        MoleculeError: No 3D conformer, implicit hydrogens, dummy atoms, a radical.
    """
    if not name and mol.HasProp("_Name"):
        name = mol.GetProp("_Name").strip()
    with captured_log():
        try:
            return _from_rdkit(mol, name=name, mol_id=mol_id)
        except MoleculeError as error:
            with contextlib.suppress(RuntimeError):  # not every molecule has a SMILES
                name = name or Chem.MolToSmiles(mol)
            raise error.located(molecule=name) from None


def _from_rdkit(mol: Chem.Mol, *, name: str, mol_id: int) -> list[Data]:
    if mol.GetNumAtoms() == 0:
        raise MoleculeError("The molecule has no atoms", remedy="Remove the empty record")
    mol = Chem.Mol(mol)
    with captured_log() as reason:
        try:
            Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError) as error:
            raise MoleculeError(
                f"RDKit cannot sanitize the molecule: {reason(str(error))}",
                remedy="Correct its valences and charges",
            ) from None
    _check_atoms(mol)
    if mol.GetNumConformers() == 0:
        raise MoleculeError(
            "The molecule has no 3D structure", remedy="Embed it, or give its SMILES instead"
        )
    if not all(conformer.Is3D() for conformer in mol.GetConformers()):
        raise MoleculeError(
            "The structure is a 2D drawing, not 3D coordinates",
            remedy="Give its SMILES instead; or, if it is a planar 3D structure, mark it as 3D "
            "(in an SDF '3D' in columns 21-22 of a record's second line)",
        )
    missing = sum(atom.GetTotalNumHs() for atom in mol.GetAtoms())
    if missing:
        raise MoleculeError(
            f"{missing} hydrogen atom(s) have no coordinates",
            remedy="Write the structure with explicit hydrogens (in RDKit: "
            "Chem.AddHs(mol, addCoords=True))",
        )
    _check_flat(mol)
    smiles = Chem.MolToSmiles(Chem.RemoveHs(mol))
    return [
        conformer_data(mol, conformer.GetId(), name=name, mol_id=mol_id, smiles=smiles)
        for conformer in mol.GetConformers()
    ]


def conformer_data(
    mol: Chem.Mol,
    conformer: int,
    *,
    energy: float | None = None,
    mol_id: int = 0,
    smiles: str = "",
    name: str = "",
) -> Data:
    """Converts one conformer of a molecule with explicit hydrogens to ``Data``."""
    data = make_data(
        [atom.GetAtomicNum() for atom in mol.GetAtoms()],
        mol.GetConformer(conformer).GetPositions(),
        charge=Chem.GetFormalCharge(mol),
        energy=energy,
        fragments=_fragments(mol),
        mol_id=mol_id,
        smiles=smiles,
        name=name,
    )
    data.mol_block = Chem.MolToV3KMolBlock(mol, confId=conformer)
    return data


def _fragments(mol: Chem.Mol) -> tuple[list[int], list[int]]:
    """Number of the fragment of each atom, and the sum of its formal charges."""
    fragment = [0] * mol.GetNumAtoms()
    charges = [0] * mol.GetNumAtoms()
    for number, atoms in enumerate(Chem.GetMolFrags(mol)):
        total = sum(mol.GetAtomWithIdx(atom).GetFormalCharge() for atom in atoms)
        for atom in atoms:
            fragment[atom], charges[atom] = number, total
    return fragment, charges


def to_rdkit(data: Data) -> Chem.Mol:
    """Converts ``Data`` to an RDKit molecule with the same order of atoms.

    Bonds are those of ``data.mol_block`` if present, else they are determined from the coordinates
    and the total charge.

    Raises:
        MoleculeError: Bonds cannot be determined, or ``mol_block`` has other atoms.
    """
    try:
        mol = _perceive_bonds(data) if "mol_block" not in data else _read_mol_block(data)
    except MoleculeError as error:
        raise error.located(molecule=data.name) from None
    mol.SetProp("_Name", data.name)
    return mol


def _read_mol_block(data: Data) -> Chem.Mol:
    with captured_log() as reason:
        mol = Chem.MolFromMolBlock(data.mol_block, removeHs=False)
    if mol is None:
        raise MoleculeError(
            f"Its mol_block cannot be read: {reason('RDKit gives no reason')}",
            remedy="Delete data.mol_block to have the bonds perceived from the coordinates",
        )
    if [atom.GetAtomicNum() for atom in mol.GetAtoms()] != data.z.tolist():
        raise MoleculeError(
            "The atoms of its mol_block are not those of z",
            remedy="Delete data.mol_block to have the bonds perceived from the coordinates",
        )
    conformer = mol.GetConformer()
    for atom, xyz in enumerate(data.pos.tolist()):
        conformer.SetAtomPosition(atom, Point3D(*xyz))
    return mol


def _perceive_bonds(data: Data) -> Chem.Mol:
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(data.z))
    for atom, (number, xyz) in enumerate(zip(data.z.tolist(), data.pos.tolist(), strict=True)):
        mol.AddAtom(Chem.Atom(number))
        conformer.SetAtomPosition(atom, Point3D(*xyz))
    mol.AddConformer(conformer)
    charge = round(data.charge.item())
    with captured_log() as reason:
        try:
            rdDetermineBonds.DetermineBonds(mol, charge=charge, maxIterations=BOND_ORDER_ITERATIONS)
            Chem.SanitizeMol(mol)
            Chem.AssignStereochemistryFrom3D(mol)
        except (ValueError, RuntimeError) as error:
            raise MoleculeError(
                f"No bonds fit the structure and its charge {charge:+d}: "
                f"{reason(str(error).splitlines()[0])}",
                remedy="Check the charge and the geometry, or write .xyz or .extxyz, which need "
                "no bonds",
            ) from None
    return mol.GetMol()


def force_field_energies(conformers: Sequence[Data]) -> list[float | MoleculeError]:
    """Energies of structures of one molecule in kcal/mol, without minimization.

    They are those of MMFF94s, else UFF, with the bonds of the first structure, if the atoms are in
    the same order.

    Example:
        >>> conformers = from_smiles("OCCO", conformers=4)
        >>> energies = force_field_energies(conformers)
        >>> [bool(abs(e - c.energy) < 0.01) for e, c in zip(energies, conformers)][:2]
        [True, True]
    """
    energies: list[float | MoleculeError] = []
    mol = None
    for data in conformers:
        try:
            if mol is None or not torch.equal(data.z, conformers[0].z):
                mol = to_rdkit(data)
            with captured_log():
                energies.append(_force_field_energy(mol, data))
        except MoleculeError as error:
            remedy = "Take another method (--energies), or give the energies in the file"
            energies.append(MoleculeError(error.problem, remedy=remedy, molecule=data.name))
    return energies


def _force_field_energy(mol: Chem.Mol, data: Data) -> float:
    mol = Chem.Mol(mol)
    for atom, xyz in enumerate(data.pos.tolist()):
        mol.GetConformer().SetAtomPosition(atom, Point3D(*xyz))
    if mol.GetNumAtoms() == 1:
        return 0.0
    field = _force_field(mol)(mol.GetConformer().GetId())
    field.Initialize()
    return float(field.CalcEnergy())


def from_smiles(
    smiles: str,
    *,
    conformers: int | Literal["auto"] = 1,
    seed: int = 7,
    stereoisomers: int = 1,
    largest_fragment: bool = False,
    name: str = "",
    row: int | None = None,
    mol_id: int = 0,
) -> list[Data]:
    """Generates conformers of a molecule, lowest force-field energy first.

    Atoms are in the order of the SMILES, followed by the hydrogens in RDKit's order (those of the
    first atom first). Explicit hydrogens (``[H]O[H]``) are treated as added hydrogens; isotopes
    (``[2H]``) keep their position. This order also holds for stereoisomers and for the largest
    fragment, whose ``smiles`` is canonical.

    Duplicates, and conformers that do not converge or lose their stereochemistry, are removed, so
    that fewer conformers than requested may be returned (one for water).
    ``energy`` is that of MMFF94s or, where that lacks parameters, UFF.

    Args:
        smiles: SMILES of one molecule.
        conformers: Number of conformers to embed; ``"auto"``: as many as the molecule needs for an
            average, up to :func:`~dipolegnn.molecules.conformers.search_size`: twice as many bring
            no further one within 3 kcal/mol of the lowest. Those more than 6 kcal/mol above it,
            and mirror images, are left out.
        seed: Seed of the embedding.
        stereoisomers: Maximum number of stereoisomers, if the SMILES does not define the
            stereochemistry; 1: one of them. See
            :class:`~dipolegnn.config.ConformerConfig`.
        largest_fragment: True to keep only the largest fragment of a salt or solvate; ``notes``
            state what is left out.
        name: Name; the SMILES by default.
        row: Row in the source, for error messages.
        mol_id: Number of the molecule; with stereoisomers, those of this one are
            ``mol_id * stereoisomers`` and up.

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
    config = ConformerConfig(
        conformers, seed, stereoisomers=stereoisomers, largest_fragment=largest_fragment
    )
    try:
        mol = parse_smiles(smiles, name=name, several=largest_fragment)
        return embed(mol, smiles.strip(), config, name=name, mol_id=mol_id)
    except MoleculeError as error:
        raise error.located(molecule=name or smiles.strip(), row=row) from None


def embed(
    mol: Chem.Mol, smiles: str, config: ConformerConfig, *, name: str, mol_id: int
) -> list[Data]:
    """Generates the conformers of a parsed SMILES, or those of each of its stereoisomers.

    ``mol_id`` of stereoisomer k, from 0, is ``mol_id * config.stereoisomers + k``. ``notes`` of the
    structures state which stereochemistry the SMILES does not define, if the dipole depends on it,
    and which fragments are left out.
    """
    mol, others = largest_fragment(mol)
    notes = []
    if others:
        name = name or smiles
        smiles = str(Chem.MolToSmiles(mol))
        notes.append(f"the largest fragment, {smiles}; left out: {', '.join(others)}")
    atoms = mol.GetNumAtoms() + sum(atom.GetTotalNumHs() for atom in mol.GetAtoms())
    if atoms > config.max_atoms:
        raise MoleculeError(
            f"It has {atoms:,} atoms, and SMILES are embedded with up to {config.max_atoms:,}",
            remedy="Give a 3D structure (.sdf, .xyz), or raise the limit (--max-atoms; in Python "
            "ConformerConfig.max_atoms)",
        )
    with captured_log() as reason:
        try:
            found = _stereoisomers(mol, smiles, config, name, mol_id * config.stereoisomers)
        except MoleculeError:
            raise
        except (RuntimeError, ValueError) as error:  # internal errors of RDKit
            raise MoleculeError(
                f"No 3D structure of it can be built: {reason(str(error))}",
                remedy="Give a 3D structure (.sdf, .xyz)",
            ) from None
    for data in found if notes else ():
        data.notes = [*notes, *(data.get("notes") or ())]
    return found


def _stereoisomers(
    mol: Chem.Mol, smiles: str, config: ConformerConfig, name: str, mol_id: int
) -> list[Data]:
    count = config.conformers
    first, most = search_size(mol) if count == "auto" else (count, count)

    def conformers(
        isomer: tuple[Chem.Mol, dict[int, float]], number: int, text: str, notes: Sequence[str]
    ) -> list[Data]:
        embedded, energies = isomer
        if count == "auto" and most > 1:
            chosen = _search(embedded, energies, most, config)
        else:
            chosen = _distinct(embedded, energies)
        title = f"{name} ({text})" if name and text != smiles else name
        found = [
            conformer_data(
                embedded, k, energy=energies[k], mol_id=mol_id + number, smiles=text, name=title
            )
            for k in chosen
        ]
        for data in found if notes else ():
            data.notes = list(notes)
        return found

    given = Chem.AddHs(mol)
    embedded = _embed(given, first, config)
    left_open = open_stereo(given, embedded[0])
    if not left_open.diastereomers:
        return conformers(embedded, 0, smiles, ())
    about = f"the SMILES does not define the {left_open.described(given)}"
    if config.stereoisomers == 1:
        this = f"this is {isomeric_smiles(embedded[0])}, and others may have other dipole moments"
        return conformers(embedded, 0, smiles, [f"{about}: {this} (option stereoisomers)"])
    isomers, complete = stereoisomers(embedded[0], left_open, config.stereoisomers)
    if len(isomers) == 1:
        return conformers(embedded, 0, smiles, ())
    of = f"one of {len(isomers)} stereoisomers{'' if complete else ', and there are more'}"
    left_out = []
    embedded_of = {0: embedded}
    for number, isomer in enumerate(isomers[1:], start=1):
        try:
            embedded_of[number] = _embed(isomer.mol, first, config)
        except MoleculeError as error:
            left_out.append(f"the stereoisomer {isomer.smiles} is left out: {error.problem}")
    found = []
    for number, isomer in enumerate(isomers):
        notes = [f"{about}: this is {isomer.smiles}, {of}"]
        if isomer.mirror_image != isomer.smiles:
            notes.append(f"its mirror image {isomer.mirror_image} has the same magnitude")
        if number in embedded_of:
            found += conformers(embedded_of[number], number, isomer.smiles, [*notes, *left_out])
    return found


def _embed(
    mol: Chem.Mol, conformers: int, config: ConformerConfig
) -> tuple[Chem.Mol, dict[int, float]]:
    """A copy of ``mol`` with conformers; energies of those that keep its stereochemistry."""
    limit = config.embed_time_limit
    deadline = time.monotonic() + limit * conformers
    for attempt in range(ATTEMPTS):
        embedded = Chem.Mol(mol)
        energies = _stereoisomer(embedded, conformers, config.conformer_seed + attempt, limit)
        if energies:
            return embedded, energies
        if time.monotonic() > deadline:
            break
    raise MoleculeError(
        "The stereochemistry of the SMILES is not that of any structure found",
        remedy="Check the stereo centres and double bonds, or give a 3D structure",
    )


def _stereoisomer(mol: Chem.Mol, conformers: int, seed: int, limit: int) -> dict[int, float]:
    """Adds minimized conformers of one stereoisomer to ``mol``; energies of those that keep it."""
    specified = specified_stereo(mol)
    _make_conformers(mol, 1, seed, limit)
    Chem.AssignStereochemistryFrom3D(mol)
    if conformers > 1:
        _make_conformers(mol, conformers, seed, limit)
    energies = _minimize(mol, limit)
    return _kept_stereo(mol, energies, specified_stereo(mol) | specified)


def _search(
    mol: Chem.Mol, energies: dict[int, float], most: int, config: ConformerConfig
) -> list[int]:
    """Adds conformers to ``mol`` until twice as many bring no further one of low energy.

    Args:
        mol: Molecule with minimized conformers of one stereoisomer.
        energies: Their energies; those of further conformers are added.
        most: Maximum number of conformers embedded.
        config: Seed of the conformers that are there, and time limit.

    Returns:
        Conformers without duplicates, mirror images, and those of high energy, lowest first. Where
        some are their own mirror image, the others come with theirs, because they count twice in an
        average.
    """
    stereo = specified_stereo(mol)
    # With stereocentres, the mirror image of a conformer is one of the enantiomer.
    mirror = str(Chem.StereoType.Atom_Tetrahedral) not in {kind for kind, _ in stereo}
    embedded = mol.GetNumConformers()
    found = _distinct(mol, energies, mirror=mirror)
    while embedded < most:
        more = Chem.Mol(mol)
        count = min(embedded, most - embedded)
        try:
            seed = (config.conformer_seed + SEED_STEP * embedded) % 2**31
            _make_conformers(more, count, seed, config.embed_time_limit)
            minimized = _kept_stereo(more, _minimize(more, config.embed_time_limit), stereo)
        except MoleculeError:  # none of these was embedded or converged
            break
        embedded += count
        added = {
            mol.AddConformer(more.GetConformer(k), assignId=True): energy
            for k, energy in minimized.items()
        }
        energies |= added
        found, before = _distinct(mol, energies, added, found, mirror=mirror), found
        low = min(energies[k] for k in found) + LOW_ENERGY
        if all(energies[k] > low for k in found[len(before) :]):
            break
    highest = min(energies[k] for k in found) + ENERGY_WINDOW
    found = [k for k in found if energies[k] <= highest]
    if mirror:
        skeleton = _skeleton(mol)
        chiral = [k for k in found if _rmsd(skeleton, k, k, mirror=True) >= DUPLICATE_RMSD]
        if len(chiral) < len(found):
            for k in chiral:
                image = mol.AddConformer(mol.GetConformer(k), assignId=True)
                _reflect(mol.GetConformer(image))
                energies[image] = energies[k]
                found.append(image)
    return sorted(found, key=lambda k: energies[k])


def _kept_stereo(
    mol: Chem.Mol, energies: dict[int, float], wanted: dict[StereoElement, str]
) -> dict[int, float]:
    """Energies of the conformers with the stereochemistry ``wanted``."""
    return {k: e for k, e in energies.items() if _stereo_in_3d(mol, k, wanted) == wanted}


def _make_conformers(mol: Chem.Mol, conformers: int, seed: int, limit: int) -> None:
    """Replaces the conformers of ``mol`` by newly embedded ones; ``limit`` in seconds for each."""
    params = rdDistGeom.ETKDGv3()
    # With 0, RDKit embeds the same conformer each time. Its stubs have no setters.
    params.randomSeed = seed or SEED_FOR_0  # type: ignore[assignment]
    params.timeout = limit  # type: ignore[assignment]
    start = time.monotonic()
    found = rdDistGeom.EmbedMultipleConfs(mol, conformers, params)
    if not found:
        # Random starting coordinates succeed for crowded cages and long chains.
        params.useRandomCoords = True  # type: ignore[assignment]
        found = rdDistGeom.EmbedMultipleConfs(mol, conformers, params)
    if not found:
        taken = time.monotonic() - start
        within = f" within {limit} s" if taken > limit else ""
        raise MoleculeError(
            f"No 3D structure of it can be built{within}",
            remedy="Check it for impossible rings or stereo, or give a 3D structure (.sdf, .xyz)",
        )


def _force_field(mol: Chem.Mol) -> Callable[[int], ForceField]:
    """Function that returns the force field of a conformer: MMFF94s, else UFF."""
    mmff = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    if mmff is not None:
        return lambda conformer: rdForceFieldHelpers.MMFFGetMoleculeForceField(
            mol, mmff, confId=conformer
        )
    if not rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        raise MoleculeError(
            "Neither MMFF94s nor UFF has parameters for all of its atoms",
            remedy="Give a 3D structure (.sdf, .xyz)",
        )
    return lambda conformer: rdForceFieldHelpers.UFFGetMoleculeForceField(mol, confId=conformer)


def _minimize(mol: Chem.Mol, limit: int) -> dict[int, float]:
    """Minimizes all conformers in place; energies in kcal/mol of those that converged.

    ``limit`` is the time limit in seconds for each.
    """
    ids = [conformer.GetId() for conformer in mol.GetConformers()]
    if mol.GetNumAtoms() == 1:
        return dict.fromkeys(ids, 0.0)
    force_field = _force_field(mol)
    deadline = time.monotonic() + limit * len(ids)
    energies = {}
    for conformer in ids:
        field = force_field(conformer)
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
            f"{limit} s a conformer",
            remedy="Give a 3D structure (.sdf, .xyz)",
        )
    return energies


def _stereo_in_3d(
    mol: Chem.Mol, conformer: int, wanted: dict[StereoElement, str]
) -> dict[StereoElement, str]:
    """Stereochemistry of the elements of ``wanted`` in the geometry of ``conformer``."""
    if not wanted:
        return {}
    copy = Chem.Mol(mol, confId=conformer)
    Chem.AssignStereochemistryFrom3D(copy, conformer)
    found = specified_stereo(copy)
    return {element: found.get(element, "undefined") for element in wanted}


def _distinct(
    mol: Chem.Mol,
    energies: dict[int, float],
    candidates: Iterable[int] | None = None,
    found: Sequence[int] = (),
    *,
    mirror: bool = False,
) -> list[int]:
    """``found`` and those of ``candidates`` that are not duplicates, by energy.

    Args:
        mol: Molecule with conformers.
        energies: Their energies.
        candidates: Conformers to compare; None: all with an energy.
        found: Conformers known to differ from each other.
        mirror: Mirror images are duplicates.
    """
    ordered = sorted(energies if candidates is None else candidates, key=lambda k: energies[k])
    kept = list(found)
    if len(ordered) + len(kept) == 1:
        return ordered
    skeleton = _skeleton(mol)
    for conformer in ordered:
        near = (k for k in kept if abs(energies[conformer] - energies[k]) < DUPLICATE_ENERGY)
        if not any(
            _rmsd(skeleton, conformer, k) < DUPLICATE_RMSD
            or (mirror and _rmsd(skeleton, conformer, k, mirror=True) < DUPLICATE_RMSD)
            for k in near
        ):
            kept.append(conformer)
    return kept


def _skeleton(mol: Chem.Mol) -> Chem.RWMol:
    """The molecule without hydrogens on carbon, for comparisons of conformers."""
    # Hydrogens on carbon are determined by the skeleton and increase the number of symmetries;
    # those on O, N and S distinguish rotamers, whose dipoles differ.
    skeleton = Chem.RWMol(mol)
    skeleton.BeginBatchEdit()
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 1 and any(n.GetAtomicNum() == 6 for n in atom.GetNeighbors()):
            skeleton.RemoveAtom(atom.GetIdx())
    skeleton.CommitBatchEdit()
    return skeleton


def _reflect(conformer: Chem.Conformer) -> None:
    """Replaces a conformer by its mirror image."""
    conformer.SetPositions(conformer.GetPositions() * (1.0, 1.0, -1.0))


def _rmsd(skeleton: Chem.Mol, conformer: int, other: int, *, mirror: bool = False) -> float:
    probe = Chem.Mol(skeleton, confId=conformer)  # a copy, as alignment moves it
    if mirror:
        _reflect(probe.GetConformer())
    return float(rdMolAlign.GetBestRMS(probe, skeleton, conformer, other, maxMatches=_MAX_MATCHES))


def count_atoms(smiles: str) -> int:
    """Number of atoms of a molecule, hydrogens included.

    Raises:
        MoleculeError: As :func:`~dipolegnn.molecules.from_smiles`, for the SMILES itself.

    Example:
        >>> count_atoms("CCO")
        9
    """
    return int(Chem.AddHs(parse_smiles(smiles)).GetNumAtoms())


def can_turn(smiles: str) -> bool:
    """True if a molecule has rotatable bonds.

    A bond is rotatable if it is a single bond outside rings with further substituents at both ends,
    including hydroxyl hydrogens; bonds to methyl groups do not count. Ring conformations are not
    considered.

    Raises:
        MoleculeError: As :func:`parse_smiles`.

    Example:
        >>> can_turn("CO"), can_turn("CCO"), can_turn("CCC"), can_turn("CCCC")
        (False, True, False, True)
    """
    return bool(rotatable_bonds(parse_smiles(smiles)))


def count_motions(smiles: str) -> int:
    """Number of rotatable bonds and flexible rings of a molecule; 0: it is rigid.

    Raises:
        MoleculeError: As :func:`parse_smiles`.

    Example:
        >>> count_motions("c1ccccc1"), count_motions("CCO"), count_motions("OC1CCCCC1")
        (0, 1, 2)
    """
    return motions_of(parse_smiles(smiles))


def canonical_smiles(smiles: str) -> str:
    """Returns RDKit's canonical isomeric SMILES.

    Raises:
        MoleculeError: As :func:`parse_smiles`.

    Example:
        >>> canonical_smiles("OCC")
        'CCO'
    """
    mol = parse_smiles(smiles)
    with captured_log():
        return str(Chem.MolToSmiles(mol))


def murcko_scaffold(smiles: str) -> str:
    """Returns the SMILES of the Bemis-Murcko scaffold (rings and linkers); ``""`` without rings.

    Source: Bemis and Murcko, J. Med. Chem. 39, 2887 (1996), in RDKit's variant, which keeps
    exocyclic double bonds. Stereochemistry is removed.

    Raises:
        MoleculeError: As :func:`parse_smiles`.

    Example:
        >>> murcko_scaffold("CC(=O)Oc1ccccc1C(=O)O")
        'c1ccccc1'
    """
    mol = parse_smiles(smiles)
    with captured_log():
        return str(MurckoScaffold.MurckoScaffoldSmiles(mol=mol))
