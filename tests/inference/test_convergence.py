"""Convergence of averages from SMILES with the number of conformers."""

from __future__ import annotations

from statistics import median

from rdkit import Chem

from dipolegnn import load_model
from dipolegnn.config import ConformerConfig
from dipolegnn.inference import predict_smiles
from dipolegnn.molecules.conformers import search_size

FLEXIBLE = [
    "CCCO",
    "OCCO",
    "FCCCF",
    "COCCOC",
    "NCC(=O)O",
    "OCCCCO",
    "CSCC[C@H](N)C(=O)O",
]


def test_twice_as_many_conformers_hardly_change_the_average() -> None:
    model = load_model("painn-organic")
    default = predict_smiles(model, FLEXIBLE).molecules
    changes = []
    for smiles, found in zip(FLEXIBLE, default, strict=True):
        _, most = search_size(Chem.MolFromSmiles(smiles))
        # At least twice as many as the search embeds.
        twice = predict_smiles(model, [smiles], conformers=ConformerConfig(2 * most))
        changes.append(abs(twice.molecules[0].magnitude - found.magnitude))
    assert median(changes) < 0.1
