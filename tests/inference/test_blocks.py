"""What is done to a block of rows, without a cluster."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray")

from dipolegnn.config import ConformerConfig, ModelConfig, PredictConfig, XTBConfig
from dipolegnn.inference.ray import (
    FAILURE_COLUMNS,
    LABEL_COLUMNS,
    PREDICTION_COLUMNS,
    PredictBlock,
    embed_block,
    label_block,
)
from dipolegnn.labels.batch import label_one
from dipolegnn.models import ModelChoice, save_model
from dipolegnn.nn import build_model

pyarrow = pytest.importorskip("pyarrow")


def block(*smiles: str | None) -> Any:
    numbers = pyarrow.array(range(len(smiles)), pyarrow.int64())
    return pyarrow.table({"id": numbers, "smiles": pyarrow.array(smiles, pyarrow.string())})


@pytest.fixture(scope="module")
def embed() -> partial[Any]:
    """The same configuration for all tests: each has a process of its own, which takes seconds."""
    return partial(embed_block, smiles_column="smiles", config=ConformerConfig(conformers=3))


@pytest.fixture
def predict_block(tmp_path: Path) -> PredictBlock:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_model(path, build_model(ModelConfig(hidden_channels=16, num_interactions=1)), {})
    return PredictBlock(ModelChoice(path), PredictConfig(), "cpu")


def test_a_block_of_failures_has_the_types_of_any_other(
    embed: partial[Any], predict_block: PredictBlock
) -> None:
    fine, failed, empty = (embed(block(*smiles)) for smiles in (("O",), ("C1", None), ()))
    label = partial(label_block, method=XTBConfig())
    for step, added in ((predict_block, PREDICTION_COLUMNS), (label, LABEL_COLUMNS)):
        schemas = [step(rows).schema for rows in (fine, failed, empty)]
        assert schemas[0].names == ["id", "smiles", *added, *FAILURE_COLUMNS]
        assert schemas[0] == schemas[1] == schemas[2]
        found = pyarrow.concat_tables([step(rows) for rows in (failed, fine)]).to_pylist()
        assert [row["magnitude_D"] is None for row in found] == [True, True, False]
        assert [row["stage"] for row in found] == ["read", "read", None]
        assert "SMILES" in found[0]["problem"]
        assert found[0]["remedy"]


def test_what_a_model_cannot_do_is_a_failure_too(embed: partial[Any]) -> None:
    predict_block = PredictBlock(ModelChoice("painn-qm9"), PredictConfig(), "cpu")
    chlorine, water = predict_block(embed(block("CCl", "O"))).to_pylist()
    assert (chlorine["stage"], chlorine["magnitude_D"]) == ("predict", None)
    assert "Cl" in chlorine["problem"]
    assert (water["stage"], water["model"]) == (None, "painn-qm9")
    assert water["symbols"] == "O H H"
    assert (len(water["positions_angstrom"]), len(water["atomic_charges_e"])) == (9, 3)


def test_each_conformer_is_labelled(embed: partial[Any]) -> None:
    embedded = embed(block("C1", "CCCO"))
    failed, *conformers = label_block(embedded, method=XTBConfig()).to_pylist()
    assert (failed["id"], failed["conformer"], failed["stage"]) == (0, None, "read")
    assert [(row["id"], row["conformer"]) for row in conformers] == [(1, 1), (1, 2), (1, 3)]
    assert len({row["energy_kcal_per_mol"] for row in conformers}) >= 2  # or mirror images


class SerialPool:
    """Does the work of a worker in this process."""

    def __init__(self, function: partial[Any]) -> None:
        self.function = function

    def run(self, tasks: list[Any]) -> Iterator[tuple[int, Any]]:
        return enumerate(map(self.function, tasks))


def test_conformers_that_cannot_be_labelled(
    embed: partial[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dipolegnn.inference.ray._labeller",
        lambda method: SerialPool(partial(label_one, method=method)),
    )
    # A relaxation of no steps fails.
    hasty = XTBConfig(optimize=True, max_steps=0)
    rows = label_block(embed(block("C1", "CCCO")), method=hasty).to_pylist()
    assert [row["stage"] for row in rows] == ["read", "label", "label", "label"]
    assert [row["conformer"] for row in rows] == [None, 1, 2, 3]
    assert all(row["dipole_x_D"] is None for row in rows)


def test_models_travel() -> None:
    models = ModelChoice()
    name = models.model.card.name
    copy = pickle.loads(pickle.dumps(models))
    assert copy.model.card.name == name


def test_the_level_of_theory_is_a_column(embed: partial[Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    config = ModelConfig(hidden_channels=16, num_interactions=1, levels=("DFT", "xTB"))
    save_model(path, build_model(config), {})
    for level, stated in ((None, "DFT"), ("xTB", "xTB")):
        step = PredictBlock(ModelChoice(path), PredictConfig(level=level), "cpu")
        assert step(embed(block())).column_names[-4:] == ["level", *FAILURE_COLUMNS]
        failed, water = step(embed(block("C1", "O"))).to_pylist()
        assert (failed["level"], water["level"]) == (None, stated)


def test_a_row_is_repeated_for_each_stereoisomer(predict_block: PredictBlock) -> None:
    config = ConformerConfig(stereoisomers=2)
    embedded = embed_block(block("O", "ClC=CCl", "C1"), smiles_column="smiles", config=config)
    found = predict_block(embedded).to_pylist()
    assert [row["id"] for row in found] == [0, 1, 1, 2]
    assert [row["problem"] is None for row in found] == [True, True, True, False]
    assert "one of 2 stereoisomers" in found[1]["notes"]
    assert found[1]["notes"] != found[2]["notes"]
