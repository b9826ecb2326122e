"""Energies of conformers by other methods than the force field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Batch, Data
from dipolegnn.config import ConformerConfig, EnergyMethod, PredictConfig, XTBConfig
from dipolegnn.data import read_molecules, write_molecules
from dipolegnn.inference.energies import SOURCES, model_energies, with_energies
from dipolegnn.inference.output import Line, as_json
from dipolegnn.inference.pipeline import predict_list
from dipolegnn.inference.structures import Predictions, predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import energy_model, load_model
from dipolegnn.molecules import MoleculeError, SmilesRow, from_smiles, text_of
from dipolegnn.molecules.molecule import relabelled
from dipolegnn.molecules.records import Record, read_records
from dipolegnn.nn import ConformerEnergyHead, PaiNN, PropertyModel
from dipolegnn.units import BOLTZMANN_KCAL_PER_MOL_K

FEW = ConformerConfig(conformers=5)


def records(*smiles: str) -> list[Record]:
    return [Record(row, SmilesRow(row, text)) for row, text in enumerate(smiles, start=1)]


def test_weights_are_those_of_gfn2_energies() -> None:
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra xtb")
    model = load_model("painn-organic")
    config = PredictConfig(FEW, energies="xtb")
    found = predict_list(records("OCCO", "O", "not a SMILES", "NCCO"), model, config)
    assert [molecule.lowest.data.smiles for molecule in found.molecules] == ["OCCO", "O", "NCCO"]
    assert [failure.molecule for failure in found.failures] == ["not a SMILES"]
    for molecule, smiles in zip(found.molecules, ("OCCO", "O", "NCCO"), strict=True):
        conformers = from_smiles(smiles, conformers=5)
        assert len(molecule.conformers) == len(conformers)
        if smiles == "O":
            continue
        magnitudes = [p.magnitude for p in predict(model, conformers, level=molecule.level)]
        energies = [float(label(c, xtb_calculator(XTBConfig())).energy) for c in conformers]
        weights = np.exp(-(np.array(energies) - min(energies)) / BOLTZMANN_KCAL_PER_MOL_K / 298.15)
        mean = weights @ magnitudes / weights.sum()
        assert molecule.magnitude == pytest.approx(mean, abs=2e-3)
        assert molecule.weights[0] == pytest.approx(weights.max() / weights.sum(), abs=1e-3)
    stated = [one.get("energies") for one in json.loads(as_json(found, config))["molecules"]]
    assert stated == ["GFN2-xTB", None, "GFN2-xTB"]


def test_a_conformer_without_an_energy_is_an_error() -> None:
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra xtb")
    good, bad = from_smiles("CO")[0], from_smiles("CO")[0]
    bad.z = torch.full_like(bad.z, 100)  # an element that GFN2-xTB lacks
    first, second = with_energies([good, bad], "xtb", None, embedded=True)
    assert not isinstance(first, MoleculeError)
    assert math.isfinite(float(first.energy))
    assert isinstance(second, MoleculeError)


def test_energies_of_a_model() -> None:
    """At the level of force-field geometries where the model has it, one by one as in a batch."""
    torch.manual_seed(0)
    levels = ("A", "A from MMFF94s geometry")
    network = PaiNN(hidden_channels=16, num_interactions=1, levels=levels)
    torch.nn.init.normal_(network.get_parameter("level_embedding.weight"))
    model = PropertyModel(network, ConformerEnergyHead(16))
    conformers = [*from_smiles("OCCO", conformers=5), *from_smiles("NCCO", conformers=5)]
    embedded, given = (model_energies(model, conformers, embedded=e) for e in (True, False))
    assert not np.allclose(embedded, given, atol=1e-3)
    alone = [model_energies(model, [data], embedded=True)[0] for data in conformers]
    np.testing.assert_allclose(embedded, alone, atol=1e-4)
    changed = with_energies(conformers, "model", model, embedded=True)
    assert [float(data.energy) for data in changed if not isinstance(data, MoleculeError)] == (
        pytest.approx(embedded)
    )
    assert not np.allclose([float(data.energy) for data in conformers], embedded)  # copies


def file_of(structures: Sequence[Data], energies: Sequence[float | None], suffix: str) -> str:
    """Structures with names and energies, without numbers."""
    text = ""
    for data, energy in zip(structures, energies, strict=True):
        one = relabelled(data, energy=energy)
        if suffix == ".sdf":
            block = text_of([one], suffix)
            text += re.sub(r">  <mol_id>.*\n.*\n\n", "", block)
        else:
            text += re.sub(r" mol_id=\S+", "", text_of([one], suffix))
    assert "mol_id" not in text
    return text


def averages(text: str, name: str, energies: str = "auto") -> Predictions:
    config = replace(PredictConfig(), energies=cast(EnergyMethod, energies))
    return predict_list(read_records(text, name), load_model("painn-organic"), config)


@pytest.mark.parametrize("suffix", [".sdf", ".extxyz"])
def test_conformers_of_one_name_are_weighted_by_the_energies_of_the_file(suffix: str) -> None:
    glycol = from_smiles("OCCO", conformers=3, name="glycol")
    assert len(glycol) == 3
    others = [from_smiles("O", name="glycol")[0], from_smiles("O", name="water")[0]]
    gap = 298.15 * BOLTZMANN_KCAL_PER_MOL_K * math.log(2)
    text = file_of([*glycol, *others], [gap, 0.0, gap, 0.0, 0.0], suffix)

    found = averages(text, f"x{suffix}")

    assert [len(molecule.conformers) for molecule in found.molecules] == [3, 1, 1]
    assert [molecule.row for molecule in found.molecules] == [1, 4, 5]
    first = found.molecules[0]
    np.testing.assert_allclose(first.weights, [0.5, 0.25, 0.25], atol=1e-4)
    assert first.energies == "the file"
    assert Line.of(first, 0.9).energies == "the file"
    assert {int(conformer.data.mol_id) for conformer in first.conformers} == {0}
    # Given energies are kept.
    again = averages(text, f"x{suffix}", "mmff").molecules[0]
    assert (again.magnitude, again.energies) == (first.magnitude, "the file")


@pytest.mark.parametrize("method", ["mmff", "xtb", "model"])
@pytest.mark.parametrize("suffix", [".sdf", ".extxyz"])
def test_conformers_without_energies(suffix: str, method: str) -> None:
    if method == "xtb":
        pytest.importorskip("tblite", reason="GFN2-xTB needs the extra xtb")
    glycol = from_smiles("OCCO", conformers=3, name="glycol")
    text = file_of([*glycol, from_smiles("O")[0]], [None] * 4, suffix)

    apart = averages(text, f"x{suffix}")
    assert [len(molecule.conformers) for molecule in apart.molecules] == [1] * 4

    found = averages(text, f"x{suffix}", method)
    assert [len(molecule.conformers) for molecule in found.molecules] == [3, 1]
    molecule = found.molecules[0]
    assert molecule.energies == SOURCES[cast(EnergyMethod, method)]
    expected = [float(data.energy) for data in glycol]
    if method == "model":
        expected = model_energies(energy_model(), glycol)
    if method == "xtb":
        expected = [float(label(data, xtb_calculator(XTBConfig())).energy) for data in glycol]
    energies = [float(conformer.data.energy) for conformer in molecule.conformers]
    # The coordinates in the file have few decimals.
    assert np.diff(energies) == pytest.approx(np.diff(sorted(expected)), abs=0.02)


def test_structures_of_one_number_are_averaged() -> None:
    glycol = from_smiles("OCCO", conformers=2, name="glycol")
    text = text_of([relabelled(data) for data in glycol], ".extxyz")
    (molecule,) = averages(text, "x.extxyz").molecules
    assert len(molecule.conformers) == 2
    assert molecule.energies == SOURCES["model"]


def test_without_energies_structures_of_one_number_are_named() -> None:
    """The model of energies was not trained on silicon."""
    silanes = from_smiles("C[SiH2]CCC", conformers=4, name="silane")[:2]
    text = text_of([relabelled(data) for data in silanes], ".extxyz")
    found = averages(text, "x.extxyz")
    note = "one of 2 conformers without energies, not averaged (option energies)"
    assert [note in molecule.notes for molecule in found.molecules] == [True, True]
    (molecule,) = averages(text, "x.extxyz", "mmff").molecules
    assert len(molecule.conformers) == 2
    assert note not in molecule.notes


def test_the_force_field_where_the_model_of_energies_lacks_an_element() -> None:
    config = PredictConfig(FEW)
    found = predict_list(records("C[SiH2]CCC", "CCCO"), load_model("painn-organic"), config)
    assert [molecule.energies for molecule in found.molecules] == [
        SOURCES["mmff"],
        SOURCES["model"],
    ]


def test_rigid_molecules_do_not_load_the_model_of_energies(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("dipolegnn.inference.pipeline.energy_model", load)
    config = PredictConfig(ConformerConfig(conformers="auto", stereoisomers=2))
    found = predict_list(records("O", "ClC=CCl"), load_model("painn-organic"), config)
    assert [molecule.energies for molecule in found.molecules] == ["", "", ""]


def test_predicted_structures_have_the_usual_fields(tmp_path: Path) -> None:
    """They can be put into one batch and one file, with weights from energies or not."""
    config = PredictConfig(FEW)
    found = predict_list(records("O", "OCCO"), load_model("painn-organic"), config).molecules
    structures = [c.as_labels() for molecule in found for c in molecule.conformers]
    assert Batch.from_data_list(structures).num_graphs == len(structures) > 2
    write_molecules(tmp_path / "m.npz", structures)
    assert len(read_molecules(tmp_path / "m.npz")) == len(structures)


def test_energies_of_many_conformers_need_no_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    conformers = from_smiles("OCCCO", conformers=6)
    at_once = model_energies(energy_model(), conformers)
    monkeypatch.setattr("dipolegnn.inference.energies.BATCH_ATOMS", 20)
    np.testing.assert_allclose(model_energies(energy_model(), conformers), at_once, atol=1e-3)


def test_the_model_of_energies_on_known_cases() -> None:
    """1,2-Dichloroethane in the gas is mostly anti; experiment: 1.2 kcal/mol below gauche."""
    anti, *gauche = sorted(
        from_smiles("ClCCCl", conformers=20), key=lambda data: -float(torch.pdist(data.pos).max())
    )
    energies = model_energies(energy_model(), [anti, gauche[0]], embedded=True)
    assert 0.3 < energies[1] - energies[0] < 1.6


def test_other_atoms_are_no_conformers() -> None:
    text = text_of([relabelled(from_smiles(s)[0]) for s in ("O", "N")], ".extxyz")
    assert len(averages(text, "x.extxyz").molecules) == 2
    found = averages(text, "x.extxyz", "mmff")
    assert [failure.stage for failure in found.failures] == ["energy", "energy"]
    assert "other atoms" in found.failures[0].problem


def test_a_broken_structure_does_not_separate_conformers() -> None:
    glycol = from_smiles("OCCO", conformers=2, name="glycol")
    first, second = (file_of([data], [0.0], ".extxyz") for data in glycol)
    broken = first.replace(first.splitlines()[-1], "Xx 0 0 0")
    found = averages(first + broken + second, "x.extxyz")
    assert [failure.row for failure in found.failures] == [2]
    (molecule,) = found.molecules
    assert len(molecule.conformers) == 2
