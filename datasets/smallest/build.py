"""Makes a data set of the smallest molecules of H, C, N and O, with B3LYP dipoles.

    python datasets/smallest/build.py --output datasets/smallest

QM9 has few molecules of one to three heavy atoms, and a model that was trained on QM9 alone has
large errors for them. This data set contains those of `small_molecules`, at their geometries there
(relaxed with GFN2-xTB), labelled with B3LYP/6-31G(2df,p) like QM9 (PySCF; five minutes on one
core). With a journal, a run that was killed resumes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dipolegnn._pyg import Data
from dipolegnn.config import DFTConfig
from dipolegnn.data import About, ConformerDataset, save_dataset
from dipolegnn.labels import label_many
from dipolegnn.molecules import Molecules

SOURCE = Path(__file__).resolve().parent.parent / "small_molecules"

ELEMENTS = frozenset({1, 6, 7, 8})
LARGEST = 3
"""Heavy atoms at most."""

ABOUT = About(
    name="smallest",
    description=(
        "Molecules of H, C, N and O with up to 3 heavy atoms, those of small_molecules; one "
        "conformer each."
    ),
    licence="CC0-1.0",
    citation="dipolegnn, data set smallest. Method: B3LYP as Gaussian defines it, by PySCF",
    level_of_theory="B3LYP/6-31G(2df,p) (PySCF, density fitting)",
    geometry="relaxed with GFN2-xTB to 0.01 eV/angstrom",
    seed=0,
    created_by="python datasets/smallest/build.py --output datasets/smallest",
)


def main(arguments: list[str] | None = None) -> None:
    """Build the data set."""
    options = _parser().parse_args(arguments)
    chosen = smallest(list(ConformerDataset(SOURCE)))[: options.limit]
    labelled = label_many(
        chosen, DFTConfig(), workers=options.workers, progress=True, journal=options.journal
    )
    molecules = Molecules(labelled.data, labelled.failures)
    card = save_dataset(options.output, molecules, ABOUT, packages=("pyscf",))
    print(
        f"{card.counts.molecules} molecules, {card.counts.failures} failures: {options.output}",
        file=sys.stderr,
    )


def smallest(molecules: list[Data]) -> list[Data]:
    """Molecules with few heavy atoms, of H, C, N and O only."""
    return [
        data
        for data in molecules
        if set(data.z.tolist()) <= ELEMENTS and int((data.z > 1).sum()) <= LARGEST
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--journal", type=Path, help="file for resuming a run that was killed")
    parser.add_argument("--limit", type=int, help="only the first so many molecules")
    return parser


if __name__ == "__main__":
    main()
