"""Records of files of molecules, one at a time, so that a file need not fit into memory.

A record is the part of a file that describes one structure, not yet parsed: a row of a table of
SMILES (``.smi``, ``.csv``, ``.parquet``), a record of an SDF, a frame of an XYZ file.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dipolegnn.files import READABLE_TEXT, Lines, molecule_format
from dipolegnn.molecules.molecule import Failure, MoleculeError
from dipolegnn.molecules.sdf import LABEL_FIELDS, sdf_records
from dipolegnn.molecules.total_charge import is_charge_name, is_like_a_label, unused, whole_number
from dipolegnn.molecules.xyz import Frame, frames

PARQUET_ROWS = 1000
"""Number of rows read from a Parquet file at once."""

MOST_LINES = 100
"""Limit for a row of a .csv file; a longer row is assumed to lack a closing quotation mark."""

_UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")
"""Byte order marks of UTF-16, decoded as UTF-8 with ``errors="surrogateescape"``."""

_SDF_FIELD = re.compile(r"^>.*<([^<>]+)>.*\n(.*)$", re.MULTILINE)
_SDF_MOL_ID = re.compile(r"^>.*<mol_id>.*\n(.*)$", re.MULTILINE)
_XYZ_MOL_ID = re.compile(r"(?<!\S)mol_id=(\S+)")


class SmilesRow(NamedTuple):
    """One molecule of a list.

    Attributes:
        row: 1-based row in its source; of a ``.smi`` file the number of the line.
        smiles: SMILES.
        name: Name, or ``""``.
        dipole_magnitude: Reference dipole in debye, or ``None``; given to every conformer.
        charges: Names and values of the columns that state the total charge in e.
        remarks: Warnings about columns that look like a charge or a dipole and are not used.
    """

    row: int
    smiles: str
    name: str = ""
    dipole_magnitude: float | None = None
    charges: tuple[tuple[str, float], ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table, case-insensitive."""

    smiles: str = "smiles"
    """Column of the SMILES."""
    name: str | None = None
    """Column of the names; None: the column "name" if there is one, else the SMILES."""
    magnitude: str | None = None
    """Column of reference dipole magnitudes in debye; None: no labels. Cells may be empty."""

    def places(self, names: Sequence[str]) -> tuple[int, int | None, int | None]:
        """Positions of the SMILES, the name and the magnitude in a table with columns ``names``.

        Raises:
            MoleculeError: A column is missing.
        """
        if self.name is None:
            name = next((i for i, text in enumerate(names) if text.lower() == "name"), None)
        else:
            name = find_column(names, self.name)
        magnitude = None if self.magnitude is None else find_column(names, self.magnitude)
        return find_column(names, self.smiles), name, magnitude


class Record(NamedTuple):
    """Record of a structure in a file.

    Args:
        row: Its number in the file, from 1; of a ``.smi`` file the number of the line.
        content: A row of a table; the text of an SDF record; a frame; or why it is none of these.
        group: Number of the molecule that it states; neighbours with the same are its conformers.
            Empty if it states none.
        source: Name of the file, for failures.
        suffix: Suffix of the file.
        mol_id: Number of the molecule, from 0; None: the one that the record states, else
            ``row - 1``.
    """

    row: int
    content: SmilesRow | str | Frame | Failure
    group: str = ""
    source: str = ""
    suffix: str = ""
    mol_id: int | None = None

    @property
    def title(self) -> str:
        """Name or SMILES of the molecule, or ``""``."""
        match self.content:
            case SmilesRow(smiles=smiles, name=name):
                return name or smiles.strip()
            case str(text):
                return text.split("\n", maxsplit=1)[0].strip()
            case Failure(molecule=molecule):
                return molecule
            case Frame() as frame:
                return frame.title

    @property
    def remarks(self) -> tuple[str, ...]:
        """Warnings about values that look like a charge or a dipole and are not used."""
        match self.content:
            case SmilesRow(remarks=remarks):
                return remarks
            case str(text):
                return tuple(
                    unused(
                        (
                            name
                            for name, value in _SDF_FIELD.findall(text)
                            if name not in LABEL_FIELDS.values()
                            and not (is_charge_name(name) and whole_number(value) is not None)
                        ),
                        "data field",
                    )
                )
            case Frame() as frame:
                return tuple(frame.remarks)
        return ()


class RecordFile:
    """Iterator over the records of a file, with progress; a context manager.

    Args:
        path: File; its suffix determines the format. All but ``.parquet`` may end in ``.gz``.
        columns: Columns of a table.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An unknown suffix.
    """

    def __init__(self, path: str | Path, columns: TableColumns | None = None) -> None:
        self.path = Path(path)
        kind = molecule_format(self.path)
        self.suffix = kind.suffix
        self.embedded = kind.smiles
        self.columns = columns or TableColumns()
        self._raw = self.path.open("rb")
        self.size = max(self.path.stat().st_size, 1)
        self._rows = self._characters = 0
        self._at_end = False
        packed = self.path.suffix.lower() == ".gz"
        self._bytes = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
        # Invalid bytes are decoded as surrogates, so that an error can state their line.
        self._text = io.TextIOWrapper(
            self._bytes,
            encoding="utf-8-sig",
            errors="surrogateescape",
        )

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()
        self._raw.close()

    @property
    def position(self) -> float:
        """Fraction of the file that has been read."""
        if self._at_end:
            return 1.0
        if self.suffix == ".parquet":
            return self._rows / max(parquet_length(self.path), 1)
        # Of what was unpacked some is not yet used. The last record is only known at the end.
        used = self._characters / max(self._bytes.tell(), 1)
        return min(used * self._raw.tell() / self.size, 0.999)

    def __iter__(self) -> Iterator[Record]:
        """The records, in order.

        Raises:
            MoleculeError: A column is missing, or from here on the file cannot be read.
        """
        try:
            if self.suffix == ".parquet":
                rows = parquet_rows(self.path, self.columns)
                for record in _numbered(rows):
                    self._rows = record.row
                    yield record._replace(source=self.path.name, suffix=self.suffix)
            else:
                yield from text_records(self._lines(), self.suffix, self.path.name, self.columns)
            self._at_end = True
        except MoleculeError as error:
            raise error.located(source=self.path.name) from None

    def _lines(self) -> Iterator[str]:
        try:
            for line in self._text:
                if not self._characters and line.startswith(_UTF_16):
                    raise MoleculeError(
                        "The file is UTF-16 text, expected UTF-8", remedy="Save the file as UTF-8"
                    )
                self._characters += len(line)
                yield line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise MoleculeError(
                f"The file cannot be decompressed: {error}", remedy="Copy or compress it again"
            ) from None


def file_records(path: str | Path, columns: TableColumns | None = None) -> list[Record]:
    """The records of a file; see :func:`read_file`."""
    with RecordFile(path, columns) as file:
        return _some(list(file), file.path.name)


def read_records(text: str, name: str, columns: TableColumns | None = None) -> list[Record]:
    """The records in the content of a file; see :func:`read_text`."""
    kind = molecule_format(name, READABLE_TEXT)
    lines = io.StringIO(text, newline=None)
    try:
        found = list(text_records(lines, kind.suffix, name, columns or TableColumns()))
    except MoleculeError as error:
        raise error.located(source=name) from None
    return _some(found, name)


def _some(records: list[Record], name: str) -> list[Record]:
    if not records:
        raise MoleculeError(
            "The file holds no molecules", remedy="Check that it is complete", source=name
        )
    return records


class Records:
    """Iterator over the records of several files, with progress; a context manager.

    To be used in a ``with``; see :func:`chained` for the numbers of the molecules.

    Args:
        paths: The files.
        columns: Columns of tables.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An unknown suffix.
    """

    def __init__(self, paths: Sequence[str | Path], columns: TableColumns | None = None) -> None:
        self.read = 0
        """Number of records that have been read."""
        self.broken: MoleculeError | None = None
        """Error that ended reading before the end of the files, or None."""
        with ExitStack() as stack:
            self.files = [stack.enter_context(RecordFile(path, columns)) for path in paths]
            self._open = stack.pop_all()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def position(self) -> float:
        """Fraction of all files that has been read."""
        read = sum(file.size * file.position for file in self.files)
        return read / max(sum(file.size for file in self.files), 1)

    def __iter__(self) -> Iterator[Record]:
        """Yields the records in order; reading ends at the first unreadable file (``broken``)."""
        try:
            for record in chained(self.files):
                self.read += 1
                yield record
        except MoleculeError as error:
            self.broken = error


def chained(sources: Sequence[Iterable[Record]]) -> Iterator[Record]:
    """Chains the records of several sources.

    A number that one source states may be a molecule of another. With more than one source the
    number of a molecule therefore is that of its first record among all, from 0.
    """
    if len(sources) == 1:
        yield from sources[0]
        return
    number = mol_id = 0
    for source in sources:
        group = ""
        for record in source:
            if not record.group or record.group != group:
                mol_id = number
            group = record.group
            yield record._replace(mol_id=mol_id)
            number += 1


def _legible(record: Record) -> Record:
    """Returns the record, or a failure if it is not UTF-8 text."""
    match record.content:
        case SmilesRow(smiles=smiles, name=name):
            text = f"{smiles}\n{name}"
        case Frame(comment=comment, atoms=atoms, smiles=smiles):
            text = "\n".join([comment, *atoms, smiles])
        case str(text):
            pass
        case _:
            return record
    try:
        text.encode()
    except UnicodeEncodeError:
        failure = MoleculeError(
            "It has bytes that are not UTF-8 text", remedy="Save the file as UTF-8"
        ).failure(
            "read",
            molecule=text.split("\n", 1)[0].encode("utf-8", "replace").decode(),
            row=record.row,
            source=record.source,
        )
        return record._replace(content=failure)
    return record


def text_records(
    lines: Iterable[str], suffix: str, source: str, columns: TableColumns
) -> Iterator[Record]:
    """Yields the records of the lines of a file; records with invalid UTF-8 are failures.

    Args:
        lines: The lines, with their ends; decoded with ``errors="surrogateescape"``.
        suffix: Suffix of the file.
        source: Name of the file, for the failures.
        columns: Columns of a ``.csv``.

    Raises:
        MoleculeError: A column is missing, or the header line of a ``.csv`` is none.
    """
    match suffix:
        case ".smi":
            found = _numbered(smi_rows(lines))
        case ".csv":
            found = _numbered(csv_rows(lines, columns, source))
        case ".sdf":
            found = (
                Record(number, text, stated[1].strip() if stated else "")
                for number, text in enumerate(sdf_records(lines), start=1)
                for stated in [_SDF_MOL_ID.search(text)]
            )
        case _:
            found = (
                Record(number, frame, stated[1] if stated else "")
                for number, frame in enumerate(frames(lines), start=1)
                for stated in [_XYZ_MOL_ID.search(frame.comment)]
            )
    for record in found:
        yield _legible(record._replace(source=source, suffix=suffix))


def _numbered(rows: Iterable[SmilesRow | Failure]) -> Iterator[Record]:
    return (Record(row.row or 0, row, mol_id=number) for number, row in enumerate(rows))


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


def _smi_row(row: int, smiles: str, name: str) -> SmilesRow:
    if name.startswith("|") and "|" in name[1:]:  # CXSMILES: an extension between bars
        extension, name = name[1:].split("|", maxsplit=1)
        smiles = f"{smiles} |{extension}|"
    return SmilesRow(row, smiles, name.strip().split("\t")[0].strip())


def csv_rows(
    lines: Iterable[str], columns: TableColumns, source: str
) -> Iterator[SmilesRow | Failure]:
    """Reads the SMILES of a .csv file with a header line; blank lines are skipped.

    A row with unmatched quotation marks is a single line, which fails.

    Raises:
        MoleculeError: No such column, or a header line whose quotation marks do not match.
    """
    rest = Lines(lines)
    header = "".join(rest.skip_until(str.strip))
    delimiter = max(",;\t", key=header.count)
    cells, error = _csv_cells(rest, delimiter)
    if cells is None:
        return
    if error is not None:
        raise MoleculeError(f"The header line is not that of a CSV: {error}", remedy=_QUOTES)
    names = [name.strip() for name in cells]
    places = columns.places(names)
    others = [k for k, name in enumerate(names) if k not in places and is_like_a_label(name)]
    row = 0
    while (taken := _csv_cells(rest, delimiter))[0] is not None:
        cells, error = taken
        if not cells:
            continue
        row += 1
        if error is not None:
            problem = MoleculeError(f"The line is not CSV: {error}", remedy=_QUOTES)
            yield problem.failure("read", molecule=cells[0], row=row, source=source)
        else:
            found = ["" if k is None or k >= len(cells) else cells[k].strip() for k in places]
            further = {names[k]: cells[k].strip() for k in others if k < len(cells)}
            yield _table_row(row, *found, further=further, source=source)


_QUOTES = "Check the quotation marks: each is closed, and those inside a cell are doubled"


def _csv_cells(lines: Lines, delimiter: str) -> tuple[list[str] | None, csv.Error | None]:
    """Takes the next row, which may have several lines; if invalid, its first line and the error.

    One ``csv.reader`` for the file would take all lines after a quotation mark without a partner.
    """
    row: list[str] = []

    def given() -> Iterator[str]:
        for line in itertools.islice(lines, MOST_LINES):
            row.append(line)
            yield line

    try:
        return next(csv.reader(given(), delimiter=delimiter, strict=True), None), None
    except csv.Error as error:
        lines.put_back(row[1:])
        return [row[0].strip().encode("utf-8", "replace").decode()], error


def parquet_rows(path: Path, columns: TableColumns) -> Iterator[SmilesRow | Failure]:
    """Reads the SMILES of a Parquet file; an empty cell is an empty string.

    Raises:
        ImportError: pyarrow is not installed.
        MoleculeError: It is no Parquet file, or lacks a column.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [None if k is None else names[k] for k in columns.places(names)]
            others = [n for n in names if n not in wanted and is_like_a_label(n)]
            rows = itertools.count(1)
            for batch in file.iter_batches(PARQUET_ROWS, columns=list({*wanted, *others} - {None})):
                empty = [None] * batch.num_rows
                cells = [
                    empty if name is None else batch.column(name).to_pylist()
                    for name in [*wanted, *others]
                ]
                for found in zip(*cells, strict=True):
                    text = ["" if cell is None else str(cell).strip() for cell in found]
                    further = dict(zip(others, text[3:], strict=True))
                    yield _table_row(next(rows), *text[:3], further=further, source=path.name)
    # Damaged files raise an OSError of pyarrow's, a damaged text a UnicodeDecodeError.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MoleculeError(
            f"The file cannot be read as Parquet: {reason}", remedy="Copy or write it again"
        ) from None


def _table_row(
    row: int, smiles: str, name: str, magnitude: str, *, further: dict[str, str], source: str
) -> SmilesRow | Failure:
    """The row of a table; ``further``: other columns that look like a charge or a dipole."""
    try:
        value = float(magnitude or "nan")
    except ValueError:
        value = math.inf
    if value < 0 or math.isinf(value):
        return MoleculeError(
            f"The dipole magnitude is {magnitude!r}, expected a number of 0 D or more",
            remedy="Correct the cell, or leave it empty where the dipole is unknown",
        ).failure("read", molecule=name or smiles, row=row, source=source)
    charges = {}
    for column, cell in further.items():
        charge = whole_number(cell) if is_charge_name(column) else None
        if charge is not None:
            charges[column] = float(charge)
    return SmilesRow(
        row,
        smiles,
        name,
        None if math.isnan(value) else value,
        tuple((f"the column {column!r}", charge) for column, charge in charges.items()),
        tuple(unused([c for c, cell in further.items() if cell and c not in charges], "column")),
    )


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
