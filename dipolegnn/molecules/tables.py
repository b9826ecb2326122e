"""Lists of SMILES: ``.smi`` and ``.csv``."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import NamedTuple

from dipolegnn.molecules.batch import SmilesRow
from dipolegnn.molecules.errors import Failure, MoleculeError


@dataclass(frozen=True)
class TableColumns:
    """Which column of a ``.csv`` is what; upper and lower case do not matter."""

    smiles: str = "smiles"
    """Column of the SMILES."""
    name: str | None = None
    """Column of the names; None: the column "name" if there is one, else the SMILES."""
    magnitude: str | None = None
    """Column of reference dipole magnitudes in debye; None: no labels. Cells may be empty."""


class Table(NamedTuple):
    """The rows of a list of SMILES, and those that cannot be read."""

    rows: list[SmilesRow]
    failures: list[Failure]


def parse_smi(text: str) -> Table:
    """A SMILES and its name on each line; the name may have spaces, and ends at a tab.

    Blank lines, lines that start with ``#``, and a header line (``SMILES ...``) are no rows.
    """
    rows: list[SmilesRow] = []
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and lines[0].split()[0].lower() in ("smiles", "canonical_smiles"):
        lines = lines[1:]
    for row, line in enumerate(lines, start=1):
        smiles, *rest = line.split(maxsplit=1)
        name = rest[0] if rest else ""
        if name.startswith("|") and "|" in name[1:]:  # CXSMILES: an extension between bars
            extension, name = name[1:].split("|", maxsplit=1)
            smiles = f"{smiles} |{extension}|"
        rows.append(SmilesRow(row, smiles, name.strip().split("\t")[0].strip()))
    return Table(rows, [])


def parse_csv(text: str, columns: TableColumns, *, source: str = "") -> Table:
    """One SMILES a row under a header line; blank lines are no rows.

    Raises:
        MoleculeError: No header, or no such column.
    """
    header = next((line for line in text.split("\n") if line.strip()), "")
    if not header:
        return Table([], [])
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text.lstrip("\n")), delimiter=delimiter, strict=True)
    rows: list[SmilesRow] = []
    failures: list[Failure] = []
    names = [name.strip() for name in next(reader)]
    smiles_at = _find(names, columns.smiles)
    magnitude_at = None if columns.magnitude is None else _find(names, columns.magnitude)
    if columns.name is not None:
        name_at: int | None = _find(names, columns.name)
    else:
        name_at = next((i for i, name in enumerate(names) if name.lower() == "name"), None)
    row = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise MoleculeError(
                f"After data row {row} the file is no CSV any more: {error}",
                remedy="Check the quotation marks there",
            ) from None
        if cells is None:
            return Table(rows, failures)
        if not cells:
            continue
        row += 1
        smiles = _cell(cells, smiles_at)
        name = _cell(cells, name_at)
        try:
            magnitude = _magnitude(_cell(cells, magnitude_at))
        except MoleculeError as error:
            located = error.located(molecule=name or smiles, row=row, source=source)
            failures.append(Failure.from_error(located, "read"))
        else:
            rows.append(SmilesRow(row, smiles, name, magnitude))


def _find(names: list[str], wanted: str) -> int:
    if wanted in names:
        return names.index(wanted)
    alike = [i for i, name in enumerate(names) if name.lower() == wanted.lower()]
    if len(alike) != 1:
        raise MoleculeError(
            f"No column {wanted!r}; the columns are {', '.join(map(repr, names))}",
            remedy="Name the column that is meant, or add a header line",
        )
    return alike[0]


def _cell(cells: list[str], at: int | None) -> str:
    return cells[at].strip() if at is not None and at < len(cells) else ""


def _magnitude(cell: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if math.isnan(value):
        return None
    if value < 0 or math.isinf(value):
        raise MoleculeError(
            f"The dipole magnitude is {cell!r}, expected a number of 0 D or more",
            remedy="Correct the cell, or leave it empty where the dipole is unknown",
        )
    return value
