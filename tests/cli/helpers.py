"""What the tests of the command share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dipolegnn.cli import main

TABLE = """\
smiles,name,mu
O,water,1.85
N,ammonia,1.47
C=O,formaldehyde,2.33
CO,methanol,1.70
CCO,ethanol,1.69
CC#N,acetonitrile,3.92
C1CC,broken,1.0
CCl,chloromethane,1.87
CF,fluoromethane,1.85
C,methane,0
CC,ethane,0
C#N,hydrogen cyanide,2.98
"""

SMALL = ["--hidden-channels", "8", "--num-interactions", "1", "--num-rbf", "5"]


def build(source: Path, folder: Path, *words: str) -> int:
    return main(["build", str(source), "--output", str(folder), "--workers", "1", *words])


def predictions(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    main(["predict", "--json", *words])
    content = json.loads(capsys.readouterr().out)
    assert isinstance(content, dict)
    return content


def assert_message(capsys: pytest.CaptureFixture[str], message: str) -> None:
    captured = capsys.readouterr()
    # tyro breaks its lines inside a box.
    text = " ".join(captured.err.replace("│", " ").split())
    assert message in text
    assert "Traceback" not in captured.err + captured.out


def run_python(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
