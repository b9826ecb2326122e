"""The search for hyper-parameters: trials, failures, going on, pruning."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dipolegnn.cli.settings import read_settings
from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.data import About, ConformerDataset, DipoleDataModule, random_split, save_dataset
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


class HopelessTrial:
    """A trial that is to be pruned after the second epoch."""

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
    with pytest.raises(optuna.TrialPruned, match="after epoch 2"):
        fit(
            build_model(ModelConfig(hidden_channels=8, num_interactions=1)),
            DipoleDataModule(dataset, dataset.split(), 4),
            config,
            tmp_path / "run",
            progress=False,
            callbacks=[optimize.Pruning(trial)],
        )
    assert len(trial.reported) == 2
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
