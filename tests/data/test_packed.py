"""Batches cut out of a whole data set are those that PyG collates molecule by molecule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dipolegnn._pyg import Batch, Data, InMemoryDataset
from dipolegnn.data import About, ConformerDataset, DipoleDataModule, random_split, save_dataset
from dipolegnn.data.datamodule import PackedBatches, why_not_packed
from dipolegnn.molecules import Molecules
from dipolegnn.nn.graph import radius_graph
from tests.data.samples import equal, sample_molecules


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ConformerDataset:
    root = tmp_path_factory.mktemp("samples")
    save_dataset(root, Molecules(sample_molecules(), []), About(name="samples"))
    return ConformerDataset(root)


@pytest.mark.parametrize("positions", [[0], [4, 2, 0], [1, 1, 3], list(range(5))], ids=str)
def test_equals_a_collated_batch(dataset: ConformerDataset, positions: list[int]) -> None:
    batch = PackedBatches(dataset)[positions]
    expected = Batch.from_data_list([dataset[k] for k in positions])
    assert type(batch) is type(expected)
    assert batch.num_graphs == expected.num_graphs == len(positions)
    assert {*batch.keys()} == {*expected.keys()}
    for field in expected.keys():  # noqa: SIM118 (a Batch iterates over pairs)
        got, wanted = batch[field], expected[field]
        if isinstance(wanted, torch.Tensor):
            assert got.dtype == wanted.dtype
            assert torch.equal(got.nan_to_num(nan=1e9), wanted.nan_to_num(nan=1e9)), field
        else:
            assert got == wanted, field
    for again, position in zip(batch.to_data_list(), positions, strict=True):
        assert equal(again, dataset[position])


def test_of_a_subset(dataset: ConformerDataset) -> None:
    part = dataset[torch.tensor([3, 1, 4])]
    packed = PackedBatches(part, exclude=("smiles",))
    assert len(packed) == 3
    batch = packed[[2, 0]]
    assert "smiles" not in batch
    assert batch.name == ["helium", dataset[3].name]
    assert torch.equal(batch.z, torch.tensor([2, 17, 1]))


class Graphs(InMemoryDataset):
    """Molecules with edges, whose indices PyG shifts from molecule to molecule."""

    def __init__(self) -> None:
        super().__init__()
        edges = torch.tensor([[0, 1], [1, 0]])
        self.data, self.slices = self.collate(
            [Data(pos=torch.zeros(2, 3), edge_index=edges) for _ in range(3)]
        )


def test_what_cannot_be_packed(dataset: ConformerDataset) -> None:
    assert why_not_packed(dataset) is None
    changed = ConformerDataset(dataset.folder, transform=lambda data: data)
    for data, reason in (
        (changed, "it has a transform"),
        (Graphs(), "edge_index is put together by rules of PyG's own"),
    ):
        assert reason in str(why_not_packed(data))
        with pytest.raises(ValueError, match=reason):
            PackedBatches(data)


def test_the_datamodule_gives_the_same_molecules_either_way(dataset: ConformerDataset) -> None:
    changed = ConformerDataset(dataset.folder, transform=lambda data: data)
    split = random_split(dataset.mol_ids(), val=0.25, test=0.25, seed=0)
    names = []
    for data in (dataset, changed):
        module = DipoleDataModule(data, split, batch_size=2, seed=3)
        names.append([list(batch.mol_id) for batch in module.train_dataloader()])
        assert len(module.train_dataloader()) == len(names[-1])
    assert names[0] == names[1]


def test_worker_processes_make_the_same_batches(dataset: ConformerDataset, tmp_path: Path) -> None:
    split = random_split(dataset.mol_ids(), val=0.25, test=0.25, seed=0)
    found = []
    for workers in (0, 1):
        module = DipoleDataModule(dataset, split, batch_size=2, seed=3, num_workers=workers)
        found.append([batch.pos for batch in module.train_dataloader()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_graphs_that_are_kept_are_those_of_the_batch(
    dataset: ConformerDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dipolegnn.data.datamodule._CHUNK", 2)
    for part in (dataset, dataset[torch.tensor([3, 1, 4])]):
        packed = PackedBatches(part, cutoff=1.2)
        for positions in ([0, 2], [2, 0, 1], [1]):
            batch = packed[positions]
            expected = radius_graph(batch.pos, 1.2, batch.batch)
            assert batch.radius_graph.cutoff == 1.2
            assert torch.equal(batch.radius_graph.edge_index, expected)
            assert batch.radius_graph.is_of(batch.pos, batch.batch)
            assert len(batch.to_data_list()) == len(positions)
