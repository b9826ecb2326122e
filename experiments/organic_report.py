"""Errors of a broad model by data set, charge, size and element, with GFN2-xTB beside it.

``RUN/report.md`` and ``report.json``: the validation parts of the data sets of
``experiments/organic.py``, each at its level of theory; experimental dipole moments and the share
of real chemicals that get a prediction, from SMILES at the default level.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from common import NOTHING, ROOT, data_folder, markdown_table

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig, XTBConfig
from dipolegnn.data import ConformerDataset, JoinedDataset
from dipolegnn.evaluation import score
from dipolegnn.inference.structures import Prediction, average, predict
from dipolegnn.labels import label_many
from dipolegnn.metrics import groupings
from dipolegnn.models import load_model, unknown_elements
from dipolegnn.molecules import SmilesRow, embed_smiles
from dipolegnn.nn import DipoleModel

EXPERIMENT = ("experimental_dipoles.csv", "experimental_dipoles_wide.csv")
CHEMICALS = "smiles_chemicals.csv.gz"

SETS = ("organic", "drug_conformers", "torsion_profiles", "s66x8_dimers", "qm9", "organic_xtb")

FEWEST = 5
"""Groups of fewer structures are not in the table."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a broad model."""

    sets: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the data sets (datasets/public/build.py)."""
    model: str = "painn-organic"
    """Pretrained model, model file or folder of a run."""
    output: Path = ROOT / "runs" / "organic"
    """Folder of the results."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the reference data; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    only: tuple[str, ...] = SETS
    """The data sets to measure."""
    experiment: bool = True
    """Measure on experimental dipole moments, and on real chemicals, too."""
    chemicals: int = 1000
    """Number of real chemicals, drawn at random."""
    conformers: int = 5
    """Conformers of a molecule from a SMILES."""
    workers: int = 1
    """Processes for GFN2-xTB and the embedding."""


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report."""
    options = tyro.cli(Options, args=argv)
    options.output.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        dataset = JoinedDataset([ConformerDataset(options.sets / name)])
        validation = [dataset[place] for place in dataset.split().val.tolist()]
        known = model.representation.levels
        level = dataset.levels[0] if dataset.levels[0] in known else (*known, "")[0]
        for data in validation:
            data.level = level
        reference = by_xtb(validation, options.output / "journal.jsonl", options.workers)
        rows += measured(name, level, predict(model, validation, progress=True), reference)
    text = [table(rows)]
    if options.experiment:
        folder = data_folder(options.data, EXPERIMENT[0])
        for file in EXPERIMENT:
            rows += (found := from_experiment(model, folder / file, options))
            text.append(table(found))
        text.append(answered(model, folder / CHEMICALS, options))
    (options.output / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.output / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


def by_xtb(
    structures: Sequence[Data], journal: Path | None, workers: int
) -> list[Prediction | None]:
    """GFN2-xTB for the same structures; None where it fails."""
    numbered = [data.clone() for data in structures]
    for place, data in enumerate(numbered):
        data.mol_id = torch.tensor([place])
    found = label_many(numbered, XTBConfig(), workers=workers, progress=True, journal=journal)
    labelled = {int(data.mol_id): data for data in found.data}
    return [
        None
        if (label := labelled.get(place)) is None
        else Prediction(
            data,
            float(label.dipole_magnitude),
            label.dipole[0].double().numpy(),
            label.atomic_charges.double().numpy(),
        )
        for place, data in enumerate(structures)
    ]


def measured(
    name: str,
    level: str,
    predictions: Sequence[Prediction],
    reference: Sequence[Prediction | None],
) -> list[dict[str, Any]]:
    """Errors of a set and of its parts."""
    rows = []
    for part, mask in parts([prediction.data for prediction in predictions]):
        places = np.flatnonzero(mask).tolist()
        if part != "all" and len(places) < FEWEST:
            continue
        chosen = [predictions[place] for place in places]
        xtb = [prediction for place in places if (prediction := reference[place]) is not None]
        rows.append(
            {"set": name, "level": level, "part": part, "structures": len(chosen)}
            | errors(chosen)
            | {f"GFN2-xTB {key}": value for key, value in errors(xtb).items()}
        )
    return rows


def parts(structures: Sequence[Data]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Names and masks of parts of a set."""
    charge = np.array([int(data.charge) for data in structures])
    yield "all", np.ones(len(charge), dtype=bool)
    yield "neutral", charge == 0
    yield "ions", charge != 0
    numbers = [data.z.tolist() for data in structures]
    magnitudes = [float(data.dipole_magnitude) for data in structures]
    for by, name, mask in groupings(numbers, magnitudes):
        yield f"{by} {name}", mask


def errors(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Errors of the magnitudes and vectors; coverage and width of the intervals of 90 %."""
    if not predictions:
        return {}
    found = score(predictions).metrics
    error = np.array([abs(p.magnitude - float(p.data.dipole_magnitude)) for p in predictions])
    values = {"MAE": found["dipole_mae"], "median": float(np.median(error))}
    lengths, angles = [], []
    for prediction in predictions:
        reference = prediction.data.dipole[0].double().numpy()
        if np.isfinite(reference).all():
            lengths.append(float(np.linalg.norm(prediction.dipole - reference)))
            if np.linalg.norm(reference) > 0.5:
                cross = np.linalg.norm(np.cross(prediction.dipole, reference))
                angles.append(np.degrees(np.arctan2(cross, prediction.dipole @ reference)))
    if lengths:
        values["vector MAE"] = float(np.mean(lengths))
    if angles:
        values["angle median"] = float(np.median(angles))
    widths = [p.half_width(0.9) for p in predictions]
    if None not in widths:
        # The interval of a structure with a broken bond has no limits, and holds.
        known = np.array(widths, dtype=float)
        values["inside 90 %"] = float((error <= known).mean())
        values["half width"] = float(np.median(known))
    return values


COLUMNS = {
    "MAE": "MAE (D)",
    "median": "median (D)",
    "vector MAE": "vector (D)",
    "angle median": "angle (°)",
    "inside 90 %": "inside 90 %",
    "half width": "half width (D)",
    "GFN2-xTB MAE": "GFN2-xTB MAE (D)",
    "GFN2-xTB vector MAE": "GFN2-xTB vector (D)",
    "GFN2-xTB angle median": "GFN2-xTB angle (°)",
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    formats = {"angle (°)": ".1f", "inside 90 %": ".0%", "GFN2-xTB angle (°)": ".1f"}
    return markdown_table(
        ("set", "level", "part", "structures", *COLUMNS.values()),
        [
            (
                *(row["set"], row["level"] or NOTHING, row["part"], row["structures"]),
                *(
                    format(row[key], formats.get(title, ".3f")) if key in row else NOTHING
                    for key, title in COLUMNS.items()
                ),
            )
            for row in rows
        ],
    )


def from_experiment(model: DipoleModel, path: Path, options: Options) -> list[dict[str, Any]]:
    """Errors of averages over conformers of molecules that have an experimental value."""
    with path.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    wanted = [
        SmilesRow(number, entry["smiles"], dipole_magnitude=float(entry["dipole_magnitude_debye"]))
        for number, entry in enumerate(listed, start=1)
    ]
    found = embed_smiles(wanted, ConformerConfig(conformers=options.conformers))
    kept = [data for data in found.data if unknown_elements(model, data) is None]
    molecules = average(predict(model, kept))
    means = [
        Prediction(m.lowest.data, m.magnitude, np.full(3, np.nan), m.lowest.charges, m.lowest.error)
        for m in molecules
    ]
    xtb = [p for p in by_xtb(kept, None, options.workers) if p is not None]
    averages = {
        int(m.lowest.data.mol_id): Prediction(
            m.lowest.data, m.magnitude, np.full(3, np.nan), m.lowest.charges
        )
        for m in average(xtb)
    }
    reference = [averages.get(int(p.data.mol_id)) for p in means]
    rows = measured(path.stem, "default, from SMILES", means, reference)
    missing = len(wanted) - len(means)
    return [row | {"part": f"{row['part']} ({missing} of {len(wanted)} not answered)"}
            if row["part"] == "all" else row for row in rows]  # fmt: skip


def answered(model: DipoleModel, path: Path, options: Options) -> str:
    """Share of real chemicals that get a prediction, and why the others do not."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)]
    drawn = np.random.default_rng(0).permutation(len(smiles))[: options.chemicals]
    rows = [SmilesRow(k, smiles[place]) for k, place in enumerate(drawn.tolist(), start=1)]
    found = embed_smiles(rows, ConformerConfig(), workers=options.workers)
    good = sum(unknown_elements(model, data) is None for data in found.data)
    why = Counter(failure.problem.split("(")[0][:60] for failure in found.failures)
    if good < len(found.data):
        why["elements that the model lacks"] = len(found.data) - good
    reasons = "".join(f"\n- {problem}: {count}" for problem, count in why.most_common())
    return f"Of {len(rows)} real chemicals {good / len(rows):.1%} are answered. Not:\n{reasons}"


if __name__ == "__main__":
    main()
