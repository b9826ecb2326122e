"""Several data sets as one, with their levels of theory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dipolegnn.data import About, ConformerDataset, JoinedDataset, make_split, save_dataset
from dipolegnn.data.datamodule import why_not_packed
from dipolegnn.molecules import Molecules, from_smiles
from dipolegnn.molecules.molecule import relabelled


def dataset(folder: Path, level: str, *smiles: str, mol_id: int = 0) -> ConformerDataset:
    data = []
    for place, text in enumerate(smiles):
        for conformer in from_smiles(text, mol_id=mol_id + place):
            data.append(relabelled(conformer, dipole=[0.0, 0.0, 1.0 + place]))
    about = About(name=folder.name, level_of_theory=level)
    save_dataset(folder, Molecules(data, []), about, split=make_split(data, "random"))
    return ConformerDataset(folder)


@pytest.fixture
def both(tmp_path: Path) -> JoinedDataset:
    first = dataset(tmp_path / "a", "DFT", "O", "N", "C", "[NH4+]", mol_id=7)
    second = dataset(tmp_path / "b", "xTB", "CO", "O", "CF", mol_id=8)
    return JoinedDataset([first, second])


def test_structures_are_those_of_the_data_sets(both: JoinedDataset) -> None:
    assert both.levels == ["DFT", "xTB"]
    singles = [data for one in both.datasets for data in one]
    assert len(both) == len(singles) == 7
    for joined, single in zip(both, singles, strict=True):
        assert joined.smiles == single.smiles
        for field in ("z", "pos", "charge", "dipole", "fragment", "fragment_charge"):
            assert torch.equal(joined[field], single[field])
    assert [data.level for data in both] == ["DFT"] * 4 + ["xTB"] * 3
    assert [int(data.mol_id) for data in both] == list(range(7))
    assert why_not_packed(both) is None


def test_each_structure_keeps_its_part(both: JoinedDataset) -> None:
    split = both.split()
    first, second = (one.split() for one in both.datasets)
    assert split.train.tolist() == [*first.train.tolist(), *(second.train + 4).tolist()]
    assert split.val.tolist() == [*first.val.tolist(), *(second.val + 4).tolist()]
    assert split.test.tolist() == [*first.test.tolist(), *(second.test + 4).tolist()]


def test_a_level_is_named_without_its_program(tmp_path: Path) -> None:
    names = ("GFN2-xTB (tblite)", "B3LYP/6-31G(2df,p)", "B3LYP/6-31G(2df,p) (PySCF)", "GFN2-xTB")
    sets = [dataset(tmp_path / str(k), name, "O", "N", "C") for k, name in enumerate(names)]
    assert JoinedDataset(sets).levels == ["GFN2-xTB", "B3LYP/6-31G(2df,p)"]


def test_what_cannot_be_joined_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data sets to join"):
        JoinedDataset([])
    whole = dataset(tmp_path / "a", "DFT", "O", "N", "C")
    with pytest.raises(ValueError, match="a subset or has a transform"):
        JoinedDataset([whole[torch.tensor([0, 1])]])
    (tmp_path / "a" / "card.yaml").unlink()
    with pytest.raises(ValueError, match="has no card, which states the level of theory"):
        JoinedDataset([ConformerDataset(tmp_path / "a")])
