from __future__ import annotations

import pytest
import torch
from rdkit import Chem, rdBase

from dipolegnn.molecules import MoleculeError, canonical_smiles, from_smiles, to_rdkit


def distance(pos: torch.Tensor, i: int, j: int) -> float:
    return float((pos[i] - pos[j]).norm())


def stereo_smiles_from_geometry(smiles: str, conformers: int = 1) -> set[str]:
    """Isomeric SMILES of the conformers, out of elements and coordinates alone."""
    found = set()
    for data in from_smiles(smiles, conformers=conformers):
        del data.mol_block
        found.add(Chem.MolToSmiles(Chem.RemoveHs(to_rdkit(data))))
    return found


def test_water() -> None:
    (water,) = from_smiles("O")
    assert water.z.tolist() == [8, 1, 1]
    assert 0.96 <= distance(water.pos, 0, 1) <= 0.97
    assert 0.96 <= distance(water.pos, 0, 2) <= 0.97
    assert 1.45 <= distance(water.pos, 1, 2) <= 1.60  # an angle of about 104 degrees
    assert (water.smiles, water.name, water.charge.item()) == ("O", "O", 0.0)
    assert water.dipole.isnan().all()


def test_atoms_are_in_the_order_of_the_smiles_then_hydrogens_by_parent() -> None:
    (data,) = from_smiles("FC(O)=N")
    assert data.z.tolist() == [9, 6, 8, 7, 1, 1]
    assert distance(data.pos, 2, 4) < 1.1 < distance(data.pos, 3, 4)
    assert distance(data.pos, 3, 5) < 1.1
    (explicit,) = from_smiles("[H]OC")
    assert explicit.z.tolist() == [8, 6, 1, 1, 1, 1]


@pytest.mark.parametrize("smiles", ["C[C@H](O)F", "C[C@@H](O)F", r"F/C=C\F", "F/C=C/F"])
def test_stereo_of_the_smiles_is_that_of_the_coordinates(smiles: str) -> None:
    assert stereo_smiles_from_geometry(smiles, 3) == {Chem.CanonSmiles(smiles)}


@pytest.mark.parametrize("smiles", ["CC(F)(Cl)C(O)=O", "FC=CCl", "OC(F)C(F)O"])
def test_unspecified_stereo_is_settled_once_for_all_conformers(smiles: str) -> None:
    one = stereo_smiles_from_geometry(smiles)
    assert len(one) == 1
    assert Chem.CanonSmiles(one.pop()) in stereo_smiles_from_geometry(smiles, 8)
    assert len(stereo_smiles_from_geometry(smiles, 8)) == 1


def test_isotopes_and_charges_survive() -> None:
    (heavy_water,) = from_smiles("[2H]O[2H]")
    mol = Chem.MolFromMolBlock(heavy_water.mol_block, removeHs=False)
    assert sorted(atom.GetIsotope() for atom in mol.GetAtoms()) == [0, 2, 2]
    assert heavy_water.z.tolist() == [1, 8, 1]
    (acetate,) = from_smiles("CC(=O)[O-]")
    assert acetate.charge.item() == -1.0
    assert Chem.GetFormalCharge(to_rdkit(acetate)) == -1
    (zwitterion,) = from_smiles("[NH3+]CC(=O)[O-]")
    assert zwitterion.charge.item() == 0.0


@pytest.mark.parametrize("smiles", ["[He]", "[Na+]", "[Cl-]", "[H][H]", "[C-]#[O+]", "O=C=O"])
def test_smallest_molecules(smiles: str) -> None:
    (data,) = from_smiles(smiles, conformers=3)
    assert data.pos.isfinite().all()


def test_uff_takes_over_where_mmff_has_no_parameters() -> None:
    (borane,) = from_smiles("B(C)(C)C")
    assert 1.4 < distance(borane.pos, 0, 1) < 1.7
    assert borane.energy.isfinite().all()


def test_lowest_energy_first_distinct_and_reproducible() -> None:
    first = from_smiles("OCCO", conformers=12, name="glycol", mol_id=5)
    energies = [data.energy.item() for data in first]
    assert 3 <= len(first) <= 12
    assert energies == sorted(energies)
    assert all(data.mol_id.item() == 5 and data.name == "glycol" for data in first)
    again = from_smiles("OCCO", conformers=12)
    assert all(torch.equal(a.pos, b.pos) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].pos, from_smiles("OCCO", conformers=12, seed=8)[0].pos)


def test_rotamers_of_the_hydroxyl_group_are_kept_and_repeats_are_not() -> None:
    assert len(from_smiles("CCO", conformers=20)) == 3  # anti, gauche and its mirror image
    assert len(from_smiles("c1ccccc1", conformers=5)) == 1
    assert len(from_smiles("CC(C)(C)C(C)(C)C", conformers=4)) == 1


@pytest.mark.parametrize(
    ("smiles", "words"),
    [
        ("", "SMILES is empty"),
        ("hello", "Not a valid SMILES: syntax error"),
        ("c1ccc", "unclosed ring"),
        ("C(C)(C)(C)(C)C", "valence.*5"),
        ("c1cccc1", "kekulize"),
        ("CC ethane", "Not a valid SMILES"),
        ("[Na+].[Cl-]", r"2 fragments .\[Na\+\], \[Cl-\]"),
        ("[CH3]", "unpaired electron"),
        ("[N]=O", "unpaired electron"),
        ("C*", "dummy atom"),
        ("[H+]", "no electron"),
        ("C1#CC1", "No 3D structure"),
        ("C[Pt]", "Neither MMFF94s nor UFF"),
    ],
)
def test_refused_in_words_and_without_a_sound(
    smiles: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status = rdBase.LogStatus()
    with pytest.raises(MoleculeError, match=words) as caught:
        from_smiles(smiles, name="culprit", row=7)
    assert (caught.value.molecule, caught.value.row) == ("culprit", 7)
    assert caught.value.remedy
    assert capfd.readouterr() == ("", "")
    assert rdBase.LogStatus() == status


def test_without_a_name_the_smiles_names_the_molecule() -> None:
    with pytest.raises(MoleculeError, match=r"molecule 'c1ccc': Not a valid SMILES"):
        from_smiles(" c1ccc ")


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="conformers must be at least 1, got 0"):
        from_smiles("O", conformers=0)


@pytest.mark.parametrize("smiles", ["C1CC2OC12", "C1C2NC12", "CC1C2OC12"])
def test_open_stereo_of_small_fused_rings_ends_up_possible(smiles: str) -> None:
    (data,) = from_smiles(smiles)
    assert canonical_smiles(smiles) == Chem.MolToSmiles(
        Chem.RemoveHs(to_rdkit(data)), isomericSmiles=False
    )
