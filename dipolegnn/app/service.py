"""Requests and responses of the page, with limits so that one request cannot block it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dipolegnn.config import ConformerConfig, PredictConfig
from dipolegnn.files import READABLE_TEXT
from dipolegnn.inference.output import as_csv, as_json, structures_text
from dipolegnn.inference.pipeline import predict_batches
from dipolegnn.inference.structures import Predictions
from dipolegnn.models import ModelChoice, pretrained_names
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow, count_atoms
from dipolegnn.molecules.embedding import Outcome, embed_records
from dipolegnn.molecules.records import Record, chained, read_records
from dipolegnn.molecules.workers import Lost, Worker

MAX_CHARACTERS = 1_000_000
"""Maximum number of characters of a text or file."""

MAX_MOLECULES = 50
"""Maximum number of molecules of a request."""

MAX_ATOMS = 300
"""Maximum number of atoms of a molecule, including hydrogens."""

MAX_CONFORMERS = 20
"""Maximum number of conformers per molecule."""

MAX_STEREOISOMERS = 8
"""Maximum number of stereoisomers per SMILES."""

TOO_MUCH = (
    f"The input is too large: at most {MAX_CHARACTERS:,} characters. Use the command "
    "'dipolegnn predict' for large files."
)

TIME_LIMIT_S = 120.0
"""Time limit of a request in seconds."""


class Request(NamedTuple):
    """A request of the user.

    Attributes:
        smiles: SMILES, one per line, each optionally followed by a name.
        file_name: Name of an uploaded file; empty if there is none.
        file_text: Content of the file.
        conformers: Conformers per molecule; ``"auto"``: as many as the molecule needs.
        model: The model; None: the model of the server, or the default model.
        level: Level of theory; None: the first of the model.
        stereoisomers: Stereoisomers per SMILES that does not define them.
        largest_fragment: True to keep only the largest fragment of a salt.
    """

    smiles: str = ""
    file_name: str = ""
    file_text: str = ""
    conformers: int | Literal["auto"] = "auto"
    model: str | None = None
    level: str | None = None
    stereoisomers: int = 1
    largest_fragment: bool = False


class Response(NamedTuple):
    """The response to a request.

    Attributes:
        report: Output of ``dipolegnn predict --json``, as Python objects.
        files: Contents for downloading, by suffix.
        without_bonds: Names of molecules that are missing in the SDF because their bonds cannot be
            perceived.
        refusal: Reason why there is no response; empty if there is one.
    """

    report: dict[str, Any]
    files: dict[str, str]
    without_bonds: tuple[str, ...] = ()
    refusal: str = ""


def respond(request: Request) -> Response:
    """Computes the response to a request; errors are returned as text."""
    try:
        return _respond(request)
    except (ValueError, FileNotFoundError, ImportError) as error:
        return _refused(str(error))


def _refused(reason: str) -> Response:
    return Response({}, {}, refusal=reason)


def _respond(request: Request) -> Response:
    if len(request.smiles) + len(request.file_text) > MAX_CHARACTERS:
        raise ValueError(TOO_MUCH)
    if request.conformers != "auto" and not 1 <= request.conformers <= MAX_CONFORMERS:
        raise ValueError(
            f"Conformers per molecule must be a whole number from 1 to {MAX_CONFORMERS}, or empty "
            "for as many as the molecule needs."
        )
    if not 1 <= request.stereoisomers <= MAX_STEREOISOMERS:
        raise ValueError(
            f"Stereoisomers must be a whole number from 1 to {MAX_STEREOISOMERS}, got "
            f"{request.stereoisomers}."
        )
    embedding = ConformerConfig(
        request.conformers,
        max_atoms=MAX_ATOMS,
        stereoisomers=request.stereoisomers,
        largest_fragment=request.largest_fragment,
    )
    config = PredictConfig(embedding, level=request.level)
    records, models = _records(request), _models(request.model)
    models.model.level_named(config.level)
    embedded = list(embed_records(records, config.embedding, workers=0))
    _check_structures(embedded)
    batches = predict_batches(embedded, models, config)
    found = Predictions.of(outcome for batch in batches for outcome in batch.outcomes)
    report = as_json(found, config)
    table = as_csv(found.molecules, config.coverage, levels=bool(found.levels))
    files = {".csv": table, ".json": report}
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
            raise ValueError(
                f"{request.file_name}: this file format is not supported; supported are "
                f"{', '.join(READABLE_TEXT)}."
            )
        sources.append(read_records(request.file_text, request.file_name))
    if not sources:
        raise ValueError("Type or paste a SMILES, such as CCO for ethanol, or drop a file.")
    for records in sources:
        smiles = [r.content.smiles for r in records if isinstance(r.content, SmilesRow)]
        if smiles or len(records) > MAX_MOLECULES * MAX_CONFORMERS:
            _require_few(len(records))
        for text in smiles:
            with contextlib.suppress(MoleculeError):  # reported as a failure of the embedding
                _require_small(text, count_atoms(text))
    return list(chained(sources))


def _check_structures(embedded: Sequence[tuple[Record, Outcome]]) -> None:
    """Refuses too many or too large structures of a file."""
    structures = [
        data
        for record, found in embedded
        if not isinstance(record.content, SmilesRow) and not isinstance(found, Failure)
        for data in found
    ]
    # Structures without an energy are separate molecules.
    together = [int(data.mol_id) for data in structures if bool(data.energy.isfinite())]
    _require_few(len(structures) - len(together) + len(set(together)))
    for data in structures:
        _require_small(data.name or data.smiles, data.z.numel())


def _require_few(count: int) -> None:
    if count > MAX_MOLECULES:
        raise ValueError(
            f"The input is too large: {count} molecules, at most {MAX_MOLECULES}. Use "
            "the command 'dipolegnn predict' for more."
        )


def _require_small(name: str, atoms: int) -> None:
    if atoms > MAX_ATOMS:
        shown = name if len(name) < 60 else f"{name[:60]}..."
        raise ValueError(
            f"{shown} has {atoms} atoms, and the page takes molecules of up to {MAX_ATOMS}. Use "
            "the command 'dipolegnn predict'."
        )


def _require_pretrained(model: str | None) -> None:
    """Raises a ValueError for a path, because a request could name any file."""
    if model is not None and model not in pretrained_names():
        raise ValueError(f"There is no model {model!r} here.")


class Service:
    """Processes requests in a separate process, which is ended if one exceeds the time limit.

    Args:
        model: Name of a pretrained model, a model file or the folder of a run; None: the defaults.
        time_limit: Time limit of a request in seconds.
    """

    def __init__(self, model: str | None = None, time_limit: float = TIME_LIMIT_S) -> None:
        self.model = model
        self.time_limit = time_limit
        self._busy = threading.Lock()
        self._worker: Worker[Request, Response] | None = None

    def ask(self, request: Request) -> Response:
        """Returns the response to a request; requests are processed one at a time."""
        try:
            _require_pretrained(request.model)
        except ValueError as error:
            return _refused(str(error))
        if not self._busy.acquire(timeout=self.time_limit):
            return _refused("The page is busy with other requests; try again later.")
        try:
            return self._ask(request._replace(model=request.model or self.model))
        finally:
            self._busy.release()

    def levels(self, model: str | None = None) -> list[str]:
        """Levels of theory of a model, the default first; empty if it does not distinguish levels.

        Args:
            model: Name of a pretrained model; None: the model of the server, or the default model.

        Raises:
            ValueError: If there is no pretrained model of this name.
        """
        _require_pretrained(model)
        return _models(model or self.model).model.levels

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _ask(self, request: Request) -> Response:
        if self._worker is None:
            self._worker = Worker(respond, self.time_limit)
            while not self._worker.ready:  # receive() raises if the process cannot start
                self._worker.receive()
        worker = self._worker
        worker.give(0, request)
        arrived = wait([worker.connection], timeout=self.time_limit)
        outcome = worker.receive() if arrived else worker.give_up()
        assert outcome is not None
        result = outcome[1]
        if isinstance(result, Lost):
            if worker.dead:
                self._worker = None
            return _refused(
                f"The prediction failed: {result.reason}. Try fewer or smaller molecules."
            )
        return result
