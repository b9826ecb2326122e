"""Many molecules: in processes, resumable, with a line for each one that failed."""

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
from dipolegnn.molecules.workers import Lost, run_tasks

XTB_TIME_LIMIT_S = 900.0
"""A worker is given up when a molecule takes longer than this with GFN2-xTB; 0.1 is usual."""

DFT_TIME_LIMIT_S = 24 * 3600.0
"""The same for DFT, where minutes are usual for 10 heavy atoms, and hours with a relaxation."""


def label_many(
    data: Sequence[Data],
    method: LabelMethod,
    *,
    workers: int = 1,
    progress: bool = False,
    journal: Path | None = None,
    source: str = "",
) -> Molecules:
    """Label molecules with GFN2-xTB, DFT or an ASE calculator; the order is kept.

    With several workers a molecule that crashes or hangs its process costs only itself. With a
    journal a run that was killed goes on where it was: every molecule that was done, or failed, is
    known from there. (One that crashed its process is tried again.)

    Args:
        data: Molecules; not changed.
        method: Level of theory, and whether to relax first.
        workers: Processes, with one thread each; 1: no process of its own.
        progress: Show a progress bar on standard error.
        journal: File for resuming; one file serves any molecules and methods.
        source: Name of the file that the molecules are from, for the failures.

    Returns:
        The labelled molecules, and the failures: ``row`` is the molecule's ``mol_id`` counted
        from 1.

    Raises:
        ImportError: The program that calculates is not installed.
        ValueError: ``workers`` below 1, the journal is not one, or the calculator's function cannot
            be sent to workers.
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
            located = outcome.located(
                molecule=molecule.name or molecule.smiles,
                row=int(molecule.mol_id.item()) + 1,
                source=source,
            )
            failures.append(Failure.from_error(located, "label"))
    return Molecules(labelled, failures)


def _results(
    data: list[Data], method: LabelMethod, workers: int
) -> Iterator[tuple[int, Label | MoleculeError | Lost]]:
    task = partial(label_one, method=method)
    if workers == 1:
        return ((i, task(molecule)) for i, molecule in enumerate(data))
    return run_tasks(task, data, workers=workers, time_limit=label_time_limit(method))


def _require_importable(method: ASEConfig) -> None:
    try:
        pickle.dumps(method)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The calculator of {method.name!r} cannot be sent to worker processes ({error}). "
            f"Define its function at the top level of a module, or take workers=1."
        ) from None


def label_time_limit(method: LabelMethod) -> float:
    """Seconds after which a molecule is given up that a worker labels."""
    return XTB_TIME_LIMIT_S if isinstance(method, XTBConfig) else DFT_TIME_LIMIT_S


def lost_label(lost: Lost) -> MoleculeError:
    """What became of a molecule that crashed its worker or kept it busy for too long."""
    return MoleculeError(
        f"No label: {lost.reason}",
        remedy="Try it alone, with one worker, or take another level of theory",
    )


def label_one(data: Data, *, method: LabelMethod) -> Label | MoleculeError:
    """The label of one molecule, or why there is none.

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
