"""A run that is told to stop does so between batches, where it breaks nothing."""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable
from dataclasses import dataclass
from os import getpid, kill
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dipolegnn.config import TrainConfig
from dipolegnn.nn import DipoleModel
from dipolegnn.training import FitResult, TrainingInterrupted, fit, read_history
from dipolegnn.training.module import DipoleModule
from dipolegnn.training.run_folder import RunFolder
from tests.training.toy import toy_model, toy_parts

CONFIG = TrainConfig(max_epochs=2, batch_size=8, accelerator="cpu")
pytestmark = pytest.mark.usefixtures("interruptible")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)


@dataclass
class At(Callback):
    """Does something once, at one of Lightning's hooks."""

    hook: str
    action: Callable[[pl.Trainer], None]
    done: bool = False

    def _act(self, hook: str, trainer: pl.Trainer) -> None:
        if hook == self.hook and not self.done:
            self.action(trainer)
            self.done = True

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._act("train batch", trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._act("validation batch", trainer)

    def on_fit_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._act("fit end", trainer)


def run(
    path: Path, *callbacks: Callback, resume: bool = False, test: bool = False
) -> FitResult[DipoleModel]:
    return fit(
        toy_model(),
        *toy_parts(),
        CONFIG,
        path,
        resume=resume,
        test=test,
        progress=False,
        callbacks=list(callbacks),
    )


@SIGNALS
def test_a_signal_waits_for_the_current_operation(tmp_path: Path, number: signal.Signals) -> None:
    # TensorBoard's writer does this many times per batch. An exception there can leave the lock of
    # the queue held, and closing the writer then waits for ever.
    events: queue.Queue[int] = queue.Queue()

    def told_in_the_middle(trainer: pl.Trainer) -> None:
        with events.mutex:
            kill(getpid(), number)
            events.queue.extend(range(1000))
        for _ in range(1000):
            events.get_nowait()

    at = At("train batch", told_in_the_middle)
    with pytest.raises(TrainingInterrupted, match="before the first epoch"):
        run(tmp_path, at)
    assert at.done
    assert events.empty()


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    done: list[str] = []

    def impatient(trainer: pl.Trainer) -> None:
        kill(getpid(), signal.SIGINT)
        done.append("went on")
        kill(getpid(), signal.SIGINT)
        for _ in range(1000):
            done.append("did not stop")

    with pytest.raises(TrainingInterrupted, match="before the first epoch"):
        run(tmp_path, At("train batch", impatient))
    assert done.count("went on") == 1
    assert done.count("did not stop") < 1000


@SIGNALS
def test_a_signal_in_validation(tmp_path: Path, number: signal.Signals) -> None:
    at = At("validation batch", lambda trainer: kill(getpid(), number))
    with pytest.raises(TrainingInterrupted, match="before the first epoch"):
        run(tmp_path, at)
    assert at.done


@SIGNALS
def test_a_signal_after_the_last_batch(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    at = At("fit end", lambda trainer: kill(getpid(), number))
    with pytest.raises(TrainingInterrupted, match="2 complete epochs"):
        run(tmp_path, at)
    assert signal.getsignal(number) is handler
    folder = RunFolder(tmp_path)
    assert not folder.metrics.exists()
    rows = read_history(folder.history)
    assert run(tmp_path, resume=True).stopped_by == "max_epochs"
    assert read_history(folder.history) == rows


@SIGNALS
def test_a_signal_while_testing(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DipoleModule, "on_test_batch_start", lambda *_: kill(getpid(), number))
        with pytest.raises(TrainingInterrupted, match="2 complete epochs"):
            run(tmp_path, test=True)
    assert "test" in run(tmp_path, test=True, resume=True).metrics


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    # As it is in the background of a shell.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    at = At("train batch", lambda trainer: kill(getpid(), signal.SIGINT))
    assert run(tmp_path, at).stopped_by == "max_epochs"
    assert at.done
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
