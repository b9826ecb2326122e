"""Makes the data set in the repository: small molecules with GFN2-xTB dipoles.

    python datasets/small_molecules/build.py --output datasets/small_molecules --workers 2

Enumerates the molecules (1.5 minutes), embeds them (ETKDGv3, MMFF94s, one conformer; 30 s on
2 cores), relaxes and labels them with GFN2-xTB (10 minutes on 2 cores), splits them at random. With
a journal, a run that was killed resumes. `--limit` and `--largest` make a smaller data set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from enumeration import enumerate_molecules

from dipolegnn.config import ConformerConfig, XTBConfig
from dipolegnn.data import About, random_split, save_dataset
from dipolegnn.labels import label_many
from dipolegnn.molecules import Molecules, SmilesRow, embed_smiles

SEED = 2026
"""Seed of the enumeration and of the split."""

METHOD = XTBConfig(optimize=True, fmax=0.01)

ABOUT = About(
    name="small_molecules",
    description=(
        "Neutral closed-shell molecules of H, C, N, O, F, S and Cl with up to 8 heavy atoms, "
        "enumerated by the project's own growth rules; one conformer each. Partial charges are "
        "Mulliken charges of the same calculation."
    ),
    licence="CC0-1.0",
    citation=(
        "dipolegnn, data set small_molecules. Method: Bannwarth, Ehlert, Grimme, J. Chem. Theory "
        "Comput. 15, 1652 (2019)"
    ),
    level_of_theory="GFN2-xTB (tblite)",
    geometry=f"relaxed with GFN2-xTB to {METHOD.fmax} eV/angstrom, from ETKDGv3 and MMFF94s",
    seed=SEED,
    created_by="python datasets/small_molecules/build.py --output datasets/small_molecules",
)


def main(arguments: list[str] | None = None) -> None:
    """Build the data set."""
    options = _parser().parse_args(arguments)
    smiles = enumerate_molecules(SEED, options.largest)
    if options.limit is not None:
        chosen = np.random.default_rng(SEED).permutation(len(smiles))[: options.limit]
        smiles = [smiles[k] for k in np.sort(chosen)]
    print(f"{len(smiles)} molecules", file=sys.stderr)
    embedded = embed_smiles(
        [SmilesRow(row, s) for row, s in enumerate(smiles, start=1)],
        ConformerConfig(),
        workers=options.workers,
        progress=True,
    )
    labelled = label_many(
        embedded.data, METHOD, workers=options.workers, progress=True, journal=options.journal
    )
    molecules = Molecules(labelled.data, embedded.failures + labelled.failures)
    split = random_split([int(data.mol_id) for data in molecules.data], seed=SEED)
    card = save_dataset(options.output, molecules, ABOUT, split=split, packages=("tblite", "ase"))
    print(
        f"{card.counts.molecules} molecules, {card.counts.failures} failures: {options.output}",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--journal", type=Path, help="file for resuming a run that was killed")
    parser.add_argument("--limit", type=int, help="only so many of the molecules, at random")
    parser.add_argument("--largest", type=int, default=8, help="heavy atoms of the largest")
    return parser


if __name__ == "__main__":
    main()
