"""Predictions as tables on a terminal, rows, JSON and text of structures, with units."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipolegnn._pyg import Data
from dipolegnn.config import PredictConfig
from dipolegnn.inference.structures import MoleculePrediction, Prediction, Predictions
from dipolegnn.molecules import text_of
from dipolegnn.molecules.tables import import_pyarrow
from dipolegnn.units import DECIMALS_D, DECIMALS_E_OR_ANGSTROM

MAX_GEOMETRIES = 10
"""With more molecules than this their geometries are not printed."""

NAMES_PER_NOTE = 5
"""Largest number of molecules that are named in a note; of more, the number is stated."""

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


def as_json(found: Predictions, config: PredictConfig) -> str:
    """Predictions and failures as a JSON object."""
    content = {
        "models": {m.model: {"accuracy": m.accuracy} for m in found.molecules},
        "temperature": config.temperature,
        "coverage": config.coverage,
        "units": UNITS,
        "molecules": [_as_dict(molecule, config.coverage) for molecule in found.molecules],
        "failures": [asdict(failure) for failure in found.failures],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)


def _as_dict(molecule: MoleculePrediction, coverage: float) -> dict[str, Any]:
    return {
        "name": molecule.lowest.data.name,
        "smiles": molecule.lowest.data.smiles,
        "charge": molecule.lowest.total_charge,
        "magnitude": molecule.magnitude,
        "half_width": _half_width(molecule, coverage),
        "smallest": molecule.smallest,
        "largest": molecule.largest,
        "symbols": molecule.lowest.symbols,
        "conformers": _conformers(molecule),
        "model": molecule.model,
        "notes": molecule.notes,
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

    @classmethod
    def of(cls, molecule: MoleculePrediction, coverage: float) -> Line:
        """The line of a molecule; the error bar has this coverage."""
        lowest = molecule.lowest
        vector = lowest.dipole.tolist() if lowest.has_vector else [None] * 3
        return cls(
            source=molecule.source,
            row=molecule.row,
            name=lowest.data.name,
            smiles=lowest.data.smiles,
            charge_e=lowest.total_charge,
            magnitude_D=molecule.magnitude,
            half_width_D=_half_width(molecule, coverage),
            smallest_D=molecule.smallest,
            largest_D=molecule.largest,
            dipole_x_D=vector[0],
            dipole_y_D=vector[1],
            dipole_z_D=vector[2],
            conformers=len(molecule.conformers),
            symbols=" ".join(lowest.symbols),
            positions_angstrom=lowest.data.pos.flatten().tolist(),
            atomic_charges_e=lowest.charges.tolist() if lowest.has_vector else None,
            model=molecule.model,
            notes="; ".join(molecule.notes),
        )

    def cells(self) -> list[str]:
        """As text, with the decimals that do not depend on the batch or the machine."""
        return [_cell(value) for value in self]


def _cell(value: str | float | list[float] | None) -> str:
    match value:
        case None:
            return ""
        case float():
            return _fixed(value, DECIMALS_D)
        case list():
            return " ".join(_fixed(number, DECIMALS_E_OR_ANGSTROM) for number in value)
    return str(value)


def _fixed(value: float, decimals: int) -> str:
    # Adding 0.0 turns -0.0 into 0.0: the sign of a number that is printed as 0 is rounding error.
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def as_csv(molecules: Sequence[MoleculePrediction], coverage: float) -> str:
    """One line per molecule, under a header line; see :class:`Line`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Line._fields)
    writer.writerows(Line.of(molecule, coverage).cells() for molecule in molecules)
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


def structures_text(molecule: MoleculePrediction, suffix: str, coverage: float) -> str:
    """The conformers of a molecule as structures, each with its own prediction as its labels.

    SDF and extended XYZ also state ``half_width_D`` and ``coverage``, where the model has error
    bars, ``model`` and ``notes``.

    Raises:
        MoleculeError: An SDF needs bonds, and they cannot be perceived.
        ValueError: Another suffix than those of :func:`~dipolegnn.molecules.text_of`.
    """
    further: list[dict[str, str | float]] = []
    for conformer in molecule.conformers:
        fields: dict[str, str | float] = {"model": molecule.model}
        width = conformer.half_width(coverage)
        if width is not None and np.isfinite(width):
            fields |= {"half_width_D": round(width, DECIMALS_D), "coverage": coverage}
        if molecule.notes:
            fields["notes"] = "; ".join(molecule.notes)
        further.append(fields)
    labels = [_rounded(conformer.as_labels()) for conformer in molecule.conformers]
    return text_of(labels, suffix, further)


def _rounded(labels: Data) -> Data:
    """The same with the decimals that are printed."""
    for name, decimals in (
        ("dipole", DECIMALS_D),
        ("dipole_magnitude", DECIMALS_D),
        ("atomic_charges", DECIMALS_E_OR_ANGSTROM),
    ):
        labels[name] = (labels[name].double().round(decimals=decimals) + 0.0).float()
    return labels


def print_tables(molecules: Sequence[MoleculePrediction], config: PredictConfig) -> None:
    """Prints the dipoles, and the geometries that the vectors belong to if they are few."""
    if not molecules:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to keep to
    console.print(_dipoles(molecules, config))
    names: dict[str, list[str]] = {}
    for molecule in molecules:
        for note in molecule.notes:
            names.setdefault(note, []).append(molecule.lowest.data.name)
    for note, about in names.items():
        more = len(about) - NAMES_PER_NOTE
        shown = [*about[:NAMES_PER_NOTE], *([f"{more} more"] if more > 0 else [])]
        console.print(Text(f"{', '.join(shown)}: {note}"))
    if len(molecules) <= MAX_GEOMETRIES:
        for molecule in molecules:
            console.print(_geometry(molecule.lowest))
    else:
        console.print("Geometries and charges: --json, or --output FILE.", highlight=False)
    for model, accuracy in {m.model: m.accuracy for m in molecules}.items():
        console.print(Text(f"{model}: {accuracy}" if accuracy else model))


def _dipoles(molecules: Sequence[MoleculePrediction], config: PredictConfig) -> Table:
    table = Table(
        title=(
            f"Dipole moments, averages over conformers at {config.temperature:g} K; ± holds for "
            f"{100 * config.coverage:g} %"
        ),
        title_justify="left",
    )
    table.add_column("molecule", overflow="fold")
    for header in ("|μ| (D)", "± (D)", "range (D)", "conformers", "μx (D)", "μy (D)", "μz (D)"):
        table.add_column(header, justify="right", no_wrap=True)
    for molecule in molecules:
        lowest = molecule.lowest
        components = [f"{x:.3f}" for x in lowest.dipole] if lowest.has_vector else ["–"] * 3
        several = len(molecule.conformers) > 1
        width = _half_width(molecule, config.coverage)
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
    if prediction.has_vector:
        charges = [f"{charge:+.3f}" for charge in prediction.charges]
    for symbol, position, charge in zip(
        prediction.symbols, prediction.data.pos.tolist(), charges, strict=True
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
            "dipole": conformer.dipole.tolist() if conformer.has_vector else None,
            "positions": conformer.data.pos.tolist(),
            "charges": conformer.charges.tolist() if conformer.has_vector else None,
        }
        for conformer, weight in zip(molecule.conformers, molecule.weights.tolist(), strict=True)
    ]


def _half_width(molecule: MoleculePrediction, coverage: float) -> float | None:
    """Half the width of the interval, in debye; None if the model has none of that coverage."""
    width = molecule.half_width(coverage)
    return width if width is not None and np.isfinite(width) else None
