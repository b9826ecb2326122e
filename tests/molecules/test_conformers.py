from __future__ import annotations

import pytest
from rdkit import Chem

from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import from_smiles
from dipolegnn.molecules.chemistry import ENERGY_WINDOW
from dipolegnn.molecules.conformers import (
    FEWEST_CONFORMERS,
    MOST_CONFORMERS,
    conformers_needed,
)

DRUG = "CN1CCN(CC1)C(=O)c1ccc(NC(=O)CCc2ccccc2)cc1OC"


def needed(smiles: str) -> int:
    return conformers_needed(Chem.MolFromSmiles(smiles))


@pytest.mark.parametrize(
    "smiles",
    ["O", "CC", "c1ccccc1", "CC(N)=O", "C1CC1", "C1CC2CCC1C2", "C1C2CC3CC1CC(C2)C3", "O=C1C=CCC1"],
)
def test_a_rigid_molecule_needs_one_conformer(smiles: str) -> None:
    assert needed(smiles) == 1


@pytest.mark.parametrize(
    ("smiles", "count"),
    [("CCO", 8), ("OO", 8), ("OCCO", 32), ("C1CCCCC1", 8), ("OC1CCCCC1", 18), ("C1CCCCCC1", 18)],
)
def test_rotatable_bonds_and_flexible_rings_add_conformers(smiles: str, count: int) -> None:
    assert needed(smiles) == count


def test_the_number_is_limited_by_the_time() -> None:
    assert needed("OCC(O)C(O)CO") == MOST_CONFORMERS
    assert FEWEST_CONFORMERS < needed(DRUG) < 50
    assert needed("C" * 60) == FEWEST_CONFORMERS


def test_automatic_search() -> None:
    assert len(from_smiles("c1ccccc1", conformers="auto")) == 1
    assert len(from_smiles("CCO", conformers="auto")) == 3
    found = from_smiles("NCC(=O)NCC(=O)O", conformers="auto")
    energies = [data.energy.item() for data in found]
    assert 10 < len(found) <= needed("NCC(=O)NCC(=O)O")
    assert energies == sorted(energies)
    assert energies[-1] <= energies[0] + ENERGY_WINDOW


@pytest.mark.parametrize("seed", [0, 1])
def test_every_seed_gives_different_conformers(seed: int) -> None:
    found = from_smiles("NCCCO", conformers=6, seed=seed)
    assert len(found) > 2


def test_a_negative_seed_would_be_random() -> None:
    with pytest.raises(ValueError, match="conformer_seed must be 0 to 2147483647, got -1"):
        ConformerConfig(conformer_seed=-1)
