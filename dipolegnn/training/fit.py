"""Training of a model: ``fit``, used by the command and the experiments."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from ase.data import atomic_numbers
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger

from dipolegnn._pyg import InMemoryDataset
from dipolegnn.calibrate import TooFewMolecules, calibrate_on
from dipolegnn.config import JSON, TrainConfig
from dipolegnn.data import ConformerDataset, DipoleDataModule, JoinedDataset, Split
from dipolegnn.models import save_model
from dipolegnn.molecules.workers import usable_cores
from dipolegnn.nn import DipoleModel, ModelCard, PropertyModel
from dipolegnn.training.callbacks import (
    BestCheckpoint,
    History,
    LastCheckpoint,
    PatientEarlyStopping,
    ShownProgress,
    TimeLimit,
    WarmedUpEMA,
    history_columns,
)
from dipolegnn.training.module import DipoleModule
from dipolegnn.training.processes import Stops, check_devices, from_first, sigterm_interrupts
from dipolegnn.training.run_folder import (
    AtomicCheckpointIO,
    FitResult,
    RunFolder,
    StoppedBy,
    Summary,
    finished,
    read_checkpoint,
    read_result,
    write_json,
)

Model = TypeVar("Model", bound=PropertyModel[Any])


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by SIGINT (Ctrl-C) or SIGTERM; the message states how to resume."""


def fit(
    model: Model,
    dataset: InMemoryDataset,
    split: Split,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    test: bool = False,
    progress: bool = True,
    time_limit: float | None = None,
    callbacks: Sequence[Callback] = (),
    devices: int = 1,
    num_nodes: int = 1,
    provenance: Mapping[str, JSON] | None = None,
) -> FitResult[Model]:
    """Trains a model and saves model, configuration, metrics and checkpoints (:class:`RunFolder`).

    An interrupted or killed run is resumed from its last complete epoch with ``resume=True``. On a
    CPU the result equals that of an uninterrupted run to the last bit on the same machine with the
    same number of threads and the same batches, otherwise to rounding. The number of threads is
    stored in ``run_dir`` and restored; if there are fewer cores, a warning is issued.

    On several devices, Lightning's DDP is used with one process per device, started by torchrun or
    SLURM's srun; each process runs the whole script. Only the first process writes and shows
    progress, all return the same result, and ``run_dir`` must be on a shared file system. An
    optimizer step uses ``config.batch_size`` molecules of each device. Two devices are equivalent
    to one device with twice the batch size, to rounding, except that up to one molecule per further
    device is repeated in an epoch, so that all devices have the same number of molecules. Metrics
    are synchronized over all processes, as in torchmetrics; compute them in all processes.

    Args:
        model: Model with initial weights. It is not changed. ``config.seed`` does not affect its
            weights; seed before building it.
        dataset: Molecules with the labels of the head: a :class:`~dipolegnn.ConformerDataset`, or
            any in-memory data set of PyG.
        split: Indices of the training, validation and test molecules in the data set.
        config: The recipe, including batch size and seed.
        run_dir: Output folder.
        resume: True to resume the run in ``run_dir``, or to start it if there is none.
        test: True to evaluate the final model on the test molecules.
        progress: True to show the progress: a bar on a terminal, else one line per epoch.
        time_limit: Time limit in seconds; training stops at the end of an epoch. The schedules
            cosine and onecycle do not depend on the limit: a run that is stopped early ends at a
            high learning rate, and its model is worse than that of fewer ``max_epochs``. Such a run
            can be resumed.
        callbacks: Further Lightning callbacks, called in each process; an exception ends the run.
        devices: Devices per node: GPUs, or processes on a CPU.
        num_nodes: Number of nodes.
        provenance: Further JSON values for the model file, such as the origin of the initial
            weights.

    Returns:
        The model and its metrics.

    Raises:
        FileExistsError: If ``run_dir`` contains a run and ``resume`` is False.
        ValueError: If the run to resume has another configuration, other data or another total
            number of devices, if a batch has no labels, or if devices, processes or molecules are
            too few.
        FirstProcessFailed: In the other processes, if the first could not start or end the run.
        TrainingDiverged: If the loss is no longer finite.
        TrainingInterrupted: On SIGINT and SIGTERM.
    """
    accelerator = _accelerator(config)
    check_devices(devices, num_nodes, accelerator)
    folder = RunFolder(Path(run_dir))
    datamodule = DipoleDataModule(
        dataset,
        split,
        config.batch_size,
        seed=config.seed,
        together=model.head.compares_conformers,
    )
    data = _describe(dataset, split)
    processes = devices * num_nodes
    if test and len(split.test) < processes:
        raise ValueError(
            f"The test part has {len(split.test)} structures for {processes} devices; "
            "each needs at least one. Use fewer devices or a larger part, or disable the test."
        )

    limit = None if time_limit is None else TimeLimit(time_limit)
    patience = config.early_stopping_patience
    early = None if patience is None else PatientEarlyStopping(patience)
    shown = ShownProgress(progress, model.head.metrics, limit)
    history = History(folder.history, history_columns(model.head.metrics), shown.epoch)
    stops = Stops()
    all_callbacks: list[Callback | None] = [
        stops,
        None if config.ema_decay is None else WarmedUpEMA(config.ema_decay),
        history,
        early,
        limit,
        shown,
        LearningRateMonitor(logging_interval="step"),
        *callbacks,
        # Last, in this order: the last checkpoint contains the state of all callbacks before it.
        BestCheckpoint(folder.checkpoints),
        LastCheckpoint(folder.checkpoints),
    ]

    def begin() -> tuple[Summary | None, Path | None, int]:
        """Summary of a finished run, or the checkpoint to resume from; and number of threads."""
        here = torch.get_num_threads()
        threads = folder.prepare(model.config, config, data, processes, here, resume)
        last = folder.last if folder.last.exists() else None
        return finished(folder, config, test), last, threads

    new_trainer = partial(
        pl.Trainer,
        default_root_dir=folder.path,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true" if config.precision == 64 else "32-true",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with _quiet_lightning():
        trainer = new_trainer(
            max_epochs=config.max_epochs,
            callbacks=[callback for callback in all_callbacks if callback is not None],
            logger=TensorBoardLogger(
                folder.path, name=None, version=folder.tensorboard.name, default_hp_metric=False
            ),
            gradient_clip_val=config.gradient_clip,
            # Without the sanity check, which a resumed run would do at another time.
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            plugins=[AtomicCheckpointIO()],
        )
        with sigterm_interrupts(), _saying_how_to_go_on(folder, stops):
            summary, last, threads = from_first(trainer, begin)
            if summary is not None:
                return read_result(folder, model, summary)
            with _threads(threads if accelerator == "cpu" else None):
                trainer.fit(
                    # Converted here: the average is copied before Lightning converts the model.
                    DipoleModule(_copy(model, config).train(), config),
                    datamodule=datamodule,
                    ckpt_path=last,
                    weights_only=True,
                )
                stops.stop_if_told()
                best, epoch = _best_model(model, folder, config)
                tested = None
                if test:
                    tester = new_trainer(
                        callbacks=[stops], logger=False, enable_checkpointing=False
                    )
                    (logged,) = tester.test(
                        DipoleModule(best, config), datamodule=datamodule, verbose=False
                    )
                    best.cpu()
                    tested = _of_stage("test", logged)
                stopped_by: StoppedBy = "max_epochs"
                if len(history.rows) < config.max_epochs:
                    stopped_by = "early_stopping" if early and early.stopped else "time_limit"
                val = _of_stage("val", history.rows[epoch - 1])
                summary = Summary(val, tested, epoch, len(history.rows), stopped_by)

                def save() -> None:
                    described: dict[str, JSON] = {
                        **(provenance or {}),
                        "data": data,
                        "train": asdict(config),
                        "devices": processes,
                        "result": asdict(summary),
                        "error_bars": _calibrated(best, dataset, split),
                    }
                    save_model(folder.model, best, described)
                    write_json(folder.metrics, asdict(summary))

                from_first(trainer, save)
    return read_result(folder, model, summary)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Sets the number of threads of torch and of the kernels to that of the run's start."""
    here = torch.get_num_threads()
    if wanted is not None and wanted != here and wanted > usable_cores():
        warnings.warn(
            f"The run was started with {wanted} threads, and this machine has {usable_cores()} "
            f"cores: training continues with {here} threads, and the result may differ from that "
            "of an uninterrupted run by rounding.",
            stacklevel=3,
        )
        wanted = None
    torch.set_num_threads(wanted or here)
    try:
        yield
    finally:
        torch.set_num_threads(here)


def _describe(dataset: InMemoryDataset, split: Split) -> dict[str, JSON]:
    """Description of data set and split in the model file."""
    described: dict[str, JSON] = {}
    if isinstance(dataset, JoinedDataset):
        cards = [_of_card(one) for one in dataset.datasets]
        elements: set[str] = {element for card in cards for element in card["elements"]}
        described = {
            "name": " + ".join(card["name"] for card in cards),
            "level_of_theory": ", ".join(dataset.levels),
            "elements": [*sorted(elements, key=atomic_numbers.__getitem__)],
            "joined": [*cards],
        }
    elif isinstance(dataset, ConformerDataset):
        described = _of_card(dataset)
    parts = {"train": split.train, "val": split.val, "test": split.test}
    digest = hashlib.sha256()
    for part in parts.values():
        digest.update(torch.as_tensor(part).numpy().tobytes() + b"|")
    return {
        **described,
        "structures": {name: len(part) for name, part in parts.items()},
        "split_sha256": digest.hexdigest(),
    }


def _of_card(dataset: ConformerDataset) -> dict[str, Any]:
    card = dataset.card
    if card is None:
        return {}
    return {
        "name": card.name,
        "level_of_theory": card.level_of_theory,
        "geometry": card.geometry,
        "elements": list(card.elements),
        "sha256": card.sha256,
    }


def _accelerator(config: TrainConfig) -> str:
    """``"cpu"`` or ``"cuda"``; Apple's GPUs lack float64, which the metrics need."""
    if config.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "accelerator is 'gpu', and PyTorch finds no CUDA device. Install a CUDA build of "
            "PyTorch, or train with accelerator 'cpu'."
        )
    return "cuda" if config.accelerator == "gpu" else "cpu"


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppresses messages of Lightning that do not apply and that no setting disables."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)  # Device lists and tips.
    try:
        with warnings.catch_warnings():
            # The molecules are in memory: transferring a batch from a worker process takes longer
            # than making it.
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            # Expected when a run is resumed.
            warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
            # Lightning (2.6.6) uses a deprecated class of torch.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _saying_how_to_go_on(folder: RunFolder, stops: Stops) -> Iterator[None]:
    """Converts an interrupt, and errors of other processes after it, to TrainingInterrupted."""
    try:
        yield
    except BaseException as stop:
        if not stops.told and not isinstance(stop, (KeyboardInterrupt, SystemExit)):
            raise
        message = "Interrupted before the first epoch was complete; nothing was saved."
        if folder.last.exists():
            epoch = read_checkpoint(folder.last)["epoch"]
            message = (
                f"Interrupted after {epoch + 1} complete epochs; checkpoint: {folder.last}. "
                "Continue with --resume (resume=True)."
            )
        raise TrainingInterrupted(message) from stop


def _copy(model: Model, config: TrainConfig) -> Model:
    copy = deepcopy(model)
    copy.card = ModelCard()
    if isinstance(copy, DipoleModel):
        copy.calibration = None  # error bars of other weights
    return copy.to(torch.float64 if config.precision == 64 else torch.float32)


def _best_model(model: Model, folder: RunFolder, config: TrainConfig) -> tuple[Model, int]:
    """Loads the model of the best epoch; returns it and the number of the epoch."""
    checkpoint = read_checkpoint(folder.best)
    best = _copy(model, config).cpu()
    # The averaged weights (if there are averages), with which the epoch was validated.
    weights = {
        name.removeprefix("model."): weight
        for name, weight in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }
    best.load_state_dict(weights)
    return best.eval(), int(checkpoint["epoch"]) + 1


def _calibrated(model: PropertyModel[Any], dataset: InMemoryDataset, split: Split) -> str:
    """Calibrates the model; returns the source of its error bars or why it has none."""
    if not isinstance(model, DipoleModel) or model.head.last_layer is None:
        return f"none: {type(model.head).__name__} has no last_layer"
    try:
        calibrate_on(model, dataset, split)
    except TooFewMolecules as error:
        return f"none: {error}"
    return f"from {len(split.val)} validation structures"


def _of_stage(stage: str, row: Mapping[str, float]) -> dict[str, float]:
    """Metrics of one stage, by name without the prefix of the stage."""
    return {
        name.removeprefix(f"{stage}/"): value
        for name, value in row.items()
        if name.startswith(f"{stage}/") and not math.isnan(value)
    }
