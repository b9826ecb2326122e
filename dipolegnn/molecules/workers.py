"""A function over many tasks in worker processes that may crash or hang without losing a task.

``concurrent.futures`` gives up every pending task when one worker dies, and cannot stop one that
hangs. Here a crash or an overdue task costs only itself, and a fresh worker takes the place.
Workers are new Python processes, not forks: the caller may hold threads (torch, a progress bar),
and need not guard its script with ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

START_LIMIT_S = 300.0
"""A worker that has not imported its function by then will not start at all (seconds)."""


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a task whose worker crashed, hung or raised; ``reason`` says how."""

    reason: str


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    time_limit: float,
) -> Iterator[tuple[int, Result | Lost]]:
    """Yield ``(index of the task, result)`` as the results come in, each task exactly once.

    Processes need a POSIX system. Each has ``OMP_NUM_THREADS=1``, and what it prints on standard
    output is dropped.

    Args:
        function: A function at the top level of an importable module; it, its tasks and its
            results are pickled.
        tasks: Its arguments.
        workers: Number of processes.
        time_limit: Seconds a task may take before its worker is killed.

    Raises:
        RuntimeError: A worker does not even start.
    """
    waiting = deque(enumerate(tasks))
    pool = [Worker(function, time_limit) for _ in range(min(workers, len(tasks)))]
    try:
        while waiting or any(worker.task is not None for worker in pool):
            for worker in pool:
                if worker.ready and worker.task is None and waiting:
                    worker.give(*waiting.popleft())
            busy = [w for w in pool if not w.ready or w.task is not None]
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            reported = wait([worker.connection for worker in busy], timeout=patience)
            for worker in busy:
                if worker.connection in reported:
                    outcome = worker.receive()
                elif time.monotonic() >= worker.deadline:
                    outcome = worker.give_up()
                else:
                    continue
                if outcome is not None:
                    yield outcome
                if worker.dead:
                    pool.remove(worker)
                    if waiting:
                        pool.append(Worker(function, time_limit))
    finally:
        for worker in pool:
            worker.stop()


class Worker(Generic[Task, Result]):
    """One process, and the task that it is at."""

    def __init__(self, function: Callable[[Task], Result], time_limit: float) -> None:
        self.time_limit = time_limit
        self.connection, childs_end = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(sys.path), str(childs_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(childs_end.fileno(),),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        childs_end.close()
        self.ready = False
        self.dead = False
        self.task: int | None = None
        self.deadline = time.monotonic() + START_LIMIT_S
        self._send(function)

    def give(self, index: int, task: Task) -> None:
        """Start a task, which has to be done before ``deadline``."""
        self.task = index
        self.deadline = time.monotonic() + self.time_limit
        self._send(task)

    def receive(self) -> tuple[int, Result | Lost] | None:
        """The result that lies in the pipe, or what became of the process."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, ConnectionError):
            return self._lost(f"the worker process died ({self._exit_status()})")
        succeeded, result = pickle.loads(message)
        if not self.ready:
            self.ready = True
            return None
        if not succeeded:
            result = Lost(result)
        index, self.task = self.task, None
        assert index is not None, "a worker answers only what it was asked"
        return index, result

    def give_up(self) -> tuple[int, Lost]:
        """End a process that is overdue."""
        return self._lost(f"not finished after {self.time_limit:g} s")

    def stop(self) -> None:
        """End the process."""
        self.dead = True
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _send(self, message: object) -> None:
        # Where the process is gone already, receive() is about to find out.
        with contextlib.suppress(ConnectionError):
            self.connection.send_bytes(pickle.dumps(message))

    def _lost(self, reason: str) -> tuple[int, Lost]:
        self.stop()
        if self.task is None:
            raise RuntimeError(
                f"A worker process could not start: {reason}. Use one worker to see why."
            )
        return self.task, Lost(reason)

    def _exit_status(self) -> str:
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _serve(handle: int) -> None:
    """What a worker process does: answer tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and it ends us
    connection = Connection(handle)
    function = pickle.loads(connection.recv_bytes())
    connection.send_bytes(pickle.dumps((True, "ready")))
    while True:
        try:
            task = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = (True, function(task))
        except Exception as error:  # one task must not take the others along
            answer = (False, f"{type(error).__name__}: {error}")
        connection.send_bytes(pickle.dumps(answer))


# A worker runs this file by itself: what it imports beyond the standard library is up to its
# function. The search path comes as an argument, as it may be what makes that importable.
if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    _serve(int(sys.argv[2]))
