"""Labels structures of many organic molecules with GFN2-xTB: dipoles, charges and energies.

    python datasets/organic_xtb/build.py LIST.csv.gz [LIST.csv.gz ...] --output FOLDER

Each list is a CSV file with a column ``smiles``; the card names the lists with their SHA-256. The
data set is for pre-training a model that is then trained on DFT labels. It is not part of the
repository because of its size (about 100 MB for 200,000 structures).

From each molecule or ion (twelve elements, up to 50 heavy atoms, charges -2 to +2) two structures
are made: a conformer at a minimum of the force field, and another one, displaced at random. For
every eighth molecule of up to 14 heavy atoms the first conformer is relaxed with GFN2-xTB instead.
Pairs of small molecules, at random orientation and distance, follow; ions are paired with ions of
the opposite charge where possible.

With ``--conformers N``, up to N force-field minima of each flexible molecule are labelled instead,
without displacements and pairs: a data set for conformer energies.

Molecules are shuffled and processed in parts, each of which is written to FOLDER/parts when it is
complete; the same command continues with the next part. The data set itself is written at the end
of each call from all parts that exist.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rich.console import Console
from rich.progress import track
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig, XTBConfig
from dipolegnn.data import About, Split, read_molecules, save_dataset, write_molecules
from dipolegnn.files import sha256_of
from dipolegnn.labels import label_many
from dipolegnn.molecules import (
    Failure,
    Molecules,
    SmilesRow,
    embed_smiles,
    make_data,
    read_failures,
    write_failures,
)
from dipolegnn.molecules.conformers import search_size

ELEMENTS = frozenset({"H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I"})
LARGEST = 50
"""Maximum number of heavy atoms."""
MOST_CHARGE = 2
"""Maximum absolute total charge in e."""

PART = 1000
"""Molecules per part; fewer if each has many conformers."""

FLEXIBLE = 8
"""A molecule is flexible if it needs at least so many conformers (``search_size``)."""
LARGEST_FLEXIBLE = 35
"""Maximum number of heavy atoms of flexible molecules; one in five of the list is larger."""

LARGEST_RELAXED = 14
"""Maximum number of heavy atoms of relaxed molecules; relaxing takes 20 single points."""
RELAXED_EVERY = 8

LARGEST_IN_PAIR = 12
"""Maximum number of heavy atoms of each molecule of a pair."""
PAIRS_PER_PART = 150
CONTACT = (0.75, 1.15)
"""Closest contact of a pair, relative to the sum of the van der Waals radii ..."""
GAP = (1.0, 6.0)
"""... or, for every third pair, in angstrom beyond that sum."""

MOVED_CHARGE = 0.5
"""A pair whose Mulliken charges differ from the charges of its molecules by more than this (e) is
left out: GFN2-xTB transfers an electron between them."""

SIGMA = (0.03, 0.1)
"""Standard deviation in angstrom of the random displacement of each coordinate."""

FIRST_PAIR = 10_000_000
"""``mol_id`` of the first pair; molecules have the number of their row in the shuffled list."""


class Molecule(NamedTuple):
    """A molecule of the lists."""

    smiles: str
    heavy_atoms: int
    charge: int


def main(arguments: list[str] | None = None) -> None:
    """Label the parts that do not exist yet, and write the data set."""
    options = _parser().parse_args(arguments)
    excluded = {line for path in options.exclude for line in path.read_text().split()}
    with rdBase.BlockLogs():  # RDKit rejects some lines of the lists
        molecules = molecules_of(options.lists, excluded)
    np.random.default_rng(0).shuffle(molecules)
    size = PART
    if options.conformers:
        molecules = [molecule for molecule in track(molecules, "Flexible") if flexible(molecule)]
        size = max(1, PART // options.conformers)
    molecules = molecules[: options.count]
    parts = math.ceil(len(molecules) / size)
    deadline = time.monotonic() + 60 * options.minutes
    folder = options.output / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(molecules)} molecules in {parts} parts", file=sys.stderr)
    for number in range(parts):
        if (folder / f"{number:04}.npz").exists():
            continue
        if time.monotonic() > deadline:
            break
        rows = range(number * size, min((number + 1) * size, len(molecules)))
        make = labelled_conformers if options.conformers else labelled
        found = make(number, rows, molecules, options)
        write_failures(folder / f"{number:04}.csv", found.failures)
        write_molecules(folder / f"{number:04}.npz", found.data)  # last: the part is complete
        print(
            f"part {number + 1} of {parts}: {len(found.data)} structures, "
            f"{len(found.failures)} failures",
            file=sys.stderr,
        )
    whole(options.output, folder, options)


def molecules_of(lists: Sequence[Path], excluded: set[str]) -> list[Molecule]:
    """The molecules of the lists that are allowed, each once."""
    found: dict[str, Molecule] = {}
    for path in lists:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            rows = [row["smiles"] for row in csv.DictReader(file)]
        for smiles in track(rows, description=path.name, console=Console(stderr=True)):
            mol: Chem.Mol | None = Chem.MolFromSmiles(smiles)
            if mol is None or not allowed(mol):
                continue
            key = Chem.MolToInchiKey(mol).split("-")[0]
            if key and hashlib.sha256(key.encode()).hexdigest() not in excluded:
                text = Chem.MolToSmiles(mol)
                found[text] = Molecule(text, mol.GetNumHeavyAtoms(), Chem.GetFormalCharge(mol))
    return list(found.values())


def allowed(mol: Chem.Mol) -> bool:
    """True for one fragment without radicals or isotopes, of the right elements and size."""
    atoms = list(mol.GetAtoms())
    return (
        0 < mol.GetNumHeavyAtoms() <= LARGEST
        and {atom.GetSymbol() for atom in atoms} <= ELEMENTS
        and abs(Chem.GetFormalCharge(mol)) <= MOST_CHARGE
        and not any(atom.GetNumRadicalElectrons() or atom.GetIsotope() for atom in atoms)
        and len(Chem.GetMolFrags(mol)) == 1
    )


def flexible(molecule: Molecule) -> bool:
    """True if the molecule has several conformers and is not too large."""
    return (
        molecule.heavy_atoms <= LARGEST_FLEXIBLE
        and search_size(Chem.MolFromSmiles(molecule.smiles))[1] >= FLEXIBLE
    )


def embedded(
    rows: Sequence[int], molecules: Sequence[Molecule], config: ConformerConfig, workers: int
) -> Molecules:
    """Conformers at minima of the force field; ``mol_id`` is the row in the shuffled list."""
    given = [SmilesRow(row + 1, molecules[row].smiles) for row in rows]
    found = embed_smiles(given, config, workers=workers)
    for data in found.data:
        data.mol_id = torch.tensor([rows[int(data.mol_id)]])
    return found


def labelled_conformers(
    number: int,
    rows: Sequence[int],
    molecules: Sequence[Molecule],
    options: argparse.Namespace,
) -> Molecules:
    """The labelled conformers of a part."""
    config = ConformerConfig(conformers=options.conformers, conformer_seed=number)
    conformers = embedded(rows, molecules, config, options.workers)
    result = label_many(conformers.data, XTBConfig(), workers=options.workers)
    return Molecules(result.data, [*conformers.failures, *result.failures])


def labelled(
    number: int,
    rows: Sequence[int],
    molecules: Sequence[Molecule],
    options: argparse.Namespace,
) -> Molecules:
    """The labelled structures of a part."""
    rng = np.random.default_rng((1, number))
    workers: int = options.workers
    config = ConformerConfig(conformers=2, conformer_seed=number)
    conformers = embedded(rows, molecules, config, workers)
    of_row: dict[int, list[Data]] = {}
    for data in conformers.data:
        of_row.setdefault(int(data.mol_id), []).append(data)
    relaxed: list[Data] = []
    single: list[Data] = []
    for row, found in of_row.items():
        relax = row % RELAXED_EVERY == 0 and molecules[row].heavy_atoms <= LARGEST_RELAXED
        (relaxed if relax else single).append(found[0])
        single.append(displaced(found[-1], rng))
    small = [row for row in of_row if molecules[row].heavy_atoms <= LARGEST_IN_PAIR]
    for place, (first, second) in enumerate(pairs(small, molecules, rng)):
        mol_id = FIRST_PAIR + number * PAIRS_PER_PART + place
        single.append(pair(of_row[first][0], of_row[second][0], mol_id, place % 3 == 0, rng))
    results = [
        label_many(single, XTBConfig(), workers=workers),
        label_many(relaxed, XTBConfig(optimize=True, fmax=0.05), workers=workers),
    ]
    kept: list[Data] = []
    moved: list[Data] = []
    for data in (data for result in results for data in result.data):
        (moved if charge_moved(data, of_row) else kept).append(data)
    failures = [*conformers.failures, *(f for result in results for f in result.failures)]
    failures += [
        Failure(
            source="",
            row=int(data.mol_id) + 1,
            molecule=data.smiles,
            stage="label",
            problem=f"GFN2-xTB moves more than {MOVED_CHARGE} e between the two molecules",
            remedy="Leave the pair out",
        )
        for data in moved
    ]
    return Molecules(kept, failures)


def displaced(data: Data, rng: np.random.Generator) -> Data:
    """A copy with normally distributed displacements."""
    copy = data.clone()
    noise = rng.normal(scale=rng.uniform(*SIGMA), size=tuple(data.pos.shape))
    copy.pos = data.pos + torch.from_numpy(noise.astype(np.float32))
    return copy


def pairs(
    rows: Sequence[int], molecules: Sequence[Molecule], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Pairs of molecules: a fifth of them ions of opposite charge, the others at random."""
    cations = [row for row in rows if molecules[row].charge > 0]
    anions = [row for row in rows if molecules[row].charge < 0]
    for place in range(PAIRS_PER_PART if len(rows) > 1 else 0):
        if place % 5 == 0 and cations and anions:
            yield int(rng.choice(cations)), int(rng.choice(anions))
        else:
            first, second = rng.choice(rows, 2, replace=False)
            yield int(first), int(second)


def pair(first: Data, second: Data, mol_id: int, far: bool, rng: np.random.Generator) -> Data:
    """Two molecules at a random relative orientation, and a random distance."""
    origin = first.pos.double().numpy() - first.pos.double().numpy().mean(axis=0)
    turned = Rotation.random(rng=rng).apply(second.pos.double().numpy())
    turned -= turned.mean(axis=0)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    table = Chem.GetPeriodicTable()
    radii = [np.array([table.GetRvdw(z) for z in data.z.tolist()]) for data in (first, second)]
    sums = radii[0][:, None] + radii[1][None]
    contact, gap = (1.0, rng.uniform(*GAP)) if far else (rng.uniform(*CONTACT), 0.0)
    shift = distance_of_contact(origin, turned, direction, contact * sums + gap)
    return make_data(
        torch.cat([first.z, second.z]),
        np.concatenate([origin, turned + shift * direction]),
        charge=float(first.charge + second.charge),
        fragments=(
            np.repeat([0, 1], [len(first.z), len(second.z)]),
            torch.cat([first.charge.expand(len(first.z)), second.charge.expand(len(second.z))]),
        ),
        mol_id=mol_id,
        smiles=f"{first.smiles}.{second.smiles}",
    )


def distance_of_contact(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    direction: NDArray[np.float64],
    closest: NDArray[np.float64],
) -> float:
    """How far the second molecule has to be along the direction.

    Args:
        first: Coordinates ``[N, 3]`` in angstrom.
        second: Coordinates ``[M, 3]``, both about the origin.
        direction: Unit vector ``[3]``.
        closest: Allowed distance of each pair of atoms ``[N, M]`` in angstrom; one is reached.
    """
    # |r_b + t n - r_a| = d is quadratic in t; the largest root of any pair of atoms is the answer.
    apart = second[None] - first[:, None]  # [N, M, 3]
    along = apart @ direction
    across = cdist(first, second) ** 2 - along**2
    reach = closest**2 - across
    return float(np.max(np.sqrt(reach.clip(0)) - along, where=reach > 0, initial=0.0))


def charge_moved(data: Data, of_row: dict[int, list[Data]]) -> bool:
    """True for a pair with an electron transferred between the molecules."""
    if int(data.mol_id) < FIRST_PAIR:
        return False
    first = Chem.AddHs(Chem.MolFromSmiles(data.smiles.split(".")[0]))
    total = float(data.atomic_charges[: first.GetNumAtoms()].sum())
    return abs(total - Chem.GetFormalCharge(first)) > MOVED_CHARGE


def whole(folder: Path, parts: Path, options: argparse.Namespace) -> None:
    """Write the data set from its parts."""
    data: list[Data] = []
    failures: list[Failure] = []
    for path in sorted(parts.glob("*.npz")):
        data.extend(read_molecules(path))
        failures.extend(read_failures(path.with_suffix(".csv")))
    sources = ", ".join(f"{path.name} (SHA-256 {sha256_of(path)})" for path in options.lists)
    count: int = options.conformers
    if count:
        name, what = "conformers_xtb", f"Up to {count} conformers of flexible molecules and ions"
        geometry = "ETKDGv3 and MMFF94s or UFF"
    else:
        name = "organic_xtb"
        what = "Molecules and ions of up to 50 heavy atoms, and pairs of small ones"
        geometry = (
            "ETKDGv3 and MMFF94s or UFF; a second conformer displaced (normal, 0.03 to 0.1 "
            "angstrom); some relaxed with GFN2-xTB; pairs at random orientation and distance"
        )
    about = About(
        name=name,
        description=f"{what}, of H B C N O F Si P S Cl Br I. SMILES: {sources}",
        licence="that of the lists of SMILES",
        citation="Method: Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019)",
        level_of_theory="GFN2-xTB (tblite)",
        geometry=geometry,
        seed=0,
        created_by="python datasets/organic_xtb/build.py LIST.csv.gz ... --output FOLDER",
    )
    ids = torch.cat([molecule.mol_id for molecule in data])
    # Two percent of the molecules, and the pairs with one of them.
    single = (ids < FIRST_PAIR) & (ids % 50 == 1)
    validating = {data[place].smiles for place in single.nonzero().flatten().tolist()}
    validate = torch.tensor([not validating.isdisjoint(m.smiles.split(".")) for m in data])
    empty = torch.empty(0, dtype=torch.long)
    split = Split((~validate).nonzero().squeeze(1), validate.nonzero().squeeze(1), empty)
    save_dataset(folder, Molecules(data, failures), about, split=split, packages=("tblite",))
    print(f"{len(data)} structures, {len(failures)} failures: {folder}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lists", nargs="+", type=Path, help="CSV files (.csv, .csv.gz) with SMILES")
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="hashes of InChIKeys to leave out"
    )
    parser.add_argument("--count", type=int, default=100_000, help="number of molecules")
    parser.add_argument(
        "--conformers", type=int, default=0, help="label so many conformers of flexible molecules"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="begin no part after so many minutes"
    )
    return parser


if __name__ == "__main__":
    main()
