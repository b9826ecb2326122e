"""The models that come along on molecules from elsewhere, with GFN2-xTB beside them.

Experiment (``experimental_dipoles.csv``: from SMILES, with own conformers), another level of theory
(``qm7b_ccsd.npz``: CCSD) and directions (``qm9_mp2_vectors.npz``: MP2, those molecules that are in
the test part of ``qm9_dipole.npz``). Only molecules all of whose elements a model was trained on
count for it. What that leaves out, and what a model doubts, is said: there it must not be trusted.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from ase.data import chemical_symbols
from common import NOTHING, ROOT, data_folder, markdown_table, read_arrays
from comparison import Sample, by_xtb, measure, table

from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import Failure, SmilesRow, embed_smiles, make_data
from dipolegnn.predict import predict
from dipolegnn.predictions import MoleculePrediction, average
from dipolegnn.pretrained import elements_of, load_pretrained, pretrained_names

MP2_SET = "QM9's test part, RI-MP2/def2-TZVP"
EXPERIMENT, QM7B, MP2 = "experimental_dipoles.csv", "qm7b_ccsd.npz", "qm9_mp2_vectors.npz"
QM9 = "qm9_dipole.npz"
TEST = 2
"""Mark of QM9's test part: the others are molecules that models were trained on or chosen by."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the models that come along on molecules from elsewhere."""

    output: Path = ROOT / "runs" / "external"
    """Folder for external.md and external.json."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the reference data; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    molecules: int = 2000
    """Molecules of a file at most, drawn at random."""
    conformers: int = 5
    """Conformers at most of a molecule from a SMILES."""


class Limits(NamedTuple):
    """Where a model must not be trusted."""

    set: str
    model: str
    unknown: Counter[str]
    """Molecules left out, by the elements that the model was not trained on."""
    doubted: Counter[str]
    """Molecules that count, by why the model doubts its prediction."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    folder = data_folder(options.data, EXPERIMENT)
    samples = [
        from_experiment(folder / EXPERIMENT, options.conformers),
        from_npz("QM7b, CCSD/d-aug-cc-pVDZ", folder / QM7B, options.molecules),
        from_npz(MP2_SET, folder / MP2, options.molecules, folder / QM9),
    ]
    rows: list[dict[str, Any]] = []
    limits: list[Limits] = []
    for sample in samples:
        for name in pretrained_names():
            covered = restricted(sample, elements_of(name))
            left_out = len(sample.magnitude) - len(covered.magnitude)
            unknown = by_unknown_element(sample, elements_of(name))
            own = predict(load_pretrained(name), covered.data)
            limits.append(Limits(sample.name, name, unknown, by_doubt(average(own))))
            if not len(covered.magnitude):
                continue
            for method, predictor in (
                (name, lambda _, own=own: own),
                ("GFN2-xTB", by_xtb),
            ):
                for what, values in measure(covered, predictor).items():
                    row = {"set": sample.name, "method": method, "elements of": name, "part": what}
                    rows.append({**row, "left out": left_out, **values})
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "external.json").write_text(json.dumps(rows, indent=1) + "\n")
    parts = [table(part, rows) for part in ("all", "size", "element", "magnitude")]
    failed = [failure for sample in samples for failure in sample.failures]
    text = "\n\n".join([*parts, not_to_be_trusted(limits, failed)]) + "\n"
    (options.output / "external.md").write_text(text, encoding="utf-8")
    print(text)


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
    """How many molecules have each of the elements that are not among these."""
    atoms = {int(data.mol_id): data.z.tolist() for data in sample.data}
    strange = [{chemical_symbols[z] for z in numbers} - elements for numbers in atoms.values()]
    return Counter(symbol for symbols in strange for symbol in symbols)


def by_doubt(molecules: Sequence[MoleculePrediction]) -> Counter[str]:
    """How many molecules are doubted for each kind of reason."""
    kinds = {"heavy atom": "size", "charge": "charge", "less sure": "unlike the training molecules"}
    return Counter(
        kind
        for molecule in molecules
        for kind in {
            kind for doubt in molecule.doubts for mark, kind in kinds.items() if mark in doubt
        }
    )


def not_to_be_trusted(limits: Sequence[Limits], failures: Sequence[Failure]) -> str:
    """Where no number above is to be relied on, as Markdown."""
    left_out = markdown_table(
        ("set", "model", "left out: elements that it was not trained on", "counted, but doubted"),
        [
            (row.set, row.model, *(counted(found) for found in (row.unknown, row.doubted)))
            for row in limits
        ],
    )
    text = f"## Where the models must not be trusted\n\nMolecules, by reason.\n\n{left_out}"
    if failures:
        text += "\n\nNo structure could be made of:\n\n" + "\n".join(
            f"- `{failure.molecule}`: {failure.problem}" for failure in failures
        )
    return text


def counted(found: Counter[str]) -> str:
    """What there is most of first."""
    return ", ".join(f"{name} {count}" for name, count in found.most_common()) or NOTHING


if __name__ == "__main__":
    main()
