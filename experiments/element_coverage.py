"""Bonding situations of each element in lists of SMILES, and which of them data sets contain.

A bonding situation is an element with its number of bonds (hydrogen included), the sum of its bond
orders, its formal charge and whether it is aromatic. ``coverage.md`` in the folder RUN: for each
element, the number of situations in the lists, and for each data set the number of them that occur
in its structures and the share of the atoms of the lists that they make up.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from ase.data import atomic_numbers
from common import ROOT, markdown_table
from rdkit import Chem, rdBase
from rich.progress import track

from dipolegnn.data import ConformerDataset

ELEMENTS = ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Bonding situations in lists of SMILES and in data sets."""

    lists: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE")]
    """CSV files (.csv, .csv.gz) with a column smiles."""
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR")]
    """Folders of data sets with SMILES."""
    output: Path = ROOT / "runs" / "coverage"
    """Folder of the table."""
    least: int = 5
    """Situations of fewer atoms in the lists are left out."""


class Situation(NamedTuple):
    """A bonding situation."""

    symbol: str
    neighbours: int
    valence: int
    charge: int
    aromatic: bool

    def __str__(self) -> str:
        charge = f", {self.charge:+d}" if self.charge else ""
        aromatic = ", aromatic" if self.aromatic else ""
        return f"{self.symbol} ({self.neighbours} bonds, valence {self.valence}{charge}{aromatic})"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the table."""
    options = tyro.cli(Options, args=argv)
    listed = situations(text for path in options.lists for text in smiles_of(path))
    listed = Counter({what: n for what, n in listed.items() if n >= options.least})
    found = {
        folder.name: set(situations({data.smiles for data in ConformerDataset(folder)}))
        for folder in options.data
    }
    of_element: defaultdict[str, list[Situation]] = defaultdict(list)
    for what, _ in listed.most_common():
        of_element[what.symbol].append(what)
    rows = []
    for symbol in sorted(of_element, key=atomic_numbers.__getitem__):
        wanted = of_element[symbol]
        atoms = sum(listed[what] for what in wanted)
        cells = []
        for known in found.values():
            inside = [what for what in wanted if what in known]
            share = sum(listed[what] for what in inside) / atoms
            cells.append(f"{len(inside)} ({share:.2%})")
        missing = [what for what in wanted if not any(what in known for known in found.values())]
        shown = "; ".join(f"{what} {listed[what]}" for what in missing[:3])
        rows.append((symbol, len(wanted), atoms, *cells, shown))
    text = markdown_table(
        ("element", "situations", "atoms in the lists", *found, "most frequent missing, atoms"),
        rows,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "coverage.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def smiles_of(path: Path) -> list[str]:
    """The SMILES of a list."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [row["smiles"] for row in csv.DictReader(file)]


def situations(smiles: Iterable[str]) -> Counter[Situation]:
    """Number of atoms of each situation in molecules of the twelve elements."""
    found: Counter[Situation] = Counter()
    with rdBase.BlockLogs():
        for text in track(list(smiles), "Reading", transient=True):
            mol: Chem.Mol | None = Chem.MolFromSmiles(text)
            if mol is None or any(
                atom.GetSymbol() not in ELEMENTS or atom.GetNumRadicalElectrons()
                for atom in mol.GetAtoms()
            ):
                continue
            found.update(
                Situation(
                    atom.GetSymbol(),
                    atom.GetTotalDegree(),
                    atom.GetTotalValence(),
                    atom.GetFormalCharge(),
                    atom.GetIsAromatic(),
                )
                for atom in mol.GetAtoms()
            )
    return found


if __name__ == "__main__":
    main()
