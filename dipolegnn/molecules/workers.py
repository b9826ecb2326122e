"""A function over many tasks in worker processes that may crash or hang without losing a task.

``concurrent.futures`` gives up every pending task when one worker dies, and cannot stop one that
hangs. Here a crash or an overdue task costs only itself, and a fresh worker takes the place. A task
whose process died is tried once more: the process may have died of something else on the machine,
for instance a lack of memory.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

START_LIMIT_S = 300.0
"""A worker that has not imported its function by then will not start at all (seconds)."""


def usable_cores() -> int:
    """Number of cores that this process may run on, which on a shared machine are not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a task whose worker crashed twice, hung or raised.

    ``died`` is set if the process died.
    """

    reason: str
    died: bool = field(default=False, compare=False)


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
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
    with Pool(function, workers=workers, time_limit=time_limit) as pool:
        yield from pool.run(tasks)


class Pool(Generic[Task, Result]):
    """Workers that tasks are handed to one by one; a worker is started when there is one for it.

    Args:
        function: As for :func:`run_tasks`.
        workers: Number of processes.
        time_limit: Seconds a task may take before its worker is killed.
        ahead: Tasks that may wait for each worker, so that it has something to do while the caller
            does something else.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        *,
        workers: int,
        time_limit: float,
        ahead: int = 0,
    ) -> None:
        self.function = function
        self.workers = workers
        self.time_limit = time_limit
        self.ahead = ahead
        self._pool: list[Worker[Task, Result]] = []
        self._again: deque[tuple[int, Task]] = deque()
        self._retried: set[int] = set()

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends all workers; those tasks that are unfinished are forgotten."""
        for worker in self._pool:
            worker.stop()
        self._pool.clear()
        self._again.clear()
        self._retried.clear()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Result | Lost]]:
        """As :func:`run_tasks`; the workers wait for what comes next."""
        try:
            for index, task in enumerate(tasks):
                while self.full:
                    yield from self.results()
                self.give(index, task)
            while self.unfinished:
                yield from self.results()
        except BaseException:  # what is under way must not be taken for the next results
            self.stop()
            raise

    @property
    def unfinished(self) -> int:
        """Tasks whose results have not been handed out."""
        return len(self._again) + sum(len(worker.tasks) for worker in self._pool)

    @property
    def full(self) -> bool:
        """Whether another task would have to wait too long."""
        return self.unfinished >= self.workers * (1 + self.ahead)

    def give(self, index: int, task: Task) -> None:
        """Hand over a task; its result comes with this index."""
        idle = [worker for worker in self._pool if not worker.tasks]
        if not idle and len(self._pool) < self.workers:
            idle = [Worker(self.function, self.time_limit)]
            self._pool += idle
        chosen = idle[0] if idle else min(self._pool, key=lambda worker: len(worker.tasks))
        chosen.give(index, task)

    def results(self) -> list[tuple[int, Result | Lost]]:
        """The results that are there, after waiting for one; none if nothing is unfinished."""
        found: list[tuple[int, Result | Lost]] = []
        while not found and self.unfinished:
            while self._again:  # given to a worker that is no more
                self.give(*self._again.popleft())
            busy = [worker for worker in self._pool if worker.tasks]
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            reported = wait([worker.connection for worker in busy], timeout=patience)
            for worker in busy:
                task = worker.tasks[0]
                if worker.connection in reported:
                    outcome = worker.receive()
                elif time.monotonic() >= worker.deadline:
                    outcome = worker.give_up()
                else:
                    continue
                if outcome is not None:
                    index, result = outcome
                    if isinstance(result, Lost) and result.died and index not in self._retried:
                        self._retried.add(index)
                        self._again.append(task)
                    else:
                        self._retried.discard(index)
                        found.append(outcome)
                if worker.dead:
                    self._pool.remove(worker)
                    self._again += worker.tasks
        return found


class Worker(Generic[Task, Result]):
    """One process, the task that it is at, and those that wait for it."""

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
        self.tasks: deque[tuple[int, Task]] = deque()
        self.deadline = time.monotonic() + START_LIMIT_S
        self._send(function)

    def give(self, index: int, task: Task) -> None:
        """Start a task, which has to be done before ``deadline``, or let it wait for its turn."""
        if not self.tasks and self.ready:
            self.deadline = time.monotonic() + self.time_limit
        self.tasks.append((index, task))
        self._send(task)

    def receive(self) -> tuple[int, Result | Lost] | None:
        """The result that lies in the pipe, or what became of the process."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, ConnectionError):
            return self._lost(f"the worker process died ({self._exit_status()})", died=True)
        succeeded, result = pickle.loads(message)
        self.deadline = time.monotonic() + self.time_limit  # for the next task
        if not self.ready:
            self.ready = True
            return None
        if not succeeded:
            result = Lost(result)
        index, _ = self.tasks.popleft()
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

    def _lost(self, reason: str, died: bool = False) -> tuple[int, Lost]:
        self.stop()
        if not self.ready:
            raise RuntimeError(
                f"A worker process could not start: {reason}. Use one worker to see why."
            )
        index, _ = self.tasks.popleft()
        return index, Lost(reason, died)

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
        except (EOFError, ConnectionResetError):  # the parent has ended, perhaps by force
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
