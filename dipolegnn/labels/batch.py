"""Labelling of many molecules: worker processes, resuming, failures.

The journal of finished calculations is a text file of JSON lines: a header, then a line per
molecule, with its label or the problem, written when the molecule is finished. If the last line was
cut off by a kill, it is removed and its molecule is calculated again.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.labels.calculators import (
    ASEConfig,
    LabelMethod,
    engine_version,
    make_calculator,
    method_settings,
)
from dipolegnn.labels.run import label
from dipolegnn.molecules import Failure, MoleculeError, Molecules
from dipolegnn.molecules.molecule import relabelled
from dipolegnn.molecules.workers import Lost, Pool

HEADER = '{"file": "dipolegnn labels", "version": 1}\n'

XTB_TIME_LIMIT_S = 900.0
"""Time limit of a molecule in seconds with GFN2-xTB; 0.1 s is usual."""

DFT_TIME_LIMIT_S = 24 * 3600.0
"""Time limit in seconds with DFT; minutes are usual for 10 heavy atoms, hours with optimization."""


def label_many(
    data: Sequence[Data],
    method: LabelMethod,
    *,
    workers: int = 1,
    progress: bool = False,
    journal: Path | None = None,
    source: str = "",
) -> Molecules:
    """Labels molecules with GFN2-xTB, DFT or an ASE calculator; the order is kept.

    With several workers, a crash or a hanging calculation affects only its molecule. With a
    journal, a killed run is resumed: finished and failed molecules are read from the journal.
    (Molecules that crashed their process are repeated.)

    Args:
        data: Molecules; not changed.
        method: Level of theory, and whether to relax first.
        workers: Processes, with one thread each; 1: no process of its own.
        progress: Show a progress bar on standard error.
        journal: File for resuming; it can be shared by any molecules and methods.
        source: Name of the file that the molecules are from, for the failures.

    Returns:
        The labelled molecules, and the failures: ``row`` is the molecule's ``mol_id`` counted
        from 1.

    Raises:
        ImportError: The program of the method is not installed.
        ValueError: ``workers`` below 1, an invalid journal, or a calculator function that cannot be
            pickled.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    if workers > 1 and isinstance(method, ASEConfig):
        _require_importable(method)
    engine_version(method)  # a missing program is one error, not a failure of every molecule
    labelled: list[Data] = []
    failures: list[Failure] = []
    with Journal(journal) as book:
        keys = [fingerprint(molecule, method) for molecule in data]
        outcomes = {i: known for i, key in enumerate(keys) if (known := book.get(key)) is not None}
        todo = [i for i in range(len(data)) if i not in outcomes]
        for position, outcome in track(
            _results([data[i] for i in todo], method, workers),
            description="Labels",
            total=len(todo),
            console=Console(stderr=True),
            disable=not progress,
        ):
            if isinstance(outcome, Lost):
                outcome = lost_label(outcome)
            else:
                book.add(keys[todo[position]], outcome)
            outcomes[todo[position]] = outcome
    for i, molecule in enumerate(data):
        outcome = outcomes[i]
        if isinstance(outcome, Label):
            labelled.append(with_label(molecule, outcome))
        else:
            name, row = molecule.name or molecule.smiles, int(molecule.mol_id.item()) + 1
            failures.append(outcome.failure("label", molecule=name, row=row, source=source))
    return Molecules(labelled, failures)


def _results(
    data: list[Data], method: LabelMethod, workers: int
) -> Iterator[tuple[int, Label | MoleculeError | Lost]]:
    task = partial(label_one, method=method)
    if workers == 1:
        yield from ((i, task(molecule)) for i, molecule in enumerate(data))
        return
    with Pool(task, workers=workers, time_limit=label_time_limit(method)) as pool:
        yield from pool.run(data)


def _require_importable(method: ASEConfig) -> None:
    try:
        pickle.dumps(method)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The calculator of {method.name!r} cannot be sent to worker processes ({error}). "
            f"Define its function at the top level of a module, or use workers=1."
        ) from None


def label_time_limit(method: LabelMethod) -> float:
    """Time limit of a molecule in seconds."""
    return XTB_TIME_LIMIT_S if isinstance(method, XTBConfig) else DFT_TIME_LIMIT_S


def lost_label(lost: Lost) -> MoleculeError:
    """Error of a molecule whose worker crashed or exceeded the time limit."""
    return MoleculeError(
        f"No label: {lost.reason}",
        remedy="Label it alone with one worker, or use another level of theory",
    )


def label_one(data: Data, *, method: LabelMethod) -> Label | MoleculeError:
    """Labels one molecule; returns the label or an error.

    Args:
        data: Molecule; not changed.
        method: Level of theory, and whether to relax first.
    """
    try:
        found = label(
            data,
            make_calculator(method, round(data.charge.item())),
            optimize=method.optimize,
            fmax=method.fmax,
            max_steps=method.max_steps,
        )
    except MoleculeError as error:
        return error
    pos, charges = found.pos.tolist(), found.atomic_charges.tolist()
    return Label(pos, found.dipole[0].tolist(), charges, found.energy.item())


class Label(NamedTuple):
    """The outcome of one calculation, in the units of ``Data``."""

    pos: list[list[float]]
    dipole: list[float]
    atomic_charges: list[float]
    energy: float


def with_label(data: Data, found: Label) -> Data:
    """Returns a copy of the molecule with a label."""
    return relabelled(data, **found._asdict())


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
