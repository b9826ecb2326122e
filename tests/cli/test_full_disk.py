"""A full disk, or no permission: an error in words, and what was done is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dipolegnn.cli import main
from dipolegnn.inference import output
from dipolegnn.labels.batch import Journal
from dipolegnn.labels.calculators import make_calculator
from dipolegnn.training import RunFolder
from dipolegnn.training.run_folder import AtomicCheckpointIO
from tests.cli.helpers import build

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The function, which fails from a certain call on as on a full disk."""
    left = after

    def call(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise FULL
        return function(*args, **options)

    return call


def test_predictions_go_on_from_the_last_part(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "few.smi").write_text("O\nN\nCO\nCCO\nC=O\nCN\n", encoding="utf-8")
    words = ["predict", str(tmp_path / "few.smi"), "--model", str(trained), "--workers", "1"]
    assert main([*words, "--output", str(tmp_path / "whole.csv")]) == 0
    # The description of the job and the three files of the first part are written.
    for calls, parts in ((0, 0), (1, 0), (3, 0), (4, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync, calls))
            assert main([*words, "--output", str(tmp_path / "cut.csv")]) == 2
        message = capsys.readouterr().err
        assert "error: The disk is full" in message
        assert "repeat the same command" in message
        folder = output._folder(tmp_path / "cut.csv")
        assert len(list(folder.glob("*.counts.json"))) == parts
        assert not list(tmp_path.rglob("*.tmp"))
        assert not (tmp_path / "cut.csv").exists()
    assert main([*words, "--output", str(tmp_path / "cut.csv")]) == 0
    assert "6 were done before" in capsys.readouterr().err
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_labels_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra xtb")
    (tmp_path / "few.smi").write_text("O\nN\nC=O\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", failing(Journal._write, 3))  # the header and two labels
        assert build(tmp_path / "few.smi", tmp_path / "set", "--workers", "1") == 2
    assert "The disk is full" in (message := capsys.readouterr().err)
    assert "Finished labels are kept" in message
    module = "dipolegnn.labels.batch.make_calculator"
    calls: list[object] = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return make_calculator(*args)

    monkeypatch.setattr(module, counted)
    assert build(tmp_path / "few.smi", tmp_path / "set", "--workers", "1") == 0
    assert len(calls) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without space")
def test_a_checkpoint_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = RunFolder(tmp_path).last
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    before = path.read_bytes()
    opened = Path.open

    def full(file: Path, *args: Any, **options: Any) -> Any:
        return opened(Path("/dev/full") if file.suffix == ".tmp" else file, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2, "large": torch.ones(10**6)}, path)
    assert path.read_bytes() == before


def test_no_permission(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "few.smi").write_text("O\nN\nC=O\n", encoding="utf-8")
    monkeypatch.setattr(Path, "mkdir", refuse)
    few, target = str(tmp_path / "few.smi"), str(tmp_path / "new" / "out.csv")
    for words in (
        ["predict", few, "--model", str(trained), "--output", target],
        ["build", few, "--label", "none", "--output", str(tmp_path / "set")],
    ):
        assert main(words) == 2
        message = capsys.readouterr().err
        assert f"error: There is no permission for {tmp_path}" in message
        assert "choose another path" in message
        assert "Traceback" not in message
