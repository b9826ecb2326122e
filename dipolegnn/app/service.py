"""Requests and responses of the page, with limits so that one request cannot block it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from dipolegnn.config import ConformerConfig, PredictConfig
from dipolegnn.files import READABLE_TEXT
from dipolegnn.inference.pipeline import predict_batches
from dipolegnn.inference.result import Predictions
from dipolegnn.inference.table import as_csv, as_json, structures_text
from dipolegnn.models import ModelChoice, pretrained_names
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow, count_atoms
from dipolegnn.molecules.embedding import Outcome, embed_records
from dipolegnn.molecules.files import read_records
from dipolegnn.molecules.records import Record, chained
from dipolegnn.molecules.workers import Lost, Worker

MAX_CHARACTERS = 1_000_000
"""Maximum number of characters of a text or file."""

MAX_MOLECULES = 50
"""Maximum number of molecules of a request."""

MAX_ATOMS = 300
"""Maximum number of atoms of a molecule, including hydrogens."""

MAX_CONFORMERS = 20
"""Maximum number of conformers per molecule."""

TOO_MUCH = (
    f"The input is too large: at most {MAX_CHARACTERS:,} characters. Use the command "
    "'dipolegnn predict' for large files."
)

TIME_LIMIT_S = 120.0
"""Time limit of a request in seconds."""


class Refused(ValueError):
    """A refused request; the message is shown to the user."""


@dataclass(frozen=True)
class Request:
    """A request of the user.

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
    """The response to a request.

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
    """Computes the response to a request; errors are returned as text."""
    try:
        return _respond(request)
    except (Refused, MoleculeError, FileNotFoundError, ValueError, ImportError) as error:
        return Response({}, {}, refusal=str(error))


def _respond(request: Request) -> Response:
    if len(request.smiles) + len(request.file_text) > MAX_CHARACTERS:
        raise Refused(TOO_MUCH)
    if not 1 <= request.conformers <= MAX_CONFORMERS:
        raise Refused(f"Conformers per molecule must be a whole number from 1 to {MAX_CONFORMERS}.")
    config = PredictConfig(ConformerConfig(conformers=request.conformers))
    embedded = list(embed_records(_records(request), config.embedding, workers=0))
    _require_few_and_small(embedded)
    batches = predict_batches(embedded, _models(request.model), config)
    found = Predictions.of(outcome for batch in batches for outcome in batch.outcomes)
    report = as_json(found, config)
    files = {".csv": as_csv(found.molecules, config.coverage), ".json": report}
    files |= dict.fromkeys((".extxyz", ".sdf"), "")
    without_bonds = []
    for number, molecule in enumerate(found.molecules, start=1):
        files[".extxyz"] += structures_text(molecule, ".extxyz", config.coverage)
        try:
            files[".sdf"] += structures_text(molecule, ".sdf", config.coverage)
        except MoleculeError:
            without_bonds.append(molecule.lowest.data.name or f"molecule {number}")
    return Response(json.loads(report), files, tuple(without_bonds))


@cache
def _models(named: str | None) -> ModelChoice:
    return ModelChoice(named)


def _records(request: Request) -> list[Record]:
    """Returns the records of a request; too many or too large molecules are refused."""
    lines = [
        (row, line.split(maxsplit=1)) for row, line in enumerate(request.smiles.splitlines(), 1)
    ]
    rows = [SmilesRow(row, words[0], "".join(words[1:]).strip()) for row, words in lines if words]
    sources = [[Record(row.row, row) for row in rows]] if rows else []
    if request.file_name:
        if Path(request.file_name).suffix.lower() not in READABLE_TEXT:
            raise Refused(
                f"{request.file_name}: this file format is not supported; supported are "
                f"{', '.join(READABLE_TEXT)}."
            )
        sources.append(read_records(request.file_text, request.file_name))
    if not sources:
        raise Refused("Type or paste a SMILES, such as CCO for ethanol, or drop a file.")
    for records in sources:
        smiles = [r.content.smiles for r in records if isinstance(r.content, SmilesRow)]
        if smiles or len(records) > MAX_MOLECULES * MAX_CONFORMERS:
            _require_few(len(records))
        for text in smiles:
            with contextlib.suppress(MoleculeError):  # which is a failure when it is embedded
                _require_small(text, count_atoms(text))
    return list(chained(sources))


def _require_few_and_small(embedded: Sequence[tuple[Record, Outcome]]) -> None:
    """Refuses too many, or too large, structures of a file."""
    structures = [
        data
        for record, found in embedded
        if not isinstance(record.content, SmilesRow) and not isinstance(found, Failure)
        for data in found
    ]
    # Structures without an energy are separate molecules.
    alone = sum(not bool(data.energy.isfinite()) for data in structures)
    together = {int(data.mol_id) for data in structures if bool(data.energy.isfinite())}
    _require_few(alone + len(together))
    for data in structures:
        _require_small(data.name or data.smiles, data.z.numel())


def _require_few(count: int) -> None:
    if count > MAX_MOLECULES:
        raise Refused(
            f"The input is too large: {count} molecules, at most {MAX_MOLECULES}. Use "
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
    """Processes requests in a separate process, which is ended if one exceeds the time limit.

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
        """Returns the response to a request; requests are processed one at a time.

        ``model`` is the name of a pretrained model; if empty, the model of the server is used.
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
            problem = f"The prediction failed: {result.reason}. Try fewer or smaller molecules."
            return Response({}, {}, refusal=problem)
        return result

    def _ready(self) -> Worker[Request, Response]:
        """Returns the worker process, started if necessary."""
        if self._worker is None:
            self._worker = Worker(respond, self.time_limit)
            while not self._worker.ready:  # It raises if it cannot start.
                self._worker.receive()
        return self._worker
