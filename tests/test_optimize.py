"""The search for hyper-parameters: trials, failures, going on, pruning."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dipolegnn.cli.settings import read_settings
from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.data import About, ConformerDataset, random_split, save_dataset
from dipolegnn.molecules import Molecules, make_data
from dipolegnn.nn import build_model
from dipolegnn.training import fit

pytest.importorskip("optuna", reason="Optuna is not installed (extra tune)")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stretched HF."""
    folder = tmp_path_factory.mktemp("data") / "hf"
    molecules = [
        make_data([9, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, r]], dipole=[0.0, 0.0, 2 * r], mol_id=k)
        for k, r in enumerate(np.linspace(0.8, 1.1, 16))
    ]
    split = random_split(range(16), val=4, test=2)
    save_dataset(folder, Molecules(molecules, []), About(name="hf"), split=split)
    return folder


@pytest.fixture
def optimize() -> ModuleType:
    import optimize

    return optimize


def search(optimize: ModuleType, data: Path, run: Path, *words: str) -> list[dict[str, str]]:
    command = ["--data", str(data), "--output", str(run), "--fast", "--max-epochs", "2", *words]
    optimize.main(command)
    with (run / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_goes_on_where_it_was_stopped_and_passes_over_failures(
    optimize: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = search(optimize, data, tmp_path, "--trials", "2")
    assert [row["state"] for row in first] == ["complete", "complete"]

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory left")

    with monkeypatch.context() as patched:
        patched.setattr(optimize, "fit", fail)
        search(optimize, data, tmp_path, "--trials", "1")
    rows = search(optimize, data, tmp_path, "--trials", "1")

    assert [row["state"] for row in rows] == ["complete", "complete", "fail", "complete"]
    assert [{name: row[name] for name in first[0]} for row in rows[:2]] == first
    assert len({row["lr"] for row in rows}) == 4
    assert rows[2]["value"] == ""
    problems = [row["problem"] for row in rows]
    assert problems == ["", "", "RuntimeError: no memory left", ""]
    names = {"bs", "lr", "patience", "n_rbf", "n_interactions", "n_atom_basis", "cutoff", "pat2"}
    assert names <= rows[0].keys()
    assert "3 earlier trials" in capsys.readouterr().out

    best = min((row for row in rows if row["value"]), key=lambda row: float(row["value"]))
    model, train = read_settings(tmp_path / "best.json")
    assert f"{train.lr:.3g}" == best["lr"]
    assert str(model.num_rbf) == best["n_rbf"]
    assert train.scheduler == best["scheduler"]
    assert rows[0]["lr"] == f"{TrainConfig().lr:.3g}"  # the default comes first
    assert rows[0]["cutoff"] == f"{ModelConfig().cutoff:.3g}"
    assert {row["scheduler"] for row in rows} == {"onecycle", "plateau"}
    for name in ("history", "parallel_coordinates", "importance"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_processes_that_share_a_storage_do_not_repeat_each_other(
    optimize: ModuleType, tmp_path: Path
) -> None:
    options = optimize.Options(data=tmp_path, output=tmp_path)
    storage = str(tmp_path / "study.log")
    both = [
        optimize.open_study(storage, optimize.default_parameters(), {}, seed=0) for _ in range(2)
    ]
    drawn = []
    for _ in range(3):
        # As two processes do that begin and end at the same time.
        trials = [study.ask() for study in both]
        drawn += [optimize.suggest(trial, options) for trial in trials]
        for study, trial in zip(both, trials, strict=True):
            study.tell(trial, 1.0)
    assert len({train.lr for _, train in drawn}) == 6
    assert drawn[0][1].lr == TrainConfig().lr  # the default, once


def test_the_same_search_draws_the_same(optimize: ModuleType, tmp_path: Path) -> None:
    options = optimize.Options(data=tmp_path, output=tmp_path)
    drawn = []
    for name in ("one", "two"):
        study = optimize.open_study(str(tmp_path / f"{name}.log"), {}, {}, seed=3)
        drawn.append([optimize.suggest(study.ask(), options) for _ in range(3)])
    assert drawn[0] == drawn[1]


def test_a_study_of_something_else_is_not_gone_on_with(
    optimize: ModuleType, data: Path, tmp_path: Path
) -> None:
    search(optimize, data, tmp_path, "--trials", "1")
    with pytest.raises(SystemExit, match=r"of something else \(molecules: None there, 3 now\)"):
        search(optimize, data, tmp_path, "--trials", "1", "--molecules", "3")
    (tmp_path / "study.db").unlink()
    with pytest.raises(SystemExit, match="holds trials of a study that is not in sqlite"):
        search(optimize, data, tmp_path, "--trials", "1")


def test_a_trial_whose_process_was_killed_is_tried_again(
    optimize: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "HEARTBEAT_S", 1)
    code = (
        "import os, sys; sys.path.insert(0, sys.argv.pop()); import optimize\n"
        "optimize.HEARTBEAT_S = 1\n"
        "optimize.fit = lambda *_, **__: os._exit(9)\n"
        "optimize.main(sys.argv[1:])"
    )
    words = ["--data", str(data), "--output", str(tmp_path), "--fast", "--max-epochs", "2"]
    folder = str(Path(str(optimize.__file__)).parent)
    killed = subprocess.run([sys.executable, "-c", code, *words, folder], check=False)
    assert killed.returncode == 9
    time.sleep(4)  # three heartbeats have been missed
    rows = search(optimize, data, tmp_path, "--trials", "1")
    assert [row["state"] for row in rows] == ["fail", "complete"]
    assert rows[1]["lr"] == rows[0]["lr"] == f"{TrainConfig().lr:.3g}"


def test_a_search_that_is_interrupted_writes_what_it_has(
    optimize: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(optimize, data, tmp_path, "--trials", "1")
    (tmp_path / "best.json").unlink()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(optimize, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(optimize, data, tmp_path, "--trials", "1")
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["complete", "fail"]
    assert (tmp_path / "best.json").exists()


class HopelessTrial:
    """A trial that is to be pruned after the second epoch."""

    number = 7

    def __init__(self) -> None:
        self.reported: list[float] = []

    def report(self, value: float, step: int) -> None:
        assert step == len(self.reported)
        self.reported.append(value)

    def should_prune(self) -> bool:
        return len(self.reported) == 2


def test_pruning_ends_the_run(optimize: ModuleType, data: Path, tmp_path: Path) -> None:
    import optuna

    dataset = ConformerDataset(data)
    config = TrainConfig(max_epochs=5, batch_size=4)
    torch.manual_seed(0)
    trial = HopelessTrial()
    told: list[str] = []
    with pytest.raises(optuna.TrialPruned, match="after epoch 2"):
        fit(
            build_model(ModelConfig(hidden_channels=8, num_interactions=1)),
            dataset,
            dataset.split(),
            config,
            tmp_path / "run",
            progress=False,
            callbacks=[optimize.Pruning(trial, told.append)],
        )
    assert len(trial.reported) == 2
    assert [text.partition(",")[0] for text in told] == ["trial 7: epoch 1/5", "trial 7: epoch 2/5"]
    assert told[1].endswith(f"least validation MAE {trial.reported[1]:.4f} D")
    assert trial.reported[1] <= trial.reported[0]


def test_without_a_complete_trial(
    optimize: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(optimize, "fit", lambda *_, **__: 1 / 0)
    rows = search(optimize, data, tmp_path, "--trials", "1")
    assert [row["state"] for row in rows] == ["fail"]
    assert "No trial is complete yet." in capsys.readouterr().out
    assert not (tmp_path / "best.json").exists()
