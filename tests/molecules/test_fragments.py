"""Fragments of structures without bonds, and how the total charge is shared between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem

from dipolegnn._pyg import Batch, Data
from dipolegnn.data import read_molecules, write_molecules
from dipolegnn.molecules import MoleculeError, from_rdkit, from_smiles, make_data
from dipolegnn.molecules.fragments import broken_bonds
from dipolegnn.molecules.molecule import relabelled


def apart(*smiles: str, distance: float = 12.0, charge: int | None = None) -> Data:
    """Molecules along a line, as one structure without bonds."""
    parts = [from_smiles(text)[0] for text in smiles]
    shift = torch.tensor([distance, 0.0, 0.0])
    total = sum(round(part.charge.item()) for part in parts)
    return make_data(
        torch.cat([part.z for part in parts]),
        torch.cat([part.pos + k * shift for k, part in enumerate(parts)]),
        charge=total if charge is None else charge,
    )


def charges_by_fragment(data: Data) -> list[float]:
    found = dict(zip(data.fragment.tolist(), data.fragment_charge.tolist(), strict=True))
    return list(found.values())


@pytest.mark.parametrize(
    "smiles",
    [
        ["O", "CO", "c1ccccc1"],
        ["[NH4+]", "O"],
        ["C[NH3+]", "CC(=O)[O-]"],
        ["CC(=O)[O-]", "C[NH3+]", "O"],
        ["[Na+]", "[Cl-]"],
        ["Cn1cc[n+](C)c1", "F[B-](F)(F)F"],
        ["Cn1cc[n+](C)c1", "F[P-](F)(F)(F)(F)F"],  # RDKit finds no bonds of the anion
        ["[I-]", "C[N+](C)(C)C", "[Br-]", "CC[NH3+]"],
        ["[O-]c1ccccc1", "CC(=O)[O-]"],
        ["Cl", "[OH3+]", "[Cl-]"],
    ],
    ids=".".join,
)
def test_fragments_and_charges_of_a_structure(smiles: list[str]) -> None:
    expected = [float(from_smiles(text)[0].charge) for text in smiles]
    data = apart(*smiles)
    assert charges_by_fragment(data) == expected
    sizes = [len(from_smiles(text)[0].z) for text in smiles]
    assert data.fragment.bincount().tolist() == sizes


@pytest.mark.parametrize("distance", [2.8, 3.5])
def test_hydrogen_bonds_do_not_join_molecules(distance: float) -> None:
    assert charges_by_fragment(apart("O", "N", distance=distance)) == [0, 0]


def test_every_atom_of_a_strained_molecule_is_bonded() -> None:
    for smiles in ("C1CC1(Br)Br", "CSSC", "II", "C[Si](C)(C)[Si](C)(C)C", "N#N", "[H][H]", "O=S=O"):
        assert not from_smiles(smiles)[0].fragment.any()
        data = from_smiles(smiles)[0]
        assert not make_data(data.z, data.pos).fragment.any()


def test_one_fragment_has_the_total_charge() -> None:
    data = from_smiles("[NH3+]CC([NH3+])C")[0]
    assert data.fragment_charge.tolist() == [2.0] * len(data.z)


def test_a_stretched_bond_does_not_make_two_fragments() -> None:
    for z, length in (([1, 17], 2.4), ([1, 9], 1.5), ([6, 1], 2.0)):
        data = make_data(z, np.diag([0, 0, length])[1:], charge=sum(z) % 2)
        assert not data.fragment.any()
    water = make_data([8, 1, 1], [[0.0, 0, 0], [1.6, 0, 0], [-0.5, 1.5, 0]])
    assert not water.fragment.any()
    with pytest.raises(MoleculeError, match="unknown way"):
        make_data([1, 1], [[0, 0, 0], [0, 0, 4]])


@pytest.mark.parametrize("charge", [2, -2])
def test_an_unknown_share_of_the_charge_is_an_error(charge: int) -> None:
    message = r"2 parts without bonds to each other \(3 atoms from O1, 4 atoms from N4\) share"
    with pytest.raises(MoleculeError, match=message):
        apart("O", "N", charge=charge)


def test_two_atoms_that_could_be_either_ion_are_an_error() -> None:
    with pytest.raises(MoleculeError, match=r"1 atom from B1, 1 atom from N2.*in an unknown way"):
        make_data([5, 7], [[0, 0, 0], [0, 0, 9]])


def test_bonds_decide_where_they_are_known() -> None:
    """The salt of a zwitterion and an ion pair, from an RDKit molecule."""
    mol = Chem.AddHs(Chem.MolFromSmiles("[NH3+]CC(=O)[O-].[O-2].[Mg+2]"))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    glycine = from_smiles("[NH3+]CC(=O)[O-]")[0]
    atoms = [atom.GetIdx() for atom in mol.GetAtoms()]
    heavy = [i for i in atoms if mol.GetAtomWithIdx(i).GetAtomicNum() > 1]
    hydrogen = [i for i in atoms if i not in heavy]
    for place, position in zip([*heavy[:5], *hydrogen], glycine.pos.tolist(), strict=True):
        conformer.SetAtomPosition(place, position)
    conformer.SetAtomPosition(5, (20.0, 0.0, 0.0))
    conformer.SetAtomPosition(6, (22.0, 0.0, 0.0))
    conformer.Set3D(True)
    mol.AddConformer(conformer)
    (data,) = from_rdkit(mol)
    assert charges_by_fragment(data) == [0.0, -2.0, 2.0]


def test_given_fragments_are_checked() -> None:
    z, pos = [2, 2], [[0, 0, 0], [0, 0, 5]]
    for fragments, message in (
        (([0], [0]), r"each of 2 atoms, got \[1\] and \[1\]"),
        (([0, 2], [0, 0]), r"numbers of the fragments are \[0\.0, 2\.0\]"),
        (([0, 1], [0, 1]), r"charges \[0\.0, 1\.0\] and the molecule \+0 e"),
        (([0, 0], [0, 1]), r"Give all atoms of a fragment its charge"),
    ):
        with pytest.raises(MoleculeError, match=message):
            make_data(z, pos, fragments=fragments)


def test_fragments_are_stored_and_survive_new_labels(tmp_path: Path) -> None:
    data = apart("C[NH3+]", "CC(=O)[O-]")
    moved = relabelled(data, pos=np.zeros((len(data.z), 3)) + 3.0 * np.arange(len(data.z))[:, None])
    assert torch.equal(moved.fragment, data.fragment)
    assert torch.equal(moved.fragment_charge, data.fragment_charge)
    single = from_smiles("[NH4+]")[0]
    write_molecules(tmp_path / "both.npz", [data, single])
    for read, written in zip(read_molecules(tmp_path / "both.npz"), (data, single), strict=True):
        assert torch.equal(read.fragment, written.fragment)
        assert torch.equal(read.fragment_charge, written.fragment_charge)


def test_files_without_fragments_hold_molecules_of_one(tmp_path: Path) -> None:
    ion = from_smiles("[NH4+]")[0]
    write_molecules(tmp_path / "one.npz", [ion, from_smiles("O")[0]])
    assert "fragment" not in np.load(tmp_path / "one.npz")
    read = read_molecules(tmp_path / "one.npz")
    assert read[0].fragment_charge.tolist() == [1.0] * 5
    assert read[1].fragment_charge.tolist() == [0.0] * 3


def broken(*molecules: Data) -> dict[int, str]:
    whole = Batch.from_data_list(list(molecules), exclude_keys=["mol_block"])
    given = (whole.z, whole.pos.double(), whole.batch, whole.fragment, whole.fragment_charge)
    return broken_bonds(*(values.numpy() for values in given))


def test_broken_bonds() -> None:
    (water,) = from_smiles("O")
    oxide = make_data([6, 8], np.diag([0.0, 0.0, 30.0])[1:])
    (ethane,) = from_smiles("CC")
    torn = ethane.clone()
    torn.pos = torn.pos + 3.0 * (torch.tensor([0, 1, 0, 0, 0, 1, 1, 1])[:, None])
    found = broken(water, oxide, ethane, torn)
    assert found.keys() == {1, 3}
    assert found[1] == "the atom C1 has no bond"
    assert "between C2 and C1" in found[3] or "between C1 and C2" in found[3]
    assert "is broken or stretched (" in found[3]


@pytest.mark.parametrize(
    ("z", "pos", "charge"),
    [
        ([18], [[0, 0, 0]], 0),
        ([2, 18], [[0, 0, 0], [0, 0, 3.0]], 0),
        ([11, 17], [[0, 0, 0], [0, 0, 40.0]], 0),
        ([12, 17, 17], [[0, 0, 0], [0, 0, 2.2], [0, 0, -2.2]], 0),
        ([8, 1, 1, 18], [[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59], [0, 0, 30.0]], 0),
        ([17], [[0, 0, 0]], -1),
        ([53, 53], [[0, 0, 0], [0, 0, 2.67]], 0),
    ],
)
def test_atoms_and_ions_may_be_alone(z: list[int], pos: list[list[float]], charge: int) -> None:
    assert broken(make_data(z, pos, charge=charge)) == {}


@pytest.mark.parametrize("folder", ["smallest", "small_molecules", "organic"])
def test_no_bond_of_a_data_set_is_broken(folder: str) -> None:
    path = Path(__file__).resolve().parents[2] / "datasets" / folder / "raw" / "molecules.npz"
    found = broken(*read_molecules(path))
    assert found == {}
