"""Stopping on Ctrl-C (SIGINT) or SIGTERM.

An exception raised in a signal handler is not safe everywhere: inside TensorBoard's writer it can
leave a lock acquired, for which Lightning then waits forever (one in four interrupts of a busy
``queue.Queue``, measured with Python 3.11), and during finalization of an object it is ignored.
Therefore the handler stores the signal, and training stops after the current batch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pytorch_lightning.callbacks import Callback

from dipolegnn.training.devices import is_first_process

Handler = Callable[[int, FrameType | None], Any]


class Stops(Callback):
    """Stops training after the batch in which a signal arrives; a second Ctrl-C stops immediately.

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

    def stop_if_told(self) -> None:
        """Raises KeyboardInterrupt in the first process if a signal arrived."""
        if self.told and is_first_process():
            raise KeyboardInterrupt

    def _take_signals(self) -> None:
        # sigterm_interrupts() restores the handlers.
        _handle(signal.SIGTERM, self._remember)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a shell
            _handle(signal.SIGINT, self._remember)

    def on_train_start(self, *_: Any) -> None:
        """Installs the signal handlers."""
        self._take_signals()

    def on_test_start(self, *_: Any) -> None:
        """Installs the signal handlers."""
        self._take_signals()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stops if a signal arrived."""
        self.stop_if_told()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stops if a signal arrived."""
        self.stop_if_told()

    def on_test_batch_end(self, *_: Any) -> None:
        """Stops if a signal arrived."""
        self.stop_if_told()


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


def _handle(number: signal.Signals, handler: Handler | int) -> None:
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)
