from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dipolegnn._pyg import Data, DataLoader, InMemoryDataset
from dipolegnn.data import (
    About,
    ConformerDataset,
    check_card,
    make_split,
    save_dataset,
    write_molecules,
)
from dipolegnn.data.dataset import to_pyg
from dipolegnn.data.storage import pack
from dipolegnn.molecules import Failure, Molecules, read_failures
from tests.data.samples import chain_dataset, equal, sample_molecules, water

FAILURE = Failure("a.smi", 3, "C1CC", "read", "An unclosed ring", "Close it")


def save(root: Path, molecules: list[Data]) -> None:
    split = make_split(molecules, val=0.2, test=0.2) if len(molecules) > 9 else None
    save_dataset(root, Molecules(molecules, [FAILURE]), About(name="test"), split=split)


def drop_hydrogen(data: Data) -> Data:
    keep = data.z > 1
    data.z, data.pos, data.atomic_charges = data.z[keep], data.pos[keep], data.atomic_charges[keep]
    return data


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_molecules_come_back(tmp_path: Path, count: int) -> None:
    molecules = sample_molecules()[:count]
    save(tmp_path, molecules)
    dataset = ConformerDataset(tmp_path)
    assert len(dataset) == count
    assert all(equal(a, b) for a, b in zip(dataset, molecules, strict=True))
    assert dataset.mol_ids().tolist() == [int(data.mol_id) for data in molecules]


@pytest.mark.parametrize("count", [1, 5])
def test_the_arrays_become_what_pyg_would_collate(count: int) -> None:
    molecules = sample_molecules()[:count]
    data, slices = to_pyg(pack(molecules))
    expected, expected_slices = InMemoryDataset.collate(molecules)
    assert type(data) is type(expected)
    assert data.to_dict().keys() == expected.to_dict().keys()
    for field, value in expected.to_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(data[field], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert data[field] == value
    if expected_slices is None:
        assert slices is None
    else:
        assert slices is not None
        assert slices.keys() == expected_slices.keys()
        assert all(torch.equal(slices[field], expected_slices[field]) for field in slices)


def test_fields_collate_to_one_row_per_molecule(tmp_path: Path) -> None:
    save(tmp_path, sample_molecules())
    batch = next(iter(DataLoader(ConformerDataset(tmp_path), batch_size=5)))
    assert batch.dipole.shape == (5, 3)
    assert batch.charge.shape == batch.dipole_magnitude.shape == batch.mol_id.shape == (5,)
    assert batch.mol_id.tolist() == [0, 0, 1, 2, 7]
    assert batch.z.shape == batch.atomic_charges.shape == batch.batch.shape
    assert batch.smiles == ["O", "O", "[OH-]", "Cl", ""]
    assert batch.name[-1] == "helium"


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dipolegnn build INPUT --output .*nowhere"):
        ConformerDataset(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_other_raw_data_are_read_again(tmp_path: Path) -> None:
    save(tmp_path, sample_molecules())
    assert len(ConformerDataset(tmp_path)) == 5
    save(tmp_path, sample_molecules()[:3])
    assert len(ConformerDataset(tmp_path)) == 3


def test_transforms_are_applied_at_each_opening(tmp_path: Path) -> None:
    save(tmp_path, sample_molecules())
    smallest = 2
    assert len(ConformerDataset(tmp_path, pre_filter=lambda data: len(data.z) >= smallest)) == 4
    smallest = 3
    assert len(ConformerDataset(tmp_path, pre_filter=lambda data: len(data.z) >= smallest)) == 2
    heavy = ConformerDataset(tmp_path, pre_transform=drop_hydrogen)
    assert [data.z.tolist() for data in heavy] == [[8], [8], [8], [17], [2]]
    assert len(ConformerDataset(tmp_path)[0].z) == 3
    shown = ConformerDataset(tmp_path, transform=drop_hydrogen)
    assert len(shown[0].z) == 1


def test_a_filter_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, sample_molecules())
    with pytest.raises(ValueError, match="none of the 5 structures"):
        ConformerDataset(tmp_path, pre_filter=lambda data: False)


def test_loading_prints_and_warns_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyG is silent under pytest on its own account.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    save(tmp_path, sample_molecules())
    ConformerDataset(tmp_path)
    assert not (tmp_path / "processed").exists()
    assert tuple(capfd.readouterr()) == ("", "")


def test_the_folder_holds_card_failures_and_split(tmp_path: Path) -> None:
    molecules = chain_dataset()
    save(tmp_path, molecules)
    dataset = ConformerDataset(tmp_path)
    assert dataset.card is not None
    assert dataset.card == check_card(tmp_path)
    assert dataset.card.counts.molecules == 40
    assert dataset.card.counts.structures == 60
    assert read_failures(tmp_path / "failures.csv") == [FAILURE]
    expected = make_split(molecules, val=0.2, test=0.2)
    split = dataset.split()
    assert torch.equal(split.train, expected.train)
    assert torch.equal(split.test, expected.test)


def test_the_split_of_what_a_filter_left(tmp_path: Path) -> None:
    save(tmp_path, chain_dataset())
    test_ids = set(
        ConformerDataset(tmp_path).mol_ids()[ConformerDataset(tmp_path).split().test].tolist()
    )
    small = ConformerDataset(tmp_path, pre_filter=lambda data: len(data.z) < 5)
    left = set(small.mol_ids().tolist())
    assert set(small.mol_ids()[small.split().test].tolist()) == test_ids & left
    subset = ConformerDataset(tmp_path)[10:30]
    assert {int(subset[i].mol_id) for i in subset.split().test.tolist()} == test_ids & set(
        subset.mol_ids().tolist()
    )


def test_no_split_and_no_card(tmp_path: Path) -> None:
    write_molecules(tmp_path / "raw" / "molecules.npz", [water()])
    dataset = ConformerDataset(tmp_path)
    assert dataset.card is None
    with pytest.raises(FileNotFoundError, match=r"has no split.csv. Make a split with"):
        dataset.split()


def test_molecules_that_are_not_those_of_the_card_are_refused(tmp_path: Path) -> None:
    save(tmp_path, sample_molecules())
    write_molecules(tmp_path / "raw" / "molecules.npz", [water()])
    with pytest.raises(ValueError, match=r"The card of .* is that of other molecules"):
        ConformerDataset(tmp_path)


def test_a_new_data_set_does_not_keep_an_old_split(tmp_path: Path) -> None:
    save(tmp_path, chain_dataset())
    assert (tmp_path / "split.csv").exists()
    save(tmp_path, sample_molecules())
    assert not (tmp_path / "split.csv").exists()


def test_data_can_be_used_without_changing_the_data_set(tmp_path: Path) -> None:
    save(tmp_path, sample_molecules())
    dataset = ConformerDataset(tmp_path)
    first = dataset[0]
    first.pos = first.pos + 1
    assert torch.equal(dataset[0].pos, water().pos)
