from __future__ import annotations

import functools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from dipolegnn._pyg import Data
from dipolegnn.data import fingerprint
from dipolegnn.data.fingerprint import describe


class Scale:
    """A transform with a parameter and PyG's kind of repr, which does not show it."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, data: Data) -> Data:
        return data

    def __repr__(self) -> str:
        return "Scale()"


class ScaleTwice(Scale):
    def __call__(self, data: Data) -> Data:
        return data.clone()


def shift(data: Data, by: float = 1.0) -> Data:
    return data


def closure(value: object) -> object:
    return lambda data: (data, value)


def test_what_does_the_same_has_the_same_description() -> None:
    assert describe(Scale(2.0)) == describe(Scale(2.0))
    assert describe(closure(torch.ones(3))) == describe(closure(torch.ones(3)))
    assert describe(functools.partial(shift, by=2)) == describe(functools.partial(shift, by=2))
    assert describe(None) == "None"


def test_what_does_something_else_has_another() -> None:
    things: list[object] = [
        None,
        Scale(2.0),
        Scale(3.0),
        ScaleTwice(2.0),
        Scale(2.0).__call__,
        shift,
        functools.partial(shift, by=2),
        functools.partial(shift, by=3),
        closure(1),
        closure(torch.ones(3)),
        closure(np.zeros(3)),
        closure({"a": 1}),
        closure({"a", "b"}),
        lambda data: data.z,
        lambda data: data.pos,
        lambda data: len(data.z) < 5,
        lambda data: len(data.z) < 6,
        torch.nn.Linear,
        len,
    ]
    assert len({describe(thing) for thing in things}) == len(things)


def test_a_loop_ends() -> None:
    thing = Scale(1.0)
    thing.__dict__["me"] = thing
    assert "<itself>" in describe(thing)


def test_another_process_agrees(tmp_path: Path) -> None:
    # By file, because the package around it takes its time to import. Another hash seed gives sets
    # another order.
    path = tmp_path / "transforms.py"
    path.write_text("small = lambda data: data.z.max() in {1, 6, 7, 8} and data.name in {'a', 'b'}")
    code = (
        "import runpy, sys\n"
        "describe = runpy.run_path(sys.argv[1])['describe']\n"
        "print(describe(runpy.run_path(sys.argv[2], run_name='transforms')['small']))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, fingerprint.__file__, str(path)],
        env={**os.environ, "PYTHONHASHSEED": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert output == describe(runpy.run_path(str(path), run_name="transforms")["small"])
    assert "lambda" in output
