"""Writes SMILES of more molecules: those of the data set with one more move or group.

    python datasets/small_molecules/grow.py --count 1000000 --output grown.smi

For uses that need many molecules without labels: throughput measurements, or a pool to select
from. No molecule occurs twice or is in the data set; all satisfy its rules.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from enumeration import grow_further
from rich.console import Console
from rich.progress import track

from dipolegnn.data import ConformerDataset

SOURCE = Path(__file__).resolve().parent
SEED = 2026


def main(arguments: list[str] | None = None) -> None:
    """Write the file."""
    options = _parser().parse_args(arguments)
    parents = [str(data.smiles) for data in ConformerDataset(SOURCE)][: options.parents]
    children = itertools.islice(grow_further(parents, SEED), options.count)
    with options.output.open("w", encoding="utf-8") as file:
        console = Console(stderr=True)
        for smiles in track(children, "molecules", total=options.count, console=console):
            file.write(f"{smiles}\n")
    print(f"{options.count:,} molecules: {options.output}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="file of SMILES")
    parser.add_argument("--count", type=int, required=True, help="molecules")
    parser.add_argument("--parents", type=int, help="only so many molecules of the data set")
    return parser


if __name__ == "__main__":
    main()
