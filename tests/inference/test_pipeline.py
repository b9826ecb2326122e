"""From records to predictions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dipolegnn.config import ConformerConfig, ModelConfig, PredictConfig
from dipolegnn.inference.pipeline import (
    BATCH_RECORDS,
    predict_batches,
    predict_records,
    predict_smiles,
)
from dipolegnn.inference.structures import MoleculePrediction, Predictions
from dipolegnn.models import DEFAULT, ModelChoice, load_model
from dipolegnn.molecules import Failure, SmilesRow, from_smiles, make_data, text_of
from dipolegnn.molecules.records import Record, chained, read_records
from dipolegnn.nn import DipoleModel, build_model
from dipolegnn.nn.model import FROM_FORCE_FIELD


@pytest.fixture
def model() -> DipoleModel:
    torch.manual_seed(3)
    return build_model(ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5))


def smiles_records(*smiles: str) -> list[Record]:
    return [Record(row, SmilesRow(row, text)) for row, text in enumerate(smiles, start=1)]


def test_the_model_is_left_as_it_was(model: DipoleModel) -> None:
    model.train()
    model.head.eval()
    before = [module.training for module in model.modules()]
    weights = {name: weight.data_ptr() for name, weight in model.named_parameters()}

    assert len(predict_smiles(model, ["O", "CCO"]).molecules) == 2
    records = smiles_records("O", "CCO")
    assert len(list(predict_records(records, model, PredictConfig(), device="cpu:0"))) == 2

    assert model.kernels == "auto"
    assert [module.training for module in model.modules()] == before
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == weights


def test_each_stereoisomer_is_a_molecule() -> None:
    config = PredictConfig(ConformerConfig("auto", stereoisomers=2))
    records = smiles_records("O", "ClC=CCl", "OCCO")

    found = Predictions.of(predict_records(records, ModelChoice(), config))

    assert not found.failures
    assert [molecule.row for molecule in found.molecules] == [1, 2, 2, 3]
    isomers = {m.lowest.data.smiles: m.magnitude for m in found.molecules[1:3]}
    assert isomers["Cl/C=C/Cl"] < 0.05  # zero by symmetry, up to the minimizer's
    assert isomers[r"Cl/C=C\Cl"] == pytest.approx(1.9, abs=0.3)  # experiment: 1.90 D
    (one,) = predict_records(records[1:2], ModelChoice(), PredictConfig())
    assert isinstance(one, MoleculePrediction)
    assert "does not define the double bond C2=C3" in one.notes[-1]


def test_each_geometry_has_its_level_and_the_order_is_that_of_the_records() -> None:
    argon = make_data([18], [[0.0, 0, 0]], name="argon", mol_id=1)
    structures = text_of([from_smiles("O", name="water")[0], argon], ".sdf")
    sources = [smiles_records("CCO", "C1CC"), read_records(structures, "two.sdf")]
    records = chained([*sources, smiles_records("N")])

    found = list(predict_records(records, ModelChoice(), PredictConfig()))

    levels = [outcome.level if isinstance(outcome, MoleculePrediction) else "" for outcome in found]
    of_structures = load_model(DEFAULT).levels[0]
    of_smiles = f"{of_structures}{FROM_FORCE_FIELD}"
    assert levels == [of_smiles, "", of_structures, "", of_smiles]
    assert [(outcome.source, outcome.row) for outcome in found] == [
        ("", 1),
        ("", 2),
        ("two.sdf", 1),
        ("two.sdf", 2),
        ("", 1),
    ]
    stages = [outcome.stage for outcome in found if isinstance(outcome, Failure)]
    assert stages == ["read", "predict"]


def test_predictions_come_while_records_are_read(model: DipoleModel) -> None:
    read = 0

    def records() -> Iterator[Record]:
        nonlocal read
        for read in range(1, 3 * BATCH_RECORDS):
            yield Record(read, Failure("", read, "", "read", "It is empty", "Leave it out"))

    outcomes = predict_records(records(), model, PredictConfig())
    assert next(outcomes).row == 1
    assert read < 2 * BATCH_RECORDS


def test_a_run_that_goes_on_has_the_same_batches(model: DipoleModel) -> None:
    smiles = ("CCO", "C1", "O", "C", "N", "CCCC", "C#N", "CO", "C=O")
    embedded = [
        (record, [] if record.row == 2 else from_smiles(smiles[record.row - 1]))
        for record in smiles_records(*smiles)
    ]
    first, *rest = predict_batches(embedded, model, PredictConfig(), most_records=4)
    again = list(predict_batches(embedded[first.records :], model, PredictConfig(), most_records=4))
    assert [batch.records for batch in (first, *rest)] == [4, 4, 1]
    for batch, other in zip(rest, again, strict=True):
        for found, same in zip(batch.outcomes, other.outcomes, strict=True):
            assert isinstance(found, MoleculePrediction)
            assert isinstance(same, MoleculePrediction)
            assert (found.row, found.magnitude) == (same.row, same.magnitude)


def test_values_that_are_not_used_are_noted(model: DipoleModel) -> None:
    text = "3\nwater q=0 mu=1.85\nO 0 0 0\nH 0 0.76 0.59\nH 0 -0.76 0.59\n"
    (water,) = predict_records(read_records(text, "a.xyz"), model, PredictConfig())
    assert isinstance(water, MoleculePrediction)
    assert "the key 'mu' looks like a charge or a dipole and is not used" in water.notes
    assert not any("'q'" in note for note in water.notes)
