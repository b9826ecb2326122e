"""A table, a data set built from it and a model trained on that, all with the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipolegnn.cli import main
from tests.cli.helpers import SMALL, TABLE, build


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "table.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def built(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with experimental magnitudes, built by the command."""
    folder = tmp_path_factory.mktemp("data") / "few"
    status = build(table, folder, "--label", "none", "--magnitude-column", "mu")
    assert status == 1  # one row is broken
    return folder


@pytest.fixture(scope="session")
def trained(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, made by the command."""
    run = tmp_path_factory.mktemp("run") / "first"
    words = ["--max-epochs", "2", "--batch-size", "4", "--quiet"]
    assert main(["train", "--data", str(built), "--output", str(run), *SMALL, *words]) == 0
    return run
