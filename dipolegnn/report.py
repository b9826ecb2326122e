"""Predictions for people (tables) and for programs (JSON, CSV), units always said."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipolegnn.models import LoadedModel
from dipolegnn.molecules import Failure
from dipolegnn.predict import MoleculePrediction, Prediction

MAX_GEOMETRIES = 10
"""With more molecules than this their geometries are not printed."""

UNITS = {
    "magnitude": "debye",
    "half_width": "debye",
    "smallest": "debye",
    "largest": "debye",
    "dipole": "debye",
    "positions": "angstrom",
    "charges": "e",
    "charge": "e",
    "energy": "kcal/mol, relative to the lowest conformer",
    "weight": "1",
    "temperature": "kelvin",
    "coverage": "1",
}


@dataclass(frozen=True, eq=False)
class Report:
    """What ``dipolegnn predict`` has to report."""

    molecules: list[tuple[MoleculePrediction, LoadedModel]]
    """Each with the model that made the prediction."""
    failures: list[Failure]
    temperature: float
    coverage: float

    @property
    def models(self) -> list[LoadedModel]:
        """The models that made them."""
        return list({model.name: model for _, model in self.molecules}.values())


def notes(molecule: MoleculePrediction, model: LoadedModel) -> list[str]:
    """What one should know about a prediction."""
    found = []
    charge = _charge(molecule.lowest)
    if charge:
        found.append(f"ion ({charge:+d} e): the dipole refers to the centre of mass")
    found += molecule.doubts
    known = None if molecule.lowest.error else model.elements  # else it is among the doubts
    unknown = [] if known is None else sorted(set(_symbols(molecule.lowest)) - known)
    if unknown:
        found.append(f"the model was not trained on {', '.join(unknown)}: do not rely on it")
    if molecule.lowest.dipole is None:
        found.append("the model has a magnitude only, no vector and no charges")
    return found


def as_json(report: Report) -> str:
    """The report as a JSON object."""
    content = {
        "models": {model.name: {"accuracy": model.accuracy} for model in report.models},
        "temperature": report.temperature,
        "coverage": report.coverage,
        "units": UNITS,
        "molecules": [
            {
                "name": molecule.lowest.data.name,
                "smiles": molecule.lowest.data.smiles,
                "charge": _charge(molecule.lowest),
                "magnitude": molecule.magnitude,
                "half_width": _half_width(report, molecule),
                "smallest": molecule.smallest,
                "largest": molecule.largest,
                "symbols": _symbols(molecule.lowest),
                "conformers": _conformers(molecule),
                "model": model.name,
                "notes": notes(molecule, model),
            }
            for molecule, model in report.molecules
        ],
        "failures": [asdict(failure) for failure in report.failures],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)


def as_csv(report: Report) -> str:
    """One line per molecule; vector, geometry and charges of the lowest conformer."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(
        [
            *("name", "smiles", "charge_e", "magnitude_D", "half_width_D", "smallest_D"),
            *("largest_D",),
            *("dipole_x_D", "dipole_y_D", "dipole_z_D", "conformers"),
            *("symbols", "positions_angstrom", "atomic_charges_e", "model", "notes"),
        ]
    )
    for molecule, model in report.molecules:
        lowest = molecule.lowest
        width = _half_width(report, molecule)
        sizes = (molecule.smallest, molecule.largest)
        vector = [""] * 3 if lowest.dipole is None else [f"{x:.6f}" for x in lowest.dipole]
        charges = "" if lowest.charges is None else " ".join(f"{q:.6f}" for q in lowest.charges)
        writer.writerow(
            [
                *(lowest.data.name, lowest.data.smiles, _charge(lowest)),
                *(f"{molecule.magnitude:.6f}", "" if width is None else f"{width:.6f}"),
                *(f"{size:.6f}" for size in sizes),
                *(*vector, len(molecule.conformers)),
                " ".join(_symbols(lowest)),
                " ".join(f"{x:.6f}" for x in lowest.data.pos.flatten().tolist()),
                *(charges, model.name, "; ".join(notes(molecule, model))),
            ]
        )
    return text.getvalue()


def print_tables(report: Report) -> None:
    """Prints the dipoles, and the geometries that the vectors belong to if they are few."""
    if not report.molecules:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to keep to
    console.print(_dipoles(report))
    for molecule, model in report.molecules:
        for note in notes(molecule, model):
            console.print(Text(f"{molecule.lowest.data.name}: {note}"))
    if len(report.molecules) <= MAX_GEOMETRIES:
        for molecule, _ in report.molecules:
            console.print(_geometry(molecule.lowest))
    else:
        console.print("Geometries and charges: --json, or --output FILE.", highlight=False)
    for model in report.models:
        console.print(Text(f"{model.name}{f': {model.accuracy}' if model.accuracy else ''}"))


def _dipoles(report: Report) -> Table:
    table = Table(
        title=(
            f"Dipole moments in debye (D); averages over conformers at {report.temperature:g} K; ± "
            f"holds for {100 * report.coverage:g} %"
        ),
        title_justify="left",
    )
    table.add_column("molecule", overflow="fold")
    for header in ("|μ| (D)", "± (D)", "range (D)", "conformers", "μx (D)", "μy (D)", "μz (D)"):
        table.add_column(header, justify="right", no_wrap=True)
    for molecule, _ in report.molecules:
        vector = molecule.lowest.dipole
        components = ["–"] * 3 if vector is None else [f"{x:.3f}" for x in vector]
        several = len(molecule.conformers) > 1
        width = _half_width(report, molecule)
        table.add_row(
            Text(molecule.lowest.data.name),  # "[O-]" is no markup
            f"{molecule.magnitude:.3f}",
            "–" if width is None else f"{width:.3f}",
            f"{molecule.smallest:.3f} – {molecule.largest:.3f}" if several else "",
            str(len(molecule.conformers)),
            *components,
        )
    return table


def _geometry(prediction: Prediction) -> Table:
    table = Table(title=Text(prediction.data.name), title_justify="left")
    table.add_column("atom")
    for header in ("x (Å)", "y (Å)", "z (Å)", "charge (e)"):
        table.add_column(header, justify="right", no_wrap=True)
    charges = ["–"] * prediction.data.z.numel()
    if prediction.charges is not None:
        charges = [f"{charge:+.3f}" for charge in prediction.charges]
    for symbol, position, charge in zip(
        _symbols(prediction), prediction.data.pos.tolist(), charges, strict=True
    ):
        table.add_row(symbol, *(f"{x:.4f}" for x in position), charge)
    return table


def _conformers(molecule: MoleculePrediction) -> list[dict[str, Any]]:
    lowest = float(molecule.lowest.data.energy)
    return [
        {
            "energy": None if np.isnan(lowest) else float(conformer.data.energy) - lowest,
            "weight": weight,
            "magnitude": conformer.magnitude,
            "dipole": None if conformer.dipole is None else conformer.dipole.tolist(),
            "positions": conformer.data.pos.tolist(),
            "charges": None if conformer.charges is None else conformer.charges.tolist(),
        }
        for conformer, weight in zip(molecule.conformers, molecule.weights.tolist(), strict=True)
    ]


def _half_width(report: Report, molecule: MoleculePrediction) -> float | None:
    """Half the width of the interval, in debye; None if the model has none of that coverage."""
    width = molecule.half_width(report.coverage)
    return width if width is not None and np.isfinite(width) else None


def _symbols(prediction: Prediction) -> list[str]:
    return [chemical_symbols[z] for z in prediction.data.z.tolist()]


def _charge(prediction: Prediction) -> int:
    return round(float(prediction.data.charge))
