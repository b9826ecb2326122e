"""``--level`` of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipolegnn.cli import main
from dipolegnn.models import load_model, save_model
from tests.cli.helpers import assert_message, predictions
from tests.data.test_joined import dataset
from tests.inference.test_levels import magnitudes, new_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("levels") / "model.safetensors"
    save_model(path, new_model(), {})
    return path


def test_predict(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("O", "--model", str(path))
    for level, chosen in (("DFT", ()), ("DFT", ("--level", "DFT")), ("xTB", ("--level", "xTB"))):
        (water,) = predictions(capsys, *words, *chosen)["molecules"]
        assert water["level"] == level
        expected = magnitudes(load_model(path), level, "O")
        assert [water["magnitude"]] == pytest.approx(expected, rel=1e-5)
    assert main(["predict", *words, "--level", "MP2"]) == 2
    assert_message(capsys, "no level of theory 'MP2'; it has DFT, xTB. Choose one of them")

    smi, table = tmp_path / "list.smi", tmp_path / "out.csv"
    smi.write_text("O\nN\n", encoding="utf-8")
    streamed = ("predict", str(smi), "--output", str(table), "--level", "xTB", "--model")
    assert main([*streamed, str(path)]) == 0
    assert f"wrote {table}: 2 molecules at xTB, 2 read in" in capsys.readouterr().err
    assert main([*streamed, "painn-qm9"]) == 2
    assert_message(capsys, "The model painn-qm9 has no levels of theory to choose from, got 'xTB'")


@pytest.mark.parametrize(
    ("labels", "options", "level", "note"),
    [
        ("xTB (program)", [], "xTB", ""),
        ("xTB", ["--level", "DFT"], "DFT", "the predictions are at DFT, and the labels at xTB"),
        ("MP2", [], "DFT", "the predictions are at DFT, and the labels at MP2"),
        ("MP2", ["--level", "xTB"], "xTB", "the predictions are at xTB, and the labels at MP2"),
    ],
)
def test_evaluate(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    labels: str, options: list[str], level: str, note: str,
) -> None:  # fmt: skip
    data, output = tmp_path / "data", tmp_path / "out"
    dataset(data, labels, "O", "N", "C")
    words = ["--data", str(data), "--output", str(output), "--split", "all"]
    assert main(["evaluate", str(path), *words, *options]) == 0
    report = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert (report["level"], report["note"]) == (level, note)
    reference = [1.0, 2.0, 3.0]
    found = magnitudes(load_model(path), level, "O", "N", "C")
    errors = [abs(x - y) for x, y in zip(found, reference, strict=True)]
    assert report["metrics"]["dipole_mae"] == pytest.approx(sum(errors) / 3, rel=1e-4)
    printed = capsys.readouterr().out
    assert f" at {level}\n" in printed
    assert (f"note: {note}" in printed) == bool(note)


def test_evaluate_without_the_level(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    dataset(data, "xTB", "O", "N", "C")
    words = ["--data", str(data), "--output", str(tmp_path / "out"), "--level", "MP2"]
    assert main(["evaluate", str(path), *words]) == 2
    assert_message(capsys, "no level of theory 'MP2'; it has DFT, xTB")
    assert not (tmp_path / "out").exists()
