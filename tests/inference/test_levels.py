"""The level of theory of predictions: chosen, checked once, and stated in every output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipolegnn._pyg import Batch
from dipolegnn.config import JSON, ConformerConfig, ModelConfig, PredictConfig
from dipolegnn.inference import predict, predict_files, predict_list, predict_smiles
from dipolegnn.inference.calculator import DipoleCalculator
from dipolegnn.inference.output import as_json, print_tables, write_predictions
from dipolegnn.inference.pipeline import predict_batches
from dipolegnn.models import DEFAULT, ModelChoice, load_model, save_model
from dipolegnn.molecules import SmilesRow, from_smiles, to_ase, write_file
from dipolegnn.molecules.records import Record, chained, file_records
from dipolegnn.nn import DipoleModel, ModelCard, build_model
from dipolegnn.nn.model import FROM_FORCE_FIELD
from dipolegnn.units import DEBYE_PER_E_ANGSTROM
from tests.nn.models import randomize

LEVELS = ("DFT", "xTB")
UNKNOWN = r"no level of theory 'MP2'; it has DFT, xTB\. Choose one of them"


def new_model(levels: tuple[str, ...] = LEVELS) -> DipoleModel:
    config = ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5, levels=levels)
    model: DipoleModel = build_model(config)
    randomize(model, seed=0)
    return model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("levels") / "model.safetensors"
    save_model(path, new_model(), {})
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> DipoleModel:
    return load_model(path)


@pytest.fixture
def smi(tmp_path: Path) -> Path:
    path = tmp_path / "list.smi"
    path.write_text("O water\nCO methanol\n", encoding="utf-8")
    return path


def magnitudes(model: DipoleModel, level: str, *smiles: str) -> list[float]:
    """By the model itself, from the field of the structures."""
    found = []
    for text in smiles:
        (data,) = from_smiles(text)
        data.level = level
        found.append(float(model(data).magnitude.detach()))
    return found


def test_the_argument_takes_precedence_over_the_structures(model: DipoleModel) -> None:
    first, second = (magnitudes(model, level, "O", "CO") for level in LEVELS)
    assert abs(first[0] - second[0]) > 1e-3
    water, methanol = (from_smiles(text)[0] for text in ("O", "CO"))
    methanol.level = "xTB"
    for level, expected, levels in (
        (None, [first[0], second[1]], ["DFT", "xTB"]),
        ("DFT", first, ["DFT"] * 2),
        ("xTB", second, ["xTB"] * 2),
    ):
        found = predict(model, [water, methanol], level=level)
        assert [p.magnitude for p in found] == pytest.approx(expected, rel=1e-5)
        assert [p.level for p in found] == levels
        assert f"D at {levels[0]}" in repr(found[0])
    with pytest.raises(ValueError, match=UNKNOWN):
        predict(model, [water], level="MP2")


def test_of_smiles(model: DipoleModel) -> None:
    for level in LEVELS:
        found = predict_smiles(model, ["O", "CO"], level=level)
        assert found.levels == [level]
        expected = magnitudes(model, level, "O", "CO")
        assert [m.magnitude for m in found.molecules] == pytest.approx(expected, rel=1e-5)


def test_of_the_calculator(model: DipoleModel) -> None:
    (data,) = from_smiles("CO")
    for level, expected in ((None, "DFT"), ("DFT", "DFT"), ("xTB", "xTB")):
        atoms = to_ase(data)
        atoms.calc = DipoleCalculator(model, level=level)
        (prediction,) = predict(model, [data], level=expected)
        dipole = atoms.get_dipole_moment() * DEBYE_PER_E_ANGSTROM
        assert dipole == pytest.approx(prediction.dipole, abs=1e-4)
    with pytest.raises(ValueError, match=UNKNOWN):
        DipoleCalculator(model, level="MP2")
    with pytest.raises(ValueError, match=r"painn-qm9 .* got 'MP2'.*B3LYP/6-31G\(2df,p\)"):
        DipoleCalculator("painn-qm9", level="MP2")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".sdf", ".extxyz", ".json"])
def test_files_state_the_level(path: Path, smi: Path, tmp_path: Path, suffix: str) -> None:
    plain = tmp_path / "plain.safetensors"
    save_model(plain, new_model(levels=()), {})
    for named, level, stated in ((path, None, "DFT"), (path, "xTB", "xTB"), (plain, None, "")):
        models, output = ModelChoice(named), tmp_path / f"out{suffix}"
        records = list(chained([file_records(smi)]))
        config = PredictConfig(level=level)
        found = predict_list(records, models, config)
        write_predictions(output, found, config)
        content = output.read_bytes()
        if suffix != ".json":
            streamed = predict_files([smi], output, models, level=level)
            assert streamed.levels == ([stated] if stated else [])
            assert suffix == ".parquet" or output.read_bytes() == content
        if suffix == ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            rows = parquet.read_table(output).to_pylist()
            assert [row.get("level", "") for row in rows] == [stated] * 2
            assert ("level" in rows[0]) == bool(stated)
        elif suffix == ".json":
            molecules = json.loads(content)["molecules"]
            assert [m.get("level", "") for m in molecules] == [stated] * 2
        else:
            name = {".csv": ",level,", ".sdf": "<level>", ".extxyz": "level="}[suffix]
            text = content.decode()
            assert (name in text) == bool(stated)
            assert text.count(stated) >= 2 or not stated


def test_the_table_states_the_level(model: DipoleModel, capsys: pytest.CaptureFixture[str]) -> None:
    records = [Record(1, SmilesRow(1, "O"))]
    for level in LEVELS:
        config = PredictConfig(level=level)
        print_tables(predict_list(records, model, config).molecules, config)
        assert capsys.readouterr().out.rstrip().endswith(f"model.safetensors at {level}")


def test_an_unknown_level_is_one_error_before_any_work(
    path: Path, smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("structures are embedded")

    monkeypatch.setattr("dipolegnn.molecules.embedding.structures", nothing)
    models, config = ModelChoice(path), PredictConfig(level="MP2")
    records = list(chained([file_records(smi)]))
    with pytest.raises(ValueError, match=UNKNOWN):
        predict_list(records, models, config)
    with pytest.raises(ValueError, match=UNKNOWN):
        predict_files([smi], tmp_path / "out.csv", models, level="MP2")
    assert sorted(tmp_path.iterdir()) == [smi]
    with pytest.raises(ValueError, match=UNKNOWN):
        next(predict_batches(iter([]), load_model(path), config))


def test_the_default_model_needs_the_level(
    tmp_path: Path, smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / f"{DEFAULT}.safetensors", new_model(), {})
    monkeypatch.setattr("dipolegnn.models.FOLDER", tmp_path)
    monkeypatch.delenv("DIPOLEGNN_MODEL", raising=False)
    xyz = tmp_path / "water.xyz"
    write_file(xyz, from_smiles("O"))
    output = tmp_path / "out.csv"
    config = PredictConfig(level="xTB")

    found = predict_list([Record(1, SmilesRow(1, "O"))], ModelChoice(), config)
    assert found.levels == ["xTB"]
    assert json.loads(as_json(found, config))["molecules"][0]["level"] == "xTB"
    assert predict_files([xyz, smi], output, ModelChoice()).levels == ["DFT"]
    header, *lines = output.read_text(encoding="utf-8").splitlines()
    place = header.split(",").index("level")
    assert [line.split(",")[place] for line in lines] == ["DFT"] * 3

    save_model(tmp_path / f"{DEFAULT}.safetensors", new_model(levels=()), {})
    refusal = rf"The model {DEFAULT} has no levels of theory to choose from, got 'xTB'"
    with pytest.raises(ValueError, match=refusal):
        predict_files([smi, xyz], output, ModelChoice(), level="xTB")
    with pytest.raises(ValueError, match=refusal):
        predict_list(list(chained([file_records(xyz)])), ModelChoice(), config)


def test_a_card_names_the_levels_of_joined_data_sets() -> None:
    cards: list[JSON] = [
        {"name": "small", "level_of_theory": "DFT"},
        {"name": "small", "level_of_theory": "DFT"},
        {"name": "large", "level_of_theory": "xTB (program)"},
    ]
    data: JSON = {"name": "small + small + large", "level_of_theory": "DFT, xTB", "joined": cards}
    result: JSON = {"val": {"dipole_mae": 0.1}}
    card = ModelCard(provenance={"data": data, "result": result})
    assert card.accuracy == (
        "mean error 0.100 D on validation molecules (small + large, levels of theory DFT, xTB)"
    )


def test_one_name_for_a_batch(model: DipoleModel) -> None:
    batch = Batch.from_data_list([from_smiles(text)[0] for text in ("O", "CO")])
    batch.level = "xTB"
    found = model(batch).magnitude.tolist()
    assert found == pytest.approx(magnitudes(model, "xTB", "O", "CO"), rel=1e-5)


def test_structures_from_smiles_are_predicted_at_the_level_of_their_geometry(smi: Path) -> None:
    relaxed = f"DFT{FROM_FORCE_FIELD}"
    model = new_model((*LEVELS, relaxed))
    assert model.levels == list(LEVELS)
    found = predict_smiles(model, ["CO", "CCO"], conformers=ConformerConfig(conformers=1))
    assert [m.magnitude for m in found.molecules] == pytest.approx(
        magnitudes(model, relaxed, "CO", "CCO"), abs=1e-5
    )
    assert found.levels == [relaxed]
    # A level without one for such geometries is used as it is, and given structures are, too.
    (other,) = predict_smiles(model, ["CO"], level="xTB").molecules
    assert other.level == "xTB"
    (given,) = predict(model, from_smiles("CO"))
    assert given.magnitude == pytest.approx(magnitudes(model, "DFT", "CO")[0], abs=1e-5)
