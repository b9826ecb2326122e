"""The one way to train a model, which the command and the experiments share."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger

from dipolegnn._pyg import InMemoryDataset
from dipolegnn.calibrate import TooFewMolecules, calibrate_on
from dipolegnn.config import JSON, TrainConfig
from dipolegnn.data import ConformerDataset, DipoleDataModule, Split
from dipolegnn.models import save_model
from dipolegnn.molecules.workers import usable_cores
from dipolegnn.nn import DipoleModel, ModelCard, PropertyModel
from dipolegnn.nn.model import ModelDescription
from dipolegnn.training.averaging import WarmedUpEMA
from dipolegnn.training.callbacks import (
    BestCheckpoint,
    History,
    LastCheckpoint,
    PatientEarlyStopping,
    Row,
    TimeLimit,
    history_columns,
)
from dipolegnn.training.devices import check_devices, from_first
from dipolegnn.training.module import DipoleModule
from dipolegnn.training.progress import ShownProgress
from dipolegnn.training.result import (
    FitResult,
    StoppedBy,
    Summary,
    is_finished,
    read_result,
    read_summary,
)
from dipolegnn.training.run_folder import AtomicCheckpointIO, RunFolder, write_json
from dipolegnn.training.stops import Stops, sigterm_interrupts

Model = TypeVar("Model", bound=PropertyModel[Any])


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by SIGINT (Ctrl-C) or SIGTERM; the message says how to go on."""


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
    """Trains a model, and saves it with everything that is worth keeping; see :class:`RunFolder`.

    A run that was interrupted or killed goes on from its last complete epoch with ``resume``, and
    then gives the same model as one that was never interrupted: on a CPU to the last bit, on the
    same machine, with the same number of threads and the same batches; elsewhere up to the order
    in which numbers are added. The number of threads is kept in ``run_dir`` and used again; where
    there are fewer cores, a warning states both numbers.

    Several devices share the work through Lightning's DDP, one process for each, which torchrun or
    SLURM's srun start; everything in the script then happens in each process. The first process
    alone writes and shows progress, all return the same, and ``run_dir`` must be on a file system
    that they share. An optimizer step is one over ``config.batch_size`` molecules of each device:
    two devices train as one does with twice the batch size, but for the order in which numbers are
    added, and for up to one molecule per further device that is seen twice in an epoch, so that all
    get equally many. The metrics of this package are then, as all of torchmetrics, those of all
    processes together: compute them in all, or they wait for ever.

    Args:
        model: The model with its initial weights. It is not changed; ``config.seed`` does not
            touch its weights either (seed before building it).
        dataset: The molecules, with the labels that the head is trained on: a
            :class:`~dipolegnn.ConformerDataset`, or any in-memory data set of PyG.
        split: Positions of the training, validation and test molecules in the data set.
        config: The recipe, with the batch size and the seed.
        run_dir: The folder to write to.
        resume: Go on with the run in ``run_dir``; start it if there is none.
        test: Measure the final model on the test molecules as well.
        progress: Show the progress: a bar on a terminal, one line per epoch elsewhere.
        time_limit: Stop in time for this many seconds, at the end of an epoch. The schedules
            cosine and onecycle do not know of it: cut short, they end at a high learning rate,
            and the model is worse than one of fewer ``max_epochs``. Such a run can be resumed.
        callbacks: Further callbacks of Lightning; an exception from one ends the run. With several
            devices they are called in each process.
        devices: Devices per node: GPUs, or processes on a CPU.
        num_nodes: Nodes, each with that many.
        provenance: What else to write down in the model's file, such as what its weights started
            from.

    Returns:
        The model and how good it is.

    Raises:
        FileExistsError: If ``run_dir`` holds a run and ``resume`` is false.
        ValueError: If the run to be resumed was made with another configuration, other data or
            another number of devices in all (and so with other optimizer steps), if a batch has no
            label at all, if there are not so many devices, not one process for each, or too few
            molecules for them.
        FirstProcessFailed: In the other processes, if the first could not begin or end the run.
        TrainingDiverged: If the loss is no longer finite.
        TrainingInterrupted: On SIGINT and SIGTERM.
    """
    accelerator = _accelerator(config)
    check_devices(devices, num_nodes, accelerator)
    folder = RunFolder(Path(run_dir))
    datamodule = DipoleDataModule(dataset, split, config.batch_size, seed=config.seed)
    data = _describe(dataset, split)
    processes = devices * num_nodes
    if test and len(split.test) < processes:
        raise ValueError(
            f"The test part has {len(split.test)} structures for {processes} devices; "
            "each needs at least one. Use fewer devices, a larger part, or do not test."
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
        # Last, in this order: the last checkpoint knows of everything before it.
        BestCheckpoint(folder.checkpoints),
        LastCheckpoint(folder.checkpoints),
    ]
    with _quiet_lightning():
        trainer = pl.Trainer(
            default_root_dir=folder.path,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy="ddp" if processes > 1 else "auto",
            precision="64-true" if config.precision == 64 else "32-true",
            max_epochs=config.max_epochs,
            callbacks=[callback for callback in all_callbacks if callback is not None],
            logger=TensorBoardLogger(
                folder.path, name=None, version=folder.tensorboard.name, default_hp_metric=False
            ),
            gradient_clip_val=config.gradient_clip,
            # The sanity check would validate before there is anything to validate, and a resumed
            # run would do it at another time than the original.
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
        )
        with sigterm_interrupts(), _saying_how_to_go_on(folder, stops):
            finished, last, threads = from_first(
                trainer, lambda: _begin(folder, model.config, config, data, processes, resume, test)
            )
            if finished is not None:
                return read_result(folder, model, finished)
            with _threads(threads if accelerator == "cpu" else None):
                trainer.fit(
                    # Converted here, because the average is copied before Lightning converts it.
                    DipoleModule(_copy(model, config).train(), config),
                    datamodule=datamodule,
                    ckpt_path=last,
                    weights_only=True,
                )
                stops.stop_if_told()
                best, epoch = _best_model(model, folder, config)
                tested = None
                if test:
                    tested = _test(best, datamodule, config, devices, num_nodes, stops)
                summary = _summary(history.rows, epoch, tested, config, early)
                from_first(
                    trainer,
                    lambda: _save(
                        folder, best, summary, config, datamodule, data, processes, provenance or {}
                    ),
                )
    return read_result(folder, model, summary)


def _begin(
    folder: RunFolder,
    model: ModelDescription,
    config: TrainConfig,
    data: Mapping[str, JSON],
    devices: int,
    resume: bool,
    test: bool,
) -> tuple[Summary | None, Path | None, int]:
    """The result of a finished run; else the checkpoint to go on from, and the run's threads."""
    threads = folder.prepare(model, config, data, devices, torch.get_num_threads(), resume)
    if folder.metrics.exists():
        summary = read_summary(folder)
        if is_finished(summary, config, test):
            return summary, None, threads
        folder.metrics.unlink()
    return None, folder.last if folder.last.exists() else None, threads


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Has torch, and with it the kernels, use the threads that the run was started with."""
    here = torch.get_num_threads()
    if wanted is not None and wanted != here and wanted > usable_cores():
        warnings.warn(
            f"The run was started with {wanted} threads, and this machine has {usable_cores()} "
            f"cores: training goes on with {here} threads, and the result may differ from that of "
            "an uninterrupted run by rounding.",
            stacklevel=3,
        )
        wanted = None
    torch.set_num_threads(wanted or here)
    try:
        yield
    finally:
        torch.set_num_threads(here)


def _summary(
    rows: Sequence[Row],
    epoch: int,
    tested: dict[str, float] | None,
    config: TrainConfig,
    early: PatientEarlyStopping | None,
) -> Summary:
    """What the run has come to."""
    stopped_by: StoppedBy = "max_epochs"
    if len(rows) < config.max_epochs:
        stopped_by = "early_stopping" if early is not None and early.stopped else "time_limit"
    return Summary(
        val=_of_stage("val", rows[epoch - 1]),
        test=tested,
        best_epoch=epoch,
        epochs=len(rows),
        stopped_by=stopped_by,
    )


def _save(
    folder: RunFolder,
    model: PropertyModel[Any],
    summary: Summary,
    config: TrainConfig,
    datamodule: DipoleDataModule,
    data: Mapping[str, JSON],
    devices: int,
    further: Mapping[str, JSON],
) -> None:
    """Makes the error bars, and writes what a run ends with."""
    provenance: dict[str, JSON] = {
        **further,
        "data": {**data},
        "train": asdict(config),
        "devices": devices,
        "result": asdict(summary),
        "error_bars": _calibrated(model, datamodule.dataset, datamodule.split),
    }
    save_model(folder.model, model, provenance)
    write_json(folder.metrics, asdict(summary))


def _describe(dataset: InMemoryDataset, split: Split) -> dict[str, JSON]:
    """What is saved about the data: the data set, and how it is split."""
    described: dict[str, JSON] = {}
    if isinstance(dataset, ConformerDataset) and dataset.card is not None:
        card = dataset.card
        described = {
            "name": card.name,
            "level_of_theory": card.level_of_theory,
            "geometry": card.geometry,
            "elements": list(card.elements),
            "sha256": card.sha256,
        }
    parts = {"train": split.train, "val": split.val, "test": split.test}
    digest = hashlib.sha256()
    for part in parts.values():
        digest.update(torch.as_tensor(part).numpy().tobytes() + b"|")
    return {
        **described,
        "structures": {name: len(part) for name, part in parts.items()},
        "split_sha256": digest.hexdigest(),
    }


def _accelerator(config: TrainConfig) -> str:
    """``"cpu"`` or ``"cuda"``: Apple's GPUs lack the float64 that the metrics add up in."""
    if config.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "accelerator is 'gpu', and PyTorch sees no CUDA device. Install a CUDA build of "
            "PyTorch, or train with accelerator 'cpu'."
        )
    return "cuda" if config.accelerator == "gpu" else "cpu"


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Holds back what Lightning has to say that no setting turns off and nobody needs."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)  # Devices found, tips for other products.
    try:
        with warnings.catch_warnings():
            # The molecules are in memory; a worker process would spend longer handing over a
            # batch than it takes to make one.
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            # They are there because the run is being resumed.
            warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
            # Lightning (2.6.6) uses what torch is about to rename.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _saying_how_to_go_on(folder: RunFolder, stops: Stops) -> Iterator[None]:
    """Turns an interrupt, and its consequences in other processes, into TrainingInterrupted."""
    try:
        yield
    except BaseException as stop:
        if stops.told or isinstance(stop, (KeyboardInterrupt, SystemExit)):
            raise TrainingInterrupted(_how_to_go_on(folder)) from stop
        raise


def _how_to_go_on(folder: RunFolder) -> str:
    if not folder.last.exists():
        return "Interrupted before the first epoch was complete; nothing was saved."
    epoch = torch.load(folder.last, map_location="cpu", weights_only=True)["epoch"]
    return (
        f"Interrupted after {epoch + 1} complete epochs, which are in {folder.last}. "
        "Go on with --resume (resume=True)."
    )


def _copy(model: Model, config: TrainConfig) -> Model:
    copy = deepcopy(model)
    copy.card = ModelCard()
    if isinstance(copy, DipoleModel):
        copy.calibration = None  # error bars of other weights
    return copy.to(torch.float64 if config.precision == 64 else torch.float32)


def _best_model(model: Model, folder: RunFolder, config: TrainConfig) -> tuple[Model, int]:
    """The model of the best epoch, and the number of that epoch."""
    checkpoint = torch.load(folder.best, map_location="cpu", weights_only=True)
    best = _copy(model, config).cpu()
    # The averages, where there are averages: they are what was validated.
    weights = {
        name.removeprefix("model."): weight
        for name, weight in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }
    best.load_state_dict(weights)
    return best.eval(), int(checkpoint["epoch"]) + 1


def _calibrated(model: PropertyModel[Any], dataset: InMemoryDataset, split: Split) -> str:
    """Gives the model its error bars; what they come from, or why it has none."""
    if not isinstance(model, DipoleModel) or model.head.last_layer is None:
        return f"none: {type(model.head).__name__} has no last_layer to make them from"
    try:
        calibrate_on(model, dataset, split)
    except TooFewMolecules as error:
        return f"none: {error}"
    return f"from {len(split.val)} validation structures"


def _test(
    model: PropertyModel[Any],
    datamodule: DipoleDataModule,
    config: TrainConfig,
    devices: int,
    num_nodes: int,
    stops: Stops,
) -> dict[str, float]:
    """The metrics of the test molecules, each of which is seen once, on whichever device."""
    trainer = pl.Trainer(
        accelerator=_accelerator(config),
        devices=devices,
        num_nodes=num_nodes,
        strategy="ddp" if devices * num_nodes > 1 else "auto",
        precision="64-true" if config.precision == 64 else "32-true",
        callbacks=[stops],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (logged,) = trainer.test(DipoleModule(model, config), datamodule=datamodule, verbose=False)
    model.cpu()
    return _of_stage("test", logged)


def _of_stage(stage: str, row: Mapping[str, float]) -> dict[str, float]:
    """The metrics of one stage, by their names without it."""
    return {
        name.removeprefix(f"{stage}/"): value
        for name, value in row.items()
        if name.startswith(f"{stage}/") and not math.isnan(value)
    }
