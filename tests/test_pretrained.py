"""The models that come with the package."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import dipolegnn
from dipolegnn.cli import main
from dipolegnn.inference.structures import predict
from dipolegnn.models import (
    DEFAULT,
    ENERGIES,
    FOLDER,
    elements_of,
    energy_model,
    load_model,
    names_for,
    pretrained_names,
)
from dipolegnn.molecules import from_smiles, write_file
from dipolegnn.nn import ConformerEnergyHead
from dipolegnn.nn.model import FROM_FORCE_FIELD
from tests.cli.helpers import assert_message, predictions

LARGEST_MB = 6


@pytest.fixture(autouse=True)
def no_other_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DIPOLEGNN_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)


def test_each_has_a_card_and_says_where_it_comes_from() -> None:
    assert pretrained_names() == [*("painn-organic", "painn-qm9", "painn-qm9-mmff94s", "painn-xtb")]
    for name in pretrained_names():
        path = FOLDER / f"{name}.safetensors"
        assert path.stat().st_size <= LARGEST_MB * 2**20
        card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
        assert card.startswith(f"# {name}\n")
        for what in ("licence", "level of theory", "## Accuracy", "## Limitations"):
            assert what in card
        provenance = load_model(name).card.provenance
        data, result = provenance["data"], provenance["result"]
        assert isinstance(data, dict)
        assert isinstance(result, dict)
        assert {"name", "level_of_theory", "elements"} <= data.keys()
        joined = data.get("joined", [data])
        assert isinstance(joined, list)
        assert all(isinstance(one, dict) and one["sha256"] for one in joined)
        val = result["val"]
        assert isinstance(val, dict)
        mae = val["dipole_mae"]
        assert isinstance(mae, float)
        assert f"MAE {mae:.4f} D" in card


def test_the_model_of_conformer_energies() -> None:
    card = (FOLDER / f"{ENERGIES}.md").read_text(encoding="utf-8")
    for what in (f"# {ENERGIES}", "licence", "level of theory", "## Accuracy", "## Limitations"):
        assert what in card
    model = energy_model()
    assert isinstance(model.head, ConformerEnergyHead)
    assert model.levels == ["DLPNO-CCSD(T)", "GFN2-xTB"]
    assert model.card.elements == frozenset(("H", *"CNOFPSI", "Cl", "Br"))
    val = model.card.get("result", "val")
    assert f"MAE {val['energy_mae']:.2f} kcal/mol" in card
    assert (FOLDER / f"{ENERGIES}.safetensors").stat().st_size <= LARGEST_MB * 2**20


# The atoms at the negative and the positive end, and the magnitude in debye by experiment (NIST
# CCCBDB) and by GFN2-xTB.
POLAR = [
    # (Two heavy atoms are too few for painn-qm9-mmff94s, as its error bar remarks.)
    ("C=O", 1, 0, {"painn-organic": 2.33, "painn-qm9": 2.33, "painn-xtb": 2.49}),
    (
        "CC#N",
        2,
        0,
        {"painn-organic": 3.92, "painn-qm9": 3.92, "painn-qm9-mmff94s": 3.92, "painn-xtb": 3.87},
    ),
    (
        "CC(C)=O",
        3,
        1,
        {"painn-organic": 2.88, "painn-qm9": 2.88, "painn-qm9-mmff94s": 2.88, "painn-xtb": 3.54},
    ),
]
CASES = [
    (name, smiles, negative, positive, magnitude)
    for smiles, negative, positive, magnitudes in POLAR
    for name, magnitude in magnitudes.items()
]


@pytest.mark.parametrize(("name", "smiles", "negative", "positive", "reference"), CASES)
def test_dipoles_point_from_negative_to_positive(
    name: str, smiles: str, negative: int, positive: int, reference: float
) -> None:
    (data,) = from_smiles(smiles)
    (found,) = predict(load_model(name), [data])
    assert found.dipole is not None
    bond = (data.pos[positive] - data.pos[negative]).double().numpy()
    cosine = (found.dipole @ bond) / found.magnitude / (bond @ bond) ** 0.5
    assert cosine > 0.99
    assert found.magnitude == pytest.approx(reference, abs=0.3)


def test_molecules_that_are_too_large_are_doubted() -> None:
    (decane,) = predict(load_model("painn-qm9-mmff94s"), from_smiles("CCCCCCCCCC"))
    assert decane.error is not None
    assert "10 heavy atoms" in "; ".join(decane.error.doubts)
    (ether,) = predict(load_model("painn-qm9-mmff94s"), from_smiles("CCOCC"))
    assert ether.error is not None
    assert ether.error.doubts == ()


@pytest.mark.parametrize(
    ("smiles", "b3lyp"), [("O", 1.80), ("N", 1.51), ("C=O", 2.10), ("C#N", 2.87), ("CO", 1.51)]
)
@pytest.mark.parametrize("name", ["painn-qm9", "painn-qm9-mmff94s"])
def test_the_smallest_molecules(name: str, smiles: str, b3lyp: float) -> None:
    (found,) = predict(load_model(name), from_smiles(smiles))
    assert found.magnitude == pytest.approx(b3lyp, abs=0.15)


def test_load_model() -> None:
    model = dipolegnn.load_model("painn-qm9")
    assert not model.training
    same = load_model("painn-qm9").state_dict()
    assert all(torch.equal(weight, same[key]) for key, weight in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match=r"no model painn\. .* painn-organic, painn-qm9, "):
        dipolegnn.load_model("painn")


def test_elements() -> None:
    assert elements_of("painn-qm9") == {"H", "C", "N", "O"}
    assert elements_of("painn-xtb") == {"H", "C", "N", "O", "F", "S", "Cl"}
    assert names_for(["H", "O"]) == pretrained_names()
    assert names_for(["H", "F"]) == ["painn-organic", "painn-xtb"]
    assert names_for(["H", "Si"]) == ["painn-organic"]
    assert names_for(["H", "Og"]) == []


def test_the_command_takes_the_default_and_names_it_with_its_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(DEFAULT).mkdir()  # of the user's own, and not meant
    write_file("one.xyz", from_smiles("C=O"))
    Path("table.csv").write_text("smiles\nC=O\n", encoding="utf-8")
    content = predictions(capsys, "C=O", "one.xyz", "table.csv", "C=O")
    Path(DEFAULT).rmdir()

    assert {molecule["model"] for molecule in content["molecules"]} == {DEFAULT}
    assert content["models"][DEFAULT]["accuracy"].startswith("mean error 0.")
    of_structures = load_model(DEFAULT).levels[0]
    of_smiles = f"{of_structures}{FROM_FORCE_FIELD}"
    levels = [molecule["level"] for molecule in content["molecules"]]
    assert levels == [of_smiles, of_structures, of_smiles, of_smiles]
    first, structure, second, third = (m["magnitude"] for m in content["molecules"])
    assert first == pytest.approx(second, abs=1e-6) == third
    assert first != pytest.approx(structure, abs=1e-4)
    named = predictions(capsys, "C=O", "one.xyz", "--model", "painn-qm9")
    assert {molecule["model"] for molecule in named["molecules"]} == {"painn-qm9"}
    main(["predict", "C=O", "one.xyz", "--output", "out.csv"])
    assert f"{DEFAULT} at {of_structures}: mean error" in capsys.readouterr().out
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        assert [row["level"] for row in csv.DictReader(file)] == levels[:2]


def test_the_command_refuses_an_element_that_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = predictions(capsys, "C=O", "C[GeH3]", "C[SiH3]")
    assert [molecule["name"] for molecule in content["molecules"]] == ["C=O", "C[SiH3]"]
    (failure,) = content["failures"]
    assert failure["problem"] == (
        f"It contains Ge, and {DEFAULT} was trained on B, Br, C, Cl, F, H, I, N, O, P, S, Si only"
    )
    assert failure["remedy"] == "Train a model on such molecules"
    assert failure["molecule"] == "C[GeH3]"
    (other,) = predictions(capsys, "CCl", "--model", "painn-qm9")["failures"]
    assert other["remedy"] == f"Use the model {DEFAULT}"


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "O", "--model", "painn-qm8"]) == 2
    assert_message(
        capsys,
        "There is no model painn-qm8. Give a model file, the folder of a run (with its "
        "model.safetensors), or one of painn-organic, painn-qm9, "
        "painn-qm9-mmff94s, painn-xtb.",
    )
