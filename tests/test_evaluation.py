from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Data
from dipolegnn.config import ModelConfig
from dipolegnn.evaluation import evaluate, write_predictions
from dipolegnn.inference.structures import predict
from dipolegnn.molecules import from_smiles
from dipolegnn.nn import DipoleModel, build_model
from tests.tolerances import PRINTED_D


@pytest.fixture
def model() -> DipoleModel:
    torch.manual_seed(0)
    return build_model(ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5))


@pytest.fixture
def molecules() -> list[Data]:
    """With a vector, with a magnitude alone, and without a label."""
    water, ammonia, methanol = (from_smiles(smiles)[0] for smiles in ("O", "N", "CO"))
    water.dipole = torch.tensor([[0.0, 1.8, 0.0]])
    water.dipole_magnitude = torch.tensor([1.8])
    ammonia.dipole_magnitude = torch.tensor([1.5])
    return [water, ammonia, methanol]


def test_metrics_are_those_of_the_labels_that_there_are(
    model: DipoleModel, molecules: list[Data]
) -> None:
    water, ammonia, _ = predict(model, molecules)
    assert water.dipole is not None

    found = evaluate(model, molecules)

    errors = np.array([water.magnitude - 1.8, ammonia.magnitude - 1.5])
    assert found.metrics["dipole_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-6)
    assert found.metrics["dipole_rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
    assert found.metrics["vector_mae"] == pytest.approx(
        np.linalg.norm(water.dipole - [0, 1.8, 0]), rel=1e-6
    )
    cosine = water.dipole[1] / np.linalg.norm(water.dipole)
    assert found.metrics["angle"] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-4)
    assert len(found.predictions) == 3
    assert len(found.labelled) == 2


def test_a_model_without_vectors_is_measured_by_the_magnitude(molecules: list[Data]) -> None:
    atomwise = build_model(ModelConfig(hidden_channels=8, num_interactions=1, head="atomwise"))

    assert set(evaluate(atomwise, molecules).metrics) == {"dipole_mae", "dipole_rmse"}


def test_nothing_to_compare_with(model: DipoleModel) -> None:
    with pytest.raises(ValueError, match="None of the 1 structures has a reference dipole"):
        evaluate(model, [from_smiles("O")[0]])


def test_a_line_for_each_structure(
    model: DipoleModel, molecules: list[Data], tmp_path: Path
) -> None:
    found = evaluate(model, molecules)

    write_predictions(tmp_path / "predictions.csv", found.predictions)

    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        water, ammonia, methanol = csv.DictReader(file)
    error = float(water["predicted_D"]) - float(water["reference_D"])
    assert float(water["error_D"]) == pytest.approx(error, abs=PRINTED_D)
    assert (water["smiles"], water["reference_y_D"]) == ("O", "1.8000")
    assert (ammonia["reference_D"], ammonia["reference_x_D"]) == ("1.5000", "")
    assert ammonia["predicted_x_D"] != ""
    assert (methanol["reference_D"], methanol["error_D"]) == ("", "")
    magnitude = found.predictions[2].magnitude
    assert float(methanol["predicted_D"]) == pytest.approx(magnitude, abs=PRINTED_D)
