"""Several devices: one process for each, which all do the same (Lightning's DDP).

The first process alone writes and prints. What only it can know (is there a run already, is there
time left) it decides for all of them: a process that went its own way would leave the others
waiting for it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities import rank_zero_only

T = TypeVar("T")


class FirstProcessFailed(RuntimeError):
    """The first process could not do what it does for all; what it raised says why."""


def check_devices(devices: int, num_nodes: int, accelerator: str) -> None:
    """Checks that there are so many devices, and so many processes where others start them.

    Args:
        devices: Devices of each node.
        num_nodes: Nodes.
        accelerator: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: If not.
    """
    for name, value in (("devices", devices), ("num_nodes", num_nodes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"devices is {devices}, and PyTorch sees {torch.cuda.device_count()} CUDA devices "
            "here. Use fewer, or make more of them visible to every process "
            "(CUDA_VISIBLE_DEVICES; with SLURM --gpus-per-node, not --gpus-per-task)."
        )
    started = _started_processes()
    if started is not None:
        launcher, processes = started
        if processes != devices * num_nodes:
            raise ValueError(
                f"{launcher} started {processes} processes, and devices is {devices} on each of "
                f"{num_nodes} nodes (num_nodes). There must be one process for each device: start "
                "as many, or say how many devices and nodes there are (--devices, --num-nodes)."
            )
    elif devices > 1 and not Path(sys.argv[0]).is_file():
        raise ValueError(
            f"Training on {devices} devices starts the program anew for each of them, so it must "
            f"be a script or a command, got {sys.argv[0]!r}. Put it into a file, or train on one "
            "device."
        )


def _started_processes() -> tuple[str, int] | None:
    """Who started the processes, if not Lightning is to do so, and how many."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "An earlier training", torch.distributed.get_world_size()
    if TorchElasticEnvironment.detect():
        return "torchrun", TorchElasticEnvironment().world_size()
    if SLURMEnvironment.detect():
        return "SLURM", SLURMEnvironment().world_size()
    return None


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints, as far as is known so far.

    Lightning knows it for certain once there is a trainer, and before by what torchrun, SLURM or
    Lightning itself say in the environment.
    """
    return getattr(rank_zero_only, "rank", 0) == 0


def from_first(trainer: pl.Trainer, action: Callable[[], T]) -> T:
    """Does something in the first process alone, and has its result in all of them.

    Starts the other processes where that is left to Lightning.

    Args:
        trainer: The trainer of these processes.
        action: What to do.

    Returns:
        What it returned.

    Raises:
        FirstProcessFailed: In the other processes, if it failed in the first.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return action()
    result: T | None = None
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            result = action()
        except Exception as caught:
            environment = strategy.cluster_environment
            assert environment is not None
            if started_here(trainer) or not environment.creates_processes_externally:
                raise  # The others are not there yet, or are about to be ended.
            error = caught
    assert strategy.launcher is not None
    # Lightning will do both once more, to no effect, when it trains.
    strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
    failure = None if error is None else f"{type(error).__name__}: {error}"
    result, failure = strategy.broadcast((result, failure))
    if error is not None:
        raise error
    if failure is not None:
        raise FirstProcessFailed(f"The first process failed with {failure}")
    return cast(T, result)


def started_here(trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning has started from this one: its own list of them."""
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
