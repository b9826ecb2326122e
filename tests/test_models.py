from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dipolegnn._pyg import Data
from dipolegnn.config import ModelConfig
from dipolegnn.models import ModelFileError, load_model, save_model
from dipolegnn.nn.model import describe
from tests.training.toy import molecule, toy_model

CONFIGS = [
    ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5, cutoff=4.0),
    ModelConfig(
        representation="schnet",
        hidden_channels=8,
        num_interactions=2,
        num_rbf=6,
        radial_basis="bessel",
        head="atomwise",
        atomwise_aggregation="mean",
    ),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "folder" / "model.safetensors"
    save_model(file, toy_model(config=CONFIGS[0]), {"data": {"name": "toy"}})
    return file


def example(dtype: torch.dtype = torch.float32) -> Data:
    data = molecule(3, torch.Generator().manual_seed(0), vector=True)
    return data.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.representation)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_round_trip(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    model = toy_model(config=config).to(dtype)
    save_model(tmp_path / "m.safetensors", model, {})
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == describe(config)
    assert not loaded.training
    expected, actual = model(example(dtype)), loaded(example(dtype))
    assert actual.magnitude.dtype == dtype
    assert torch.equal(expected.magnitude, actual.magnitude)


def test_provenance_comes_back_with_date_and_versions(path: Path) -> None:
    provenance = load_model(path).card.provenance
    assert provenance["data"] == {"name": "toy"}
    assert isinstance(provenance["created"], str)
    versions = provenance["versions"]
    assert isinstance(versions, dict)
    assert versions["torch"] == torch.__version__
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["dipolegnn"])["units"]["dipole"] == "debye"


def test_nothing_is_unpickled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    for place, name in [
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ]:
        monkeypatch.setattr(place, name, refuse)
    assert load_model(path).config == describe(CONFIGS[0])


def test_loading_leaves_the_random_numbers_alone(path: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(path)
    assert torch.equal(torch.rand(3), expected)


def change_metadata(path: Path, **changes: object) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["dipolegnn"])
    save_file(load_file(path), path, {"dipolegnn": json.dumps({**metadata, **changes})})


def test_others_may_read_it_as_any_file(path: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no model .*nowhere.*the folder of a run.*painn-qm9"
    ):
        load_model(tmp_path / "nowhere.safetensors")


def test_not_a_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "m.ckpt").write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        load_model(tmp_path / "m.ckpt")


def test_half_a_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        load_model(path)


def test_a_safetensors_file_of_somebody_else(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileError, match="not one of dipolegnn"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99.*reads versions 1 and 2.*newer one"),
        ({"model": {"representation": "gcn"}}, r"no representation 'gcn' among PaiNN, SchNet"),
        ({"model": {"hidden_channels": 8, "layers": 3}}, "settings unknown to .*: layers"),
        ({"model": {"cutoff": -1.0}}, "cutoff must be a positive distance"),
        ({"model": None}, "must be a JSON object, got None"),
        ({"units": {"dipole": "e bohr"}}, "units .*e bohr.*debye"),
    ],
)
def test_metadata_that_do_not_fit(path: Path, changes: dict[str, object], message: str) -> None:
    change_metadata(path, **changes)
    with pytest.raises(ModelFileError, match=message):
        load_model(path)


def test_weights_of_another_architecture(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    other = toy_model(config=ModelConfig(hidden_channels=16, num_interactions=1, num_rbf=5))
    weights = {name: weight.detach() for name, weight in other.state_dict().items()}
    save_file(weights, path, metadata)
    with pytest.raises(ModelFileError, match=r"do not match .*is \[.*16.*\] instead of \[.*8.*\]"):
        load_model(path)
    weights = dict(toy_model(config=CONFIGS[0]).state_dict())
    del weights["representation.embedding.weight"]
    save_file(weights, path, metadata)
    with pytest.raises(ModelFileError, match=r"representation\.embedding\.weight is missing"):
        load_model(path)


def test_a_failed_save_leaves_the_earlier_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(file: Path, content: bytes) -> int:
        with file.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(path, toy_model(), {})
    assert path.read_bytes() == before
