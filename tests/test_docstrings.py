"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import dipolegnn

FOLDER = Path(dipolegnn.__file__).parent

MODULES = sorted(
    ".".join(["dipolegnn", *path.relative_to(FOLDER).with_suffix("").parts])
    for path in FOLDER.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


def test_central_modules_have_examples() -> None:
    assert {"dipolegnn.nn.graph", "dipolegnn.nn.model", "dipolegnn.nn.painn"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project_root)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
