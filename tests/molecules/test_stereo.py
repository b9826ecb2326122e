"""Stereochemistry that a SMILES does not define."""

from __future__ import annotations

import pytest
from rdkit import Chem

from dipolegnn.molecules import canonical_smiles, from_smiles

CIS, TRANS = r"Cl/C=C\Cl", "Cl/C=C/Cl"


@pytest.mark.parametrize(
    ("smiles", "elements"),
    [
        ("ClC=CCl", "double bond C2=C3"),
        ("CC=N", "double bond C2=N3"),  # the hydrogen of N is not in the SMILES
        ("CC(F)C(Cl)Br", "stereocentres C2, C4"),
        ("C[C@H](F)C(Cl)Br", "stereocentre C4"),
        ("CC1CCC(C)CC1", "stereocentres C2, C5"),  # cis and trans, neither is chiral
        ("OC1CC2CCC1C2", "stereocentres C2, C4, C7"),  # endo and exo
        ("CC(F)C=CC", "stereocentre C2 and double bond C4=C5"),
    ],
)
def test_undefined_stereochemistry_is_named(smiles: str, elements: str) -> None:
    (data,) = from_smiles(smiles)
    (note,) = data.notes
    assert note.startswith(f"the SMILES does not define the {elements}: this is ")
    isomer = note.split("this is ")[1].split(", and")[0]
    (defined,) = from_smiles(isomer)
    assert "notes" not in defined
    assert data.smiles == smiles


@pytest.mark.parametrize(
    "smiles",
    [
        "CCO",
        "CC(F)Cl",  # two mirror images
        "CC(F)/C=C/C",
        "C[C@H](F)[C@H](Cl)Br",
        "Cl/C=C/Cl",
        "CS(=O)CC",
        "C1CC2CCC1C2",  # norbornane: the bridgeheads are not independent
        "CC1(C)C2CCC1(C)C(=O)C2",  # camphor: two mirror images
        "C1C2CC3CC1CC(C2)C3",  # adamantane
        "C12C3C4C1C5C2C3C45",  # cubane
        "C1CC2CC2C1",  # cis-fused only
        "CC(C)=C=CC",  # an allene
        "C1CCC=CC1",  # cis only
    ],
)
def test_no_note_if_the_dipole_is_determined(smiles: str) -> None:
    (one,) = from_smiles(smiles)
    (all_isomers,) = from_smiles(smiles, stereoisomers=8)
    assert "notes" not in one
    assert "notes" not in all_isomers
    assert all_isomers.smiles == smiles


@pytest.mark.parametrize(
    ("smiles", "isomers"),
    [
        ("ClC=CCl", {CIS, TRANS}),
        ("CC1CCC(C)CC1", {"C[C@H]1CC[C@H](C)CC1", "C[C@H]1CC[C@@H](C)CC1"}),
        ("CC=CC=CC", {r"C/C=C/C=C/C", r"C/C=C\C=C\C", r"C/C=C\C=C/C"}),
    ],
)
def test_stereoisomers_are_enumerated(smiles: str, isomers: set[str]) -> None:
    found = from_smiles(smiles, stereoisomers=9, mol_id=2)
    assert {data.smiles for data in found} == {canonical_smiles(isomer) for isomer in isomers}
    assert [int(data.mol_id) for data in found] == [18 + k for k in range(len(isomers))]
    for data in found:
        assert f"this is {data.smiles}, one of {len(isomers)} stereoisomers" in data.notes[0]
        # The geometry is that of the isomer.
        mol = Chem.MolFromMolBlock(data.mol_block, removeHs=False)
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == data.smiles


def test_mirror_images_count_once() -> None:
    found = from_smiles("OC(C(=O)O)C(O)C(=O)O", stereoisomers=4, name="tartaric acid")
    assert len(found) == 2
    assert {data.name for data in found} == {f"tartaric acid ({data.smiles})" for data in found}
    (chiral,) = [data for data in found if len(data.notes) == 2]
    mirrored = "O=C(O)[C@H](O)[C@@H](O)C(=O)O", "O=C(O)[C@@H](O)[C@H](O)C(=O)O"
    assert chiral.smiles in mirrored
    other = mirrored[chiral.smiles == mirrored[0]]
    assert chiral.notes[1] == f"its mirror image {other} has the same magnitude"


def test_more_stereoisomers_than_wanted() -> None:
    found = from_smiles("OCC1OC(O)C(O)C(O)C1O", stereoisomers=3)
    assert len({data.smiles for data in found}) == len(found) == 3
    assert all("one of 3 stereoisomers, and there are more" in data.notes[0] for data in found)


def test_specified_elements_are_kept() -> None:
    found = from_smiles("C[C@H](F)C(Cl)Br", stereoisomers=4)
    assert {data.smiles for data in found} == {"C[C@H](F)[C@H](Cl)Br", "C[C@H](F)[C@@H](Cl)Br"}


def test_impossible_number() -> None:
    with pytest.raises(ValueError, match="stereoisomers must be at least 1, got 0"):
        from_smiles("O", stereoisomers=0)
