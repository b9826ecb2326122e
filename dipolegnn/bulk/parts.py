"""A table that grows part by part on disk, so that a run that is killed loses one part at most.

Beside the table ``OUT`` lies the folder ``OUT.parts`` while it grows: ``job.json`` says what the
table is of, and each part is a file of lines and a file of failures. A part appears under its name
only when it is complete, and is not touched again. In the end they are put together; the table,
too, appears under its name only when it is complete.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from dipolegnn.molecules import Failure, failures_text, read_failures
from dipolegnn.molecules.tables import import_pyarrow
from dipolegnn.report import Line, csv_text

TABLES_OUT = (".csv", ".csv.gz", ".parquet")
"""Suffixes of tables that can be written."""


class JobMismatch(ValueError):
    """The parts on disk are of another job."""


class Counts(NamedTuple):
    """What a table came to."""

    molecules: int
    failures: int


class Parts:
    """The parts of a table.

    Args:
        output: The table.
        job: What it is of: everything that its lines depend on, as JSON.

    Raises:
        JobMismatch: There are parts, of another job.
        ImportError: A Parquet table without pyarrow.
        ValueError: Another suffix than one of ``TABLES_OUT``.
    """

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        self.output = output
        self._format = _format_of(output)
        self.folder = output.with_name(f"{output.name}.parts")
        self._finished = output.with_name(f"{output.name}.parts.done")
        shutil.rmtree(self._finished, ignore_errors=True)  # of a run that was killed at its end
        described = self.folder / "job.json"
        if self.done():  # without any, nothing would be lost by another job
            _require_same(json.loads(described.read_text(encoding="utf-8")), job, self.folder)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with _complete(described) as file:
            file.write((json.dumps(job, indent=2) + "\n").encode())

    def done(self) -> dict[int, Counts]:
        """The parts that are complete, and what they came to."""
        found = {}
        for path in self.folder.glob("*.counts.json"):
            counts = json.loads(path.read_text(encoding="utf-8"))
            found[int(path.name.split(".")[0])] = Counts(*counts)
        return found

    def write(self, number: int, lines: Sequence[Line], failures: Sequence[Failure]) -> Counts:
        """Writes a part; it is complete when the last of its files is there."""
        counts = Counts(len(lines), len(failures))
        with _complete(self._failures(number)) as file:
            file.write(failures_text(failures).encode())
        with _complete(self._lines(number)) as file:
            self._format.write_part(file, lines)
        with _complete(self.folder / f"{number:08}.counts.json") as file:
            file.write(json.dumps(counts).encode())
        return counts

    def assemble(self) -> Counts:
        """Puts the parts together: the table, and the failures beside it if there are any."""
        done = self.done()
        numbers = sorted(done)
        total = Counts(*map(sum, zip(Counts(0, 0), *done.values(), strict=True)))
        if not numbers:  # an empty table has its header, too
            self.write(0, [], [])
            numbers = [0]
        with _complete(self.output) as file:
            self._format.join(file, [self._lines(number) for number in numbers])
        beside = failures_path(self.output)
        if total.failures:
            with _complete(beside) as file:
                join_csv(file, [self._failures(number) for number in numbers])
        else:
            beside.unlink(missing_ok=True)  # of an earlier run, perhaps
        # Under another name at once: a folder that is half removed would be taken for a run to go
        # on with.
        self.folder.replace(self._finished)
        shutil.rmtree(self._finished)
        return total

    def first_failures(self, count: int) -> list[Failure]:
        """So many of the failures of the parts."""
        found: list[Failure] = []
        for number, counts in sorted(self.done().items()):
            if counts.failures and len(found) < count:
                found += read_failures(self._failures(number))
        return found[:count]

    def _lines(self, number: int) -> Path:
        return self.folder / f"{number:08}{self._format.suffix}"

    def _failures(self, number: int) -> Path:
        return self.folder / f"{number:08}.failures.csv"


def failures_path(output: Path) -> Path:
    """Where the failures of a table are."""
    return output.with_name(f"{output.name}.failures.csv")


def write_table(output: Path, lines: Sequence[Line]) -> None:
    """Writes a table in one piece.

    Raises:
        ImportError: A Parquet table without pyarrow.
        ValueError: Another suffix than one of ``TABLES_OUT``.
    """
    kind = _format_of(output)
    if isinstance(kind, _CSV) and kind.packed:
        part = io.BytesIO()
        kind.write_part(part, lines)
        with _complete(output) as file:
            file.write(gzip.compress(part.getvalue(), mtime=0))
        return
    with _complete(output) as file:
        kind.write_part(file, lines)


class _Format(Protocol):
    """How a table is kept."""

    suffix: str

    def write_part(self, file: IO[bytes], lines: Sequence[Line]) -> None:
        """Writes lines as a table of their own."""

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        """Writes the tables of the parts as one."""


class _CSV:
    suffix = ".csv"

    def __init__(self, packed: bool) -> None:
        self.packed = packed

    def write_part(self, file: IO[bytes], lines: Sequence[Line]) -> None:
        file.write(csv_text(lines).encode())

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        if not self.packed:
            join_csv(file, parts)
            return
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:  # equal input, equal bytes
            join_csv(cast("IO[bytes]", packed), parts)


class _Parquet:
    suffix = ".parquet"

    def __init__(self) -> None:
        self.arrow, self.parquet = import_pyarrow()
        self.schema = arrow_schema(Line._fields)

    def write_part(self, file: IO[bytes], lines: Sequence[Line]) -> None:
        rows = [line._asdict() for line in lines]
        self.parquet.write_table(self.arrow.Table.from_pylist(rows, schema=self.schema), file)

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        with self.parquet.ParquetWriter(file, self.schema) as writer:
            for part in parts:
                writer.write_table(self.parquet.read_table(part, schema=self.schema))


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


def _format_of(output: Path) -> _Format:
    name = output.name.lower()
    if name.endswith(".parquet"):
        return _Parquet()
    if name.endswith((".csv", ".csv.gz")):
        return _CSV(packed=name.endswith(".gz"))
    raise ValueError(f"{output}: unknown suffix, expected one of {', '.join(TABLES_OUT)}.")


def join_csv(file: IO[bytes], parts: Sequence[Path]) -> None:
    """Writes CSV files with the same header line as one."""
    for number, part in enumerate(parts):
        with part.open("rb") as lines:
            header = lines.readline()
            if number == 0:
                file.write(header)
            shutil.copyfileobj(lines, file)


@contextmanager
def _complete(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it has been written, and is on the disk.

    Unlike :func:`dipolegnn.files.replacing` it outlives a loss of power, and what a kill leaves of
    a file of gigabytes is written over by the next run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f"{path.name}.tmp")
    with growing.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    growing.replace(path)


def _require_same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    differ = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if differ:
        details = "; ".join(
            f"{key}: {json.dumps(found.get(key))} there, {json.dumps(wanted.get(key))} now"
            for key in differ
        )
        raise JobMismatch(
            f"{folder} holds parts of another job ({details}). Finish that with the command that "
            "it was begun with, choose another output, or remove the folder to begin again."
        )
