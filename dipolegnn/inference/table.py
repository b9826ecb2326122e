"""Predictions for people (tables) and for programs (JSON, CSV), units always said."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipolegnn._pyg import Data
from dipolegnn.inference.result import MoleculePrediction, Prediction
from dipolegnn.models import LoadedModel
from dipolegnn.molecules import Failure, can_turn, text_of
from dipolegnn.molecules.tables import import_pyarrow
from dipolegnn.units import DECIMALS_D, DECIMALS_E_OR_ANGSTROM

MAX_GEOMETRIES = 10
"""With more molecules than this their geometries are not printed."""

NAMES_PER_NOTE = 5
"""More molecules about which the same is said are counted, not named."""

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


class Answer(NamedTuple):
    """The prediction for a molecule, and where both are from."""

    molecule: MoleculePrediction
    model: LoadedModel
    """The model that made the prediction."""
    source: str
    """Name of the molecule's file; empty for SMILES that were given one by one."""
    row: int
    """Its row, record or frame there, from 1."""
    asked: int
    """Conformers that were asked for; 0: its geometry was not made here."""


@dataclass(frozen=True, eq=False)
class Report:
    """What ``dipolegnn predict`` has to report."""

    molecules: list[Answer]
    failures: list[Failure]
    temperature: float
    coverage: float

    @property
    def models(self) -> list[LoadedModel]:
        """The models that made them."""
        return list({answer.model.name: answer.model for answer in self.molecules}.values())


def notes(answer: Answer) -> list[str]:
    """What one should know about a prediction."""
    molecule, model = answer.molecule, answer.model
    found = []
    charge = _charge(molecule.lowest)
    if charge:
        found.append(f"ion ({charge:+d} e): the dipole refers to the centre of mass")
    found += molecule.doubts
    known = None if molecule.lowest.error else model.elements  # else it is among the doubts
    unknown = [] if known is None else sorted(set(_symbols(molecule.lowest)) - known)
    if unknown:
        found.append(f"the model was not trained on {', '.join(unknown)}: do not rely on it")
    if answer.asked == 1 and can_turn(molecule.lowest.data.smiles):
        found.append("this is one conformer; others may have other dipole moments")
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
        "molecules": [_as_dict(report, answer) for answer in report.molecules],
        "failures": [asdict(failure) for failure in report.failures],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)


def _as_dict(report: Report, answer: Answer) -> dict[str, Any]:
    molecule = answer.molecule
    return {
        "name": molecule.lowest.data.name,
        "smiles": molecule.lowest.data.smiles,
        "charge": _charge(molecule.lowest),
        "magnitude": molecule.magnitude,
        "half_width": _half_width(report, molecule),
        "smallest": molecule.smallest,
        "largest": molecule.largest,
        "symbols": _symbols(molecule.lowest),
        "conformers": _conformers(molecule),
        "model": answer.model.name,
        "notes": notes(answer),
    }


class Line(NamedTuple):
    """A line of the table of predictions; vector, geometry and charges of the lowest conformer."""

    source: str
    row: int
    name: str
    smiles: str
    charge_e: int
    magnitude_D: float
    half_width_D: float | None
    smallest_D: float
    largest_D: float
    dipole_x_D: float | None
    dipole_y_D: float | None
    dipole_z_D: float | None
    conformers: int
    symbols: str
    positions_angstrom: list[float]
    atomic_charges_e: list[float] | None
    model: str
    notes: str

    def cells(self) -> list[str]:
        """As text, with the decimals that do not depend on the batch or the machine."""
        return [_cell(value) for value in self]


def lines(report: Report) -> list[Line]:
    """The table of predictions, a line per molecule."""
    return [_line(report, answer) for answer in report.molecules]


def _line(report: Report, answer: Answer) -> Line:
    molecule, model, source, row, _ = answer
    lowest = molecule.lowest
    vector = [None] * 3 if lowest.dipole is None else lowest.dipole.tolist()
    return Line(
        source=source,
        row=row,
        name=lowest.data.name,
        smiles=lowest.data.smiles,
        charge_e=_charge(lowest),
        magnitude_D=molecule.magnitude,
        half_width_D=_half_width(report, molecule),
        smallest_D=molecule.smallest,
        largest_D=molecule.largest,
        dipole_x_D=vector[0],
        dipole_y_D=vector[1],
        dipole_z_D=vector[2],
        conformers=len(molecule.conformers),
        symbols=" ".join(_symbols(lowest)),
        positions_angstrom=lowest.data.pos.flatten().tolist(),
        atomic_charges_e=None if lowest.charges is None else lowest.charges.tolist(),
        model=model.name,
        notes="; ".join(notes(answer)),
    )


def _cell(value: str | float | list[float] | None) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.{DECIMALS_D}f}"
        case list():
            return " ".join(f"{number:.{DECIMALS_E_OR_ANGSTROM}f}" for number in value)
    return str(value)


def as_csv(report: Report) -> str:
    """One line per molecule; see :class:`Line`."""
    return csv_text(lines(report))


def csv_text(table: Sequence[Line]) -> str:
    """A table as CSV, under a header line."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Line._fields)
    writer.writerows(line.cells() for line in table)
    return text.getvalue()


def arrow_schema(names: Sequence[str]) -> Any:
    """The Arrow schema of columns, whose names say what they hold.

    Raises:
        ImportError: pyarrow is not installed.
    """
    arrow, _ = import_pyarrow()
    text, whole, number = arrow.string(), arrow.int64(), arrow.float64()
    kinds = dict.fromkeys(("row", "charge_e", "conformer", "conformers"), whole)
    kinds |= dict.fromkeys(("positions_angstrom", "atomic_charges_e"), arrow.list_(number))
    kinds |= {name: number for name in names if name.endswith(("_D", "_kcal_per_mol"))}
    return arrow.schema((name, kinds.get(name, text)) for name in names)


def structures_text(report: Report, answer: Answer, suffix: str) -> str:
    """The conformers of a molecule as structures, each with its own prediction as its labels.

    SDF and extended XYZ also say ``half_width_D`` and ``coverage``, where the model has error bars,
    ``model`` and ``notes``.

    Raises:
        MoleculeError: An SDF needs bonds, and they cannot be perceived.
        ValueError: Another suffix than those of :func:`~dipolegnn.molecules.text_of`.
    """
    said_of_all = "; ".join(notes(answer))
    further: list[dict[str, str | float]] = []
    for conformer in answer.molecule.conformers:
        said: dict[str, str | float] = {"model": answer.model.name}
        width = conformer.half_width(report.coverage)
        if width is not None and np.isfinite(width):
            said |= {"half_width_D": round(width, DECIMALS_D), "coverage": report.coverage}
        if said_of_all:
            said["notes"] = said_of_all
        further.append(said)
    labels = [_rounded(conformer.as_labels()) for conformer in answer.molecule.conformers]
    return text_of(labels, suffix, further)


def _rounded(labels: Data) -> Data:
    """The same with the decimals that are printed."""
    for name, decimals in (
        ("dipole", DECIMALS_D),
        ("dipole_magnitude", DECIMALS_D),
        ("atomic_charges", DECIMALS_E_OR_ANGSTROM),
    ):
        labels[name] = labels[name].double().round(decimals=decimals).float()
    return labels


def print_tables(report: Report) -> None:
    """Prints the dipoles, and the geometries that the vectors belong to if they are few."""
    if not report.molecules:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to keep to
    console.print(_dipoles(report))
    for note, names in _noted(report).items():
        more = len(names) - NAMES_PER_NOTE
        shown = [*names[:NAMES_PER_NOTE], *([f"{more} more"] if more > 0 else [])]
        console.print(Text(f"{', '.join(shown)}: {note}"))
    if len(report.molecules) <= MAX_GEOMETRIES:
        for molecule, *_ in report.molecules:
            console.print(_geometry(molecule.lowest))
    else:
        console.print("Geometries and charges: --json, or --output FILE.", highlight=False)
    for model in report.models:
        console.print(Text(f"{model.name}{f': {model.accuracy}' if model.accuracy else ''}"))


def _noted(report: Report) -> dict[str, list[str]]:
    """What is said about which molecules."""
    found: dict[str, list[str]] = {}
    for answer in report.molecules:
        for note in notes(answer):
            found.setdefault(note, []).append(answer.molecule.lowest.data.name)
    return found


def _dipoles(report: Report) -> Table:
    table = Table(
        title=(
            f"Dipole moments, averages over conformers at {report.temperature:g} K; ± holds for "
            f"{100 * report.coverage:g} %"
        ),
        title_justify="left",
    )
    table.add_column("molecule", overflow="fold")
    for header in ("|μ| (D)", "± (D)", "range (D)", "conformers", "μx (D)", "μy (D)", "μz (D)"):
        table.add_column(header, justify="right", no_wrap=True)
    for molecule, *_ in report.molecules:
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
