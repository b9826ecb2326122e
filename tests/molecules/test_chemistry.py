from __future__ import annotations

import pytest
import torch
from rdkit import Chem
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
def test_what_can_turn(smiles: str, turns: bool) -> None:
    assert can_turn(smiles) is turns


def test_canonical_smiles_and_scaffold() -> None:
    assert canonical_smiles("OCC") == canonical_smiles("C(O)C") == "CCO"
    assert canonical_smiles("C[C@H](F)O") != canonical_smiles("C[C@@H](F)O")
    assert murcko_scaffold("CC(=O)Oc1ccccc1C(=O)O") == "c1ccccc1"
    assert murcko_scaffold("OCC") == ""
    with pytest.raises(MoleculeError, match="2 fragments"):
        murcko_scaffold("C.C")
