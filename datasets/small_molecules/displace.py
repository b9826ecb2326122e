"""Adds displaced structures with their own labels to `small_molecules`.

    python datasets/small_molecules/displace.py --output data/displaced --workers 2

A model that was trained on relaxed structures only does not describe how the dipole changes when a
bond is stretched, on which infrared intensities depend, or at the geometry of a force field. Each
molecule gets copies with every coordinate displaced at random, labelled with GFN2-xTB at the
displaced geometry (5 minutes on 2 cores). Copies stay in the split part of their molecule. With a
journal, a run that was killed resumes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.data import About, ConformerDataset, Split, save_dataset
from dipolegnn.labels import label_many
from dipolegnn.molecules import Molecules

SOURCE = Path(__file__).resolve().parent
SEED = 2026


def main(arguments: list[str] | None = None) -> None:
    """Build the data set."""
    options = _parser().parse_args(arguments)
    source = ConformerDataset(SOURCE)
    assert source.card is not None
    at_rest = list(source)[: options.limit]
    moved = displaced(at_rest, options.copies, options.sigma)
    labelled = label_many(
        moved, XTBConfig(), workers=options.workers, progress=True, journal=options.journal
    )
    molecules = Molecules(at_rest + labelled.data, labelled.failures)
    about = About(
        name="small_molecules_displaced",
        description=(
            f"small_molecules, and {options.copies} copies of each structure with every coordinate "
            f"displaced at random (normal, {options.sigma} angstrom)."
        ),
        licence=source.card.licence,
        citation=source.card.citation,
        level_of_theory=source.card.level_of_theory,
        geometry=f"{source.card.geometry}; and displaced",
        seed=SEED,
        created_by="python datasets/small_molecules/displace.py",
    )
    split = of_molecules(source, molecules.data)
    card = save_dataset(options.output, molecules, about, split=split, packages=("tblite", "ase"))
    print(
        f"{card.counts.structures} structures of {card.counts.molecules} molecules, "
        f"{card.counts.failures} failures: {options.output}",
        file=sys.stderr,
    )


def displaced(at_rest: list[Data], copies: int, sigma: float) -> list[Data]:
    """Copies with every coordinate displaced, by ``sigma`` angstrom in the root mean square."""
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for data in at_rest:
        for number in range(1, copies + 1):
            copy = data.clone()
            copy.pos = data.pos + sigma * torch.randn(data.pos.shape, generator=generator)
            copy.name = f"{data.name or data.smiles}, displaced {number}"
            found.append(copy)
    return found


def of_molecules(source: ConformerDataset, structures: list[Data]) -> Split:
    """The split of the source, for structures of the same molecules."""
    ids = torch.tensor([int(data.mol_id) for data in structures])
    parts = source.split()
    theirs = [source.mol_ids()[part] for part in (parts.train, parts.val, parts.test)]
    return Split(*(torch.isin(ids, some).nonzero().flatten() for some in theirs))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--journal", type=Path, help="file for resuming a run that was killed")
    parser.add_argument("--copies", type=int, default=3, help="of each structure")
    parser.add_argument("--sigma", type=float, default=0.04, help="in angstrom")
    parser.add_argument("--limit", type=int, help="only the first so many molecules")
    return parser


if __name__ == "__main__":
    main()
