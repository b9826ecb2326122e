"""Several devices: one process for each, which all do the same (Lightning's DDP).

The first process alone writes and prints. What only it can know (is there a run already, is there
time left) it decides for all of them: a process that went its own way would leave the others
waiting for it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Callback
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
            if _started_here(trainer) or not environment.creates_processes_externally:
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


class Stops(Callback):
    """Stops this process at once when it is told to, and the others with it.

    Lightning (2.6.6) answers SIGTERM with a message to the other processes, for which it waits for
    ever if they are busy with another one. There is nothing to tell: what is worth keeping was
    written at the end of the last epoch. So SIGTERM does what Ctrl-C does.

    An interrupt that comes while Python cleans up, or is called back from C, is lost. So it is
    remembered, and looked for after each batch.
    """

    def __init__(self) -> None:
        self._told = False

    def _remember(self) -> None:
        self._told = True

    def _stop_if_told(self) -> None:
        if self._told:
            raise KeyboardInterrupt

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the place of Lightning's handler, until Lightning puts back what was before."""
        _interrupt_on_sigterm(self._remember)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the place of Lightning's handler, until Lightning puts back what was before."""
        _interrupt_on_sigterm(self._remember)

    def on_train_batch_end(self, *_: Any) -> None:
        """Stops now, if the interrupt was lost."""
        self._stop_if_told()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stops now, if the interrupt was lost."""
        self._stop_if_told()

    def on_test_batch_end(self, *_: Any) -> None:
        """Stops now, if the interrupt was lost."""
        self._stop_if_told()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Ends the processes that this one has started."""
        _end_others(trainer)


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Ends the processes that this one has started when it is interrupted or fails."""
    if trainer.world_size == 1:
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    _interrupt_on_sigterm(lambda: None)
    try:
        yield
    except BaseException:
        _end_others(trainer)
        raise
    finally:
        if _may_handle_signals():
            signal.signal(signal.SIGTERM, before)


def _interrupt_on_sigterm(remember: Callable[[], None]) -> None:
    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        remember()
        raise KeyboardInterrupt

    if _may_handle_signals():
        signal.signal(signal.SIGTERM, interrupt)


def _may_handle_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def _started_here(trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning has started from this one: its own list of them."""
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def _end_others(trainer: pl.Trainer) -> None:
    """Ends the processes that this one has started, which may be waiting for it."""
    processes = list(_started_here(trainer))
    # Emptied first: a thread of Lightning watches this list, and kills this process too when one
    # of those has come to a bad end.
    _started_here(trainer).clear()
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
