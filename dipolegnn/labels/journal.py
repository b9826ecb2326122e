"""Journal of finished calculations on disk, for resuming a killed run.

A text file of JSON lines: a header, then one line per molecule, with a label or with the reason
why there is none. A line is written in one piece as soon as the molecule is done. If the last
line was torn by a kill it is taken off, and that molecule is calculated again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from dipolegnn._pyg import Data
from dipolegnn.labels.calculators import LabelMethod, engine_version, method_settings
from dipolegnn.molecules import MoleculeError
from dipolegnn.molecules.molecule import relabelled

HEADER = '{"file": "dipolegnn labels", "version": 1}\n'


class Label(NamedTuple):
    """The outcome of one calculation, in the units of ``Data``."""

    pos: list[list[float]]
    dipole: list[float]
    atomic_charges: list[float]
    energy: float


def label_of(data: Data) -> Label:
    """Returns the label of a labelled molecule."""
    return Label(
        data.pos.tolist(),
        data.dipole[0].tolist(),
        data.atomic_charges.tolist(),
        data.energy.item(),
    )


def with_label(data: Data, found: Label) -> Data:
    """Returns a copy of the molecule with a label."""
    return relabelled(
        data,
        pos=found.pos,
        dipole=found.dipole,
        atomic_charges=found.atomic_charges,
        energy=found.energy,
    )


def fingerprint(data: Data, method: LabelMethod) -> str:
    """Hash of the inputs of a calculation: atoms, charge, method, version of the program."""
    what = {**method_settings(method), "engine": engine_version(method)}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for array in (data.z, data.pos, data.charge):
        digest.update(array.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


class Journal:
    """The file, to be used in a ``with`` block; ``path`` of ``None`` keeps nothing.

    Args:
        path: File; made if it is not there.

    Raises:
        ValueError: The file is something else, or is damaged other than at its end.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, Label | MoleculeError] = {}

    def __enter__(self) -> Journal:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            end = self._read(self.path.read_bytes()) if self.path.exists() else 0
            with self.path.open("ab") as file:
                file.truncate(end)
            self._file = self.path.open("a", encoding="utf-8")
            if end == 0:
                self._write(HEADER)
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self._file.close()

    def get(self, key: str) -> Label | MoleculeError | None:
        """Outcome of a calculation; ``None`` if it is not finished."""
        return self._known.get(key)

    def add(self, key: str, outcome: Label | MoleculeError) -> None:
        """Stores the outcome of a calculation."""
        if self.path is None:
            return
        if isinstance(outcome, MoleculeError):
            line = {"key": key, "problem": outcome.problem, "remedy": outcome.remedy}
        else:
            line = {"key": key, **outcome._asdict()}
        self._write(json.dumps(line) + "\n")

    def _write(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def _read(self, content: bytes) -> int:
        """Take in the lines; returns how many bytes of the file are whole lines."""
        lines = content.split(b"\n")
        torn = lines.pop()  # b"" where the file ends as it should
        if not lines and HEADER.encode().startswith(torn):
            return 0
        if not lines or lines[0] + b"\n" != HEADER.encode():
            raise ValueError(
                f"{self.path} is not a journal of labels (its first line is not the header of "
                f"one). Give the name of a file that does not exist yet."
            )
        for number, text in enumerate(lines[1:], start=2):
            try:
                line = json.loads(text)
                key = line.pop("key")
                self._known[key] = (
                    MoleculeError(line["problem"], remedy=line["remedy"])
                    if "problem" in line
                    else Label(**line)
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"Line {number} of the journal {self.path} cannot be read ({error}). Take that "
                    f"line out: only its molecule is then calculated again."
                ) from error
        return len(content) - len(torn)
