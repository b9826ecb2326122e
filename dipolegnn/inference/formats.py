"""Formats of outputs that are written part by part and put together in the end."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol, cast

from dipolegnn.files import WRITABLE
from dipolegnn.inference.table import (
    Line,
    Report,
    arrow_schema,
    csv_text,
    lines,
    structures_text,
)
from dipolegnn.molecules import Failure, MoleculeError
from dipolegnn.molecules.tables import import_pyarrow

STREAMED = (".csv", ".csv.gz", ".parquet", *WRITABLE, *(f"{suffix}.gz" for suffix in WRITABLE))
"""Suffixes of outputs that can be written part by part."""


class Format(Protocol):
    """How predictions are kept."""

    suffix: str
    """Of a part."""

    def write_part(self, file: IO[bytes], report: Report) -> list[Failure]:
        """Writes predictions as an output of their own; returns those that cannot be written."""

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        """Writes the outputs of the parts as one."""


def format_of(output: Path) -> Format:
    """The format that the suffix of a file asks for.

    Raises:
        ImportError: A Parquet table without pyarrow.
        ValueError: Another suffix than one of ``STREAMED``.
    """
    name = output.name.lower()
    if not name.endswith(STREAMED):
        raise ValueError(f"{output}: unknown suffix, expected one of {', '.join(STREAMED)}.")
    if name.endswith(".parquet"):
        return _Parquet()
    suffix = Path(name.removesuffix(".gz")).suffix
    text = _CSV() if suffix == ".csv" else _Structures(suffix)
    return _Packed(text) if name.endswith(".gz") else text


class _CSV:
    suffix = ".csv"

    def write_part(self, file: IO[bytes], report: Report) -> list[Failure]:
        file.write(csv_text(lines(report)).encode())
        return []

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        join_csv(file, parts)


class _Structures:
    """All conformers, each with its own prediction in the place of labels."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def write_part(self, file: IO[bytes], report: Report) -> list[Failure]:
        failures = []
        for answer in report.molecules:
            try:
                file.write(structures_text(report, answer, self.suffix).encode())
            except MoleculeError as error:  # no bonds for an SDF
                located = error.located(row=answer.row, source=answer.source)
                failures.append(Failure.from_error(located, "write"))
        return failures

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        for part in parts:
            with part.open("rb") as text:
                shutil.copyfileobj(text, file)


class _Packed:
    """With ``.gz`` behind it; the parts are not packed."""

    def __init__(self, text: _CSV | _Structures) -> None:
        self._text = text
        self.suffix = text.suffix

    def write_part(self, file: IO[bytes], report: Report) -> list[Failure]:
        return self._text.write_part(file, report)

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:  # equal input, equal bytes
            self._text.join(cast("IO[bytes]", packed), parts)


class _Parquet:
    suffix = ".parquet"

    def __init__(self) -> None:
        self._arrow, self._parquet = import_pyarrow()
        self._schema = arrow_schema(Line._fields)

    def write_part(self, file: IO[bytes], report: Report) -> list[Failure]:
        rows = [line._asdict() for line in lines(report)]
        self._parquet.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema), file)
        return []

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        with self._parquet.ParquetWriter(file, self._schema) as writer:
            for part in parts:
                writer.write_table(self._parquet.read_table(part, schema=self._schema))


def join_csv(file: IO[bytes], parts: Sequence[Path]) -> None:
    """Writes CSV files with the same header line as one."""
    for number, part in enumerate(parts):
        with part.open("rb") as table:
            header = table.readline()
            if number == 0:
                file.write(header)
            shutil.copyfileobj(table, file)
