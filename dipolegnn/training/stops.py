"""Stopping when told to: Ctrl-C (SIGINT), or SIGTERM from whoever manages the machine.

An exception raised wherever a signal happens to come is not safe. Inside TensorBoard's writer it
can leave a lock taken for which Lightning, on its way out, then waits for ever: one in four
interrupts does that to a ``queue.Queue`` that is in use (measured with Python 3.11). While Python
cleans up an object, it is lost. So a signal is remembered, and obeyed when the batch is done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dipolegnn.training.devices import started_here

Handler = Callable[[int, FrameType | None], Any]


class Stops(Callback):
    """Stops a run after the batch in which it is told to, and the processes that it has started.

    A second Ctrl-C stops it where it is.

    Lightning (2.6.6) answers SIGTERM with a message to the other processes, for which it waits for
    ever if they are busy with another one. There is nothing to tell: what is worth keeping was
    written at the end of the last epoch. So SIGTERM does what Ctrl-C does.
    """

    def __init__(self) -> None:
        self._told = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        impatient = self._told and number == signal.SIGINT
        self._told = True
        if impatient:
            raise KeyboardInterrupt

    def stop_if_told(self) -> None:
        """Stops now, if told to.

        Raises:
            KeyboardInterrupt: Then.
        """
        if self._told:
            raise KeyboardInterrupt

    def _take_signals(self, trainer: pl.Trainer) -> None:
        """Takes the place of other handlers, until Lightning puts back what was before."""
        _handle(signal.SIGTERM, self._remember)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            return  # A shell starts so what runs in its background.
        # Ctrl-C reaches every process of the terminal. The first one ends those that it has
        # started; one that went ahead of it would leave it with an error instead.
        first = trainer.is_global_zero
        _handle(signal.SIGINT, self._remember if first else signal.SIG_IGN)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals are remembered."""
        self._take_signals(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals are remembered."""
        self._take_signals(trainer)

    def on_train_batch_end(self, *_: Any) -> None:
        """Stops now, if told to."""
        self.stop_if_told()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stops now, if told to."""
        self.stop_if_told()

    def on_test_batch_end(self, *_: Any) -> None:
        """Stops now, if told to."""
        self.stop_if_told()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Ends the processes that this one has started."""
        _end_others(trainer)


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Ends the processes that this one has started when it is interrupted or fails.

    Where no batches are counted, before and after those of :class:`Stops`, SIGTERM acts at once, as
    Ctrl-C does.
    """
    # Lightning (2.6.6) may leave SIGINT ignored after an interrupt that came late.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    _handle(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except BaseException:
        _end_others(trainer)
        raise
    finally:
        for number, handler in before.items():
            _handle(number, handler)


def _handle(number: signal.Signals, handler: Handler | int) -> None:
    # Python lets no other thread do so.
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _end_others(trainer: pl.Trainer) -> None:
    """Ends the processes that this one has started, which may be waiting for it."""
    processes = list(started_here(trainer))
    # Emptied first: a thread of Lightning watches this list, and kills this process too when one
    # of those has come to a bad end.
    started_here(trainer).clear()
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
