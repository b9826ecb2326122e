"""Compares the DFT settings of this data set with tight ones, on some of its molecules.

    python datasets/organic/check_settings.py --data datasets/organic --output FILE.csv

The labels (density fitting, grid level 1, SCF tolerance 1e-7) are repeated with exact integrals,
grid level 5 and 1e-10. The molecules are drawn so that each element is in some, of up to
``--heavy-atoms`` heavy atoms; exact integrals take about a minute for five. The file has a line per
molecule, written as it is computed; molecules that it has already are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from rich.console import Console
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import DFTConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.labels import dft_calculator, label

TIGHT = DFTConfig(
    xc="b3lypg", basis="def2-tzvpd", density_fit=False, grid_level=5, scf_tolerance=1e-10
)

COLUMNS = ("mol_id", "smiles", "label_D", "tight_D", "difference_D", "seconds")
"""``difference_D`` is the length of the difference of the vectors."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the labels that the file does not hold yet, and prints a summary."""
    options = _parser().parse_args(arguments)
    chosen = drawn(list(ConformerDataset(options.data)), options.count, options.heavy_atoms)
    done: set[str] = set()
    if options.output.exists():
        with options.output.open(encoding="utf-8", newline="") as file:
            done = {row["mol_id"] for row in csv.DictReader(file)}
    else:
        options.output.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    for data in track(chosen, "Tight labels", console=Console(stderr=True)):
        if str(int(data.mol_id)) in done:
            continue
        start = time.monotonic()
        tight = label(data, dft_calculator(TIGHT, round(data.charge.item())))
        with options.output.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(
                (
                    int(data.mol_id),
                    data.smiles,
                    f"{float(data.dipole_magnitude):.5f}",
                    f"{float(tight.dipole_magnitude):.5f}",
                    f"{float((data.dipole - tight.dipole).norm()):.5f}",
                    f"{time.monotonic() - start:.0f}",
                )
            )
    with options.output.open(encoding="utf-8", newline="") as file:
        differences = [float(row["difference_D"]) for row in csv.DictReader(file)]
    print(
        f"{len(differences)} molecules: mean {np.mean(differences):.5f} D, "
        f"largest {np.max(differences):.5f} D",
        file=sys.stderr,
    )


def drawn(structures: Sequence[Data], count: int, heavy_atoms: int) -> list[Data]:
    """Molecules at random; while an element is in none of them, only such that have it."""
    small = [data for data in structures if int((data.z > 1).sum()) <= heavy_atoms]
    order = [small[k] for k in np.random.default_rng(0).permutation(len(small))]
    missing = {chemical_symbols[z] for data in small for z in data.z.tolist()}
    chosen: list[Data] = []
    for data in order:
        symbols = {chemical_symbols[z] for z in data.z.tolist()}
        if len(chosen) < count and symbols & missing:
            chosen.append(data)
            missing -= symbols
    taken = {int(data.mol_id) for data in chosen}
    rest = [data for data in order if int(data.mol_id) not in taken]
    return chosen + rest[: count - len(chosen)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--output", type=Path, required=True, help="file of the results (CSV)")
    parser.add_argument("--count", type=int, default=20, help="number of molecules")
    parser.add_argument("--heavy-atoms", type=int, default=5, help="heavy atoms at most")
    return parser


if __name__ == "__main__":
    main()
