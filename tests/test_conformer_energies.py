"""The training of the model of conformer energies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dipolegnn._pyg import Batch, Data
from dipolegnn.data import About, ConformerDataset, JoinedDataset, Split, save_dataset
from dipolegnn.inference.pipeline import predict_smiles
from dipolegnn.models import load_model
from dipolegnn.molecules import Molecules, from_smiles
from dipolegnn.molecules.molecule import relabelled
from dipolegnn.nn import ConformerEnergyHead
from tests.test_public import script


def conformers(mol_id: int, smiles: str) -> list[Data]:
    found = from_smiles(smiles, conformers=4, mol_id=mol_id)
    # Energies with a large constant, as those of electronic structure have.
    return [relabelled(data, energy=float(data.energy) - 1000.0 * (mol_id + 1)) for data in found]


def test_it_learns_relative_energies(
    project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = script(project_root, "experiments", "conformer_energies")
    smiles = ("NCCCO", "CCCCO", "OCC=O")
    found = [data for k, text in enumerate(smiles) for data in conformers(k, text)]
    count = len(found)
    # For validation the same conformers: the epoch that is kept is the one that has learnt most.
    found += [data for k, text in enumerate(smiles, start=3) for data in conformers(k, text)]
    places = torch.arange(len(found))
    split = Split(places[:count], places[count:], places[:0])
    for name in training.LEVELS:
        about = About(name=name, level_of_theory="B3LYP/def2-TZVP")
        save_dataset(tmp_path / name, Molecules(found, []), about, split=split)

    words = ["--data", tmp_path, "--output", tmp_path / "run", "--max-epochs", 8, "--lr", 1e-3]
    training.main([str(word) for word in words])
    assert "kcal/mol" in capsys.readouterr().out
    model = load_model(tmp_path / "run", [])
    assert isinstance(model.head, ConformerEnergyHead)
    assert list(model.representation.levels) == list(training.LEVELS.values())

    # The training molecules: nearer than without differences.
    learnt = zero = 0.0
    for number in range(3):
        batch = Batch.from_data_list([data for data in found if int(data.mol_id) == number])
        (target,) = model.head.targets(model(batch), batch).values()
        learnt += float((target.predicted - target.reference).abs().sum().detach())
        zero += float(target.reference.abs().sum())
    assert learnt < 0.5 * zero

    again = ["--data", tmp_path, "--output", tmp_path / "more", "--start", tmp_path / "run"]
    training.main([*map(str, again), "--only-reference", "--max-epochs", "1"])
    assert load_model(tmp_path / "more", []).config == model.config


def test_levels_can_be_given(tmp_path: Path) -> None:
    found = conformers(0, "OCCO")
    split = Split(torch.arange(len(found)), torch.empty(0).long(), torch.empty(0).long())
    save_dataset(tmp_path / "a", Molecules(found, []), About(name="a"), split=split)
    joined = JoinedDataset([ConformerDataset(tmp_path / "a")], ["other"])
    assert joined.levels == ["other"]
    assert joined[0].level == "other"
    with pytest.raises(ValueError, match="one level of theory for each of 1 data sets, got 2"):
        JoinedDataset([ConformerDataset(tmp_path / "a")], ["one", "two"])


def test_the_report_compares_averages(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project_root / "experiments")  # for its module common
    report = script(project_root, "experiments", "conformer_report")
    pools = {text: conformers(k, text)[:3] for k, text in enumerate(("OCCO", "NCCCO", "CCCCO"))}
    found = [data for pool in pools.values() for data in pool]
    rng = np.random.default_rng(0)
    magnitudes = rng.uniform(0, 4, len(found))
    energies = {name: rng.uniform(0, 2, len(found)) for name in ("dlpno", "mmff", "gfn2", "b3lyp")}
    names = [data.smiles for data in found]
    arrays: dict[str, Any] = {
        "n": [len(data.z) for data in found],
        "z": torch.cat([data.z for data in found]),
        "pos": torch.cat([data.pos for data in found]),
        "charge": np.zeros(len(found)),
        "molecule": names,
        "smiles": names,
        "mu_b3lyp": magnitudes,
        **{f"energy_{name}": values for name, values in energies.items()},
    }
    np.savez(tmp_path / "drug_conformers.npz", **arrays)
    ids = torch.tensor([int(data.mol_id) for data in found])
    places = torch.arange(len(found))
    split = Split(places[ids == 0], places[ids > 0], places[:0])
    about = About(name="drug_conformers")
    save_dataset(tmp_path / "drug_conformers", Molecules(found, []), about, split=split)

    words = ["--sets", tmp_path, "--data", tmp_path, "--output", tmp_path / "out"]
    report.main([*map(str, words), "--methods", "mmff"])
    rows = json.loads((tmp_path / "out" / "conformers.json").read_text())
    by_method = {row["energies"]: row for row in rows if "average, MAE (D)" in row}

    def average(kind: NDArray[np.float64], rows: slice) -> float:
        weights = np.exp(-kind[rows] / 0.0019872 / 298.15)
        return float(weights @ magnitudes[rows] / weights.sum())

    second, third = slice(3, 6), slice(6, 9)
    for method, kind in (("GFN2-xTB", "gfn2"), ("equal weights", None)):
        errors = [
            abs(
                average(np.zeros(len(found)) if kind is None else energies[kind], rows)
                - average(energies["dlpno"], rows)
            )
            for rows in (second, third)
        ]
        assert by_method[method]["average, MAE (D)"] == pytest.approx(np.mean(errors), abs=6e-4)
        assert by_method[method]["molecules"] == 2  # the validation molecules
    (of_smiles,) = [row for row in rows if "s per molecule" in row]
    predicted = predict_smiles(load_model("painn-organic"), list(pools)[1:], energies="mmff")
    errors = [
        abs(one.magnitude - average(energies["dlpno"], rows))
        for one, rows in zip(predicted.molecules, (second, third), strict=True)
    ]
    assert of_smiles["MAE (D)"] == pytest.approx(np.mean(errors), abs=2e-3)
    assert "| GFN2-xTB | 2 |" in (tmp_path / "out" / "conformers.md").read_text()
