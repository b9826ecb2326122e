"""Errors of single molecules and the table of failures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path


class MoleculeError(ValueError):
    """A molecule that cannot be read, embedded or labelled.

    Args:
        problem: The problem: what was found and what was expected.
        remedy: How the user can solve the problem.
        molecule: Name or SMILES.
        row: Row, record or frame in the source, from 1; ``None`` if there is none.
        source: Name of the file, or ``""``.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "",
        molecule: str = "",
        row: int | None = None,
        source: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.molecule = molecule
        self.row = row
        self.source = source

    def located(
        self, *, molecule: str = "", row: int | None = None, source: str = ""
    ) -> MoleculeError:
        """Returns a copy of the error with missing molecule, row and source filled in."""
        return MoleculeError(
            self.problem,
            remedy=self.remedy,
            molecule=self.molecule or molecule,
            row=row if self.row is None else self.row,
            source=self.source or source,
        )

    def __str__(self) -> str:
        where = [self.source] if self.source else []
        if self.row is not None:
            where.append(f"row {self.row}")
        if self.molecule:
            where.append(f"molecule {self.molecule!r}")
        text = f"{', '.join(where)}: {self.problem}" if where else self.problem
        return f"{_sentence(text)} {_sentence(self.remedy)}".strip()


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


@dataclass(frozen=True)
class Failure:
    """One line of the failures table.

    Args:
        source: Name of the file, or ``""``.
        row: Row, record or frame in the source, from 1.
        molecule: Name or SMILES.
        stage: Stage of the failure: ``read``, ``embed``, ``label``, ...
        problem: The problem.
        remedy: How to solve the problem.
    """

    source: str
    row: int | None
    molecule: str
    stage: str
    problem: str
    remedy: str

    @classmethod
    def from_error(cls, error: MoleculeError, stage: str) -> Failure:
        """Creates the line of an error."""
        return cls(error.source, error.row, error.molecule, stage, error.problem, error.remedy)


_COLUMNS = [field.name for field in fields(Failure)]


def write_failures(path: str | Path, failures: Sequence[Failure]) -> None:
    """Writes the failures table as CSV; without failures it has only the header."""
    Path(path).write_text(failures_text(failures), encoding="utf-8", newline="")


def failures_text(failures: Sequence[Failure]) -> str:
    """Returns the failures table as CSV text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for failure in failures:
        row = "" if failure.row is None else failure.row
        rest = (failure.molecule, failure.stage, failure.problem, failure.remedy)
        writer.writerow((failure.source, row, *rest))
    return text.getvalue()


def read_failures(path: str | Path) -> list[Failure]:
    """Reads a table of :func:`write_failures`.

    Raises:
        ValueError: The columns are not those of a failures table.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != _COLUMNS:
            raise ValueError(
                f"{path} is not a failures table: expected the columns {', '.join(_COLUMNS)}, got "
                f"{', '.join(reader.fieldnames or []) or 'none'}."
            )
        return [
            Failure(
                source=line["source"],
                row=int(line["row"]) if line["row"] else None,
                molecule=line["molecule"],
                stage=line["stage"],
                problem=line["problem"],
                remedy=line["remedy"],
            )
            for line in reader
        ]
