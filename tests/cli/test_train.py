from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from dipolegnn._pyg import Data
from dipolegnn.cli import main
from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.data import About, ConformerDataset, save_dataset
from dipolegnn.models import load_model
from dipolegnn.molecules import Molecules
from dipolegnn.nn.model import describe
from tests.cli.helpers import SMALL, assert_message
from tests.tolerances import assert_close


def test_train_takes_its_defaults_from_a_file_and_flags_override(
    built: Path, trained: Path, tmp_path: Path
) -> None:
    words = ["--data", str(built), "--output", str(tmp_path / "run"), "--quiet"]
    config = ["--config", str(trained / "config.json"), "--max-epochs", "1", "--seed", "5"]
    assert main(["train", *words, *config]) == 0

    config_json = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config_json["model"]["representation"]["hidden_channels"] == 8
    assert (config_json["train"]["max_epochs"], config_json["train"]["seed"]) == (1, 5)
    assert config_json["train"]["batch_size"] == 4


def test_train_resumes_with_the_settings_of_the_run(
    built: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(built), "--output", str(trained)]
    assert main(words) == 2
    assert_message(capsys, "already contains a run (finished). Resume it (--resume")

    assert main([*words, "--resume", "--quiet"]) == 0
    assert "test: magnitude MAE" in capsys.readouterr().out

    assert main([*words, "--resume", "--lr", "0.5"]) == 2
    assert_message(capsys, "lr was 0.001 and is 0.5")


def test_train_on_two_levels_of_theory_and_add_a_third(built: Path, tmp_path: Path) -> None:
    first = ConformerDataset(built)
    assert first.card is not None
    other = {}
    for level in ("another level", "a third level"):
        other[level] = tmp_path / level
        about = About(name=level, level_of_theory=level)
        save_dataset(other[level], Molecules(list(first), []), about, split=first.split())
    words = ["--max-epochs", "1", "--batch-size", "4", "--quiet"]
    run, added = tmp_path / "run", tmp_path / "added"
    data = ["--data", str(built), str(other["another level"])]
    assert main(["train", *data, "--output", str(run), *words, *SMALL]) == 0
    model = load_model(run)
    levels = [first.card.level_of_theory, "another level"]
    assert model.representation.levels == levels
    assert model.card.get("data", "level_of_theory") == ", ".join(levels)
    assert model.card.get("data", "structures", "train") == 2 * len(first.split().train)
    water = first[0]
    changed = model(at_level(water, levels[1])).magnitude - model(water).magnitude
    assert abs(changed) > 0

    start = ["--data", str(other["a third level"]), "--start", str(run), "--lr", "1e-9"]
    assert main(["train", *start, "--output", str(added), *words]) == 0
    extended = load_model(added)
    assert extended.representation.levels == [*levels, "a third level"]
    default = model(water).magnitude
    for level, expected in zip(
        extended.representation.levels,
        (default, model(at_level(water, levels[1])).magnitude, default),
        strict=True,
    ):
        found = extended(at_level(water, level)).magnitude
        assert_close(found, expected, torch.float32)


def at_level(data: Data, level: str) -> Data:
    copy = data.clone()
    copy.level = level
    return copy


def test_train_interrupted(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("Go on with --resume.")

    monkeypatch.setattr("dipolegnn.cli.train.fit", interrupt)
    assert main(["train", "--data", str(built), "--output", str(tmp_path)]) == 130
    assert "Go on with --resume." in capsys.readouterr().err


def test_every_setting_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])

    out = capsys.readouterr().out
    for field in (*fields(ModelConfig), *fields(TrainConfig)):
        assert f"--{field.name.replace('_', '-')} " in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ('{"lr": 1}', 'expected {"model": {...}, "train": {...}}'),
        ('{"train": {"learning_rate": 1}}', "unknown settings learning_rate; expected some of"),
        ('{"model": {"cutoff": -1}}', "cutoff must be a positive distance"),
        ('{"model": {"num_rbf": "many"}}', "num_rbf: Input should be a valid integer"),
        ('{"model": []}', "invalid settings in model"),
        (
            '{"model": {"representation": {"class": "PaiNN", "num_rbf": "many"}, "head": {}}}',
            "num_rbf: Input should be a valid integer",
        ),
        (
            '{"model": {"representation": {"class": "PaiNN", "depth": 2}, "head": {}}}',
            "unknown settings depth",
        ),
        (
            '{"model": {"representation": {"class": "Mine"}, "head": {"class": "DipoleHead"}}}',
            "no representation 'mine' among PaiNN, SchNet",
        ),
    ],
)
def test_train_refuses_a_config(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    words = ["--data", str(built), "--output", str(tmp_path / "run"), "--config", str(path)]
    assert main(["train", *words]) == 2
    assert_message(capsys, message)


def test_seed_makes_the_weights(built: Path, tmp_path: Path) -> None:
    weights = []
    for run, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        words = ["--max-epochs", "1", "--quiet", "--seed", seed, *SMALL]
        assert main(["train", "--data", str(built), "--output", str(tmp_path / run), *words]) == 0
        model = load_model(tmp_path / run / "model.safetensors")
        weights.append(next(model.parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_two_devices_without_torchrun(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(built), "--output", str(tmp_path / "run"), "--devices", "2", "--quiet"]
    assert main(["train", *words, "--accelerator", "cpu"]) == 2
    assert_message(capsys, "Run: torchrun --nproc-per-node 2 -m dipolegnn train ...")


def test_a_run_on_no_device(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(built), "--output", str(tmp_path / "run"), "--devices", "0", "--quiet"]
    assert main(["train", *words]) == 2
    assert_message(capsys, "devices must be at least 1, got 0.")


def test_training_starts_from_another_model(
    built: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(built), "--output", str(tmp_path / "run"), "--quiet"]
    words += ["--start", str(trained), "--max-epochs", "1", "--lr", "1e-9", "--batch-size", "4"]
    assert main(words) == 0
    before = load_model(trained / "model.safetensors")
    after = load_model(tmp_path / "run" / "model.safetensors")
    provenance = after.card.provenance
    assert after.config == before.config != describe(ModelConfig())
    for (name, weight), other in zip(after.named_parameters(), before.parameters(), strict=True):
        assert torch.allclose(weight, other, atol=1e-6), name
    start = provenance["start"]
    assert isinstance(start, dict)
    assert start["model"] == "model.safetensors"
    assert isinstance(start["data"], dict)
    assert isinstance(start["train"], dict)
    assert start["train"]["lr"] != 1e-9

    assert main([*words, "--cutoff", "4.5", "--output", str(tmp_path / "other")]) == 2
    assert_message(capsys, "is a model of another architecture")
    assert not (tmp_path / "other").exists()
