"""Prediction pipeline of the commands, the page, Python, files and Ray.

    records -> structures (in the order of the records) -> batches for the model -> predictions

A source is anything that gives records, a sink anything that takes predictions of molecules and
failures.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from dipolegnn import __version__
from dipolegnn._pyg import Data
from dipolegnn.config import COVERAGE, ConformerConfig, EnergyMethod, PredictConfig
from dipolegnn.files import sha256_of
from dipolegnn.inference.energies import SOURCES, with_energies
from dipolegnn.inference.output import PART_RECORDS, Progress, opened_parts, require_apart
from dipolegnn.inference.structures import (
    BATCH_ATOMS,
    MoleculePrediction,
    Predictions,
    average,
    average_errors,
    on_device,
    predict,
    unsupported,
    with_plain_kernels,
)
from dipolegnn.models import ModelChoice, energy_model, unknown_elements
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow, TableColumns, count_motions
from dipolegnn.molecules.embedding import Outcome, embed_records
from dipolegnn.molecules.records import Record, Records
from dipolegnn.molecules.workers import usable_cores
from dipolegnn.nn import DipoleModel, EnergyOutput, ModelCard, PropertyModel
from dipolegnn.nn.model import Model
from dipolegnn.units import ROOM_TEMPERATURE_K

KERNELS_FROM_ATOMS = 1000
"""Smallest number of atoms for which fused kernels are used: loading them takes half a second."""

BATCH_RECORDS = 1000
"""Maximum number of records per batch."""

FEW_CONFORMERS = 200
"""Number of conformers below which no worker processes are started."""

USUAL_CONFORMERS = 20
"""Number of conformers of a molecule that is assumed if the number is automatic."""

SHOWN_FAILURES = 10


class Batch(NamedTuple):
    """Outcomes of consecutive records."""

    records: int
    outcomes: list[MoleculePrediction | Failure]


def predict_records(
    records: Iterable[Record],
    models: ModelChoice | DipoleModel,
    config: PredictConfig,
    *,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[MoleculePrediction | Failure]:
    """Predicts the molecules of records, in the order of the records, which are read on demand.

    Args:
        records: The records; see :mod:`dipolegnn.molecules.records`.
        models: The model, or the choice of one.
        config: Conformers of SMILES, temperature, coverage and level of theory.
        workers: Processes that embed; 0: the calling process.
        device: Device of the computation; on another device than that of the model, a copy of the
            model is used. None: the device of the model.

    Raises:
        FileNotFoundError: The model does not exist.
        ValueError: The file of the model is not a model file, or the model does not have the level.
    """
    embedded = embed_records(records, config.embedding, workers=workers)
    for batch in predict_batches(embedded, models, config, device=device):
        yield from batch.outcomes


def predict_batches(
    embedded: Iterable[tuple[Record, Outcome]],
    models: ModelChoice | DipoleModel,
    config: PredictConfig,
    *,
    device: torch.device | str | None = None,
    most_records: int = BATCH_RECORDS,
) -> Iterator[Batch]:
    """As :func:`predict_records`, from the output of :func:`embed_records`, batch by batch.

    A batch contains complete molecules, all from SMILES or none, at most about ``BATCH_ATOMS``
    atoms and, but for a larger molecule, at most ``most_records`` records. Its content depends only
    on the records from its first one on, so that a run resumed at the start of a batch gives the
    same numbers.
    """

    @cache
    def model() -> DipoleModel:
        return on_device(_loaded(models, config), device)

    @cache
    def energies() -> PropertyModel[EnergyOutput]:
        return on_device(energy_model(), device)

    if not isinstance(models, ModelChoice):
        models.level_named(config.level)  # an error before the first structure is embedded
    batch: list[_Molecule] = []
    atoms = records = 0
    smiles = False  # True: the structures of the batch were embedded from SMILES
    refuse = isinstance(models, ModelChoice)

    def outcomes() -> list[MoleculePrediction | Failure]:
        if not atoms:
            return [
                found for members in batch for _, found in members if isinstance(found, Failure)
            ]
        weighted, computed = _with_energies(batch, config, energies, embedded=smiles)
        return _outcomes(weighted, computed, model(), config, refuse=refuse, embedded=smiles)

    for molecule in _molecules(embedded, by_name=config.energies != "auto"):
        size = sum(data.z.numel() for data in _structures(molecule))
        from_smiles = isinstance(molecule[0][0].content, SmilesRow)
        full = atoms + size > BATCH_ATOMS or records + len(molecule) > most_records
        if batch and (full or (atoms and size and from_smiles != smiles)):
            yield Batch(records, outcomes())
            batch, atoms, records = [], 0, 0
        batch.append(molecule)
        atoms += size
        records += len(molecule)
        smiles = from_smiles if size else smiles
    if batch:
        yield Batch(records, outcomes())


def predict_smiles(
    model: DipoleModel,
    smiles: Sequence[str],
    *,
    conformers: ConformerConfig | None = None,
    temperature: float = ROOM_TEMPERATURE_K,
    level: str | None = None,
    energies: EnergyMethod | Literal["auto"] = PredictConfig.energies,
    workers: int = 1,
    progress: bool = False,
) -> Predictions:
    """Predicts the dipole moments of molecules from their SMILES.

    Args:
        model: The model.
        smiles: The SMILES.
        conformers: Embedding in 3D; None: as many conformers as each molecule needs.
        temperature: Temperature of the average over conformers, in kelvin.
        level: Level of theory, one of ``model.levels``; None: the first of them.
        energies: Energies of the conformers, for their weights: of the model of energies (also
            ``"auto"``), of GFN2-xTB, or of the force field.
        workers: Processes that embed; 1: the calling process.
        progress: Show a progress bar on standard error.

    Returns:
        A prediction for each molecule, in order, except for those in the failures.

    Raises:
        ValueError: The model does not have the level.
    """
    records = [Record(row, SmilesRow(row, text)) for row, text in enumerate(smiles, start=1)]
    embedding = conformers or PredictConfig.embedding
    config = PredictConfig(embedding, temperature, level=level, energies=energies)
    return predict_list(records, model, config, workers=workers, progress=progress)


def predict_list(
    records: Sequence[Record],
    models: ModelChoice | DipoleModel,
    config: PredictConfig,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Predictions:
    """As :func:`predict_records`, as a list in memory.

    Args:
        records: The records.
        models: The model, or the choice of one.
        config: Conformers of SMILES, temperature, coverage and level of theory.
        workers: Processes that embed; 1: the calling process.
        progress: Show a progress bar on standard error.

    Raises:
        ValueError: The model does not have the level.
    """
    if config.level is not None:
        _loaded(models, config)  # an error before the first structure is embedded
    processes = workers if min(workers, len(records)) > 1 else 0
    outcomes = predict_records(records, models, config, workers=processes)
    console, count = Console(stderr=True), len(records)
    return Predictions.of(
        track(outcomes, "Predicting", total=count, console=console, disable=not progress)
    )


def _loaded(models: ModelChoice | DipoleModel, config: PredictConfig) -> DipoleModel:
    """The model; it has the wanted level."""
    model = models.model if isinstance(models, ModelChoice) else models
    model.level_named(config.level)
    return model


_Molecule = list[tuple[Record, Outcome]]
"""The records of one molecule, with their structures."""


def _molecules(embedded: Iterable[tuple[Record, Outcome]], *, by_name: bool) -> Iterator[_Molecule]:
    """Groups consecutive records of conformers.

    Conformers state the same number, or have the same name, atoms and SMILES; the latter then get
    the number of the first. Structures without energies are grouped by name only if ``by_name``:
    the frames of a trajectory are single molecules, and all of them may not fit into memory.
    """
    molecule: _Molecule = []
    key: tuple[object, ...] = ()
    for record, found in embedded:
        own = _number(record, found, by_name)
        # A structure that cannot be read does not separate those of its name before and after it.
        named = len(key) > 3 and key[:2] == (record.source, record.title)
        failed = named and isinstance(found, Failure)
        if molecule and not failed and own != key:
            yield _one_number(molecule)
            molecule = []
        if not molecule:
            key = own
        molecule.append((record, found))
    if molecule:
        yield _one_number(molecule)


def _number(record: Record, found: Outcome, by_name: bool) -> tuple[object, ...]:
    """Key of a molecule; equal for conformers."""
    if record.group or isinstance(record.content, SmilesRow):
        return record.source, record.group or record.row, record.mol_id
    if isinstance(found, Failure):
        return record.source, record.row
    (data,) = found
    if not record.title or not (by_name or bool(data.energy.isfinite())):
        return record.source, record.row
    return record.source, record.title, tuple(data.z.tolist()), int(data.charge), data.smiles


def _one_number(molecule: _Molecule) -> _Molecule:
    """Gives the structures of a file the number of the first."""
    structures = list(_structures(molecule))
    if len(molecule) > 1:
        for data in structures:
            data.mol_id = structures[0].mol_id.clone()
    return molecule


def _structures(molecule: _Molecule) -> Iterator[Data]:
    for _, found in molecule:
        if not isinstance(found, Failure):
            yield from found


def _by_number(molecule: _Molecule) -> Iterator[list[Data]]:
    """Conformers of each stereoisomer, of which each has a number (mol_id) of its own."""
    for _, members in groupby(_structures(molecule), lambda data: int(data.mol_id)):
        yield list(members)


def _outcomes(
    batch: Sequence[_Molecule],
    computed: Collection[int],
    model: DipoleModel,
    config: PredictConfig,
    *,
    refuse: bool,
    embedded: bool,
) -> list[MoleculePrediction | Failure]:
    """Failures and predictions of a batch, in order; ``computed`` as of :func:`_with_energies`."""
    checked = [[_checked(record, found, model, refuse) for record, found in m] for m in batch]
    structures = [data for molecule in checked for data in _structures(molecule)]
    used = _with_suitable_kernels(model, structures)
    level = model.level_named(config.level, embedded) or None
    predictions = iter(predict(used, structures, level=level))
    outcomes: list[MoleculePrediction | Failure] = []
    for molecule in checked:
        outcomes += [found for _, found in molecule if isinstance(found, Failure)]
        records = {id(data): each[0] for each in molecule for data in _structures([each])}
        conformers = list(islice(predictions, len(records)))
        apart = sum(not p.data.energy.isfinite() for p in conformers)
        # Structures without an energy are molecules of their own, each with its record.
        for prediction in average(conformers, config.temperature):
            given = [records[id(conformer.data)] for conformer in prediction.conformers]
            first = min(given, key=lambda record: record.row)
            source = SOURCES[config.energy_method] if id(prediction.lowest.data) in computed else ""
            described = _described(prediction, first, model.card, config, source)
            if apart > 1 and not prediction.lowest.data.energy.isfinite():
                note = f"one of {apart} conformers without energies, not averaged (option energies)"
                described = replace(described, notes=(*described.notes, note))
            outcomes.append(described)
    return outcomes


_OTHER_ATOMS = MoleculeError(
    "Structures with its number (mol_id) have other atoms, and are no conformers of it",
    remedy="Give each molecule a number of its own",
)


def _with_energies(
    batch: Sequence[_Molecule],
    config: PredictConfig,
    model: Callable[[], PropertyModel[EnergyOutput]],
    *,
    embedded: bool,
) -> tuple[Sequence[_Molecule], Collection[int]]:
    """Gives the conformers of a molecule the energies of a method, unless they are from a file.

    Returns the molecules, and the ``id`` of each structure that got an energy.

    The model of energies is not used for elements that it was not trained on. Structures with the
    same number and other atoms are an error if a method was chosen, else single molecules.
    """
    method = config.energy_method
    if method == "mmff" and embedded:
        return batch, ()
    conformers: list[Data] = []
    problems: dict[int, MoleculeError] = {}
    for several in chain.from_iterable(map(_by_number, batch)):
        if len(several) < 2 or (
            not embedded and all(bool(data.energy.isfinite()) for data in several)
        ):
            continue
        if method == "model" and any(unknown_elements(model(), data) for data in several):
            continue
        if len({tuple(sorted(data.z.tolist())) for data in several}) == 1:
            conformers += several
        elif config.energies != "auto":
            problems |= dict.fromkeys(map(id, several), _OTHER_ATOMS)
    used = None
    if method == "model" and conformers:
        used = _with_suitable_kernels(model(), conformers)
    changed = with_energies(conformers, method, used, embedded=embedded)
    replaced = {id(data): other for data, other in zip(conformers, changed, strict=True)}
    computed = {id(data) for data in changed if isinstance(data, Data)}
    replaced |= problems
    return [
        [
            (
                record,
                found
                if isinstance(found, Failure)
                else _one_outcome(record, [replaced.get(id(data), data) for data in found]),
            )
            for record, found in molecule
        ]
        for molecule in batch
    ], computed


def _with_suitable_kernels(model: Model, structures: Sequence[Data]) -> Model:
    """The model, without fused kernels if there are few atoms."""
    few = sum(data.z.numel() for data in structures) < KERNELS_FROM_ATOMS
    return with_plain_kernels(model) if few else model


def _one_outcome(record: Record, found: Sequence[Data | MoleculeError]) -> Outcome:
    """The conformers, or the first error among them as the failure of the record."""
    for data in found:
        if isinstance(data, MoleculeError):
            return data.failure(
                "energy", molecule=record.title, row=record.row, source=record.source
            )
    return [data for data in found if isinstance(data, Data)]


def _checked(
    record: Record, found: Outcome, model: DipoleModel, refuse: bool
) -> tuple[Record, Outcome]:
    """Replaces structures that cannot be predicted by a failure.

    With ``refuse``, this includes elements that a pretrained model was not trained on.
    """
    for data in [] if isinstance(found, Failure) else found:
        problem = unsupported(data) or (unknown_elements(model, data) if refuse else None)
        if problem is not None:
            return record, problem.failure("predict", row=record.row, source=record.source)
    return record, found


def _described(
    molecule: MoleculePrediction,
    record: Record,
    card: ModelCard,
    config: PredictConfig,
    energies: str,
) -> MoleculePrediction:
    """Adds source, model and notes; ``energies``: where computed energies come from, or empty."""
    lowest = molecule.lowest
    notes = []
    if lowest.total_charge:
        charge = f"{lowest.total_charge:+d} e"
        notes.append(f"ion ({charge}): the dipole refers to the centre of mass")
    notes += molecule.doubts
    notes += record.remarks
    notes += lowest.data.get("notes") or ()
    known = None if lowest.error else card.elements  # else it is among the doubts
    unknown = [] if known is None else sorted(set(lowest.symbols) - known)
    if unknown:
        notes.append(f"the model was not trained on {', '.join(unknown)}: do not rely on it")
    motions = count_motions(lowest.data.smiles) if isinstance(record.content, SmilesRow) else 0
    if motions and config.embedding.conformers == 1:
        notes.append("this is one conformer; others may have other dipole moments")
    if motions:
        errors = average_errors(molecule.conformers, config.temperature, motions)
        molecule = replace(molecule, errors=errors)
    if not lowest.has_vector:
        notes.append("the model predicts the magnitude only, no vector and no charges")
    return replace(
        molecule,
        source=record.source,
        row=record.row,
        model=card.name,
        accuracy=card.accuracy,
        energies=_energies_of(molecule, record, energies),
        notes=tuple(notes),
    )


def _energies_of(molecule: MoleculePrediction, record: Record, computed: str) -> str:
    """What the energies of the weights come from; ``computed`` if they were computed."""
    if len(molecule.conformers) == 1:
        return ""
    given = SOURCES["mmff"] if isinstance(record.content, SmilesRow) else "the file"
    return computed or given


@dataclass(frozen=True)
class BulkResult:
    """Summary of a run of :func:`predict_files`.

    Attributes:
        molecules: Molecules in the output.
        failures: Molecules that failed.
        first_failures: The first of the failures.
        earlier: Number of molecules and failures that were finished by an interrupted run.
        seconds: Time of this run in seconds.
        levels: Levels of theory of the predictions; empty if the models do not distinguish levels.
    """

    molecules: int
    failures: int
    first_failures: list[Failure]
    earlier: int
    seconds: float
    levels: list[str]


def predict_files(
    paths: Sequence[str | Path],
    output: str | Path,
    models: ModelChoice,
    *,
    columns: TableColumns | None = None,
    conformers: ConformerConfig | None = None,
    temperature: float = ROOM_TEMPERATURE_K,
    coverage: float = COVERAGE,
    level: str | None = None,
    energies: EnergyMethod | Literal["auto"] = PredictConfig.energies,
    workers: int | None = None,
    device: torch.device | str | None = None,
    part_records: int = PART_RECORDS,
    progress: bool = False,
) -> BulkResult:
    """Predicts the dipole moments of all molecules in files of any size and writes one output file.

    A killed run is resumed by a second call with the same arguments; only unfinished work is
    repeated, and nothing is lost. (Until the run is complete, results are stored in a folder beside
    the output, in parts of about 20 seconds of work.) ``workers`` and ``device`` may differ.

    Structures in the output have the ``mol_id`` of the file, else the index of their record, from
    0; with several files, the index of the record over all files.

    Args:
        paths: Files of SMILES (embedded in worker processes) or of structures.
        output: A table (``.csv``, ``.csv.gz``, ``.parquet``) with a line per molecule in the order
            of the files, or structures (all conformers) with their predictions (``.sdf``,
            ``.extxyz``, ``.xyz``, also ``.gz``). Failures are written to a separate file beside it.
        models: Choice of the model.
        columns: Columns of tables of SMILES.
        conformers: Embedding of SMILES; None: as many conformers as each molecule needs.
        temperature: Temperature of the Boltzmann average, in kelvin.
        coverage: Coverage of the error bars, between 0 and 1.
        level: Level of theory; None: the first of the model. The output contains it if the model
            distinguishes levels.
        energies: Energies of the conformers, for their weights, also of structures without
            energies.
        workers: Number of processes that read and embed; 0: the calling process, which ends if a
            molecule crashes RDKit; None: one per core, or 0 for a small file.
        device: Device of the model; None: a CUDA device if available.
        part_records: Maximum number of records per batch and per part.
        progress: True to show the progress on standard error.

    Raises:
        FileNotFoundError: A file or the model does not exist.
        ImportError: pyarrow is not installed (for Parquet).
        JobMismatch: The folder beside the output contains parts of another job.
        MoleculeError: A file lacks a column or cannot be read completely; finished work is kept.
        OutputInUse: Another run is writing the same output.
        ValueError: An unknown suffix, an output that would replace an input, ``workers`` below 0,
            ``part_records`` below 1, an invalid temperature or coverage, or a level that the model
            does not have.
    """
    for name, value, least in (("workers", workers or 0, 0), ("part_records", part_records, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    embedding = conformers or PredictConfig.embedding
    config = PredictConfig(embedding, temperature, coverage, level, energies)
    require_apart(Path(output), paths)
    start = time.monotonic()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with Records(paths, columns) as records:
        kinds = sorted({file.embedded for file in records.files})
        model = _loaded(models, config)
        stated = (model.level_named(level, embedded) for embedded in kinds)
        levels = list(dict.fromkeys(filter(None, stated)))
        job = {
            "version": __version__,
            "files": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
                for path in (file.path for file in records.files)
            ],
            "models": [_digest(model)],
            "columns": asdict(columns or TableColumns()),
            **asdict(config),
            "part_records": part_records,
        }
        if workers is None:
            workers = 0 if _few(paths, columns, config) else usable_cores()
        with (
            opened_parts(Path(output), job, coverage, part_records, levels=bool(levels)) as parts,
            _threads_beside(workers),
        ):
            earlier = sum(counts.molecules + counts.failures for counts in parts.done)
            rest = islice(records, sum(counts.records for counts in parts.done), None)
            embedded = embed_records(rest, config.embedding, workers=workers)
            batches = predict_batches(
                embedded, models, config, device=device, most_records=part_records
            )
            with Progress(progress, records, parts.done) as bar:
                for batch in batches:
                    parts.add(batch.records, batch.outcomes)
                    bar.advance(batch.records, len(batch.outcomes))
            if records.broken is not None:
                raise records.broken
            parts.flush()
            first = parts.first_failures(SHOWN_FAILURES)
            total = parts.assemble()
    seconds = time.monotonic() - start
    return BulkResult(total.molecules, total.failures, first, earlier, seconds, levels)


def _few(paths: Sequence[str | Path], columns: TableColumns | None, config: PredictConfig) -> bool:
    """True if the prediction takes less time than the start of worker processes."""
    each = config.embedding.conformers
    each = (USUAL_CONFORMERS if each == "auto" else each) * config.embedding.stereoisomers
    limit = max(1, FEW_CONFORMERS // each)
    with Records(paths, columns) as records:
        return sum(1 for _ in islice(records, limit)) < limit


@contextmanager
def _threads_beside(workers: int) -> Iterator[None]:
    """Reduces the threads of torch, so that threads and workers do not exceed the cores."""
    before = torch.get_num_threads()
    if workers > 1:
        torch.set_num_threads(max(1, before - workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(model: DipoleModel) -> str:
    """Name and checksum of a model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    return f"{model.card.name} {digest.hexdigest()}"
