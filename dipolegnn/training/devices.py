"""Training on several devices: one process per device (torchrun or srun), Lightning's DDP.

Only the first process writes, prints, and makes decisions that depend on files or time. Different
decisions in several processes would leave some of them waiting in a collective operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

T = TypeVar("T")


class FirstProcessFailed(RuntimeError):
    """Raised in the other processes if the first process failed; contains its error message."""


def check_devices(devices: int, num_nodes: int, accelerator: str) -> None:
    """Checks that the devices exist and that there is one process for each.

    Args:
        devices: Devices per node.
        num_nodes: Number of nodes.
        accelerator: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: If a device or a process is missing.
    """
    for name, value in (("devices", devices), ("num_nodes", num_nodes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"devices is {devices}, and PyTorch finds {torch.cuda.device_count()} CUDA devices. "
            "Use fewer, or make more of them visible to every process (CUDA_VISIBLE_DEVICES; with "
            "SLURM --gpus-per-node, not --gpus-per-task)."
        )
    processes = _processes()
    if processes != devices * num_nodes:
        nodes = f"--nnodes {num_nodes} " if num_nodes > 1 else ""
        raise ValueError(
            f"Training on {devices * num_nodes} device(s) (--devices {devices}, --num-nodes "
            f"{num_nodes}) takes one process per device, got {processes} process(es). Run: "
            f"torchrun {nodes}--nproc-per-node {devices} -m dipolegnn train ... (in SLURM: srun; "
            "own script: its name instead of -m dipolegnn train)"
        )


def _processes() -> int:
    """Number of processes that torchrun or srun started; 1 without them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()  # initialized by an earlier training
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment().world_size()
    return SLURMEnvironment().world_size() if SLURMEnvironment.detect() else 1


def is_first_process() -> bool:
    """True in the process that writes and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def from_first(trainer: pl.Trainer, action: Callable[[], T]) -> T:
    """Calls a function in the first process only and returns its result in all processes.

    Args:
        trainer: The trainer of these processes.
        action: The function.

    Raises:
        FirstProcessFailed: In the other processes, if the function failed.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return action()
    strategy.setup_environment()  # connects the processes; repeated by Lightning without effect
    result: T | None = None
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            result = action()
        except Exception as caught:
            error = caught
    failure = None if error is None else f"{type(error).__name__}: {error}"
    result, failure = strategy.broadcast((result, failure))
    if error is not None:
        raise error
    if failure is not None:
        raise FirstProcessFailed(f"The first process failed with {failure}")
    return cast(T, result)
