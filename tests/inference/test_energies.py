"""Energies of conformers by other methods than the force field."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dipolegnn.config import ConformerConfig, PredictConfig, XTBConfig
from dipolegnn.inference.energies import model_energies, with_energies
from dipolegnn.inference.output import as_json
from dipolegnn.inference.pipeline import predict_list
from dipolegnn.inference.structures import predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import load_model
from dipolegnn.molecules import MoleculeError, SmilesRow, from_smiles
from dipolegnn.molecules.records import Record
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
