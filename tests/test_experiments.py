"""Each experiment runs, in its fast mode, from data to results."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.data import About, ConformerDataset, make_split, save_dataset
from dipolegnn.inference.structures import Prediction, predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import load_model, save_model
from dipolegnn.molecules import Molecules, from_smiles, to_ase
from dipolegnn.nn import DipoleHead
from tests.tolerances import PRINTED_D

SMILES = ("O", "N", "C", "CO", "CC", "C=O", "CCO", "C#N", "CC#N", "CN", "CCC", "COC")


@pytest.fixture(scope="module")
def molecules() -> list[Data]:
    """With vectors that stand for labels: what counts is that they are there."""
    found = []
    for number, smiles in enumerate(SMILES):
        (data,) = from_smiles(smiles, mol_id=number)
        data.dipole = (data.pos[0] - data.pos[-1])[None]
        data.dipole_magnitude = data.dipole.norm(dim=1)
        found.append(data)
    return found


def script(root: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs an experiment as a user does."""
    return subprocess.run(
        [sys.executable, str(root / "experiments" / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )


def module(root: Path, name: str) -> ModuleType:
    """An experiment as a module: quicker than a process of its own."""
    spec = importlib.util.spec_from_file_location(name, root / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the names in annotations.
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_quickstart(project_root: Path, molecules: list[Data], tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    split = make_split(molecules, val=2, test=2)
    save_dataset(data, Molecules(molecules, []), About(name="few"), split=split)

    done = script(project_root, "quickstart", "--fast", "--data", str(data), "--output", str(run))

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in ("water", "aspirin", "experiment (D)", "magnitude MAE", "model.safetensors"):
        assert text in done.stdout
    for name in ("parity.png", "learning_curve.png", "aspirin.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    with (run / "test_predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tested = ConformerDataset(data)[split.test]
    assert [int(row["mol_id"]) for row in rows] == [int(d.mol_id) for d in tested]
    model = load_model(run / "model.safetensors")
    again = predict(model, list(tested))
    assert [float(row["predicted_D"]) for row in rows] == pytest.approx(
        [p.magnitude for p in again], abs=PRINTED_D
    )


def end_to_end(molecules: list[Data]) -> dict[str, NDArray[Any]]:
    """Molecules as the reference data have them."""
    return {
        "n": np.array([data.z.numel() for data in molecules], dtype=np.uint8),
        "z": torch.cat([data.z for data in molecules]).numpy().astype(np.uint8),
        "pos": torch.cat([data.pos for data in molecules]).numpy(),
        "mu": torch.cat([data.dipole_magnitude for data in molecules]).numpy(),
        "dipole": torch.cat([data.dipole for data in molecules]).numpy(),
        "dipole_ok": np.ones(len(molecules), dtype=bool),
        "qm9_index": np.arange(1, len(molecules) + 1, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def challenge_data(molecules: list[Data], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the format of the challenge's."""
    folder = tmp_path_factory.mktemp("challenge")
    arrays = end_to_end(molecules)
    number = np.arange(100, 100 + len(molecules), dtype=np.int32)
    structures = {name: arrays[name] for name in ("n", "z", "pos")} | {"molecule": number}
    labels = {"mu": arrays["mu"], "dipole": arrays["dipole"], "dipole_ok": number % 2 == 0}
    np.savez(folder / "challenge_test_structures.npz", allow_pickle=False, **structures)
    np.savez(folder / "challenge_train.npz", allow_pickle=False, **structures, **labels)
    return folder


def read_challenge(run: Path) -> dict[int, float]:
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["molecule", "dipole_magnitude"]
        return {int(row["molecule"]): float(row["dipole_magnitude"]) for row in reader}


def test_challenge_as_it_was_and_resumed(
    project_root: Path, challenge_data: Path, tmp_path: Path
) -> None:
    words = ["--fast", "--variant", "original", "--data", str(challenge_data)]
    words += ["--output", str(tmp_path)]
    module(project_root, "challenge").main(words)

    found = read_challenge(tmp_path)
    assert list(found) == list(range(100, 112))
    config = json.loads((tmp_path / "seed0" / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["head"]["class"] == "AtomwiseHead"
    recipe = config["train"]
    assert (recipe["loss"], recipe["early_stopping_patience"]) == ("mse", 13)

    # Resuming a finished run trains no further.
    (tmp_path / "predictions.csv").unlink()
    module(project_root, "challenge").main([*words, "--resume"])
    assert read_challenge(tmp_path) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("variant", ["corrected", "light", "best"])
def test_challenge_put_right(
    project_root: Path, challenge_data: Path, tmp_path: Path, variant: str
) -> None:
    words = ["--fast", "--variant", variant, "--data", str(challenge_data), "--vectors"]
    words += ["--output", str(tmp_path), "--seeds", "4", "--max-epochs", "3"]
    module(project_root, "challenge").main(words)

    assert min(read_challenge(tmp_path).values()) >= 0
    config = json.loads((tmp_path / "seed4" / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["head"]["class"] == "DipoleHead"
    assert (config["train"]["seed"], config["train"]["max_epochs"]) == (4, 3)
    dataset = ConformerDataset(tmp_path / "data-vectors-fast")
    sure = [bool(data.dipole.isfinite().all()) for data in dataset]
    assert sure == [number % 2 == 0 for number in range(len(dataset))]
    assert len(dataset.split().test) == 0


def vector(prediction: Prediction) -> NDArray[np.float64]:
    assert prediction.dipole is not None
    return prediction.dipole


def test_challenge_averages_over_seeds(
    project_root: Path,
    challenge_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    challenge = module(project_root, "challenge")
    words = ["--fast", "--variant", "light", "--data", str(challenge_data), "--vectors"]
    words += ["--output", str(tmp_path)]
    challenge.main([*words, "--seeds", "0"])
    first = read_challenge(tmp_path)
    challenge.main([*words, "--seeds", "1", "0", "--resume"])
    assert "seed 1, validation" in capsys.readouterr().out

    files = [tmp_path / f"seed{seed}" / "model.safetensors" for seed in (0, 1)]
    models = [load_model(file) for file in files]
    dataset = ConformerDataset(tmp_path / "data-vectors-fast")
    val = list(dataset[dataset.split().val])
    vectors = np.mean([[vector(p) for p in predict(model, val)] for model in models], axis=0)
    reference = np.array([float(data.dipole_magnitude) for data in val])
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content["average"]["dipole_mae"] == pytest.approx(
        np.abs(np.linalg.norm(vectors, axis=1) - reference).mean(), rel=1e-4
    )
    assert list(content["seeds"]) == ["1", "0"]
    assert content["seeds"]["0"] != content["seeds"]["1"]
    assert read_challenge(tmp_path) != first
    for picture in ("parity.png", "errors.png", "seed1/learning_curve.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="different numbers, got"):
        challenge.main([*words, "--seeds", "1", "1", "--resume"])


def test_an_average_of_magnitudes_where_vectors_have_no_sign(project_root: Path) -> None:
    challenge = module(project_root, "challenge")
    data = Data(z=torch.tensor([9, 1]), pos=torch.tensor([[0.0, 0, 0], [0, 0, 0.9]]))
    up, down = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.5])
    members = [Prediction(data, 1.0, up, np.zeros(2)), Prediction(data, 1.5, down, np.zeros(2))]
    assert challenge.average(members, False).magnitude == pytest.approx(1.25)
    assert challenge.average(members, True).magnitude == pytest.approx(0.25)


def test_the_schedule_put_right_gets_to_halve_the_rate_before_it_stops(project_root: Path) -> None:
    challenge = module(project_root, "challenge")
    for recipe, halved in ((challenge.ORIGINAL, False), (challenge.CORRECTED, True)):
        train = recipe.train
        # The second reduction comes patience + 1 epochs after the end of the first one's cooldown.
        second = 2 * (train.plateau_patience + 1) + train.plateau_cooldown
        assert (train.early_stopping_patience > second) == halved


def test_challenge_without_its_data_says_so(project_root: Path, tmp_path: Path) -> None:
    challenge = module(project_root, "challenge")
    with pytest.raises(SystemExit, match="name its folder with --data or DIPOLEGNN_DATA"):
        challenge.main(["--output", str(tmp_path / "run"), "--data", str(tmp_path)])


@pytest.fixture(scope="module")
def qm9_data(molecules: list[Data], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the format of QM9's, with four molecules in each part."""
    folder = tmp_path_factory.mktemp("qm9")
    arrays = end_to_end(molecules) | {"split": (np.arange(len(molecules)) % 3).astype(np.uint8)}
    np.savez(folder / "qm9_dipole.npz", allow_pickle=False, **arrays)
    return folder


@pytest.mark.parametrize(
    ("words", "kind", "val"),
    [
        ((), "PaiNN", 4),
        (("--representation", "schnet", "--head", "atomwise", "--validation", "2"), "SchNet", 2),
    ],
)
def test_qm9(
    project_root: Path, qm9_data: Path, tmp_path: Path, words: tuple[str, ...], kind: str, val: int
) -> None:
    run = tmp_path / "run"
    command = ["--fast", "--data", str(qm9_data), "--output", str(run), "--molecules", "3"]
    module(project_root, "qm9").main([*command, "--max-epochs", "2", *words])

    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["dipole_mae"] > 0
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["data"]["structures"] == {"train": 3, "val": val, "test": 4}
    assert config["model"]["representation"]["class"] == kind
    # By default on magnitudes alone.
    dataset = ConformerDataset(run / "qm9-fast")
    assert all(data.dipole.isnan().all() for data in dataset)
    assert sorted(dataset.mol_ids()[dataset.split().test].tolist()) == [3, 6, 9, 12]
    for name in ("parity.png", "learning_curve.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_qm9_at_the_geometries_of_a_force_field_and_from_another_model(
    project_root: Path, qm9_data: Path, tmp_path: Path
) -> None:
    qm9 = module(project_root, "qm9")
    words = ["--fast", "--data", str(qm9_data), "--max-epochs", "1"]
    qm9.main([*words, "--output", str(tmp_path / "first")])
    run = tmp_path / "second"
    start = tmp_path / "first" / "model.safetensors"
    words += ["--lr", "1e-9"]
    qm9.main([*words, "--output", str(run), "--geometry", "mmff94s", "--start", str(start)])

    # These came from MMFF94s, so that they stay where they are.
    before = ConformerDataset(tmp_path / "first" / "qm9-fast")
    after = ConformerDataset(run / "qm9-mmff94s-fast")
    assert after.card is not None
    assert after.card.geometry == "MMFF94s"
    assert after.mol_ids().tolist() == before.mol_ids().tolist()
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one.pos, other.pos, atol=0.01)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["data"]["geometry"] == "MMFF94s"
    first, second = (load_model(path).state_dict() for path in (start, run / "model.safetensors"))
    for name, weight in first.items():  # at this rate they hardly move
        assert torch.allclose(weight, second[name], atol=1e-6), name

    words += ["--output", str(tmp_path / "third"), "--start", str(start)]
    with pytest.raises(SystemExit, match="of another architecture"):
        qm9.main([*words, "--representation", "schnet"])


def test_molecules_that_cannot_be_relaxed_are_failures(project_root: Path) -> None:
    geometry = module(project_root, "geometry")
    (propane,) = from_smiles("CCC", name="propane")
    stretched = propane.clone()
    stretched.pos = propane.pos * 1.03
    found = geometry.relaxed(stretched)
    assert torch.allclose(torch.pdist(found.pos), torch.pdist(propane.pos), atol=0.01)
    # Where it lies is kept: it is laid upon what was given.
    assert torch.allclose(found.pos.mean(dim=0), stretched.pos.mean(dim=0), atol=1e-3)

    apart = propane.clone()
    apart.pos = propane.pos * 3
    found, failures = geometry.relax_all([propane, apart, stretched])
    assert [data is None for data in found] == [False, True, False]
    (failure,) = failures
    assert (failure.row, failure.molecule, failure.stage) == (2, "propane", "relax")


def test_geometries_of_rigid_molecules(
    project_root: Path, qm9_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(qm9_data), "--output", str(tmp_path), "--molecules", "3"]
    module(project_root, "geometry").main(words)

    content = json.loads((tmp_path / "geometry.json").read_text(encoding="utf-8"))
    rows = {(row["model"], row["geometry"]): row for row in content["rows"]}
    assert len(rows) == 6
    assert {row["molecules"] for row in rows.values()} == {3}
    # The "reference" geometries of this test are those of the force field.
    own = rows["painn-qm9", "QM9 (B3LYP)"]
    embedded = rows["painn-qm9", "ETKDG, MMFF94s"]
    assert own["mae_D"] == pytest.approx(embedded["mae_D"], abs=1e-3)
    assert rows["painn-qm9", "then GFN2-xTB"]["median_ms"] > embedded["median_ms"] > 0
    assert "3 rigid molecules of" in capsys.readouterr().out


def test_qm9_with_more_molecules_than_there_are(
    project_root: Path, qm9_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="--molecules must be between 1 and 4, got 5"):
        module(project_root, "qm9").main(
            ["--data", str(qm9_data), "--output", str(tmp_path), "--molecules", "5"]
        )


def test_publish_determines_the_sign(project_root: Path, qm9_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--fast", "--data", str(qm9_data), "--output", str(run), "--max-epochs", "1"]
    module(project_root, "qm9").main(words)
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    model = load_model(run / "model.safetensors")
    provenance = model.card.provenance
    assert isinstance(model.head, DipoleHead)
    model.head.reverse_()
    save_model(wrong, model, provenance)

    # A model and the same model with reversed vectors give the same result.
    found = []
    for source in (run / "model.safetensors", wrong):
        command = ["--model", str(source), "--output", str(right), "--data", str(qm9_data)]
        command += ["--calibrated", "0"]  # there are too few molecules for error bars
        module(project_root, "publish").main(command)
        published = load_model(right)
        about = published.card.provenance
        found.append(predict(published, from_smiles("CO"))[0].dipole)
        assert isinstance(about["sign"], dict)
        assert about["sign"]["settled_by"] == "GFN2-xTB"
        assert about["data"] == provenance["data"]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_external(
    project_root: Path, molecules: list[Data], qm9_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "experimental_dipoles.csv").write_text(
        "name,smiles,dipole_magnitude_debye\nwater,O,1.85\nchloromethane,CCl,1.87\n"
        "formaldehyde,C=O,2.33\nsalt,[Na+].[Cl-],9.0\n",
        encoding="utf-8",
    )
    for name in ("qm7b_ccsd", "qm9_mp2_vectors"):
        np.savez(tmp_path / f"{name}.npz", allow_pickle=False, **end_to_end(molecules))
    (tmp_path / "qm9_dipole.npz").write_bytes((qm9_data / "qm9_dipole.npz").read_bytes())
    out = tmp_path / "out"
    words = ["--data", str(tmp_path), "--output", str(out), "--molecules", "6"]
    module(project_root, "external").main([*words, "--conformers", "2"])

    rows = json.loads((out / "external.json").read_text(encoding="utf-8"))
    of_all = {
        (row["set"].split()[0], row["method"]): row
        for row in rows
        if row["part"] == "all" and row["elements of"] == "painn-qm9"
    }
    for method in ("painn-qm9", "GFN2-xTB"):
        row = of_all["experiment", method]
        assert (row["molecules"], row["left out"]) == (2, 1)  # without chlorine
        assert 0 < row["mae_D"] < 0.6
        assert of_all["QM7b,", method]["molecules"] == 6
        assert of_all["QM9's", method]["molecules"] == 4  # a third of them is QM9's test part
        assert 0 <= of_all["QM9's", method]["angle_median"] <= 180
    assert {row["part"] for row in rows} >= {"size 1–3", "element O"}
    text = (out / "external.md").read_text(encoding="utf-8")
    assert "| experiment (from SMILES) | painn-qm9 (1 left out) | all | GFN2-xTB | 2 |" in text
    assert "| experiment (from SMILES) | painn-qm9 | Cl 1 | – |" in text
    assert "- `[Na+].[Cl-]`: 2 fragments" in text
    labels = json.loads((out / "level_of_theory.json").read_text(encoding="utf-8"))
    assert {row["method"] for row in labels} == {"B3LYP/6-31G(2df,p)", "painn-qm9", "GFN2-xTB"}
    assert "| experiment |" in (out / "level_of_theory.md").read_text(encoding="utf-8")


def test_level_of_theory(project_root: Path, molecules: list[Data], tmp_path: Path) -> None:
    """Labels with errors that are known: 0.1, 0.3 and 0 D, and vectors the wrong way round."""
    arrays = end_to_end([*molecules, molecules[SMILES.index("C#N")]])
    magnitude = dict(zip(SMILES, arrays["mu"].tolist(), strict=False))
    number = arrays["qm9_index"]
    arrays["split"] = (number % 3).astype(np.uint8)
    np.savez(tmp_path / "qm9_dipole.npz", allow_pickle=False, **arrays)
    order = np.argsort(-number)
    reference = {"dipole": -arrays["dipole"][order], "qm9_index": number[order]}
    np.savez(tmp_path / "qm9_mp2_vectors.npz", allow_pickle=False, **reference)
    (tmp_path / "experimental_dipoles.csv").write_text(
        "name,smiles,dipole_magnitude_debye\n"
        f"methanol,OC,{magnitude['CO'] + 0.1}\nethanol,CCO,{magnitude['CCO'] - 0.3}\n"
        "ethylene,C=C,0\nheavy water,[2H]O[2H],1.85\nchloromethane,CCl,1.87\nbutane,CCCC,0\n"
        "hydrogen cyanide,C#N,3.0\n",  # there twice, as if in two stereoisomers
        encoding="utf-8",
    )
    rows, text = module(project_root, "external").compare_labels(tmp_path)

    of_all = {(row["set"].split()[0], row["method"]): row for row in rows if row["part"] == "all"}
    labels = of_all["experiment", "B3LYP/6-31G(2df,p)"]
    assert (labels["molecules"], labels["left out"]) == (3, 2)
    assert labels["mae_D"] == pytest.approx(0.4 / 3, abs=1e-3)
    assert labels["bias_D"] == pytest.approx(0.2 / 3, abs=1e-3)
    labels = of_all["QM9's", "B3LYP/6-31G(2df,p)"]
    assert labels["molecules"] == sum(number % 3 == 2)
    assert labels["mae_D"] == pytest.approx(0, abs=1e-6)
    assert labels["angle_median"] == pytest.approx(180)
    for method in ("painn-qm9", "GFN2-xTB"):
        assert of_all["experiment", method]["molecules"] == 3
        assert of_all["QM9's", method]["mae_D"] > 0.01
    assert "No B3LYP label for: butane, hydrogen cyanide" in text


def test_compare_speed(project_root: Path, tmp_path: Path) -> None:
    """Both sides run, and agree under the same weights: the script stops if they do not."""
    python = project_root / ".venv-peers" / "bin" / "python"
    if not (project_root / ".venv-peers" / "complete").exists():
        pytest.skip("schnetpack is not installed (make peers)")
    done = subprocess.run(
        [
            *(str(python), str(project_root / "experiments" / "compare_speed.py"), "--fast"),
            *("--repeats", "1", "--threads", "1", "--output", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert {row["peer"] for row in rows} == {"schnetpack", "torch_geometric"}
    assert all(row["ours_ms"] > 0 and row["peer_ms"] > 0 for row in rows)
    assert "| PaiNN F 128 L 3 | training |" in (tmp_path / "speed.md").read_text()


def test_infrared(project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infrared = module(project_root, "infrared")
    infrared.main(["--output", str(tmp_path), "--smiles", "O", "CCl"])

    out = capsys.readouterr().out
    assert "CCl: painn-qm9 was not trained on all of its elements" in out
    with (tmp_path / "infrared.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    water = [row for row in rows if row["molecule"] == "water" and row["method"] == "GFN2-xTB"]
    # Bend and two stretches; experiment: 1595, 3657 and 3756 per cm.
    assert [float(row["wavenumber_per_cm"]) for row in water] == pytest.approx(
        [1595, 3657, 3756], rel=0.05
    )
    assert all(float(row["intensity_km_per_mol"]) >= 0 for row in rows)
    assert len([row for row in rows if row["molecule"] == "CCl"]) == 2 * 9
    content = json.loads((tmp_path / "infrared.json").read_text(encoding="utf-8"))
    for method in ("painn-xtb", "painn-qm9"):
        assert 0.3 < content["water"][method]["overlap"] <= 1
        assert content["water"][method]["sum_rule_e"] < 1e-5
    assert (tmp_path / "infrared.png").read_bytes().startswith(b"\x89PNG")

    with pytest.raises(SystemExit, match="There is no model painn; there are"):
        infrared.main(["--models", "painn"])
    with pytest.raises(SystemExit, match="Not a valid SMILES"):
        infrared.main(["--smiles", "C1"])


def test_intensities_from_polar_tensors_are_those_of_ase(project_root: Path) -> None:
    """With GFN2-xTB's own polar tensors, by differences, in the place of the model's."""
    infrared = module(project_root, "infrared")
    (data,) = from_smiles("O")
    atoms = to_ase(label(data, xtb_calculator(XTBConfig()), optimize=True, fmax=0.001))
    atoms.calc = xtb_calculator(XTBConfig())
    _, modes, own = infrared.harmonic(atoms, "water")
    tensors = np.zeros((3, 3, 3))
    for atom, axis in np.ndindex(3, 3):
        ends = []
        for step in (0.005, -0.005):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[atom, axis] += step
            ends.append(moved.get_dipole_moment())
        tensors[atom, :, axis] = (ends[0] - ends[1]) / 0.01
    assert infrared.intensities(tensors, modes) == pytest.approx(own, rel=1e-3, abs=1e-3)


def test_coverage(
    project_root: Path,
    qm9_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("qm9_dipole.npz", "qm7b_ccsd.npz"):
        (folder / name).write_bytes((qm9_data / "qm9_dipole.npz").read_bytes())
    words = ["--data", str(folder), "--output", str(tmp_path / "out"), "--molecules", "60"]
    module(project_root, "interval_coverage").main(words)

    rows = json.loads((tmp_path / "out" / "coverage.json").read_text(encoding="utf-8"))
    whole = {(row["model"], row["set"]): row for row in rows if row["part"] == "all"}
    assert {model for model, _ in whole} == {"painn-qm9", "painn-qm9-mmff94s", "painn-xtb"}
    own = whole["painn-xtb", "small_molecules, test"]
    assert own["molecules"] == 60
    # 60 molecules: 90 % within four times their binomial spread of 4 %.
    assert own["coverage_90"] > 0.74
    assert own["coverage_68"] <= own["coverage_90"] <= own["coverage_95"]
    assert own["half_width_90_D"] > own["mae_D"]
    by_size = [
        row["molecules"]
        for row in rows
        if row["set"] == "small_molecules, test" and row["part"].startswith("size")
    ]
    assert sum(by_size) == 60
    assert "Predicting with error bars takes" in capsys.readouterr().out
    assert (tmp_path / "out" / "coverage.png").read_bytes().startswith(b"\x89PNG")


def test_throughput(project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    throughput = module(project_root, "throughput")
    path = tmp_path / "list.smi"
    path.write_text("O\nCCO\nC1CC\nCO\n")
    run = tmp_path / "run"
    words = ["--input", str(path), "--output", str(run), "--workers", "1", "--profiled", "3"]
    throughput.main(words)
    text = capsys.readouterr().out
    assert "4 molecules, 1 of them failed" in text
    assert "From SMILES, 2 molecules" in text
    assert "From structures (SDF), 2 molecules" in text
    found = json.loads((run / "throughput.json").read_text())
    for profile in found["profiles"]:
        assert sum(profile["steps"].values()) == pytest.approx(profile["total"])
        assert min(profile["steps"].values()) >= 0
    assert (run / "throughput.png").stat().st_size > 5000
    with gzip.open(run / "predictions.csv.gz", "rt") as file:
        assert len(file.readlines()) == 4


@pytest.mark.xdist_group("ray")  # one cluster
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what Ray leaves for the end
def test_ray_predict(ray_cluster: str, project_root: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows, out = tmp_path / "rows.parquet", tmp_path / "out"
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "SMILES": ["O", "C1", "CO"]}), rows)
    words = ["--input", str(rows), "--output", str(out), "--conformers", "2"]
    done = script(project_root, "ray_predict", *words, "--address", ray_cluster)
    assert done.returncode == 0, done.stderr
    assert "2 molecules and 1 failures" in done.stdout
    found = sorted(parquet.read_table(out).to_pylist(), key=lambda row: row["id"])
    assert [row["stage"] for row in found] == [None, "read", None]
    assert 1.4 < found[0]["magnitude_D"] < 2.2


def test_tables(project_root: Path) -> None:
    table = module(project_root, "common").markdown_table
    assert table(("model", "MAE, D"), [("a", "0.1"), ("b", 2)]) == (
        "| model | MAE, D |\n|---|---|\n| a | 0.1 |\n| b | 2 |"
    )
    with pytest.raises(ValueError, match=r"1 cells \('a',\) for 2 columns"):
        table(("model", "MAE, D"), [("a",)])
