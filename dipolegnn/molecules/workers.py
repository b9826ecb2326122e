"""Worker processes for many tasks, robust against tasks that crash or hang.

``concurrent.futures`` fails all pending tasks if one worker dies, and cannot stop a hanging task.
Here only the crashed or overdue task fails, and its worker is replaced. A task whose process died
is repeated once, because the cause may be external, for instance a lack of memory.
Workers are new Python processes, not forks: the caller may have threads (torch, a progress bar),
and its script needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
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
"""Time limit in seconds for a worker to start and import its function."""


def usable_cores() -> int:
    """Number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Lost:
    """Result of a task whose worker crashed twice, exceeded the time limit or raised an exception.

    ``died`` is True if the process died.
    """

    reason: str
    died: bool = field(default=False, compare=False)


class Pool(Generic[Task, Result]):
    """Pool of workers, which are started on demand; a context manager.

    Requires a POSIX system. Workers have ``OMP_NUM_THREADS=1``; their standard output is discarded.

    Args:
        function: A function at the top level of an importable module; it, its tasks and its
            results are pickled.
        workers: Number of processes.
        time_limit: Time limit of a task in seconds, after which its worker is killed.
        memory_limit: Limit of the memory of a worker in bytes (Linux); an allocation beyond it
            raises a MemoryError in the task, or ends the process. None: no limit.
        ahead: Maximum number of queued tasks per worker, which keep it busy while the caller does
            not collect results.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        *,
        workers: int,
        time_limit: float,
        memory_limit: int | None = None,
        ahead: int = 0,
    ) -> None:
        self.function = function
        self.workers = workers
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self.ahead = ahead
        self._pool: list[Worker[Task, Result]] = []
        self._again: deque[tuple[int, Task]] = deque()
        self._retried: set[int] = set()

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends all workers and discards unfinished tasks."""
        for worker in self._pool:
            worker.stop()
        self._pool.clear()
        self._again.clear()
        self._retried.clear()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Result | Lost]]:
        """Yields ``(index of the task, result)`` in the order of completion, each task once.

        The workers keep running afterwards.

        Raises:
            RuntimeError: A worker cannot start.
        """
        try:
            for index, task in enumerate(tasks):
                while self.full:
                    yield from self.results()
                self.give(index, task)
            while self.unfinished:
                yield from self.results()
        except BaseException:  # results of unfinished tasks must not be returned later
            self.stop()
            raise

    @property
    def unfinished(self) -> int:
        """Number of tasks whose results have not been returned."""
        return len(self._again) + sum(len(worker.tasks) for worker in self._pool)

    @property
    def full(self) -> bool:
        """True if the queues of all workers are full."""
        return self.unfinished >= self.workers * (1 + self.ahead)

    def give(self, index: int, task: Task) -> None:
        """Submits a task; its result is returned with this index."""
        idle = [worker for worker in self._pool if not worker.tasks]
        if not idle and len(self._pool) < self.workers:
            idle = [Worker(self.function, self.time_limit, self.memory_limit)]
            self._pool += idle
        chosen = idle[0] if idle else min(self._pool, key=lambda worker: len(worker.tasks))
        chosen.give(index, task)

    def results(self) -> list[tuple[int, Result | Lost]]:
        """Waits for at least one result and returns all available; empty if none is pending."""
        found: list[tuple[int, Result | Lost]] = []
        while not found and self.unfinished:
            while self._again:  # tasks of dead workers
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
    """A worker process with its current and queued tasks."""

    def __init__(
        self,
        function: Callable[[Task], Result],
        time_limit: float,
        memory_limit: int | None = None,
    ) -> None:
        self.time_limit = time_limit
        self.connection, childs_end = Pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, __file__, json.dumps(sys.path)),
                *(str(childs_end.fileno()), str(memory_limit or 0)),
            ],
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
        """Starts or queues a task; the current task has to finish before ``deadline``."""
        if not self.tasks and self.ready:
            self.deadline = time.monotonic() + self.time_limit
        self.tasks.append((index, task))
        self._send(task)

    def receive(self) -> tuple[int, Result | Lost] | None:
        """Receives a result, or returns :class:`Lost` if the process died."""
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
        """Ends a process whose task exceeds the time limit."""
        return self._lost(f"not finished after {self.time_limit:g} s")

    def stop(self) -> None:
        """Ends the process."""
        self.dead = True
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _send(self, message: object) -> None:
        # If the process has died, receive() reports it.
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


def _serve(handle: int, memory_limit: int) -> None:
    """Main loop of a worker process; ``memory_limit`` in bytes, 0: none."""
    if memory_limit:
        # Not the address space (RLIMIT_AS), of which libraries reserve gigabytes.
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limits = [memory_limit] if hard == resource.RLIM_INFINITY else [memory_limit, hard]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the workers
    connection = Connection(handle)
    function = pickle.loads(connection.recv_bytes())
    connection.send_bytes(pickle.dumps((True, "ready")))
    while True:
        try:
            task = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):  # the parent has ended
            return
        try:
            answer = (True, function(task))
        except Exception as error:  # reported as the result of this task
            answer = (False, f"{type(error).__name__}: {error}")
        connection.send_bytes(pickle.dumps(answer))


# A worker runs this file as a script, which imports only the standard library before the function
# is unpickled. The search path is passed as an argument, because the function may need it.
if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    _serve(int(sys.argv[2]), int(sys.argv[3]))
