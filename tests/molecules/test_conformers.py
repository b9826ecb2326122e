from __future__ import annotations

import pytest
import torch
from rdkit import Chem

from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import from_smiles
from dipolegnn.molecules.chemistry import ENERGY_WINDOW
from dipolegnn.molecules.conformers import (
    FEWEST_CONFORMERS,
    MOST_CONFORMERS,
    search_size,
)

DRUG = "CN1CCN(CC1)C(=O)c1ccc(NC(=O)CCc2ccccc2)cc1OC"


def size(smiles: str) -> tuple[int, int]:
    return search_size(Chem.MolFromSmiles(smiles))


@pytest.mark.parametrize(
    "smiles",
    ["O", "CC", "c1ccccc1", "CC(N)=O", "C1CC1", "C1CC2CCC1C2", "C1C2CC3CC1CC(C2)C3", "O=C1C=CCC1"],
)
def test_a_rigid_molecule_needs_one_conformer(smiles: str) -> None:
    assert size(smiles) == (1, 1)


@pytest.mark.parametrize(
    ("smiles", "motions"),
    [("CCO", 1), ("OO", 1), ("OCCO", 3), ("C1CCCCC1", 1), ("OC1CCCCC1", 2), ("C1CCCCCC1", 2)],
)
def test_a_search_begins_by_rotatable_bonds_and_flexible_rings(smiles: str, motions: int) -> None:
    assert size(smiles) == (motions + 3, MOST_CONFORMERS)


def test_a_search_is_limited_by_time() -> None:
    first, most = size(DRUG)
    assert FEWEST_CONFORMERS < first <= most < 20
    assert size("C" * 60) == (FEWEST_CONFORMERS, FEWEST_CONFORMERS)


@pytest.mark.parametrize(
    ("smiles", "count"),
    [
        ("c1ccccc1", 1),
        ("CCO", 3),  # anti, gauche and its mirror image
        ("ClCCCl", 3),
        ("CC(C)(C)CC(C)(C)C", 1),
        ("CN1CCCC1=O", 1),  # a ring of five atoms with a mirror image like itself
    ],
)
def test_search(smiles: str, count: int) -> None:
    assert len(from_smiles(smiles, conformers="auto")) == count


def test_mirror_images_only_where_they_matter() -> None:
    # No conformer of lactic acid is the mirror image of another one.
    found = from_smiles("C[C@H](O)C(=O)O", conformers="auto")
    assert len({round(data.energy.item(), 3) for data in found}) == len(found)
    # Each conformer of ethanol but the first is chiral.
    _, one, other = from_smiles("CCO", conformers="auto")
    assert one.energy == other.energy
    flip = torch.tensor([1.0, 1.0, -1.0])
    assert torch.allclose(one.pos * flip, other.pos, atol=1e-6)


def test_a_search_is_in_order_reproducible_and_without_high_energies() -> None:
    smiles = "NCC(=O)NCC(=O)O"
    found = from_smiles(smiles, conformers="auto")
    energies = [data.energy.item() for data in found]
    assert len(found) > 10
    assert energies == sorted(energies)
    assert energies[-1] <= energies[0] + ENERGY_WINDOW
    again = from_smiles(smiles, conformers="auto")
    # Few are embedded of a large molecule.
    large = [data.energy.item() for data in from_smiles("C" * 26, conformers="auto")]
    assert len(large) <= FEWEST_CONFORMERS
    assert large[-1] <= large[0] + ENERGY_WINDOW
    assert all(torch.equal(a.pos, b.pos) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_seed_gives_different_conformers(seed: int) -> None:
    found = from_smiles("NCCCO", conformers=6, seed=seed)
    assert len(found) > 2


def test_a_negative_seed_would_be_random() -> None:
    with pytest.raises(ValueError, match="conformer_seed must be 0 to 2147483647, got -1"):
        ConformerConfig(conformer_seed=-1)
