"""Error bars: what they rest on, how often they hold, and that they stay with the model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Batch, Data
from dipolegnn.calibrate import calibrate
from dipolegnn.config import ModelConfig
from dipolegnn.inference.structures import average, predict
from dipolegnn.models import ModelFileError, load_model, save_model
from dipolegnn.molecules import from_smiles, make_data
from dipolegnn.nn import Calibration, DipoleModel, build_model
from dipolegnn.nn.model import with_levels

CONFIGS = [
    ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5),
    ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5, head="charges"),
    ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5, representation="schnet"),
    ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5, head="atomwise"),
]


def model_of(config: ModelConfig) -> DipoleModel:
    torch.manual_seed(0)
    return build_model(config).double().eval()


def water(stretch: float, angle: float, error: float = 0.0) -> Data:
    half = math.radians(angle) / 2
    x, y = stretch * math.sin(half), stretch * math.cos(half)
    data = make_data([8, 1, 1], [[0.0, 0.0, 0.0], [x, y, 0.0], [-x, y, 0.0]], name="water")
    data.pos = data.pos.double()
    data.dipole_magnitude = torch.tensor([error], dtype=torch.float64)
    return data


def batches(molecules: list[Data], size: int = 50) -> list[Data]:
    return [Batch.from_data_list(molecules[k : k + size]) for k in range(0, len(molecules), size)]


def some_waters(model: DipoleModel, count: int, spread: float, seed: int) -> list[Data]:
    """Molecules whose references are off by an error that grows with how unusual they are."""
    rng = np.random.default_rng(seed)
    found = [
        water(0.96 + spread * rng.normal(), 104 + 100 * spread * rng.normal()) for _ in range(count)
    ]
    for data, prediction in zip(found, predict(model, found), strict=True):
        size = abs(float(data.pos.norm(dim=1).max()) - 0.96) + 0.01
        data.dipole_magnitude = torch.tensor(
            [prediction.magnitude + size * rng.laplace()], dtype=torch.float64
        )
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=["painn", "charges", "schnet", "atomwise"])
def test_sensitivity_is_the_derivative_by_the_weights_of_the_last_layer(
    config: ModelConfig,
) -> None:
    model = model_of(config)
    ethanol = from_smiles("CCO")[0]
    ethanol.pos = ethanol.pos.double()
    batch = Batch.from_data_list([water(0.97, 105), ethanol])
    plain = model(batch)
    output, sensitivity = model.with_sensitivity(batch)
    assert torch.allclose(output.magnitude, plain.magnitude)
    assert not output.magnitude.requires_grad

    assert model.head.last_layer is not None
    weights = list(model.head.last_layer.parameters())
    for molecule in range(2):
        gradients = torch.autograd.grad(model(batch).magnitude[molecule], weights)
        expected = torch.cat([gradients[0], gradients[1].unsqueeze(1)], dim=1).flatten()
        assert torch.allclose(sensitivity[molecule], expected, atol=1e-12)


def test_intervals_hold_as_often_as_they_say() -> None:
    model = model_of(CONFIGS[0])
    calibrate(
        model,
        batches(some_waters(model, 300, 0.05, seed=1)),
        batches(some_waters(model, 2000, 0.05, seed=2)),
    )
    tested = some_waters(model, 2000, 0.05, seed=3)
    predictions = predict(model, tested)
    error = np.array(
        [abs(p.magnitude - float(p.data.dipole_magnitude)) for p in predictions], dtype=float
    )
    for coverage in (0.68, 0.9, 0.95):
        widths = np.array([p.error.half_width(coverage) for p in predictions if p.error])
        assert len(widths) == len(predictions)
        # Binomial spread of 2000 tests and 1000 calibration molecules: 0.013 at 0.68.
        assert (error <= widths).mean() == pytest.approx(coverage, abs=0.04)
    # Wider where errors are larger.
    scale = np.array([p.error.scale for p in predictions if p.error])
    order = np.argsort(scale)
    assert error[order[-400:]].mean() > 1.5 * error[order[:400]].mean()


def test_unseen_molecules_have_warnings() -> None:
    model = model_of(CONFIGS[0])
    waters = some_waters(model, 200, 0.02, seed=1)
    ethane = from_smiles("CC")[0]  # one exception, which is not what the model knows
    ethane.pos = ethane.pos.double()
    ethane.dipole_magnitude = torch.zeros(1, dtype=torch.float64)
    calibrate(model, batches([*waters, ethane]), batches(some_waters(model, 200, 0.02, seed=2)))

    def doubts(data: Data) -> str:
        data.pos = data.pos.double()
        (prediction,) = predict(model, [data])
        assert prediction.error is not None
        return "; ".join(prediction.error.doubts)

    assert doubts(water(0.96, 104)) == ""
    assert "larger than for 99.5 %" in doubts(water(1.6, 60))
    assert "not trained on N" in doubts(from_smiles("N")[0])
    ethanol = doubts(from_smiles("CCO")[0])
    assert "3 heavy atoms" in ethanol
    assert "trained on have 1 to 1" in ethanol
    assert "no molecule of charge -1 e" in doubts(from_smiles("[OH-]")[0])
    # The warnings are part of every representation of the prediction.
    ammonia = from_smiles("N", name="ammonia")[0]
    ammonia.pos = ammonia.pos.double()
    predictions = predict(model, [ammonia])
    for shown in (predictions[0], average(predictions)[0]):
        assert "not trained on N" in repr(shown)
        assert "not trained on N" in shown._repr_html_()


def test_error_bars_of_a_molecule_are_the_mean_over_its_conformers() -> None:
    model = model_of(CONFIGS[0])
    calibrate(
        model,
        batches(some_waters(model, 100, 0.05, seed=1)),
        batches(some_waters(model, 100, 0.05, seed=2)),
    )
    conformers = [water(0.96, 104), water(1.2, 90)]
    conformers[1].energy = torch.tensor([0.5])
    conformers[0].energy = torch.tensor([0.0])
    (molecule,) = average(predict(model, conformers))
    widths = [c.error.half_width(0.9) for c in molecule.conformers if c.error]
    assert molecule.half_width(0.9) == pytest.approx(float(np.dot(molecule.weights, widths)))
    assert molecule.doubts
    # With 50 scores nothing can be said about 99 %.
    assert molecule.half_width(0.99) == math.inf
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.9, got 90"):
        molecule.half_width(90)


@pytest.mark.parametrize("config", CONFIGS, ids=["painn", "charges", "schnet", "atomwise"])
def test_they_are_saved_with_the_model(config: ModelConfig, tmp_path: Path) -> None:
    model = model_of(config)
    calibrate(
        model,
        batches(some_waters(model, 100, 0.05, seed=1)),
        batches(some_waters(model, 100, 0.05, seed=2)),
    )
    save_model(tmp_path / "model.safetensors", model, {})
    loaded = load_model(tmp_path / "model.safetensors")
    (before,), (after,) = (predict(m, [water(1.0, 100)]) for m in (model, loaded))
    assert before.error is not None
    assert after.error is not None
    assert before.error.half_width(0.9) == pytest.approx(after.error.half_width(0.9), rel=1e-12)
    assert before.error.doubts == after.error.doubts

    model.calibration = None
    save_model(tmp_path / "without.safetensors", model, {})
    assert load_model(tmp_path / "without.safetensors").calibration is None
    assert predict(model, [water(1.0, 100)])[0].error is None


def test_damaged_error_bars(tmp_path: Path) -> None:
    model = model_of(CONFIGS[0])
    calibrate(
        model,
        batches(some_waters(model, 100, 0.05, seed=1)),
        batches(some_waters(model, 100, 0.05, seed=2)),
    )
    calibration = model.calibration
    assert isinstance(calibration, Calibration)
    del calibration.scores
    save_model(tmp_path / "model.safetensors", model, {})
    with pytest.raises(ModelFileError, match=r"error bars in .* are damaged. .* lacks scores"):
        load_model(tmp_path / "model.safetensors")


def at_level(molecules: list[Data], level: str) -> list[Data]:
    for data in molecules:
        data.level = level
    return molecules


def some_of_levels(model: DipoleModel, counts: dict[str, int], seed: int) -> list[Data]:
    """Molecules whose errors are ten times as large at the second level."""
    found: list[Data] = []
    for place, (level, count) in enumerate(counts.items()):
        waters = at_level(some_waters(model, count, 0.05, seed + 10 * place), level)
        for data, prediction in zip(waters, predict(model, waters), strict=True):
            rng = np.random.default_rng(seed + len(found))
            error = (0.1 if level == "xTB" else 0.01) * rng.laplace()
            data.dipole_magnitude = torch.tensor([prediction.magnitude + error])
            found.append(data)
    # The levels alternate in no regular way.
    return [found[k] for k in np.random.default_rng(seed).permutation(len(found))]


def width_at(model: DipoleModel, level: str) -> float:
    (found,) = predict(model, [water(0.96, 104)], level=level)
    width = found.half_width(0.9)
    assert width is not None
    return width


def test_each_level_of_theory_has_its_own_errors(tmp_path: Path) -> None:
    levels = ("DFT", "xTB", "MP2", "CC")
    model = model_of(ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5, levels=levels))
    torch.nn.init.normal_(model.representation.get_parameter("level_embedding.weight"))
    counts = {"DFT": 300, "xTB": 300, "MP2": 19, "CC": 20}
    training = batches(some_of_levels(model, {"DFT": 100, "xTB": 100}, seed=1))
    calibrate(model, training, batches(some_of_levels(model, counts, seed=2)))
    calibration = model.calibration
    assert calibration is not None
    # MP2: half of all; CC: half of its own; the rest of a row is filled up.
    assert calibration.scores.isfinite().sum(dim=1).tolist() == [150, 150, 319, 10]

    for level in ("DFT", "xTB"):
        tested = predict(model, some_of_levels(model, {level: 1000}, seed=3))
        errors = np.array([abs(p.magnitude - float(p.data.dipole_magnitude)) for p in tested])
        widths = np.array([p.half_width(0.9) for p in tested])
        # Binomial spread of 1000 tests and 150 calibration molecules: 0.026.
        assert (errors <= widths).mean() == pytest.approx(0.9, abs=0.08)
    wide = {level: width_at(model, level) for level in levels}
    assert wide["xTB"] == pytest.approx(10 * wide["DFT"], rel=0.5)
    assert wide["MP2"] > 2 * wide["DFT"]  # half of the errors of all are large

    save_model(tmp_path / "model.safetensors", model, {})
    loaded = load_model(tmp_path / "model.safetensors")
    more = with_levels(loaded, ["HF"])  # starts as the first level
    wide["HF"] = wide["DFT"]
    for level, width in wide.items():
        assert width_at(more, level) == pytest.approx(width, rel=1e-12)


def test_error_bars_that_were_calibrated_for_all_levels_together() -> None:
    """Those of files from before levels had their own."""
    single, several = (
        model_of(ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5, levels=levels))
        for levels in ((), ("DFT", "xTB"))
    )
    several.load_state_dict(single.state_dict(), strict=False)
    waters = [some_waters(single, 100, 0.05, seed=seed) for seed in (1, 2)]
    calibrate(single, batches(waters[0]), batches(waters[1]))
    several.calibration = single.calibration
    (before,) = predict(single, [water(1.0, 100)])
    for level in ("DFT", "xTB"):
        (after,) = predict(several, [water(1.0, 100)], level=level)
        assert after.half_width(0.9) == pytest.approx(before.half_width(0.9), rel=1e-12)
        assert after.doubts == before.doubts


def test_too_few_molecules() -> None:
    model = model_of(CONFIGS[0])
    waters = some_waters(model, 30, 0.05, seed=1)
    with pytest.raises(ValueError, match=r"at least 20 molecules with reference dipoles.*got 19"):
        calibrate(model, batches(waters), batches(waters[:19]))
    with pytest.raises(ValueError, match="no training molecules"):
        calibrate(model, [], batches(waters))
    for data in waters:
        data.dipole_magnitude = torch.tensor([math.nan], dtype=torch.float64)
    with pytest.raises(ValueError, match="got 0"):
        calibrate(model, batches(waters), batches(waters))
    assert model.calibration is None
