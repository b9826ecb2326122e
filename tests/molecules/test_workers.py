from __future__ import annotations

import math

import pytest

from dipolegnn.molecules.workers import Lost, run_tasks


def test_a_crash_a_hang_and_an_exception_cost_only_themselves() -> None:
    expressions = [
        "1 + 1",
        "__import__('os').abort()",
        "__import__('time').sleep(60)",
        "1 / 0",
        "__import__('os')._exit(3)",
        "print('not on the standard output of the caller') or 2 + 2",
    ]
    results = dict(run_tasks(eval, expressions, workers=2, time_limit=2.0))
    assert results == {
        0: 2,
        1: Lost("the worker process died (SIGABRT)"),
        2: Lost("not finished after 2 s"),
        3: Lost("ZeroDivisionError: division by zero"),
        4: Lost("the worker process died (exit status 3)"),
        5: 4,
    }


def test_no_tasks_start_no_process() -> None:
    assert list(run_tasks(math.sqrt, [], workers=4, time_limit=1.0)) == []


def test_a_worker_that_cannot_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="could not start"):
        list(run_tasks(_Unreadable(), [1.0], workers=1, time_limit=1.0))
    assert "never on the other side" in capfd.readouterr().err


class _Unreadable:
    """A function that can be sent but not received."""

    def __call__(self, task: float) -> float:
        return task

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("int('never on the other side')",)
