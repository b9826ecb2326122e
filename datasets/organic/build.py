"""Labels small molecules of twelve elements with DFT: B3LYP/def2-TZVPD dipoles and charges.

    python datasets/organic/build.py --output datasets/organic

The molecules are those of `molecules.csv`, the smallest first, so that an unfinished data set has
as many as possible; with `--model NAME` those with the widest error bar of the model, relative to
the cost of the label, first: in rounds of labelling and training, the labels are those that the
model needs most. The list was made by `select_molecules.py`; its last lines, with the source
`added`, are molecules of one or two heavy atoms that were missing. Of every five, one has the
geometry of the force field (MMFF94s, else UFF), three are relaxed with GFN2-xTB, and one is relaxed
and then displaced at random. Ions are included; their dipoles refer to the centre of mass.

A molecule takes 1 to 100 seconds of one core. The data set is its own journal: it is written every
few minutes, and the same command labels the molecules that it does not yet hold.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import DFTConfig, XTBConfig
from dipolegnn.data import About, ConformerDataset, Split, save_dataset
from dipolegnn.data.card import CARD_FILE, FAILURES_FILE
from dipolegnn.inference.structures import predict
from dipolegnn.labels import dft_calculator, label, xtb_calculator
from dipolegnn.models import load_model
from dipolegnn.molecules import (
    Failure,
    MoleculeError,
    Molecules,
    from_smiles,
    read_failures,
)
from dipolegnn.nn import DipoleModel

HERE = Path(__file__).resolve().parent

LEVEL = DFTConfig(xc="b3lypg", basis="def2-tzvpd", grid_level=1, scf_tolerance=1e-7)
"""Near the basis set limit for dipoles: diffuse functions matter (water has 2.09 D with def2-TZVP,
1.87 D with def2-TZVPD)."""

RELAXATION = XTBConfig(optimize=True, fmax=0.02)

SIGMA = 0.05
"""Random displacement of each coordinate of the displaced structures, in angstrom."""

SAVE_EVERY_S = 180.0
"""Seconds between two times that the data set is written."""

ABOUT = About(
    name="organic",
    description=(
        "Molecules and ions of up to 12 heavy atoms, of H B C N O F Si P S Cl Br I, chosen to "
        "cover the atom environments of two lists; one conformer each."
    ),
    licence="CC BY 4.0",
    citation=(
        "dipolegnn, data set organic. SMILES: qca-dataset-submission of the Open Force Field "
        "Initiative (CC BY 4.0) and the package chemicals 1.5.2 (MIT). Method: B3LYP as Gaussian "
        "defines it with def2-TZVPD, by PySCF"
    ),
    level_of_theory="B3LYP/def2-TZVPD (PySCF, density fitting)",
    geometry=(
        "by mol_id modulo 5: 0 ETKDGv3 and MMFF94s or UFF; 1 to 3 relaxed with GFN2-xTB to 0.02 "
        "eV/angstrom; 4 likewise, then each coordinate displaced (normal, 0.05 angstrom)"
    ),
    seed=0,
    created_by="python datasets/organic/build.py --output datasets/organic",
)


class Row(NamedTuple):
    """A molecule of the list; ``mol_id`` is its place in it, from 0."""

    mol_id: int
    smiles: str
    heavy_atoms: int


def main(arguments: list[str] | None = None) -> None:
    """Label the molecules that the data set does not hold yet."""
    options = _parser().parse_args(arguments)
    molecules = existing(options.output)
    rows = missing(read_rows(options.molecules)[: options.limit], molecules)
    if options.model:
        rows = least_certain_first(rows, load_model(options.model))
    deadline = time.monotonic() + 60 * options.minutes
    saved = time.monotonic()
    try:
        for row in track(rows, description="Labels", console=Console(stderr=True)):
            outcome = labelled(row)
            if isinstance(outcome, Failure):
                molecules.failures.append(outcome)
            else:
                molecules.data.append(outcome)
            now = time.monotonic()
            if molecules.data and now - saved > SAVE_EVERY_S:
                save(options.output, molecules)
                saved = now
            if now > deadline:
                break
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
    save(options.output, molecules)
    print(
        f"{len(molecules.data)} molecules, {len(molecules.failures)} failures: {options.output}",
        file=sys.stderr,
    )


def read_rows(path: Path) -> list[Row]:
    """The molecules of a list made by ``select_molecules.py``."""
    with path.open(encoding="utf-8") as file:
        return [
            Row(place, line["smiles"], int(line["heavy_atoms"]))
            for place, line in enumerate(csv.DictReader(file))
        ]


def existing(folder: Path) -> Molecules:
    """What the data set holds already."""
    if not (folder / CARD_FILE).exists():
        return Molecules([], [])
    return Molecules(list(ConformerDataset(folder)), read_failures(folder / FAILURES_FILE))


def missing(rows: list[Row], molecules: Molecules) -> list[Row]:
    """The molecules that are neither labelled nor failed, the smallest first."""
    done = {int(data.mol_id) for data in molecules.data}
    done |= {failure.row - 1 for failure in molecules.failures if failure.row is not None}
    left = [row for row in rows if row.mol_id not in done]
    return sorted(left, key=lambda row: row.heavy_atoms)


def least_certain_first(rows: Sequence[Row], model: DipoleModel) -> list[Row]:
    """The molecules by the error bar of a model, per heavy atom, the widest first.

    The time of a label grows with the cube of the size: dividing by the size itself lets large
    molecules be chosen where the model is in doubt. Molecules that cannot be embedded come first;
    they take no time.
    """
    level = model.level_named(None, embedded=True)
    structures: dict[Row, Data] = {}
    for row in track(rows, description="Structures", console=Console(stderr=True)):
        try:
            structures[row] = from_smiles(row.smiles, seed=row.mol_id, mol_id=row.mol_id)[0]
        except MoleculeError:
            continue
        structures[row].level = level
    widths = dict.fromkeys(rows, math.inf)
    found = predict(model, list(structures.values()), progress=True)
    for row, prediction in zip(structures, found, strict=True):
        width = prediction.half_width()
        if width is None:
            raise ValueError(f"The model {model.card.name} has no error bars; choose another one.")
        widths[row] = width / row.heavy_atoms
    return sorted(rows, key=widths.__getitem__, reverse=True)


def labelled(row: Row) -> Data | Failure:
    """The molecule with its label, or why there is none."""
    stage = "embed"
    try:
        data = structure(row)
        stage = "label"
        return label(data, dft_calculator(LEVEL, round(data.charge.item())))
    except MoleculeError as error:
        place = row.mol_id + 1
        return error.failure(stage, molecule=row.smiles, row=place, source="molecules.csv")


def structure(row: Row) -> Data:
    """The geometry of a molecule, which depends on its place in the list alone.

    Raises:
        MoleculeError: It cannot be embedded or relaxed.
    """
    # The seed gives any conformer, not the lowest of several: models are asked about all.
    data = from_smiles(row.smiles, seed=row.mol_id, mol_id=row.mol_id)[0]
    kind = row.mol_id % 5
    if kind == 0:
        return data
    calculator = xtb_calculator(RELAXATION, round(data.charge.item()))
    relaxed = label(data, calculator, optimize=True, fmax=RELAXATION.fmax)
    if kind == 4:
        generator = torch.Generator().manual_seed(row.mol_id)
        relaxed.pos = relaxed.pos + SIGMA * torch.randn(relaxed.pos.shape, generator=generator)
    return relaxed


def save(folder: Path, molecules: Molecules) -> None:
    """Write the data set, in the order of the list."""
    data = sorted(molecules.data, key=lambda molecule: int(molecule.mol_id))
    failures = sorted(molecules.failures, key=lambda failure: failure.row or 0)
    # A split that stays as it is when molecules are added, and has each kind of geometry.
    places: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for place, molecule in enumerate(data):
        part = "val" if int(molecule.mol_id) // 5 % 10 == 0 else "train"
        places[part].append(place)
    parts = (torch.tensor(places[part], dtype=torch.long) for part in ("train", "val", "test"))
    split = Split(*parts)
    save_dataset(
        folder, Molecules(data, failures), ABOUT, split=split, packages=("pyscf", "tblite")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--molecules", type=Path, default=HERE / "molecules.csv", help="the list (CSV)"
    )
    parser.add_argument("--model", help="label the molecules first of which it is least certain")
    parser.add_argument("--limit", type=int, help="only the first so many molecules of the list")
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="begin no molecule after so many minutes"
    )
    return parser


if __name__ == "__main__":
    main()
