"""Labelling of many molecules: worker processes, resuming, failures."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.labels.calculators import ASEConfig, LabelMethod, engine_version, make_calculator
from dipolegnn.labels.journal import Journal, Label, fingerprint, label_of, with_label
from dipolegnn.labels.run import label
from dipolegnn.molecules import Failure, MoleculeError, Molecules
from dipolegnn.molecules.workers import Lost, Pool

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
        return label_of(
            label(
                data,
                make_calculator(method, round(data.charge.item())),
                optimize=method.optimize,
                fmax=method.fmax,
                max_steps=method.max_steps,
            )
        )
    except MoleculeError as error:
        return error
