"""Selects the molecules to label with DFT: small ones that cover the atom environments.

    python datasets/organic/select_molecules.py LIST.csv.gz [LIST.csv.gz ...] --output molecules.csv

Each list is a CSV file with a column ``smiles``. From all molecules of the allowed elements, sizes
and charges, molecules are taken one after the other. Each time it is the one whose atoms add most
to what has been taken, for its cost: an atom environment (the atom, its neighbours and bonds)
counts by how common it is in the lists, and less each time it has been taken already.

Molecules in ``--exclude`` files are left out. Such a file has one SHA-256 per line, of the first
block (14 letters) of a molecule's InChIKey; so a test set can be excluded without its molecules.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import heapq
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator
from rich.console import Console
from rich.progress import track

ELEMENTS = frozenset({"H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I"})
LARGEST = 12
"""Heavy atoms at most."""
MOST_CHARGE = 2
"""Largest total charge in e, of either sign."""

COMMONNESS = 0.3
"""An environment that occurs in n molecules counts n to this power: common ones are worth more,
but not in proportion."""
COST = 0.6
"""Gain is divided by the cost of the calculation to this power."""


class Candidate(NamedTuple):
    """A molecule that can be chosen."""

    smiles: str
    source: str
    charge: int
    heavy: int
    environments: frozenset[int]
    cost: float


def main(arguments: list[str] | None = None) -> None:
    """Choose, and write the molecules in the order in which to label them."""
    options = _parser().parse_args(arguments)
    excluded = {line for path in options.exclude for line in path.read_text().split()}
    with rdBase.BlockLogs():  # some lines of the lists are no molecules to RDKit
        candidates = list(candidates_of(options.lists, excluded))
    chosen = choose(candidates, options.count)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("smiles", "source", "charge", "heavy_atoms"))
        writer.writerows((c.smiles, c.source, c.charge, c.heavy) for c in chosen)
    print(f"{len(chosen)} of {len(candidates)} molecules: {options.output}", file=sys.stderr)
    for name, molecules in sorted(coverage(chosen).items()):
        print(f"{name:>16}: {molecules}", file=sys.stderr)


def candidates_of(lists: Sequence[Path], excluded: set[str]) -> Iterator[Candidate]:
    """The molecules of the lists that are allowed, each once."""
    fingerprints = rdFingerprintGenerator.GetMorganGenerator(radius=1, includeChirality=False)
    seen: set[str] = set()
    for path in lists:
        source = path.name.removesuffix(".gz").removesuffix(".csv")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in track(rows, description=source, console=Console(stderr=True)):
            mol: Chem.Mol | None = Chem.MolFromSmiles(row["smiles"])
            if mol is None or not allowed(mol):
                continue
            key = Chem.MolToInchiKey(mol).split("-")[0]
            smiles = Chem.MolToSmiles(mol)
            if not key or smiles in seen or hashlib.sha256(key.encode()).hexdigest() in excluded:
                continue
            seen.add(smiles)
            # Neither bits nor counts: an unfolded fingerprint has one number per environment.
            found = fingerprints.GetSparseCountFingerprint(mol).GetNonzeroElements()
            charge = Chem.GetFormalCharge(mol)
            yield Candidate(
                smiles, source, charge, mol.GetNumHeavyAtoms(), frozenset(found), cost_of(mol)
            )


def allowed(mol: Chem.Mol) -> bool:
    """Whether a molecule has the elements, size and charge of the data set, in one fragment."""
    atoms = list(mol.GetAtoms())
    return (
        0 < mol.GetNumHeavyAtoms() <= LARGEST
        and {atom.GetSymbol() for atom in atoms} <= ELEMENTS
        and abs(Chem.GetFormalCharge(mol)) <= MOST_CHARGE
        and not any(atom.GetNumRadicalElectrons() or atom.GetIsotope() for atom in atoms)
        and len(Chem.GetMolFrags(mol)) == 1
    )


def cost_of(mol: Chem.Mol) -> float:
    """Estimated time of a calculation, relative: the number of basis functions, squared."""
    functions = 0
    for atom in mol.GetAtoms():
        functions += 37 if atom.GetAtomicNum() <= 10 else 48
        functions += 9 * atom.GetTotalNumHs()
    return (functions / 100) ** 2


def choose(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The molecules that add most for their cost, in the order of choice."""
    common = Counter(e for candidate in candidates for e in candidate.environments)
    taken: Counter[int] = Counter()

    def gain(candidate: Candidate) -> float:
        new = sum(common[e] ** COMMONNESS / (1 + taken[e]) for e in candidate.environments)
        return new / candidate.cost**COST

    # Gains only fall, so the top of the heap is the best if its gain is up to date.
    heap = [(-gain(candidate), place) for place, candidate in enumerate(candidates)]
    heapq.heapify(heap)
    chosen: list[Candidate] = []
    while heap and len(chosen) < count:
        _, place = heapq.heappop(heap)
        now = -gain(candidates[place])
        if heap and now > heap[0][0]:
            heapq.heappush(heap, (now, place))
            continue
        chosen.append(candidates[place])
        taken.update(candidates[place].environments)
    return chosen


def coverage(chosen: Iterable[Candidate]) -> Counter[str]:
    """Number of chosen molecules with each element, size and charge."""
    found: Counter[str] = Counter()
    for candidate in chosen:
        mol = Chem.AddHs(Chem.MolFromSmiles(candidate.smiles))
        found.update({f"element {atom.GetSymbol()}" for atom in mol.GetAtoms()})
        found[f"{candidate.heavy:2} heavy atoms"] += 1
        found[f"charge {candidate.charge:+d}"] += 1
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lists", nargs="+", type=Path, help="CSV files (.csv.gz) with SMILES")
    parser.add_argument("--output", type=Path, required=True, help="CSV file of the molecules")
    parser.add_argument("--count", type=int, default=4000, help="number of molecules")
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="hashes of InChIKeys to leave out"
    )
    return parser


if __name__ == "__main__":
    main()
