"""Lists of SMILES: ``.smi``, ``.csv`` and ``.parquet``, row by row."""

from __future__ import annotations

import csv
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dipolegnn.molecules.molecule import Failure, MoleculeError

PARQUET_ROWS = 1000
"""Number of rows read from a Parquet file at once."""

MOST_LINES = 100
"""Limit for a row of a .csv file; a longer row is assumed to lack a closing quotation mark."""

_REMEDY = "Check the quotation marks: each is closed, and those inside a cell are doubled"


class SmilesRow(NamedTuple):
    """One molecule of a list.

    Attributes:
        row: 1-based row in its source; of a ``.smi`` file the number of the line.
        smiles: SMILES.
        name: Name, or ``""``.
        dipole_magnitude: Reference dipole in debye, or ``None``; given to every conformer.
    """

    row: int
    smiles: str
    name: str = ""
    dipole_magnitude: float | None = None


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table, case-insensitive."""

    smiles: str = "smiles"
    """Column of the SMILES."""
    name: str | None = None
    """Column of the names; None: the column "name" if there is one, else the SMILES."""
    magnitude: str | None = None
    """Column of reference dipole magnitudes in debye; None: no labels. Cells may be empty."""


def smi_rows(lines: Iterable[str]) -> Iterator[SmilesRow]:
    """Reads lines with a SMILES and a name; the name may contain spaces and ends at a tab.

    ``row`` is the number of the line. Blank lines, lines that start with ``#``, and a header line
    (``SMILES ...``) give no row, and are counted.
    """
    first = True
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        smiles, *rest = text.split(maxsplit=1)
        if not first or smiles.lower() not in ("smiles", "canonical_smiles"):
            yield _smi_row(number, smiles, rest[0] if rest else "")
        first = False


def parquet_rows(
    path: Path, columns: TableColumns, *, source: str = ""
) -> Iterator[SmilesRow | Failure]:
    """Reads the SMILES of a Parquet file; an empty cell is an empty string.

    Raises:
        ImportError: pyarrow is not installed.
        MoleculeError: It is no Parquet file, or lacks a column.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = {"smiles": names[find_column(names, columns.smiles)]}
            if columns.name is not None:
                wanted["name"] = names[find_column(names, columns.name)]
            elif alike := [name for name in names if name.lower() == "name"]:
                wanted["name"] = alike[0]
            if columns.magnitude is not None:
                wanted["magnitude"] = names[find_column(names, columns.magnitude)]
            row = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=list(set(wanted.values()))):
                cells = {key: batch.column(name).to_pylist() for key, name in wanted.items()}
                for i in range(batch.num_rows):
                    row += 1
                    smiles, name, magnitude = (
                        "" if key not in cells or cells[key][i] is None else str(cells[key][i])
                        for key in ("smiles", "name", "magnitude")
                    )
                    yield table_row(row, smiles.strip(), name.strip(), magnitude, source)
    except pyarrow.ArrowInvalid as error:
        raise MoleculeError(
            f"The file is no Parquet file: {error}", remedy="Copy or write it again"
        ) from None


def parquet_length(path: Path) -> int:
    """Number of rows of a Parquet file."""
    return int(import_pyarrow()[1].read_metadata(path).num_rows)


def import_pyarrow() -> tuple[Any, Any]:
    """Imports pyarrow and pyarrow.parquet.

    Raises:
        ImportError: They are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(
            "Parquet files need pyarrow, which is not installed: pip install 'dipolegnn[parquet]'."
        ) from None
    return pyarrow, parquet


def _smi_row(row: int, smiles: str, name: str) -> SmilesRow:
    if name.startswith("|") and "|" in name[1:]:  # CXSMILES: an extension between bars
        extension, name = name[1:].split("|", maxsplit=1)
        smiles = f"{smiles} |{extension}|"
    return SmilesRow(row, smiles, name.strip().split("\t")[0].strip())


def csv_rows(
    lines: Iterable[str], columns: TableColumns, *, source: str = ""
) -> Iterator[SmilesRow | Failure]:
    """Reads the SMILES of a .csv file with a header line; blank lines are skipped.

    A row with unmatched quotation marks is a single line, which fails.

    Raises:
        MoleculeError: No such column, or a header line whose quotation marks do not match.
    """
    rest = iter(lines)
    header = next((line for line in rest if line.strip()), "")
    if not header:
        return
    delimiter = max(",;\t", key=header.count)
    given = _RowLines(itertools.chain([header], rest))
    reader = csv.reader(given, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise MoleculeError(
            f"The header line is not that of a CSV: {error}", remedy=_REMEDY
        ) from None
    smiles_at = find_column(names, columns.smiles)
    magnitude_at = None if columns.magnitude is None else find_column(names, columns.magnitude)
    if columns.name is not None:
        name_at: int | None = find_column(names, columns.name)
    else:
        name_at = next((i for i, name in enumerate(names) if name.lower() == "name"), None)
    row = 0
    while True:
        given.begin_row()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            row += 1
            line = given.keep_first().strip().encode("utf-8", "replace").decode()
            problem = MoleculeError(f"The line is not CSV: {error}", remedy=_REMEDY)
            yield problem.failure("read", molecule=line, row=row, source=source)
            continue
        if cells is None:
            return
        if not cells:
            continue
        row += 1
        smiles, name = _cell(cells, smiles_at), _cell(cells, name_at)
        yield table_row(row, smiles, name, _cell(cells, magnitude_at), source)


class _RowLines(Iterator[str]):
    """Lines of a file, grouped by row; the lines of an invalid row can be read again."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rest = iter(lines)
        self._again: deque[str] = deque()
        self._row: list[str] = []

    def __next__(self) -> str:
        if len(self._row) == MOST_LINES:
            raise StopIteration  # to the reader, the file ends in the middle of a row
        line = self._again.popleft() if self._again else next(self._rest)
        self._row.append(line)
        return line

    def begin_row(self) -> None:
        """Starts a new row."""
        self._row = []

    def keep_first(self) -> str:
        """Returns the first line of the row as a row of its own; the others are read again."""
        first, *others = self._row
        self._again.extendleft(reversed(others))
        return first


def table_row(row: int, smiles: str, name: str, magnitude: str, source: str) -> SmilesRow | Failure:
    """Creates a row of a table and parses its magnitude."""
    try:
        return SmilesRow(row, smiles, name, _magnitude(magnitude))
    except MoleculeError as error:
        return error.failure("read", molecule=name or smiles, row=row, source=source)


def find_column(names: Sequence[str], wanted: str) -> int:
    """Finds a column by its name, case-insensitive.

    Raises:
        MoleculeError: There is none, or several that differ in case alone.
    """
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
