"""Files of molecules, one record at a time, so that a file need not fit into memory.

A record is the part of a file that describes one structure, not yet parsed: a row of a table of
SMILES, a record of an SDF, a frame of an XYZ file.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from dipolegnn.files import molecule_format
from dipolegnn.molecules.molecule import Failure, MoleculeError
from dipolegnn.molecules.sdf import sdf_records
from dipolegnn.molecules.tables import (
    SmilesRow,
    TableColumns,
    csv_rows,
    parquet_length,
    parquet_rows,
    smi_rows,
)
from dipolegnn.molecules.xyz import Frame, frames

_SDF_MOL_ID = re.compile(r"^>.*<mol_id>.*\n(.*)$", re.MULTILINE)
_XYZ_MOL_ID = re.compile(r"(?<!\S)mol_id=(\S+)")


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
                rows = parquet_rows(self.path, self.columns, source=self.path.name)
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
                self._characters += len(line)
                yield line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise MoleculeError(
                f"The file cannot be decompressed: {error}", remedy="Copy or compress it again"
            ) from None


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
        case Frame(comment=comment, atoms=atoms):
            text = "\n".join([comment, *atoms])
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
        suffix: What they are.
        source: Name of the file, for the failures.
        columns: Columns of a ``.csv``.

    Raises:
        MoleculeError: A column is missing, or the header line of a ``.csv`` is none.
    """
    for record in _records(lines, suffix, source, columns):
        yield _legible(record._replace(source=source, suffix=suffix))


def _records(
    lines: Iterable[str], suffix: str, source: str, columns: TableColumns
) -> Iterator[Record]:
    match suffix:
        case ".smi":
            yield from _numbered(smi_rows(lines))
        case ".csv":
            yield from _numbered(csv_rows(lines, columns, source=source))
        case ".sdf":
            for number, text in enumerate(sdf_records(lines), start=1):
                stated = _SDF_MOL_ID.search(text)
                yield Record(number, text, stated[1].strip() if stated else "")
        case _:
            for number, frame in enumerate(frames(lines), start=1):
                stated = _XYZ_MOL_ID.search(frame.comment)
                yield Record(number, frame, stated[1] if stated else "")


def _numbered(rows: Iterable[SmilesRow | Failure]) -> Iterator[Record]:
    return (Record(row.row or 0, row, mol_id=number) for number, row in enumerate(rows))
