"""The folder of a training run: what lies in it, and whether it may be written to."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from dipolegnn.config import JSON, TrainConfig
from dipolegnn.files import replacing
from dipolegnn.models import described
from dipolegnn.nn.model import ModelDescription


class RunFolder:
    """Paths of the files of one training run.

    ==========================  ================================================================
    model.safetensors           the trained model: averaged weights of the best epoch
    config.json                 model, recipe, data, number of devices and of threads, as resolved
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
        """Makes the folder and writes ``config.json``, unless that would spoil an earlier run.

        Args:
            model: What is trained.
            train: The recipe.
            data: What it is trained on.
            devices: Number of devices in all, each of which adds a batch to an optimizer step.
            threads: Threads that torch uses here.
            resume: Whether an earlier run may go on.

        Returns:
            Threads that torch used when the run was started. Another number adds in another order.

        Raises:
            FileExistsError: If there is a run and it is not to be resumed.
            ValueError: If there is a run and it was made with another configuration.
        """
        config: dict[str, JSON] = {"model": {**model}, "train": asdict(train), "data": {**data}}
        config["devices"] = devices
        if self.config.exists() or self.last.exists():
            if not resume:
                state = "finished" if self.metrics.exists() else "unfinished"
                raise FileExistsError(
                    f"{self.path} already holds a run ({state}). Go on with it (--resume, or "
                    "resume=True), or choose another folder."
                )
            before = read_json(self.config)
            before["model"] = {**described(before.get("model"))}
            self._check_same(before, config, may_be_longer=train.scheduler == "plateau")
            kept = before.get("threads", threads)  # runs of earlier versions do not state it
            if not isinstance(kept, int):
                raise ValueError(
                    f"{self.config}: threads must be a whole number, got {kept!r}. Put in the "
                    "number that the run was started with, or remove the line."
                )
            threads = kept
        config["threads"] = threads
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)
        return threads

    def _check_same(
        self, earlier: Mapping[str, JSON], config: Mapping[str, JSON], may_be_longer: bool
    ) -> None:
        # Runs from before there could be several do not say how many.
        before = {"devices": 1, **_flatten(earlier)}
        now = _flatten(config)
        # Where it is computed may change; a fixed schedule is bound to its number of epochs.
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
    """Writes a checkpoint beside its place and then renames it.

    Lightning's own way writes it to the system's temporary folder and moves it, which is a copy
    where that is another file system: a kill meanwhile leaves half a checkpoint and nothing to
    resume from.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Saves a checkpoint, or leaves the earlier one as it was."""
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


def write_json(path: Path, content: Mapping[str, JSON]) -> None:
    """Writes a JSON file, all of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, JSON]:
    """Reads a JSON file that holds an object.

    Raises:
        ValueError: If it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def write_history(path: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> None:
    """Writes the numbers of each epoch as CSV; a number that there is not stays empty."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_history(path: Path) -> list[dict[str, float]]:
    """Reads what :func:`write_history` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row holds something that is not a number.
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
