"""The shipped models, and the labels they were trained on, against experiment, CCSD and RI-MP2.

``external.md``: the models, with GFN2-xTB for comparison, on experimental values
(``experimental_dipoles.csv``, from SMILES, with conformers of our own), another level of theory
(``qm7b_ccsd.npz``: CCSD) and directions (``qm9_mp2_vectors.npz``: RI-MP2, those molecules that are
in the test part of ``qm9_dipole.npz``). A model is measured on the molecules whose elements are all
in its training set. The molecules that this excludes, and those with a warning, are listed.

``level_of_theory.md``: B3LYP against experiment and RI-MP2, because a model cannot be more accurate
than its labels. The labels of QM9 and of ``datasets/smallest`` are compared with experiment for the
molecules that are in both, and those of QM9's test part with RI-MP2; GFN2-xTB and ``painn-qm9`` at
the same geometries for comparison. ``painn-qm9`` was trained on most of the molecules with
experimental values. QM9 has one conformer of a molecule; the experiment may have seen others.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from ase.data import atomic_numbers, chemical_symbols
from common import NOTHING, ROOT, data_folder, markdown_table, read_arrays, read_npz
from geometry import smiles_of
from numpy.typing import NDArray
from rdkit import Chem
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig, XTBConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.inference.structures import MoleculePrediction, Prediction, average, predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.metrics import groupings
from dipolegnn.models import elements_of, load_model, pretrained_names
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow, embed_smiles, make_data

MP2_SET = "QM9's test part, RI-MP2/def2-TZVP"
EXPERIMENT, QM7B, MP2 = "experimental_dipoles.csv", "qm7b_ccsd.npz", "qm9_mp2_vectors.npz"
QM9 = "qm9_dipole.npz"
TEST = 2
"""Mark of QM9's test part: the others are molecules that models were trained on or chosen by."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the shipped models and their labels on molecules from other sources."""

    output: Path = ROOT / "runs" / "external"
    """Folder for external.md, level_of_theory.md, and the same as .json."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the reference data; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    molecules: int = 2000
    """Molecules of a file at most, drawn at random, for the models."""
    conformers: int = 5
    """Conformers at most of a molecule from a SMILES."""


class Limits(NamedTuple):
    """Molecules outside the training domain of a model."""

    set: str
    model: str
    unknown: Counter[str]
    """Molecules left out, by the elements that the model was not trained on."""
    doubted: Counter[str]
    """Molecules that count, by why the model doubts its prediction."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs both comparisons."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    folder = data_folder(options.data, EXPERIMENT)
    for name, (rows, text) in {
        "external": compare_models(folder, options.molecules, options.conformers),
        "level_of_theory": compare_labels(folder),
    }.items():
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        print(text)


def compare_models(
    folder: Path, molecules: int, conformers: int
) -> tuple[list[dict[str, Any]], str]:
    """Errors of the shipped models and of GFN2-xTB, as rows and as Markdown."""
    samples = [
        from_experiment(folder / EXPERIMENT, conformers),
        from_npz("QM7b, CCSD/d-aug-cc-pVDZ", folder / QM7B, molecules),
        from_npz(MP2_SET, folder / MP2, molecules, folder / QM9),
    ]
    rows: list[dict[str, Any]] = []
    limits: list[Limits] = []
    for sample in samples:
        for name in pretrained_names():
            covered = restricted(sample, elements_of(name))
            left_out = len(sample.magnitude) - len(covered.magnitude)
            unknown = by_unknown_element(sample, elements_of(name))
            own = predict(load_model(name), covered.data)
            limits.append(Limits(sample.name, name, unknown, by_doubt(average(own))))
            if not len(covered.magnitude):
                continue
            methods: dict[str, Predictor] = {name: given(own), "GFN2-xTB": by_xtb}
            rows += compared(covered, methods, name, left_out)
    failed = [failure for sample in samples for failure in sample.failures]
    return rows, "\n\n".join([*tables(rows), limitations(limits, failed)])


def from_experiment(path: Path, conformers: int) -> Sample:
    """Gas-phase magnitudes, of conformers made from SMILES."""
    with path.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    rows = [
        SmilesRow(number, entry["smiles"], dipole_magnitude=float(entry["dipole_magnitude_debye"]))
        for number, entry in enumerate(listed, start=1)
    ]
    found = embed_smiles(rows, ConformerConfig(conformers=conformers))
    ids = [int(data.mol_id) for data in found.data]
    magnitude = {i: float(data.dipole_magnitude) for i, data in zip(ids, found.data, strict=True)}
    values = np.array(list(magnitude.values()))
    return Sample("experiment (from SMILES)", found.data, values, None, found.failures)


def from_npz(name: str, path: Path, limit: int, split: Path | None = None) -> Sample:
    """Structures with reference vectors; with a split, those of its test part."""
    arrays = read_arrays(path)
    first = np.concatenate([[0], np.cumsum(arrays["n"], dtype=np.int64)])
    candidates = np.arange(len(arrays["n"]))
    if split is not None:
        of_all = read_arrays(split)
        test = of_all["qm9_index"][of_all["split"] == TEST]
        candidates = np.flatnonzero(np.isin(arrays["qm9_index"], test))
    rows = np.sort(np.random.default_rng(0).permutation(candidates)[:limit])
    data = [
        make_data(
            arrays["z"][first[row] : first[row + 1]],
            arrays["pos"][first[row] : first[row + 1]],
            mol_id=int(row),
        )
        for row in rows
    ]
    dipole = arrays["dipole"][rows].astype(float)
    return Sample(name, data, np.linalg.norm(dipole, axis=1), dipole)


def restricted(sample: Sample, elements: frozenset[str]) -> Sample:
    """The molecules of these elements alone."""
    known = [{chemical_symbols[z] for z in data.z.tolist()} <= elements for data in sample.data]
    ids = list(dict.fromkeys(int(data.mol_id) for data in sample.data))
    kept = {int(data.mol_id) for data, good in zip(sample.data, known, strict=True) if good}
    rows = np.array([number in kept for number in ids])
    return Sample(
        sample.name,
        [data for data in sample.data if int(data.mol_id) in kept],
        sample.magnitude[rows],
        None if sample.dipole is None else sample.dipole[rows],
    )


def by_unknown_element(sample: Sample, elements: frozenset[str]) -> Counter[str]:
    """Number of molecules with each element that is not among these."""
    atoms = {int(data.mol_id): data.z.tolist() for data in sample.data}
    strange = [{chemical_symbols[z] for z in numbers} - elements for numbers in atoms.values()]
    return Counter(symbol for symbols in strange for symbol in symbols)


def by_doubt(molecules: Sequence[MoleculePrediction]) -> Counter[str]:
    """Number of molecules with a warning, by kind of warning."""
    kinds = {
        "heavy atom": "size",
        "charge": "charge",
        "uncertainty": "unlike the training molecules",
    }
    return Counter(
        kind
        for molecule in molecules
        for kind in {
            kind for doubt in molecule.doubts for mark, kind in kinds.items() if mark in doubt
        }
    )


def limitations(limits: Sequence[Limits], failures: Sequence[Failure]) -> str:
    """Section about molecules without reliable predictions, as Markdown."""
    left_out = markdown_table(
        (
            "set",
            "model",
            "left out: elements that it was not trained on",
            "included, with a warning",
        ),
        [
            (row.set, row.model, *(counted(found) for found in (row.unknown, row.doubted)))
            for row in limits
        ],
    )
    text = f"## Limitations of the models\n\nMolecules, by reason.\n\n{left_out}"
    if failures:
        text += "\n\nNo structure could be generated for:\n\n" + "\n".join(
            f"- `{failure.molecule}`: {failure.problem}" for failure in failures
        )
    return text


def counted(found: Counter[str]) -> str:
    """Counts in descending order."""
    return ", ".join(f"{name} {count}" for name, count in found.most_common()) or NOTHING


MODEL = "painn-qm9"
B3LYP = "B3LYP/6-31G(2df,p)"
SMALLEST = ROOT / "datasets" / "smallest"


class Measured(NamedTuple):
    """A molecule with an experimental magnitude."""

    name: str
    smiles: str
    """Canonical; with stereo if the file has it."""
    atoms: Counter[str]
    """How many there are of each element."""
    magnitude: float
    """Debye."""


def compare_labels(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Errors of B3LYP, of the model trained on it, and of GFN2-xTB, as rows and as Markdown."""
    wanted = read_measured(folder / EXPERIMENT)
    experiment, missing = of_experiment(wanted, folder / QM9)
    model = load_model(MODEL)
    methods: dict[str, Predictor] = {
        B3LYP: by_label,
        MODEL: lambda data: predict(model, data),
        "GFN2-xTB": by_xtb,
    }
    rows = compared(experiment, methods, MODEL, len(missing))
    rows += compared(of_mp2(folder / MP2, folder / QM9), methods, MODEL, 0)
    text = [
        "# B3LYP against experiment and RI-MP2",
        "All at the geometry of the label: B3LYP's for QM9, GFN2-xTB's for `datasets/smallest`."
        f" `{MODEL}` was trained on most of the molecules with experimental values, and on none"
        " of QM9's test part.",
        *tables(rows),
        "No B3LYP label for: " + (", ".join(missing) or "none"),
    ]
    return rows, "\n\n".join(text)


def read_measured(path: Path) -> list[Measured]:
    """The molecules of the model's elements; isotopologues are left out.

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
        except MoleculeError:  # no Lewis structure, so no SMILES
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
    """Structures of QM9 with the formula of one of these molecules."""
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
    """The SMILES without stereochemistry."""
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False))


def of_mp2(mp2: Path, qm9: Path) -> Sample:
    """QM9's test part with RI-MP2 vectors as reference and QM9's dipoles as labels."""
    reference, arrays = read_arrays(mp2), read_arrays(qm9)
    row_of = {int(index): row for row, index in enumerate(reference["qm9_index"])}
    test = arrays["split"] == TEST
    rows = np.flatnonzero(test & np.isin(arrays["qm9_index"], reference["qm9_index"]))
    data = read_npz(qm9, number="qm9_index", vectors=True, rows=rows).data
    dipole = reference["dipole"][[row_of[int(each.mol_id)] for each in data]].astype(float)
    return Sample(MP2_SET, data, np.linalg.norm(dipole, axis=1), dipole)


def by_label(molecules: Sequence[Data]) -> list[Prediction]:
    """The labels as a method to compare; a vector only where its direction is known."""
    found = []
    for data in molecules:
        dipole = data.dipole[0].double().numpy()
        magnitude = float(data.dipole_magnitude)
        found.append(Prediction(data, magnitude, dipole, np.full(data.num_nodes, np.nan)))
    return found


HAS_DIRECTION = 0.5
"""Directions are compared above this magnitude, in debye."""

Predictor = Callable[[Sequence[Data]], list[Prediction]]


class Sample(NamedTuple):
    """Structures with their references; conformers of a molecule are adjacent."""

    name: str
    data: list[Data]
    magnitude: NDArray[np.float64]
    """One per molecule, in debye."""
    dipole: NDArray[np.float64] | None
    """Vectors, one per molecule, in debye."""
    failures: Sequence[Failure] = ()
    """Molecules that no structure could be made of."""


def by_xtb(molecules: Sequence[Data]) -> list[Prediction]:
    """GFN2-xTB at the same geometries; NaN where it fails."""
    calculator = xtb_calculator(XTBConfig())
    found = []
    for data in track(molecules, "GFN2-xTB", transient=True):
        try:
            dipole = label(data, calculator).dipole[0].double().numpy()
        except MoleculeError as error:
            print(f"GFN2-xTB: {error}")
            dipole = np.full(3, np.nan)
        charges = np.full(data.num_nodes, np.nan)
        found.append(Prediction(data, float(np.linalg.norm(dipole)), dipole, charges))
    return found


def given(predictions: list[Prediction]) -> Predictor:
    """A predictor that returns predictions made before."""
    return lambda _: predictions


def compared(
    sample: Sample, methods: Mapping[str, Predictor], model: str, left_out: int
) -> list[dict[str, Any]]:
    """A row for each method and each part of the molecules.

    Args:
        sample: The molecules.
        methods: Predictors by name.
        model: The model whose elements the molecules have.
        left_out: Number of molecules that were excluded before.
    """
    return [
        {"set": sample.name, "method": method, "elements of": model, "part": part}
        | {"left out": left_out, **values}
        for method, predictor in methods.items()
        for part, values in measure(sample, predictor).items()
    ]


def measure(sample: Sample, predictor: Predictor) -> dict[str, dict[str, float]]:
    """Errors over all molecules, by size and by element; magnitudes averaged over conformers."""
    molecules = average(predictor(sample.data))
    error = np.array([molecule.magnitude for molecule in molecules]) - sample.magnitude
    angle = np.full(len(molecules), np.nan)
    if sample.dipole is not None:
        for k, (molecule, reference) in enumerate(zip(molecules, sample.dipole, strict=True)):
            found = molecule.lowest.dipole
            if molecule.lowest.has_vector and sample.magnitude[k] > HAS_DIRECTION:
                cross = np.linalg.norm(np.cross(found, reference))
                angle[k] = np.degrees(np.arctan2(cross, found @ reference))
    atoms = [molecule.lowest.data.z.tolist() for molecule in molecules]
    parts = {"all": np.ones(len(molecules), dtype=bool)}
    parts |= {f"{by} {name}": mask for by, name, mask in groupings(atoms, sample.magnitude)}
    return {what: numbers(error[some], angle[some]) for what, some in parts.items() if some.any()}


def numbers(error: NDArray[np.float64], angle: NDArray[np.float64]) -> dict[str, float]:
    """Mean errors in debye, angles in degrees; undefined ones are left out."""
    known = error[np.isfinite(error)]
    if not len(known):
        return {"molecules": 0}
    found = {
        "molecules": len(known),
        "mae_D": float(np.abs(known).mean()),
        "rmse_D": float(np.sqrt(np.square(known).mean())),
        "bias_D": float(known.mean()),
    }
    directed = angle[np.isfinite(angle)]
    if len(directed):
        found |= {
            "angle_median": float(np.median(directed)),
            "angle_99": float(np.percentile(directed, 99)),
        }
    return found


def tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table over all molecules, one by size, by element and by magnitude."""
    return [table(part, rows) for part in ("all", "size", "element", "magnitude")]


def table(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one kind as Markdown."""
    chosen = [row for row in rows if row["part"].split()[0] == part and row["molecules"]]
    columns = {
        "mae_D": "MAE, D",
        "rmse_D": "RMSE, D",
        "bias_D": "bias, D",
        "angle_median": "angle, median, °",
        "angle_99": "angle, 99 %, °",
    }
    return markdown_table(
        ("set", "molecules of", "part", "method", "molecules", *columns.values()),
        [
            (
                row["set"],
                f"{row['elements of']} ({row['left out']} left out)",
                *(row[name] for name in ("part", "method", "molecules")),
                *(f"{row[name]:.3f}" if name in row else NOTHING for name in columns),
            )
            for row in chosen
        ],
    )


if __name__ == "__main__":
    main()
