"""What it costs that a geometry from a SMILES is not the one that the model was trained on.

Takes molecules of QM9's validation part whose conformers all relax to the same structure, and that
the one of QM9, so that there is no doubt which conformer is meant, and compares predictions at
three geometries of each: QM9's own (B3LYP), that of ``from_smiles`` (ETKDG, then MMFF94s), and that
relaxed further with GFN2-xTB. SMILES come from QM9's geometries by RDKit's perception of bonds,
with their stereo.

It writes ``RUN/geometry.json`` and ``RUN/geometry.md``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from force_field import same_conformer, smiles_of
from markdown_table import NOTHING, markdown_table
from numpy.typing import NDArray
from reference_data import ROOT, data_folder, read_arrays, read_npz
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.molecules import MoleculeError, from_smiles
from dipolegnn.predict import predict
from dipolegnn.pretrained import load_pretrained

FILE = "qm9_dipole.npz"
VALIDATION = 1

CONFORMERS = 10
"""Embedded per molecule, to see whether there is more than one."""


LEFT_OUT = ("no SMILES", "no structure", "several conformers", "another conformer", "GFN2-xTB")
"""Reasons."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure models at geometries from elsewhere."""

    output: Path = ROOT / "runs" / "geometry"
    """Folder for geometry.md and geometry.json."""
    models: tuple[str, ...] = ("painn-qm9", "painn-qm9-mmff94s")
    """Models that come along."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with qm9_dipole.npz; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    molecules: int = 500
    """Rigid molecules to look at."""


class Rigid(NamedTuple):
    """A molecule with one conformer, at three geometries."""

    reference: Data
    """QM9's geometry and magnitude."""
    force_field: Data
    xtb: Data
    force_field_seconds: float
    xtb_seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    path = data_folder(options.data, FILE) / FILE
    validation = np.flatnonzero(read_arrays(path)["split"] == VALIDATION)
    validation = np.random.default_rng(0).permutation(validation)
    candidates = read_npz(path, number="qm9_index", vectors=False, rows=validation).data
    found, looked_at, reasons = rigid(candidates, options.molecules)
    print(f"{len(found)} rigid molecules of {looked_at}; left out: {reasons}")
    if not found:
        raise SystemExit("No molecule is rigid; there is nothing to compare.")

    reference = np.array([float(molecule.reference.dipole_magnitude) for molecule in found])
    geometries = {
        "QM9 (B3LYP)": ([m.reference for m in found], None),
        "ETKDG, MMFF94s": ([m.force_field for m in found], [m.force_field_seconds for m in found]),
        "then GFN2-xTB": (
            [m.xtb for m in found],
            [m.force_field_seconds + m.xtb_seconds for m in found],
        ),
    }
    rows: list[dict[str, Any]] = []
    for model_name in options.models:
        model = load_pretrained(model_name)
        for name, (molecules, seconds) in geometries.items():
            error = np.array([p.magnitude for p in predict(model, molecules)]) - reference
            rows.append({"model": model_name, "geometry": name, **numbers(error, seconds)})
    options.output.mkdir(parents=True, exist_ok=True)
    about = {"looked_at": looked_at, "left_out": reasons, "rows": rows}
    (options.output / "geometry.json").write_text(json.dumps(about, indent=1) + "\n")
    text = table(rows)
    (options.output / "geometry.md").write_text(text, encoding="utf-8")
    print(text)


def rigid(candidates: Sequence[Data], wanted: int) -> tuple[list[Rigid], int, dict[str, int]]:
    """Rigid molecules, how many were looked at, and why the others were left out."""
    calculator = xtb_calculator(XTBConfig())
    found: list[Rigid] = []
    reasons = dict.fromkeys(LEFT_OUT, 0)
    looked_at = 0
    for data in track(candidates, "Geometries", transient=True):
        if len(found) == wanted:
            break
        looked_at += 1
        try:
            smiles = smiles_of(data)
        except MoleculeError:
            reasons["no SMILES"] += 1
            continue
        try:
            start = time.perf_counter()
            (alone,) = from_smiles(smiles)
            middle = time.perf_counter()
            several = len(from_smiles(smiles, conformers=CONFORMERS)) > 1
        except MoleculeError:
            reasons["no structure"] += 1
            continue
        if several:
            reasons["several conformers"] += 1
            continue
        try:
            same = same_conformer(alone, data)
        except MoleculeError:  # the bonds are perceived otherwise
            same = False
        if not same:  # the force field's only one is not the one that B3LYP has
            reasons["another conformer"] += 1
            continue
        try:
            before = time.perf_counter()
            relaxed = label(alone, calculator, optimize=True)
            after = time.perf_counter()
        except MoleculeError:
            reasons["GFN2-xTB"] += 1
            continue
        found.append(Rigid(data, alone, relaxed, middle - start, after - before))
    return found, looked_at, reasons


def numbers(error: NDArray[np.float64], seconds: Sequence[float] | None) -> dict[str, float]:
    """Errors of the magnitude in debye; time for a geometry, which QM9's came without."""
    found = {
        "molecules": len(error),
        "mae_D": float(np.abs(error).mean()),
        "median_D": float(np.median(np.abs(error))),
        "rmse_D": float(np.sqrt(np.square(error).mean())),
        "bias_D": float(error.mean()),
    }
    if seconds is not None:
        found["median_ms"] = 1000 * float(np.median(seconds))
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The geometries as Markdown."""
    columns = {
        "mae_D": "MAE, D",
        "median_D": "median, D",
        "rmse_D": "RMSE, D",
        "bias_D": "bias, D",
    }
    text = markdown_table(
        ("model", "geometry", "molecules", *columns.values(), "time for it, ms"),
        [
            (
                *(row[name] for name in ("model", "geometry", "molecules")),
                *(f"{row[name]:.3f}" for name in columns),
                f"{row['median_ms']:.0f}" if "median_ms" in row else NOTHING,
            )
            for row in rows
        ],
    )
    return text + "\n"


if __name__ == "__main__":
    main()
