"""Makes data sets of public quantum-chemical dipoles, for training on several levels of theory.

    python datasets/public/build.py --source FOLDER --output FOLDER --exclude HASHES

FOLDER/drug_conformers, torsion_profiles, s66x8_dimers, qm9, organic and smallest become data sets
with cards and splits; ``--source`` has the ``.npz`` files of the first four (arrays of all
structures, one after another: ``n, z, pos`` in angstrom and the labels in debye), and the last two
are data sets of this project. Atomic charges of all of them are Mulliken charges of
GFN2-xTB, computed here, so that a model learns charges of one kind.

A molecule of the first two is for validation if the hash of its InChIKey ends so that one of eight
does; a dimer by the hash of its name. QM9 keeps its split; its training part is a random selection.
None of these sets becomes part of the repository.

A second data set of organic, drug_conformers and qm9, NAME-mmff94s, has the same labels at
geometries like those of molecules from SMILES: relaxed from the original with MMFF94s (UFF where it
lacks parameters), without the structures that become other conformers. A model trained on it
predicts, from a structure of a force field, the dipole at the original geometry.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers, rdMolAlign
from rich.console import Console
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.data import About, ConformerDataset, Split, save_dataset
from dipolegnn.labels import label_many
from dipolegnn.molecules import MoleculeError, Molecules, make_data, to_rdkit
from dipolegnn.nn.model import FROM_FORCE_FIELD

VALIDATION_ONE_OF = 8
"""One of so many molecules is for validation."""

AT_FORCE_FIELD = "drug_conformers", "organic", "qm9"
"""Data sets that are made at geometries of the force field as well."""

RELAXED = (1, 2, 3)
"""Remainders of ``mol_id`` by 5 of the molecules of organic at minima of GFN2-xTB."""

STEPS = 5000
"""Steps of the minimizer at most."""

SAME_CONFORMER = 0.5
"""Largest root mean square displacement in angstrom."""

TRAIN, VALIDATION = 0, 1
"""Marks of QM9's split."""


class Arrays(NamedTuple):
    """The structures of a file, each with the keywords of ``make_data`` that label it."""

    n: NDArray[Any]
    z: NDArray[Any]
    pos: NDArray[Any]
    labels: Callable[[int], dict[str, Any]]
    """Keywords of the structure in a row."""
    molecule: Sequence[str]
    """What identifies the molecule of each row: its SMILES or a name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make data sets of public quantum-chemical dipoles."""

    source: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder with drug_conformers.npz, torsion_profiles.npz, s66x8_dimers.npz, qm9_dipole.npz."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the data sets."""
    organic: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path(__file__).parents[1] / "organic"
    """The data set organic."""
    smallest: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path(__file__).parents[1] / "smallest"
    """The data set smallest."""
    exclude: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """SHA-256 of the first blocks of InChIKeys of molecules to leave out."""
    sets: tuple[str, ...] = field(
        default=(
            *("organic", "smallest", "drug_conformers", "torsion_profiles", "s66x8_dimers", "qm9"),
        )
    )
    """The data sets to make."""
    qm9: int = 20_000
    """Training molecules of QM9."""
    qm9_validation: int = 1000
    """Validation molecules of QM9."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Structures per data set at most, for a quick test."""
    workers: int = 1
    """Processes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the data sets."""
    options = tyro.cli(Options, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    excluded = set() if options.exclude is None else set(options.exclude.read_text().split())
    for name in options.sets:
        made, split, about = SETS[name](options, excluded)
        charged = with_xtb_charges(made.data, options.output / "journal.jsonl", options.workers)
        save_dataset(
            options.output / name,
            Molecules(charged, made.failures),
            replace(about, name=name, created_by="python datasets/public/build.py"),
            split=split,
            packages=("tblite",),
        )
        print(f"{name}: {split}, {len(made.failures)} failures", file=sys.stderr)
        if name in AT_FORCE_FIELD:
            save_relaxed(options.output / f"{name}-mmff94s", charged, split, about)


def save_relaxed(folder: Path, structures: Sequence[Data], split: Split, about: About) -> None:
    """Writes the same molecules at geometries of the force field."""
    validate = set(split.val.tolist())
    found = Molecules([], [])
    validating = []
    for place, data in enumerate(track(structures, "MMFF94s", console=Console(stderr=True))):
        if folder.name.startswith("organic") and int(data.mol_id) % 5 not in RELAXED:
            continue
        try:
            found.data.append(relaxed(data))
        except MoleculeError as error:
            found.failures.append(error.failure("relax", row=place + 1))
        else:
            validating.append(place in validate)
    level = about.level_of_theory.partition(" (")[0]
    about = replace(
        about,
        name=folder.name,
        level_of_theory=f"{level}{FROM_FORCE_FIELD}",
        geometry="MMFF94s or UFF, relaxed from that of the labels, which are of the original",
        created_by="python datasets/public/build.py",
    )
    save_dataset(folder, found, about, split=_split(validating), packages=("tblite",))
    print(f"{folder.name}: {_split(validating)}, {len(found.failures)} failures", file=sys.stderr)


def relaxed(data: Data) -> Data:
    """The structure at the nearest minimum of the force field, aligned with the given one.

    Raises:
        MoleculeError: If bonds or parameters are missing, the minimizer does not converge, or the
            molecule may have become another conformer.
    """
    mol = to_rdkit(data)
    mmff = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    if mmff is None and not rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        raise MoleculeError("Neither MMFF94s nor UFF has parameters for it", molecule=data.name)
    start = Chem.Mol(mol)
    if mmff is None:
        field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol)
    else:
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, mmff)
    field.Initialize()
    if field.Minimize(maxIts=STEPS) != 0:
        raise MoleculeError(f"No minimum within {STEPS} steps", molecule=data.name)
    same = [(atom, atom) for atom in range(mol.GetNumAtoms())]
    moved = rdMolAlign.AlignMol(mol, start, atomMap=same)
    if moved > SAME_CONFORMER:
        raise MoleculeError(
            f"The force field moves the atoms by {moved:.2f} angstrom (RMSD)", molecule=data.name
        )
    copy = data.clone()
    copy.pos = torch.from_numpy(np.array(mol.GetConformer().GetPositions())).float()
    return copy


def drug_conformers(options: Options, excluded: set[str]) -> tuple[Molecules, Split, About]:
    """Conformers of drug-like molecules, magnitudes."""
    arrays = _read(options.source / "drug_conformers.npz")

    def labels(row: int) -> dict[str, Any]:
        energy = float(arrays["energy_dlpno"][row])
        return {
            "charge": int(arrays["charge"][row]),
            "dipole_magnitude": float(arrays["mu_b3lyp"][row]),
            "energy": None if np.isnan(energy) else energy,
            "smiles": str(arrays["smiles"][row]),
            "name": f"{arrays['molecule'][row]} {arrays['conformer'][row]}",
        }

    smiles = [str(text) for text in arrays["smiles"]]
    found = Arrays(arrays["n"], arrays["z"], arrays["pos"], labels, smiles)
    about = About(
        name="",
        description="Conformers of drug-like molecules and ions of 9 to 50 heavy atoms.",
        licence="MIT",
        citation="Folmsbee, Hutchison, Int. J. Quantum Chem. (2020), doi:10.1002/qua.26381",
        level_of_theory="B3LYP/def2-TZVP (Orca, with D3BJ, which does not change the dipole)",
        geometry="optimized with DFT",
    )
    return (*_by_molecule(found, excluded, options.limit), about)


def torsion_profiles(options: Options, excluded: set[str]) -> tuple[Molecules, Split, About]:
    """Torsion scans, vectors."""
    arrays = _read(options.source / "torsion_profiles.npz")

    def labels(row: int) -> dict[str, Any]:
        return {
            "charge": int(arrays["charge"][row]),
            "dipole": arrays["dipole_com"][row],
            "smiles": str(arrays["smiles"][row]),
            "name": f"scan {arrays['scan'][row]}, {arrays['angle'][row]} degrees",
        }

    smiles = [str(text) for text in arrays["smiles"]]
    found = Arrays(arrays["n"], arrays["z"], arrays["pos"], labels, smiles)
    about = About(
        name="",
        description="Torsion scans of small molecules and ions.",
        licence="MIT",
        citation="qm-theory-benchmark of MobleyLab",
        level_of_theory="B3LYP/def2-TZVPD (with D3BJ and a second polarization function, TZVPPD)",
        geometry="torsion scans",
    )
    return (*_by_molecule(found, excluded, options.limit), about)


def s66x8_dimers(options: Options, excluded: set[str]) -> tuple[Molecules, Split, About]:
    """Dimers at eight distances, vectors."""
    arrays = _read(options.source / "s66x8_dimers.npz")

    def labels(row: int) -> dict[str, Any]:
        name = f"{arrays['dimer'][row]}, distance {arrays['step'][row]}"
        return {"dipole": arrays["dipole"][row], "name": name}

    names = [str(text) for text in arrays["dimer"]]
    found = Arrays(arrays["n"], arrays["z"], arrays["pos"], labels, names)
    about = About(
        name="",
        description="Dimers of small molecules at eight distances.",
        licence="MIT",
        citation="COMP6: Smith et al., J. Chem. Phys. 148, 241733 (2018)",
        level_of_theory="wB97X/6-31G*",
        geometry="S66x8",
    )
    return (*_by_molecule(found, excluded, options.limit), about)


def qm9(options: Options, excluded: set[str]) -> tuple[Molecules, Split, About]:
    """Part of QM9, magnitudes."""
    arrays = _read(options.source / "qm9_dipole.npz")
    rng = np.random.default_rng(0)
    counts = {TRAIN: options.qm9, VALIDATION: options.qm9_validation}
    rows = [
        np.sort(rng.permutation(np.flatnonzero(arrays["split"] == part))[: options.limit or count])
        for part, count in counts.items()
    ]

    def labels(row: int) -> dict[str, Any]:
        index = int(arrays["qm9_index"][row])
        return {"dipole_magnitude": float(arrays["mu"][row]), "mol_id": index, "name": f"{index}"}

    found = Arrays(arrays["n"], arrays["z"], arrays["pos"], labels, ())
    made = _structures(found, np.concatenate(rows).tolist())
    in_train = {int(arrays["qm9_index"][row]) for row in rows[0]}
    about = About(
        name="",
        description="Molecules of QM9 without F and without the uncharacterized ones, magnitudes.",
        licence="CC0-1.0",
        citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014)",
        level_of_theory="B3LYP/6-31G(2df,p)",
        geometry="B3LYP/6-31G(2df,p)",
    )
    return made, _split([int(data.mol_id) not in in_train for data in made.data]), about


def organic(options: Options, excluded: set[str]) -> tuple[Molecules, Split, About]:
    """The project's own molecules and ions, vectors."""
    dataset = ConformerDataset(options.organic)
    return _own(dataset, options.limit, set(dataset.split().val.tolist()), excluded)


def smallest(options: Options, excluded: set[str]) -> tuple[Molecules, Split, About]:
    """The smallest molecules, which QM9 lacks; vectors, for training only."""
    return _own(ConformerDataset(options.smallest), options.limit, set(), excluded)


def _own(
    dataset: ConformerDataset, limit: int | None, validate: set[int], excluded: set[str]
) -> tuple[Molecules, Split, About]:
    """Structures of a data set of this project, without the excluded molecules."""
    card = dataset.card
    assert card is not None
    rows = [row for row in range(len(dataset)) if _digest(dataset[row].smiles) not in excluded]
    rows = rows[:limit]
    about = About(
        name="",
        description=card.description,
        licence=card.licence,
        citation=card.citation,
        level_of_theory=card.level_of_theory,
        geometry=card.geometry,
        seed=card.seed,
    )
    data = [dataset[row] for row in rows]
    return Molecules(data, []), _split([row in validate for row in rows]), about


SETS: dict[str, Callable[[Options, set[str]], tuple[Molecules, Split, About]]] = {
    "organic": organic,
    "smallest": smallest,
    "drug_conformers": drug_conformers,
    "torsion_profiles": torsion_profiles,
    "s66x8_dimers": s66x8_dimers,
    "qm9": qm9,
}


def with_xtb_charges(data: Sequence[Data], journal: Path, workers: int) -> list[Data]:
    """Copies with the atomic charges of GFN2-xTB; NaN where it fails."""
    numbered = [molecule.clone() for molecule in data]
    for place, molecule in enumerate(numbered):
        molecule.mol_id = torch.tensor([place])
    labelled = label_many(numbered, XTBConfig(), workers=workers, progress=True, journal=journal)
    charges = {int(molecule.mol_id): molecule.atomic_charges for molecule in labelled.data}
    if labelled.failures:
        print(f"{len(labelled.failures)} structures without charges", file=sys.stderr)
    copies = [molecule.clone() for molecule in data]
    for place, molecule in enumerate(copies):
        missing = torch.full_like(molecule.atomic_charges, torch.nan)
        molecule.atomic_charges = charges.get(place, missing)
    return copies


def _by_molecule(arrays: Arrays, excluded: set[str], limit: int | None) -> tuple[Molecules, Split]:
    """Structures without the excluded molecules, and a split by molecule."""
    with rdBase.BlockLogs():
        blocks = {name: _first_block(name) for name in dict.fromkeys(arrays.molecule)}
    digests = {name: _digest(name) for name in blocks}
    numbers = {block: number for number, block in enumerate(dict.fromkeys(blocks.values()))}
    rows = [row for row, name in enumerate(arrays.molecule) if digests[name] not in excluded]
    made = _structures(arrays, rows[:limit], [numbers[blocks[name]] for name in arrays.molecule])
    validating = {
        numbers[blocks[name]] for name in blocks if int(digests[name], 16) % VALIDATION_ONE_OF == 0
    }
    return made, _split([int(data.mol_id) in validating for data in made.data])


def _digest(name: str) -> str:
    return hashlib.sha256(_first_block(name).encode()).hexdigest()


def _first_block(name: str) -> str:
    """First block of the InChIKey of a SMILES; a name of another kind as it is."""
    mol: Chem.Mol | None = Chem.MolFromSmiles(name)
    return name if mol is None else Chem.MolToInchiKey(mol).split("-")[0]


def _structures(
    arrays: Arrays, rows: Sequence[int], mol_ids: Sequence[int] | None = None
) -> Molecules:
    """The structures in these rows, and those that cannot be used as failures."""
    first = np.concatenate([[0], np.cumsum(arrays.n, dtype=np.int64)])
    found = Molecules([], [])
    for row in track(rows, "Reading", console=Console(stderr=True)):
        atoms = slice(first[row], first[row + 1])
        labels = arrays.labels(row)
        if mol_ids is not None:
            labels["mol_id"] = mol_ids[row]
        try:
            found.data.append(make_data(arrays.z[atoms], arrays.pos[atoms], **labels))
        except MoleculeError as error:
            found.failures.append(error.failure("read", row=row + 1))
    return found


def _split(validate: Sequence[bool]) -> Split:
    chosen = torch.tensor(validate)
    empty = torch.empty(0, dtype=torch.long)
    return Split((~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1), empty)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


if __name__ == "__main__":
    main()
