from __future__ import annotations

import pytest
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor, rdDistGeom

from dipolegnn.molecules import (
    MoleculeError,
    can_turn,
    canonical_smiles,
    from_rdkit,
    from_smiles,
    make_data,
    murcko_scaffold,
    to_rdkit,
)


def embedded(smiles: str, conformers: int = 1) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMultipleConfs(mol, conformers, randomSeed=1)
    return mol


def test_one_data_per_conformer_in_the_order_of_the_molecule() -> None:
    mol = embedded("OCC", 3)
    mol.SetProp("_Name", "ethanol")
    found = from_rdkit(mol, mol_id=2)
    assert len(found) == 3
    for data, conformer in zip(found, mol.GetConformers(), strict=True):
        assert data.pos.numpy() == pytest.approx(conformer.GetPositions(), abs=1e-6)
        assert data.z.tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        assert (data.name, data.smiles, data.mol_id.item()) == ("ethanol", "CCO", 2)
    assert from_rdkit(mol, name="spirit")[0].name == "spirit"


def test_refused() -> None:
    with pytest.raises(MoleculeError, match="molecule 'CCO': The molecule has no 3D structure"):
        from_rdkit(Chem.MolFromSmiles("CCO"))
    drawing = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDepictor.Compute2DCoords(drawing)
    with pytest.raises(MoleculeError, match="2D drawing"):
        from_rdkit(drawing)
    drawing.GetConformer().Set3D(True)
    with pytest.raises(MoleculeError, match=r"atom 1 .C. has 4 neighbours.*2D drawing"):
        from_rdkit(drawing)
    with pytest.raises(MoleculeError, match=r"6 hydrogen atom.s. have no coordinates.*AddHs"):
        from_rdkit(Chem.RemoveHs(embedded("CCO")))
    radical = Chem.RWMol(embedded("C"))
    radical.RemoveAtom(4)
    radical.GetAtomWithIdx(0).SetNoImplicit(True)
    with pytest.raises(MoleculeError, match="unpaired electron"):
        from_rdkit(radical)
    with pytest.raises(MoleculeError, match="no atoms"):
        from_rdkit(Chem.Mol())
    dummy = Chem.RWMol(embedded("C"))
    dummy.GetAtomWithIdx(4).SetAtomicNum(0)
    with pytest.raises(MoleculeError, match="dummy atom"):
        from_rdkit(dummy)


def test_rdkits_warnings_are_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    molecules = embedded("[H][H]"), embedded("[H-]")
    assert "not removing hydrogen" in capfd.readouterr().err  # RDKit's, and the test's own
    (hydrogen,), (hydride,) = (from_rdkit(mol) for mol in molecules)
    assert (hydrogen.smiles, hydride.smiles) == ("[H][H]", "[H-]")
    assert canonical_smiles("[2H][H]") == "[H][2H]"
    assert murcko_scaffold("[H][H]") == ""
    assert capfd.readouterr() == ("", "")


def test_to_rdkit_has_the_bonds_of_the_block_and_the_coordinates_of_the_data() -> None:
    (data,) = from_smiles("C[C@H]([NH3+])C(=O)[O-]", name="alanine")
    data.pos = data.pos + 1.0
    mol = to_rdkit(data)
    assert torch.allclose(torch.tensor(mol.GetConformer().GetPositions()).float(), data.pos)
    assert mol.GetProp("_Name") == "alanine"
    assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.CanonSmiles("C[C@H]([NH3+])C(=O)[O-]")


@pytest.mark.parametrize("smiles", ["c1ccncc1", "CC(=O)[O-]", "N#CC=O", "C[N+](C)(C)C"])
def test_bonds_are_perceived_without_a_block(smiles: str) -> None:
    (data,) = from_smiles(smiles)
    del data.mol_block
    assert Chem.MolToSmiles(Chem.RemoveHs(to_rdkit(data))) == Chem.CanonSmiles(smiles)


def test_no_bonds_fit(capfd: pytest.CaptureFixture[str]) -> None:
    octahedron = [[0.0, 0.0, 0.0], [1.3, 0.0, 0.0], [-1.3, 0.0, 0.0], [0.0, 1.3, 0.0]]
    octahedron += [[0.0, -1.3, 0.0], [0.0, 0.0, 1.3], [0.0, 0.0, -1.3]]
    crowded = make_data([6, 9, 9, 9, 9, 9, 9], octahedron, name="CF6")
    with pytest.raises(MoleculeError, match=r"molecule 'CF6': No bonds fit.*\.extxyz"):
        to_rdkit(crowded)
    assert capfd.readouterr() == ("", "")


def test_a_block_of_another_molecule_is_refused() -> None:
    (water,), (ammonia,) = from_smiles("O"), from_smiles("N")
    water.mol_block = ammonia.mol_block
    with pytest.raises(MoleculeError, match="atoms of its mol_block are not those of z"):
        to_rdkit(water)
    water.mol_block = "no block"
    with pytest.raises(MoleculeError, match="mol_block cannot be read"):
        to_rdkit(water)


@pytest.mark.parametrize(
    ("smiles", "turns"),
    [
        ("CCO", True),
        ("CC(=O)O", True),
        ("CCN", True),
        ("CCCC", True),
        ("C=CC=C", True),
        ("c1ccccc1-c1ccccc1", True),
        ("CCS", True),
        ("O", False),
        ("CO", False),
        ("CN", False),
        ("CCC", False),
        ("CC(N)=O", False),
        ("Nc1ccccc1", False),
        ("CC#CC", False),
        ("CCC#N", False),
        ("COC", False),
        ("C1CCCCC1", False),
    ],
)
def test_rotatable_bonds(smiles: str, turns: bool) -> None:
    assert can_turn(smiles) is turns


def test_canonical_smiles_and_scaffold() -> None:
    assert canonical_smiles("OCC") == canonical_smiles("C(O)C") == "CCO"
    assert canonical_smiles("C[C@H](F)O") != canonical_smiles("C[C@@H](F)O")
    assert murcko_scaffold("CC(=O)Oc1ccccc1C(=O)O") == "c1ccccc1"
    assert murcko_scaffold("OCC") == ""
    with pytest.raises(MoleculeError, match="2 fragments"):
        murcko_scaffold("C.C")


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
def test_refusals_have_a_message_and_print_nothing(
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


@pytest.mark.parametrize(
    ("salt", "kept", "others", "charge"),
    [
        ("[Na+].CC(=O)[O-]", "CC(=O)[O-]", "[Na+]", -1),
        ("Cl.NCCc1ccccc1", "NCCc1ccccc1", "Cl", 0),
        ("O.[Cl-].C[N+](C)(C)C.O", "C[N+](C)(C)C", "O, [Cl-], O", 1),
        ("C.O", "C", "O", 0),  # as many heavy atoms, more hydrogens
    ],
)
def test_largest_fragment(salt: str, kept: str, others: str, charge: int) -> None:
    (data,) = from_smiles(salt, largest_fragment=True)
    (expected,) = from_smiles(kept)
    assert torch.equal(data.pos, expected.pos)
    assert (data.smiles, data.name, float(data.charge)) == (kept, salt, charge)
    assert data.notes == [f"the largest fragment, {kept}; left out: {others}"]
    with pytest.raises(MoleculeError, match=r"Keep the largest fragment only \(--largest-fragment"):
        from_smiles(salt)


def test_the_largest_fragment_of_one_is_the_molecule() -> None:
    (data,) = from_smiles("OCC", largest_fragment=True)
    assert data.smiles == "OCC"
    assert "notes" not in data


def test_undefined_stereochemistry_of_the_largest_fragment() -> None:
    found = from_smiles("Cl.ClC=CCl", largest_fragment=True, stereoisomers=2, name="salt")
    assert {data.smiles for data in found} == {"Cl/C=C/Cl", r"Cl/C=C\Cl"}
    assert all("left out: Cl" in data.notes[0] for data in found)
    assert all("double bond C2=C3" in data.notes[1] for data in found)
