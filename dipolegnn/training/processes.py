"""Processes of a training run: one per device (torchrun or srun, Lightning's DDP), and signals.

Only the first process writes, prints, and makes decisions that depend on files or time. Different
decisions in several processes would leave some of them waiting in a collective operation.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

T = TypeVar("T")


class FirstProcessFailed(RuntimeError):
    """Raised in the other processes if the first process failed; contains its error message."""


def check_devices(devices: int, num_nodes: int, accelerator: str) -> None:
    """Checks that the devices (per node) exist and that there is one process for each.

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


class Stops(Callback):
    """Stops training after the batch in which a signal arrives; a second Ctrl-C stops immediately.

    An exception raised in a signal handler is not safe everywhere: inside TensorBoard's writer it
    can leave a lock acquired, for which Lightning then waits forever (one in four interrupts of a
    busy ``queue.Queue``, measured with Python 3.11), and during finalization of an object it is
    ignored. Therefore the handler stores the signal.

    torchrun and srun send a signal to all processes. The first process stops and reports; the
    others wait for it in their next collective operation, which then fails or is ended by torchrun
    or srun.

    On SIGTERM, Lightning (2.6.6) sends a message to the other processes and waits forever if they
    are in another collective operation; here SIGTERM is handled like SIGINT.
    """

    def __init__(self) -> None:
        self.told = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        impatient = self.told and number == signal.SIGINT
        self.told = True
        if impatient:
            raise KeyboardInterrupt

    def stop_if_told(self, *_: Any, **__: Any) -> None:
        """Raises KeyboardInterrupt in the first process if a signal arrived."""
        if self.told and is_first_process():
            raise KeyboardInterrupt

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = stop_if_told

    def on_train_start(self, *_: Any, **__: Any) -> None:
        """Installs the signal handlers; :func:`sigterm_interrupts` restores the earlier ones."""
        _handle(signal.SIGTERM, self._remember)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a shell
            _handle(signal.SIGINT, self._remember)

    on_test_start = on_train_start


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt outside batches; restores both handlers at the end."""
    # Lightning (2.6.6) may leave SIGINT ignored after a late interrupt.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    _handle(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            _handle(number, handler)


def _handle(number: signal.Signals, handler: Callable[[int, FrameType | None], Any] | int) -> None:
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)
