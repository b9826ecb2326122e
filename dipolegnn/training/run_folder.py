"""Folder and results of a training run."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pydantic import TypeAdapter

from dipolegnn.config import JSON, TrainConfig
from dipolegnn.files import replacing
from dipolegnn.models import described, load_model
from dipolegnn.nn import PropertyModel
from dipolegnn.nn.model import ModelDescription

StoppedBy = Literal["max_epochs", "early_stopping", "time_limit"]
"""Reason why a run ended."""

Model = TypeVar("Model", bound=PropertyModel[Any])


_CHECKPOINT: dict[str, type] = {
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "optimizer_states": list,
    "loops": dict,
    "callbacks": dict,
}
"""Entries of a checkpoint of Lightning that resuming needs, and their types."""


class RunFolder:
    """Files of a training run.

    ==========================  ================================================================
    model.safetensors           the trained model: averaged weights of the best epoch
    config.json                 resolved model, recipe, data, numbers of devices and threads
    metrics.json                validation (and test) metrics of the model; written at the end
    history.csv                 one row per epoch
    checkpoints/last.ckpt       state after the last complete epoch, to resume from
    checkpoints/best.ckpt       state after the epoch with the lowest validation loss
    tensorboard/                the same numbers, for ``tensorboard --logdir``
    ==========================  ================================================================
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.safetensors"
        self.config = path / "config.json"
        self.metrics = path / "metrics.json"
        self.history = path / "history.csv"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.tensorboard = path / "tensorboard"

    def prepare(
        self,
        model: ModelDescription,
        train: TrainConfig,
        data: Mapping[str, JSON],
        devices: int,
        threads: int,
        resume: bool,
    ) -> int:
        """Creates the folder and writes ``config.json``, or checks an earlier run.

        Args:
            model: Description of the model.
            train: The recipe.
            data: Description of the data.
            devices: Total number of devices, each with a batch per optimizer step.
            threads: Current number of threads of torch.
            resume: True to resume an earlier run.

        Returns:
            Number of threads of torch when the run was started, which determines the order of sums.

        Raises:
            FileExistsError: If the folder contains a run and ``resume`` is False.
            ValueError: If the run was made with another configuration.
        """
        config: dict[str, JSON] = {"model": {**model}, "train": asdict(train), "data": {**data}}
        config["devices"] = devices
        if self.config.exists() or self.last.exists():
            if not resume:
                state = "finished" if self.metrics.exists() else "unfinished"
                raise FileExistsError(
                    f"{self.path} already contains a run ({state}). Resume it (--resume, or "
                    "resume=True), or choose another folder."
                )
            before = read_json(self.config)
            before["model"] = {**described(before.get("model"))}
            self._check_same(before, config, may_be_longer=train.scheduler == "plateau")
            kept = before.get("threads", threads)  # runs of earlier versions do not state it
            if not isinstance(kept, int):
                raise ValueError(
                    f"{self.config}: threads must be a whole number, got {kept!r}. Set it to the "
                    "number of threads at the start of the run, or remove the line."
                )
            threads = kept
        config["threads"] = threads
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)
        return threads

    def _check_same(
        self, earlier: Mapping[str, JSON], config: Mapping[str, JSON], may_be_longer: bool
    ) -> None:
        now = _flatten(config)
        # Options that were added after a run had begun are off (0, False, empty) in it. Old runs,
        # with one device only, do not contain the number of devices.
        added = {name: value for name, value in now.items() if not value}
        before = {**added, "devices": 1, **_flatten(earlier)}
        # Device and threads may change; max_epochs only if the schedule does not depend on it.
        free = {"threads", "train.accelerator"}
        if may_be_longer:
            free.add("train.max_epochs")
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and name not in free
        ]
        if changed:
            raise ValueError(
                f"The run in {self.path} cannot be resumed with another configuration: "
                f"{'; '.join(changed)}. Resume with the same options, or choose another folder."
            )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, by renaming a file of the same folder.

    Lightning writes to the temporary folder of the system and moves the file, which is a copy if
    that folder is on another file system: a process killed meanwhile leaves an incomplete file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Saves a checkpoint; if this fails, an existing one is unchanged.

        Raises:
            OSError: The file cannot be written.
        """
        with replacing(path) as temporary, temporary.open("wb") as file:
            # With an open file, a full disk is an OSError; with a path, torch has a RuntimeError.
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Loads a checkpoint, without unpickling classes whatever ``weights_only`` is.

        Raises:
            ValueError: As :func:`read_checkpoint`.
        """
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of a run; only tensors and plain values are unpickled.

    Raises:
        ValueError: If it is damaged or not the checkpoint of a run.
    """
    remedy = (
        "Restore it from a copy, or choose another folder for a new run; the other files of "
        "this run are unchanged."
    )
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    # What torch raises for damaged archives (RuntimeError, OSError, KeyError, ...) and for classes
    # (UnpicklingError) is not documented.
    except (
        *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError),
        *(AttributeError, AssertionError, OSError, MemoryError, OverflowError),
    ) as error:
        # The messages of UnpicklingError recommend to unpickle everything.
        reason = (
            "it contains other objects than tensors and plain values"
            if isinstance(error, pickle.UnpicklingError)
            else f"{type(error).__name__}: {error}".partition("\n")[0]
        )
        raise ValueError(
            f"{path} cannot be read ({reason}); expected a checkpoint of dipolegnn. It is damaged, "
            f"or was written by another program. {remedy}"
        ) from error
    found = checkpoint if isinstance(checkpoint, dict) else {}
    wrong = [
        name
        for name, kind in _CHECKPOINT.items()
        if not isinstance(found.get(name), kind) or (kind is list and not found[name])
    ]
    if wrong:
        raise ValueError(
            f"{path} is not a checkpoint of a training run: {', '.join(wrong)} are missing or of "
            f"another type. {remedy}"
        )
    content: dict[str, Any] = checkpoint
    return content


def write_json(path: Path, content: Mapping[str, JSON]) -> None:
    """Writes a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, JSON]:
    """Reads a JSON object from a file.

    Raises:
        ValueError: If the file does not contain a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a JSON object, got {type(content).__name__}.")
    return content


def write_history(path: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> None:
    """Writes the metrics of each epoch as CSV; missing values are empty."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_history(path: Path) -> list[dict[str, float]]:
    """Reads a file of :func:`write_history`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a value is not a number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a training history: {error}.") from error


def _flatten(config: Mapping[str, JSON], prefix: str = "") -> dict[str, JSON]:
    flat: dict[str, JSON] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@dataclass(frozen=True)
class FitResult(Generic[Model]):
    """Result of a training run.

    Attributes:
        model: Model of the best epoch, with averaged weights, on the CPU.
        model_path: File of the model.
        best_epoch: Epoch with the lowest validation loss, from 1.
        best_val_loss: Validation loss of the best epoch, in debye (debye squared for mse).
        metrics: ``{"val": {"loss": ..., "dipole_mae": ...}}`` of the model, and ``"test"`` if it
            was tested, in the units of ``model.head.metrics``.
        stopped_by: Reason why the run ended.
    """

    model: Model
    model_path: Path
    best_epoch: int
    best_val_loss: float
    metrics: Mapping[str, Mapping[str, float]]
    stopped_by: StoppedBy


@dataclass(frozen=True)
class Summary:
    """Content of ``metrics.json``: metrics of the saved model and the end of the run."""

    val: dict[str, float]
    test: dict[str, float] | None
    best_epoch: int
    epochs: int
    stopped_by: StoppedBy


def finished(folder: RunFolder, config: TrainConfig, test: bool) -> Summary | None:
    """Summary of a complete run, including the test; None (no ``metrics.json``) of another."""
    if not folder.metrics.exists():
        return None
    summary = TypeAdapter(Summary).validate_python(read_json(folder.metrics))
    complete = summary.epochs >= config.max_epochs or summary.stopped_by == "early_stopping"
    if complete and not (test and summary.test is None):
        return summary
    folder.metrics.unlink()
    return None


def read_result(folder: RunFolder, model: Model, summary: Summary) -> FitResult[Model]:
    """Reads the result of a finished run of a model with the same parts."""
    parts = (type(model.representation), type(model.head))
    metrics = {"val": summary.val}
    if summary.test is not None:
        metrics["test"] = summary.test
    return FitResult(
        model=load_model(folder.model, parts),
        model_path=folder.model,
        best_epoch=summary.best_epoch,
        best_val_loss=summary.val["loss"],
        metrics=metrics,
        stopped_by=summary.stopped_by,
    )
