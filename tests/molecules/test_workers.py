from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dipolegnn.molecules.workers import Lost, Pool


def run(
    function: Callable[[Any], object], tasks: Iterable[Any], *, workers: int, time_limit: float
) -> Iterator[tuple[int, object]]:
    with Pool(function, workers=workers, time_limit=time_limit) as pool:
        yield from pool.run(tasks)


def test_a_crash_a_hang_and_an_exception_cost_only_themselves() -> None:
    expressions = [
        "1 + 1",
        "__import__('os').abort()",
        "__import__('time').sleep(60)",
        "1 / 0",
        "__import__('os')._exit(3)",
        "print('not on the standard output of the caller') or 2 + 2",
    ]
    results = dict(run(eval, expressions, workers=2, time_limit=2.0))
    assert results == {
        0: 2,
        1: Lost("the worker process died (SIGABRT)"),
        2: Lost("not finished after 2 s"),
        3: Lost("ZeroDivisionError: division by zero"),
        4: Lost("the worker process died (exit status 3)"),
        5: 4,
    }


def test_tasks_that_wait_for_a_worker_that_dies_are_done_by_another() -> None:
    results: dict[int, object] = {}
    with Pool(eval, workers=1, time_limit=30.0, ahead=2) as pool:
        for index, expression in enumerate(["__import__('os')._exit(3)", "1 + 1", "2 + 2"]):
            assert not pool.full
            pool.give(index, expression)
        assert pool.full
        assert pool.unfinished == 3
        while pool.unfinished:
            results.update(pool.results())
        assert pool.results() == []
    assert results == {0: Lost("the worker process died (exit status 3)"), 1: 2, 2: 4}


def test_a_task_whose_process_died_is_tried_once_more(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    # The first worker that gets this task dies; the next one finds the marker.
    once = f"open({str(marker)!r}, 'x') and __import__('os')._exit(3)"
    once = f"__import__('os').path.exists({str(marker)!r}) or ({once})"
    lost = Lost("the worker process died (exit status 4)")
    tasks = ["1 + 1", once, "__import__('os')._exit(4)", "2 + 2"]
    with Pool[str, object](eval, workers=1, time_limit=30.0, ahead=2) as pool:
        assert dict(pool.run(tasks)) == {0: 2, 1: True, 2: lost, 3: 4}
        # The pool is there for what comes next.
        assert dict(pool.run(["3 + 3"])) == {0: 6}
        assert dict(pool.run([])) == {}


def test_nothing_of_what_was_interrupted_is_taken_for_a_result() -> None:
    with Pool[str, object](eval, workers=1, time_limit=30.0, ahead=2) as pool:
        results = pool.run(["1", "2", "3"])
        assert next(results) == (0, 1)
        del results
        assert pool.unfinished == 0
        assert dict(pool.run(["4", "5"])) == {0: 4, 1: 5}


def test_tasks_are_asked_for_when_there_is_a_worker_for_them() -> None:
    asked = 0

    def tasks() -> Iterator[str]:
        nonlocal asked
        for number in range(1, 9):
            asked = number
            yield "1"

    for done, _ in enumerate(run(eval, tasks(), workers=2, time_limit=30.0), start=1):
        assert asked <= done + 2


def test_no_tasks_start_no_process() -> None:
    assert list(run(math.sqrt, [], workers=4, time_limit=1.0)) == []


def test_a_worker_that_cannot_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="could not start"):
        list(run(_Unreadable(), [1.0], workers=1, time_limit=1.0))
    assert "never on the other side" in capfd.readouterr().err


class _Unreadable:
    """A function that can be sent but not received."""

    def __call__(self, task: float) -> float:
        return task

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("int('never on the other side')",)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_task_beyond_the_memory_limit_fails_alone() -> None:
    tasks = ["1 + 1", "len(bytearray(3 << 30))", "2 + 2"]
    with Pool[str, object](eval, workers=1, time_limit=30.0, memory_limit=1 << 30) as pool:
        assert dict(pool.run(tasks)) == {0: 2, 1: Lost("MemoryError: "), 2: 4}
