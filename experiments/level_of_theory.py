"""What the labels themselves are worth: B3LYP against experiment and against RI-MP2.

A model cannot be trusted further than its labels. Those of QM9 and of ``datasets/smallest`` are
compared with ``experimental_dipoles.csv``, for the molecules that are in both, and those of QM9's
test part with ``qm9_mp2_vectors.npz``. GFN2-xTB and ``painn-qm9`` stand beside them, at the same
geometries. ``painn-qm9`` was trained on most of the molecules with experimental values.

QM9 has one conformer of a molecule; experiment may have seen others.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from ase.data import atomic_numbers
from common import ROOT, data_folder, read_arrays, read_npz
from comparison import Predictor, Sample, by_xtb, measure, table
from external import EXPERIMENT, MP2, MP2_SET, QM9, TEST
from geometry import smiles_of
from rdkit import Chem

from dipolegnn._pyg import Data
from dipolegnn.data import ConformerDataset
from dipolegnn.molecules import MoleculeError
from dipolegnn.predict import predict
from dipolegnn.predictions import Prediction
from dipolegnn.pretrained import elements_of, load_pretrained

MODEL = "painn-qm9"
B3LYP = "B3LYP/6-31G(2df,p)"
SMALLEST = ROOT / "datasets" / "smallest"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the labels of QM9 with experiment and with RI-MP2."""

    output: Path = ROOT / "runs" / "level_of_theory"
    """Folder for level_of_theory.md and level_of_theory.json."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the reference data; left out: $DIPOLEGNN_DATA, else ../shared/data."""


class Measured(NamedTuple):
    """A molecule with an experimental magnitude."""

    name: str
    smiles: str
    """Canonical; with stereo if the file has it."""
    atoms: Counter[str]
    """How many there are of each element."""
    magnitude: float
    """Debye."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    folder = data_folder(options.data, EXPERIMENT)
    wanted = read_measured(folder / EXPERIMENT)
    experiment, missing = of_experiment(wanted, folder / QM9)
    samples = [experiment, of_mp2(folder / MP2, folder / QM9)]
    model = load_pretrained(MODEL)
    methods: dict[str, Predictor] = {
        B3LYP: by_label,
        MODEL: lambda data: predict(model, data),
        "GFN2-xTB": by_xtb,
    }
    rows: list[dict[str, Any]] = []
    for sample in samples:
        left_out = len(missing) if sample is experiment else 0
        for method, predictor in methods.items():
            for what, values in measure(sample, predictor).items():
                row = {"set": sample.name, "method": method, "elements of": MODEL, "part": what}
                rows.append({**row, "left out": left_out, **values})
    text = "\n\n".join(
        [
            "# B3LYP against experiment and RI-MP2",
            "All at the geometry of the label: B3LYP's for QM9, GFN2-xTB's for `datasets/smallest`."
            f" `{MODEL}` was trained on most of the molecules with experimental values, and on none"
            " of QM9's test part.",
            *(table(part, rows) for part in ("all", "size", "element", "magnitude")),
            "No B3LYP label for: " + (", ".join(missing) or "none"),
        ]
    )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "level_of_theory.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.output / "level_of_theory.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def read_measured(path: Path) -> list[Measured]:
    """The molecules of the model's elements; isotopes are left out, the same atoms twice.

    Raises:
        SystemExit: If a SMILES cannot be read.
    """
    elements = elements_of(MODEL)
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        for entry in csv.DictReader(file):
            mol = Chem.MolFromSmiles(entry["smiles"])
            if mol is None:
                raise SystemExit(f"{path.name}: RDKit cannot read {entry['smiles']!r}.")
            if any(atom.GetIsotope() for atom in mol.GetAtoms()):
                continue
            atoms = Counter(atom.GetSymbol() for atom in Chem.AddHs(mol).GetAtoms())
            if atoms.keys() <= elements:
                magnitude = float(entry["dipole_magnitude_debye"])
                found.append(Measured(entry["name"], Chem.MolToSmiles(mol), atoms, magnitude))
    return found


def of_experiment(wanted: Sequence[Measured], qm9: Path) -> tuple[Sample, list[str]]:
    """Labelled structures of molecules with experimental values.

    Returns:
        The structures of QM9, or else of ``datasets/smallest``; and the names of the molecules
        that neither has, or QM9 in several stereoisomers where the SMILES has none.
    """
    known: defaultdict[str, list[Data]] = defaultdict(list)
    for data in candidates(wanted, qm9):
        try:
            smiles = smiles_of(data)
        except MoleculeError:  # no Lewis structure: it cannot be told what it is
            continue
        for form in {smiles, without_stereo(smiles)}:
            known[form].append(data)
    smallest = {Chem.CanonSmiles(data.smiles): data for data in ConformerDataset(SMALLEST)}
    found, magnitudes, missing = [], [], []
    for number, molecule in enumerate(wanted):
        matches = known[molecule.smiles]
        if not matches and molecule.smiles in smallest:
            matches = [smallest[molecule.smiles]]
        if len(matches) != 1:
            missing.append(molecule.name)
            continue
        data = matches[0].clone()
        data.mol_id = data.mol_id.new_tensor([number])
        found.append(data)
        magnitudes.append(molecule.magnitude)
    return Sample("experiment", found, np.array(magnitudes), None), missing


def candidates(wanted: Sequence[Measured], qm9: Path) -> list[Data]:
    """The structures of QM9 that have the formula of one of these molecules."""
    symbols = sorted(elements_of(MODEL))
    formulas = {tuple(molecule.atoms[symbol] for symbol in symbols) for molecule in wanted}
    arrays = read_arrays(qm9)
    owner = np.repeat(np.arange(len(arrays["n"])), arrays["n"])
    counts = np.stack(
        [
            np.bincount(owner[arrays["z"] == atomic_numbers[symbol]], minlength=len(arrays["n"]))
            for symbol in symbols
        ],
        axis=1,
    )
    rows = np.array([k for k, row in enumerate(counts.tolist()) if tuple(row) in formulas], int)
    return read_npz(qm9, number="qm9_index", vectors=False, rows=rows).data


def without_stereo(smiles: str) -> str:
    """The same SMILES without stereo."""
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False))


def of_mp2(mp2: Path, qm9: Path) -> Sample:
    """QM9's test part with the vectors of RI-MP2 to compare with, and QM9's own as labels."""
    reference, arrays = read_arrays(mp2), read_arrays(qm9)
    row_of = {int(index): row for row, index in enumerate(reference["qm9_index"])}
    test = arrays["split"] == TEST
    rows = np.flatnonzero(test & np.isin(arrays["qm9_index"], reference["qm9_index"]))
    data = read_npz(qm9, number="qm9_index", vectors=True, rows=rows).data
    dipole = reference["dipole"][[row_of[int(each.mol_id)] for each in data]].astype(float)
    return Sample(MP2_SET, data, np.linalg.norm(dipole, axis=1), dipole)


def by_label(molecules: Sequence[Data]) -> list[Prediction]:
    """The labels, as a method among others; a vector where it is sure."""
    found = []
    for data in molecules:
        dipole = data.dipole[0].double().numpy()
        sure = bool(np.isfinite(dipole).all())
        magnitude = float(data.dipole_magnitude)
        found.append(Prediction(data, magnitude, dipole if sure else None, None))
    return found


if __name__ == "__main__":
    main()
