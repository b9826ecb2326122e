from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dipolegnn import plots
from dipolegnn.cli import main
from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.evaluation import evaluate
from dipolegnn.inference.structures import predict
from dipolegnn.metrics import Group
from dipolegnn.models import load_model
from dipolegnn.molecules import from_smiles, read_failures
from dipolegnn.nn import build_model
from dipolegnn.training import fit
from tests.cli.helpers import assert_message, predictions
from tests.tolerances import PRINTED_D


def test_built_data_set_has_every_row_or_a_failure(built: Path) -> None:
    dataset = ConformerDataset(built)

    assert len(dataset) == 11
    assert dataset[0].name == "water"
    assert dataset[0].dipole_magnitude.item() == pytest.approx(1.85)
    assert dataset[0].dipole.isnan().all()
    (failure,) = read_failures(built / "failures.csv")
    assert (failure.source, failure.row, failure.molecule) == ("table.csv", 7, "broken")
    assert dataset.card is not None
    assert "--magnitude-column mu" in dataset.card.created_by
    split = dataset.split()
    assert (len(split.train), len(split.val), len(split.test)) == (9, 1, 1)


def test_the_command_predicts_what_the_model_said_in_memory(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = ConformerDataset(built)
    config = TrainConfig(max_epochs=2, batch_size=4)
    model = build_model(ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5))
    result = fit(model, dataset, dataset.split(), config, tmp_path / "run", progress=False)
    # As the command does for a few atoms; in float32 the kernels differ from it by up to 1e-5.
    result.model.kernels = "plain"
    in_memory = predict(result.model, from_smiles("CCO"))[0]

    words = ("CCO", "--conformers", "1", "--model", str(tmp_path / "run"))
    (found,) = predictions(capsys, *words)["molecules"]

    assert in_memory.dipole is not None
    assert found["magnitude"] == pytest.approx(in_memory.magnitude, rel=1e-6)
    assert found["conformers"][0]["dipole"] == pytest.approx(in_memory.dipole.tolist(), rel=1e-5)


def test_train_writes_a_run(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["representation"]["hidden_channels"] == 8
    assert config["train"]["batch_size"] == 4
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["dipole_mae"] > 0
    with (trained / "history.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_evaluate_measures_what_the_package_measures(
    built: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(built), "--output", str(tmp_path / "out"), "--split", "all"]
    assert main(["evaluate", str(trained / "model.safetensors"), *words]) == 0

    out = capsys.readouterr().out
    assert "11 of 11 structures have a reference" in out
    assert "the model was trained on some of the molecules" in out
    report = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    model = load_model(trained / "model.safetensors")
    expected = evaluate(model, list(ConformerDataset(built))).metrics
    assert report["metrics"] == pytest.approx(expected)
    assert report["units"]["dipole_mae"] == "debye"
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    errors = [abs(float(row["error_D"])) for row in rows]
    assert sum(errors) / len(errors) == pytest.approx(expected["dipole_mae"], abs=PRINTED_D)
    sizes = [group for group in report["groups"] if group["by"] == "size"]
    assert sum(group["molecules"] for group in sizes) == 11
    mean = sum(group["mae"] * group["molecules"] for group in sizes) / 11
    assert mean == pytest.approx(expected["dipole_mae"], rel=1e-5)
    for picture in ("parity.png", "errors.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_pictures_have_titles(
    built: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def parity(reference: ArrayLike, predicted: ArrayLike, title: str = "") -> Figure:
        titles.append(title)
        return plots.parity_plot(reference, predicted, title)

    def errors(groups: Sequence[Group], title: str = "") -> Figure:
        titles.append(title)
        return plots.error_bars(groups, title)

    monkeypatch.setattr("dipolegnn.cli.evaluate.parity_plot", parity)
    monkeypatch.setattr("dipolegnn.cli.evaluate.error_bars", errors)
    words = ["--data", str(built), "--output", str(tmp_path), "--split", "all"]
    assert main(["evaluate", str(trained), *words]) == 0
    assert main(["evaluate", "painn-xtb", *words]) == 0
    monkeypatch.chdir(trained)  # whose name is then nowhere in the command
    assert main(["evaluate", ".", *words]) == 0

    card = ConformerDataset(built).card
    assert card is not None
    own, shipped = (f"{name} on {card.name} (all)" for name in (trained.name, "painn-xtb"))
    assert titles == [own, own, shipped, shipped, own, own]


def test_evaluate_looks_at_the_test_molecules_unless_told_otherwise(
    built: Path, trained: Path, tmp_path: Path
) -> None:
    assert main(["evaluate", str(trained), "--data", str(built), "--output", str(tmp_path)]) == 0

    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (report["structures"], report["note"]) == (1, "")
    run = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert report["metrics"]["dipole_mae"] == pytest.approx(run["test"]["dipole_mae"], rel=1e-5)


def test_what_predict_refuses_is_not_measured(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(built), "--output", str(tmp_path / "out"), "--split", "all"]
    assert main(["evaluate", "painn-qm9", *words]) == 2
    assert_message(capsys, "painn-qm9 cannot be evaluated on 2 of 11 structures, the first chloro")
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "painn-xtb", *words]) == 0
