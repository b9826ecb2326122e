from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from dipolegnn._pyg import Batch
from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.metrics import MeanError
from dipolegnn.models import load_model
from dipolegnn.nn import DipoleModel
from dipolegnn.nn.errors import absolute_error
from dipolegnn.training import RunFolder, TrainingDiverged, fit, read_history
from dipolegnn.training.callbacks import warmed_up_decay
from dipolegnn.training.module import ONECYCLE_START, cosine, onecycle
from dipolegnn.units import duration
from tests.training.toy import dipole_loss, toy_data, toy_model, toy_parts

CONFIG = TrainConfig(max_epochs=3, batch_size=8, lr=5e-3, accelerator="cpu")


def mae_on(model: DipoleModel, part: str, config: TrainConfig = CONFIG) -> float:
    data = toy_data(config)
    batch = Batch.from_data_list(list(data.dataset[getattr(data.split, part)]))
    metric = MeanError(absolute_error)
    metric.update(model(batch).magnitude, batch.dipole_magnitude)
    return float(metric.compute())


def test_learns_and_leaves_everything_in_its_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = toy_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = replace(CONFIG, max_epochs=15, lr=2e-2)
    result = fit(model, *toy_parts(), config, tmp_path, test=True)
    folder = RunFolder(tmp_path)

    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    assert result.metrics["val"]["dipole_mae"] < 0.5 * mae_on(model, "val")
    assert set(result.metrics["test"]) == {
        "loss",
        "dipole_mae",
        "dipole_rmse",
        "vector_mae",
        "angle",
    }
    # What was validated, and tested, is what was saved.
    saved = load_model(folder.model)
    provenance = saved.card.provenance
    assert mae_on(saved, "val") == pytest.approx(result.metrics["val"]["dipole_mae"], rel=1e-5)
    assert mae_on(saved, "test") == pytest.approx(result.metrics["test"]["dipole_mae"], rel=1e-5)
    assert saved.calibration is None
    assert str(provenance["error_bars"]).startswith("none: Error bars need at least 20 molecules")
    assert provenance["train"] == json.loads(folder.config.read_text())["train"]
    assert json.loads(folder.metrics.read_text())["test"] == result.metrics["test"]

    rows = read_history(folder.history)
    assert [row["epoch"] for row in rows] == list(range(1, 16))
    assert rows[result.best_epoch - 1]["val/loss"] == min(row["val/loss"] for row in rows)
    assert result.best_val_loss == rows[result.best_epoch - 1]["val/loss"]
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    events = EventAccumulator(str(folder.tensorboard)).Reload().Tags()["scalars"]
    assert {"lr", "train/loss", "val/loss", "val/dipole_mae", "val/angle"} <= set(events)

    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert len(lines) == 15, "one line per epoch and no noise"
    assert lines[0].startswith("epoch  1/15  train loss ")
    assert " D  lr " in lines[0]
    assert lines[0].endswith(" left")
    assert err == ""


def test_the_loss_of_an_epoch_is_the_mean_over_all_molecules(tmp_path: Path) -> None:
    # A mean over batches would count the last one, of 3 molecules, as much as the first, of 4.
    config = replace(CONFIG, batch_size=4, max_epochs=1, precision=64)
    dataset, split = toy_parts()
    result = fit(toy_model(), dataset, split, config, tmp_path, progress=False)
    batch = Batch.from_data_list(list(dataset[split.val]))
    batch = batch.apply(lambda x: x.double() if x.is_floating_point() else x)
    expected = dipole_loss(result.model(batch), batch, config).item()
    assert len(split.val) == 7
    assert result.best_val_loss == pytest.approx(expected, rel=1e-12)


def test_a_model_gets_error_bars_from_its_validation_molecules(tmp_path: Path) -> None:
    config = replace(CONFIG, max_epochs=2)
    model = toy_model()
    result = fit(model, *toy_parts(240), config, tmp_path / "one")
    provenance = load_model(result.model_path).card.provenance
    assert provenance["error_bars"] == "from 40 validation structures"
    first = result.model.calibration
    assert first is not None
    assert first.scores.numel() == 20

    # Another model that starts from this one gets its own.
    again = fit(result.model, *toy_parts(240), config, tmp_path / "two")
    assert again.model.calibration is not None
    assert not torch.equal(again.model.calibration.scores, first.scores)


def test_validates_and_saves_the_average_and_trains_the_raw_weights(tmp_path: Path) -> None:
    fit(toy_model(), *toy_parts(), CONFIG, tmp_path, progress=False)
    checkpoint = torch.load(RunFolder(tmp_path).last, weights_only=True)
    averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    name = "model.head.blocks.1.scalars.2.weight"
    assert not torch.equal(averaged[name], raw[name])

    def of(weights: dict[str, torch.Tensor]) -> float:
        model = toy_model()
        model.load_state_dict(
            {k.removeprefix("model."): w for k, w in weights.items() if k.startswith("model.")}
        )
        return mae_on(model, "val")

    validated = read_history(RunFolder(tmp_path).history)[-1]["val/dipole_mae"]
    assert of(averaged) == pytest.approx(validated, rel=1e-5)
    assert of(raw) != pytest.approx(validated, rel=1e-3)


def test_the_average_is_the_one_of_the_formula(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest) -> None:  # type: ignore[no-untyped-def]
            seen.append(pl_module.model.representation.embedding.weight.detach().clone())

    with patch("dipolegnn.training.fit.LearningRateMonitor", lambda logging_interval: Watch()):
        fit(toy_model(), *toy_parts(), CONFIG, tmp_path, progress=False)
    assert CONFIG.ema_decay is not None
    average = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        decay = warmed_up_decay(CONFIG.ema_decay, step)
        average = decay * average + (1 - decay) * weight
    checkpoint = torch.load(RunFolder(tmp_path).last, weights_only=True)
    stored = checkpoint["state_dict"]["model.representation.embedding.weight"]
    torch.testing.assert_close(stored, average)


def test_warm_up_of_the_average() -> None:
    assert warmed_up_decay(0.999, 0) == 0.1
    assert warmed_up_decay(0.999, 90) == 0.91
    assert warmed_up_decay(0.999, 100_000) == 0.999


def test_double_precision(tmp_path: Path) -> None:
    config = replace(CONFIG, precision=64, max_epochs=1)
    result = fit(toy_model(), *toy_parts(), config, tmp_path, progress=False, test=True)
    assert next(result.model.parameters()).dtype == torch.float64
    # Nowhere on the way were the weights rounded to float32, and neither was their average.
    checkpoint = torch.load(RunFolder(tmp_path).last, weights_only=True)
    for kind in ("state_dict", "current_model_state"):
        weight = checkpoint[kind]["model.representation.embedding.weight"]
        assert weight.dtype == torch.float64
        assert not torch.equal(weight, weight.float().double())


def test_a_model_without_vectors(tmp_path: Path) -> None:
    model = toy_model(config=ModelConfig("schnet", 8, 1, 5, head="atomwise"))
    result = fit(model, *toy_parts(), CONFIG, tmp_path, progress=False, test=True)
    assert set(result.metrics["test"]) == {"loss", "dipole_mae", "dipole_rmse"}
    assert set(result.metrics["val"]) == {"loss", "dipole_mae", "dipole_rmse"}


def test_a_time_limit_stops_at_the_end_of_an_epoch_and_can_be_lifted(tmp_path: Path) -> None:
    first = fit(toy_model(), *toy_parts(), CONFIG, tmp_path, progress=False, time_limit=0.0)
    assert first.stopped_by == "time_limit"
    assert len(read_history(RunFolder(tmp_path).history)) == 1
    resumed = fit(toy_model(), *toy_parts(), CONFIG, tmp_path, progress=False, resume=True)
    assert resumed.stopped_by == "max_epochs"
    whole = fit(toy_model(), *toy_parts(), CONFIG, tmp_path / "whole", progress=False)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path: Path) -> None:
    config = replace(CONFIG, lr=1e30, loss="mse", gradient_clip=None)
    with pytest.raises(TrainingDiverged, match=r"in epoch 1\. Lower the learning rate"):
        fit(toy_model(), *toy_parts(), config, tmp_path, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    config = replace(CONFIG, accelerator="gpu")
    with pytest.raises(ValueError, match="finds no CUDA device"):
        fit(toy_model(), *toy_parts(), config, tmp_path)


@pytest.mark.parametrize("total", [1, 2, 10, 20, 1000])
def test_schedules_stay_between_zero_and_the_peak(total: int) -> None:
    for shape in (cosine, onecycle):
        rates = [shape(step, total) for step in range(total + 1)]
        assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
        assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert cosine(0, total) == 1


def test_onecycle_rises_and_falls() -> None:
    rates = [onecycle(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(ONECYCLE_START)
    assert rates[100] == max(rates) == 1
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (7325.0, "2 h 02 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
