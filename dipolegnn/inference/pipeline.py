"""From molecules of several sources to a report: the right model for each, failures kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from dipolegnn._pyg import Data
from dipolegnn.config import COVERAGE
from dipolegnn.inference.result import average
from dipolegnn.inference.structures import predict, unsupported
from dipolegnn.inference.table import Answer, Report
from dipolegnn.models import LoadedModel, ModelChoice, unknown_elements
from dipolegnn.molecules import Failure, Molecules
from dipolegnn.units import ROOM_TEMPERATURE_K

KERNELS_FROM_ATOMS = 2000
"""Atoms from which on the fused kernels save more time than the half second that loading takes."""

PROGRESS_FROM_STRUCTURES = 1000
"""Structures from which on predicting takes long enough for a progress bar."""


class Source(NamedTuple):
    """Molecules from one place."""

    name: str
    """Name of the file; empty for SMILES that were given one by one."""
    conformers: int
    """How many were asked for of each SMILES; 0: the geometries were not made here."""
    molecules: Molecules


class Job(NamedTuple):
    """Neighbouring structures for the same model."""

    model: LoadedModel
    structures: list[Data]


def answer(
    sources: Iterable[Source],
    models: ModelChoice,
    *,
    temperature: float = ROOM_TEMPERATURE_K,
    coverage: float = COVERAGE,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> Report:
    """Predicts all molecules of all sources, in order.

    Args:
        sources: Where the molecules come from, with those that could not be read.
        models: Which model predicts.
        temperature: Temperature of the Boltzmann average, in kelvin.
        coverage: How often the error bars shall hold, between 0 and 1.
        progress: Show a progress bar where it takes long.
        device: Where to compute, and the models are moved there; None: where they are.

    Returns:
        A prediction for each molecule, and a line for each that failed.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is no model file.
    """
    jobs, failures, places = _jobs(sources, models)
    few = sum(data.num_nodes or 0 for job in jobs for data in job.structures) < KERNELS_FROM_ATOMS
    answers = []
    for loaded, structures in jobs:
        loaded.model.kernels = "plain" if few else "auto"
        shown = progress and len(structures) > PROGRESS_FROM_STRUCTURES
        if device is not None:
            loaded.model.to(device)  # Once, and not a copy for each block of a large file.
        predictions = predict(loaded.model, structures, progress=shown)
        for molecule in average(predictions, temperature):
            # Of the file's order, whichever conformer has the lowest energy.
            place = min(places[id(conformer.data)] for conformer in molecule.conformers)
            answers.append(Answer(molecule, loaded, *place))
    return Report(answers, failures, temperature, coverage)


class _Place(NamedTuple):
    source: str
    row: int
    conformers: int


def _jobs(
    sources: Iterable[Source], models: ModelChoice
) -> tuple[list[Job], list[Failure], dict[int, _Place]]:
    """All structures that can be predicted, each molecule with a number, and their places.

    Numbers that a file states may occur in it again, so that places go by the objects.
    """
    jobs: list[Job] = []
    failures: list[Failure] = []
    places: dict[int, _Place] = {}
    first = 0
    for source in sources:
        found = source.molecules
        loaded = models.for_geometry(embedded=source.conformers > 0)
        if not jobs or jobs[-1].model is not loaded:
            jobs.append(Job(loaded, []))
        for k, structure in enumerate(found.data):
            row = int(structure.mol_id) + 1 if found.rows is None else found.rows[k]
            problem = unsupported(structure) or unknown_elements(loaded, structure)
            if problem is None:
                numbered = structure.clone()
                numbered.mol_id = structure.mol_id + first
                places[id(numbered)] = _Place(source.name, row, source.conformers)
                jobs[-1].structures.append(numbered)
            else:
                located = problem.located(row=row, source=source.name)
                failures.append(Failure.from_error(located, "predict"))
        failures += found.failures
        first += 1 + max((int(structure.mol_id) for structure in found.data), default=0)
    return jobs, failures, places
