"""What the page asks for, and the answer; within bounds, so that one request cannot block it."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from dipolegnn.config import ConformerConfig
from dipolegnn.files import READABLE_TEXT, MoleculeFormat, molecule_format
from dipolegnn.inference.pipeline import Source, answer
from dipolegnn.inference.table import as_csv, as_json, structures_text
from dipolegnn.models import ModelChoice, pretrained_names
from dipolegnn.molecules import (
    MoleculeError,
    SmilesRow,
    TableColumns,
    count_atoms,
    embed_smiles,
    read_text,
)
from dipolegnn.molecules.records import Record, text_records
from dipolegnn.molecules.workers import Lost, Worker

MAX_CHARACTERS = 1_000_000
"""Longest text or file."""

MAX_MOLECULES = 50
"""Molecules of a request at most."""

MAX_ATOMS = 300
"""Atoms of a molecule at most, hydrogens included."""

MAX_CONFORMERS = 20
"""Conformers per molecule at most."""

TOO_MUCH = (
    f"That is too much at once: at most {MAX_CHARACTERS:,} characters. Use the command "
    "'dipolegnn predict' for large files."
)

TIME_LIMIT_S = 120.0
"""A request that takes longer is given up."""


class Refused(ValueError):
    """A request that is not carried out; the message is for the user."""


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        smiles: SMILES, one per line, each with a name behind it if wanted.
        file_name: Name of a file that was dropped on the page; empty: there is none.
        file_text: Its content.
        conformers: Conformers per molecule.
        model: Which model predicts; None: the defaults.
    """

    smiles: str
    file_name: str
    file_text: str
    conformers: int
    model: str | None


@dataclass(frozen=True)
class Response:
    """The answer.

    Attributes:
        report: What ``dipolegnn predict --json`` would print, as Python objects.
        files: Contents for downloading, by suffix.
        without_bonds: Names of the molecules whose bonds cannot be perceived, which an SDF needs.
        refusal: Why there is no answer; empty if there is one.
    """

    report: dict[str, Any]
    files: dict[str, str]
    without_bonds: tuple[str, ...] = ()
    refusal: str = ""


def respond(request: Request) -> Response:
    """Predicts what is asked for; problems become text, never a traceback."""
    try:
        return _respond(request)
    except (Refused, MoleculeError, FileNotFoundError, ValueError, ImportError) as error:
        return Response({}, {}, refusal=str(error))


def _respond(request: Request) -> Response:
    if len(request.smiles) + len(request.file_text) > MAX_CHARACTERS:
        raise Refused(TOO_MUCH)
    if not 1 <= request.conformers <= MAX_CONFORMERS:
        raise Refused(f"Conformers per molecule must be a whole number from 1 to {MAX_CONFORMERS}.")
    sources = _sources(request)
    report = answer(sources, _models(request.model))
    files = {".csv": as_csv(report), ".json": as_json(report)}
    files |= dict.fromkeys((".extxyz", ".sdf"), "")
    without_bonds = []
    for number, found in enumerate(report.molecules, start=1):
        files[".extxyz"] += structures_text(report, found, ".extxyz")
        try:
            files[".sdf"] += structures_text(report, found, ".sdf")
        except MoleculeError:
            without_bonds.append(found.molecule.lowest.data.name or f"molecule {number}")
    return Response(json.loads(as_json(report)), files, tuple(without_bonds))


@cache
def _models(named: str | None) -> ModelChoice:
    return ModelChoice(named)


def _sources(request: Request) -> list[Source]:
    config = ConformerConfig(conformers=request.conformers)
    lines = [line.strip() for line in request.smiles.splitlines() if line.strip()]
    found = []
    if lines:
        _require_few(len(lines))
        rows = []
        for number, line in enumerate(lines, start=1):
            smiles, *name = line.split(maxsplit=1)
            _require_small_smiles(smiles)
            rows.append(SmilesRow(number, smiles, name[0] if name else ""))
        found.append(Source("", request.conformers, embed_smiles(rows, config)))
    if request.file_name:
        suffix = Path(request.file_name).suffix.lower()
        if suffix not in READABLE_TEXT:
            raise Refused(
                f"{request.file_name}: files of that kind cannot be read; those that can are "
                f"{', '.join(READABLE_TEXT)}."
            )
        kind = molecule_format(request.file_name, READABLE_TEXT)
        _require_possible(request.file_text, request.file_name, kind)  # before any is embedded
        molecules = read_text(request.file_text, request.file_name, conformers=config)
        # Structures without an energy are no conformers of each other.
        alone = sum(not bool(data.energy.isfinite()) for data in molecules.data)
        together = {int(data.mol_id) for data in molecules.data if bool(data.energy.isfinite())}
        _require_few(alone + len(together))
        for data in molecules.data:
            _require_small(data.name or data.smiles, data.z.numel())
        asked = request.conformers if kind.smiles else 0
        found.append(Source(request.file_name, asked, molecules))
    if not found:
        raise Refused("Type or paste a SMILES, such as CCO for ethanol, or drop a file.")
    return found


def _require_possible(text: str, name: str, kind: MoleculeFormat) -> None:
    """Refuses too many records, and tables of too large molecules."""
    lines = io.StringIO(text, newline=None)
    records: list[Record] = []
    with contextlib.suppress(MoleculeError):  # what is wrong with the file, reading it says
        records += text_records(lines, kind.suffix, name, TableColumns())
    if kind.smiles or len(records) > MAX_MOLECULES * MAX_CONFORMERS:
        _require_few(len(records))
    for record in records:
        if isinstance(record.content, SmilesRow):
            _require_small_smiles(record.content.smiles)


def _require_small_smiles(smiles: str) -> None:
    with contextlib.suppress(MoleculeError):  # what is wrong with it, embedding says
        _require_small(smiles, count_atoms(smiles))


def _require_few(count: int) -> None:
    if count > MAX_MOLECULES:
        raise Refused(
            f"That is too much at once: {count} molecules, and the page takes {MAX_MOLECULES}. Use "
            "the command 'dipolegnn predict' for more."
        )


def _require_small(name: str, atoms: int) -> None:
    if atoms > MAX_ATOMS:
        shown = name if len(name) < 60 else f"{name[:60]}..."
        raise Refused(
            f"{shown} has {atoms} atoms, and the page takes molecules of up to {MAX_ATOMS}. Use "
            "the command 'dipolegnn predict'."
        )


class Service:
    """Answers requests in a process of its own, which is ended where one takes too long.

    Args:
        model: A pretrained model's name, a model file or the folder of a run; None: the defaults.
        time_limit: Seconds that a request may take.
    """

    def __init__(self, model: str | None = None, time_limit: float = TIME_LIMIT_S) -> None:
        self.model = model
        self.time_limit = time_limit
        self._busy = threading.Lock()
        self._worker: Worker[Request, Response] | None = None

    def ask(
        self,
        smiles: str = "",
        file_name: str = "",
        file_text: str = "",
        conformers: int = 1,
        model: str = "",
    ) -> Response:
        """The answer to a request; one at a time, the others wait.

        ``model`` is one that comes along, or empty: the one that the page was started with.
        """
        if model and model not in pretrained_names():  # no path, which a request could make up
            return Response({}, {}, refusal=f"There is no model {model!r} here.")
        if not self._busy.acquire(timeout=self.time_limit):
            return Response(
                {}, {}, refusal="The page is busy with other requests; try again later."
            )
        try:
            return self._ask(Request(smiles, file_name, file_text, conformers, model or self.model))
        finally:
            self._busy.release()

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _ask(self, request: Request) -> Response:
        worker = self._ready()
        worker.give(0, request)
        arrived = wait([worker.connection], timeout=self.time_limit)
        outcome = worker.receive() if arrived else worker.give_up()
        assert outcome is not None
        result = outcome[1]
        if isinstance(result, Lost):
            if worker.dead:
                self._worker = None
            problem = f"That could not be done: {result.reason}. Try fewer or smaller molecules."
            return Response({}, {}, refusal=problem)
        return result

    def _ready(self) -> Worker[Request, Response]:
        """The process, started if there is none or the last one was ended."""
        if self._worker is None:
            self._worker = Worker(respond, self.time_limit)
            while not self._worker.ready:  # It raises if it cannot start.
                self._worker.receive()
        return self._worker
