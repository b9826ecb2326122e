from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dipolegnn._pyg import Batch, Data
from dipolegnn.data import (
    About,
    ConformerDataset,
    DipoleDataModule,
    Split,
    random_split,
    save_dataset,
)
from dipolegnn.data.datamodule import MoleculeSampler
from dipolegnn.molecules import Molecules
from tests.data.samples import chain_dataset

pytestmark = [
    # Lightning proposes worker processes on every machine with more than two cores. Molecules that
    # are in memory are batched faster without.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 makes LeafSpec() itself, which torch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ConformerDataset:
    root = tmp_path_factory.mktemp("chains")
    save_dataset(root, Molecules(chain_dataset(), []), About(name="chains"))
    return ConformerDataset(root)


@pytest.fixture(scope="module")
def split(dataset: ConformerDataset) -> Split:
    return random_split(dataset.mol_ids(), val=0.2, test=0.3, seed=1)


class Recorder(pl.LightningModule):
    """A model of one weight that writes down which molecules it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[tuple[int, float]]] = []

    def training_step(self, batch: Batch, step: int) -> torch.Tensor:
        # A dipole tells the conformers of a molecule apart.
        first = batch.dipole[:, 0].tolist()
        self.seen.append(list(zip(batch.mol_id.tolist(), first, strict=True)))
        return (self.weight - batch.dipole_magnitude).square().mean()

    def validation_step(self, batch: Batch, step: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    datamodule: DipoleDataModule, checkpoint: Path, epochs: int, resume: Path | None = None
) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, datamodule=datamodule, ckpt_path=str(resume) if resume else None)
    trainer.save_checkpoint(checkpoint)
    return recorder


def test_a_resumed_run_sees_the_batches_that_it_would_have_seen(
    dataset: ConformerDataset, split: Split, tmp_path: Path
) -> None:
    def module() -> DipoleDataModule:
        return DipoleDataModule(dataset, split, batch_size=7, seed=5)

    torch.manual_seed(1)
    whole = train(module(), tmp_path / "whole", 3).seen
    torch.manual_seed(2)  # the global generator has no say
    first = train(module(), tmp_path / "first", 2).seen
    rest = train(module(), tmp_path / "rest", 3, resume=tmp_path / "first").seen
    assert first + rest == whole
    per_epoch = len(whole) // 3
    epochs = [whole[i * per_epoch : (i + 1) * per_epoch] for i in range(3)]
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]
    together = [sorted(chain(*epoch)) for epoch in epochs]
    assert together[0] == together[1] == together[2]
    assert len(together[0]) == len(split.train)


def test_conformers_can_be_kept_together(dataset: ConformerDataset, split: Split) -> None:
    numbers = dataset.mol_ids()[split.train]
    orders = []
    for epoch in range(2):
        replicas = []
        for rank in range(2):
            sampler = MoleculeSampler(dataset[split.train], 2, rank, shuffle=True, seed=4)
            sampler.set_epoch(epoch)
            replicas.append(list(sampler))
            assert len(replicas[-1]) == len(sampler)
        order = [*replicas[0], *replicas[1]]
        # Each once, up to one that makes the shares equal.
        assert set(order) == set(range(len(split.train)))
        assert len(order) <= len(split.train) + 1
        molecules = numbers[torch.tensor(order[: len(split.train)])].tolist()
        runs = 1 + sum(a != b for a, b in pairwise(molecules))
        assert runs == len(set(molecules)) < len(molecules)
        orders.append(order)
    assert orders[0] != orders[1]


def ids(loader: Any) -> list[int]:
    return [mol_id for batch in loader for mol_id in batch.mol_id.tolist()]


def test_evaluation_keeps_the_order_of_the_data_set(
    dataset: ConformerDataset, split: Split
) -> None:
    module = DipoleDataModule(dataset, split, batch_size=4, eval_batch_size=6)
    assert ids(module.val_dataloader()) == dataset.mol_ids()[split.val].tolist()
    assert ids(module.test_dataloader()) == dataset.mol_ids()[split.test].tolist()
    assert next(iter(module.val_dataloader())).num_graphs == 6
    assert next(iter(module.train_dataloader())).num_graphs == 4
    assert DipoleDataModule(dataset, split, batch_size=4).eval_batch_size == 4


def test_the_seed_decides_the_order(dataset: ConformerDataset, split: Split) -> None:
    orders = [
        ids(DipoleDataModule(dataset, split, seed=seed).train_dataloader()) for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def on_device(dataset: ConformerDataset, split: Split, rank: int, devices: int) -> DipoleDataModule:
    module = DipoleDataModule(dataset, split, batch_size=4, seed=3)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=devices,
        global_rank=rank,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        lightning_module=None,
    )
    return module


@pytest.mark.parametrize("devices", [2, 3])
def test_each_device_gets_its_own_share(
    dataset: ConformerDataset, split: Split, devices: int
) -> None:
    modules = [on_device(dataset, split, rank, devices) for rank in range(devices)]
    evaluated = [ids(module.test_dataloader()) for module in modules]
    assert sorted(chain(*evaluated)) == sorted(dataset.mol_ids()[split.test].tolist())
    trained = [ids(module.train_dataloader()) for module in modules]
    assert len({len(share) for share in trained}) == 1
    assert set(chain(*trained)) == set(dataset.mol_ids()[split.train].tolist())
    assert sum(map(len, trained)) < len(split.train) + devices


def test_fewer_molecules_than_devices(dataset: ConformerDataset) -> None:
    tiny = Split(torch.arange(2, len(dataset)), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match="The val part has 1 structures for 2 devices"):
        on_device(dataset, tiny, 0, 2).val_dataloader()


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_empty_part_is_named(dataset: ConformerDataset, part: str) -> None:
    everything = torch.arange(len(dataset))
    none = torch.tensor([], dtype=torch.int64)
    parts = {"train": everything[2:], "val": everything[:1], "test": everything[1:2], part: none}
    module = DipoleDataModule(dataset, Split(**parts))
    with pytest.raises(ValueError, match=f"The {part} part of the split is empty"):
        getattr(module, f"{part}_dataloader")()


def test_wrong_sizes_and_splits(dataset: ConformerDataset, split: Split) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        DipoleDataModule(dataset, split, batch_size=0)
    with pytest.raises(ValueError, match="eval_batch_size must be at least 1, got 0"):
        DipoleDataModule(dataset, split, eval_batch_size=0)
    none = torch.tensor([], dtype=torch.int64)
    with pytest.raises(ValueError, match="test part of the split has positions from 0 to 60, but"):
        DipoleDataModule(dataset, Split(none, none, torch.arange(61)))


def test_the_mol_block_stays_out_of_the_batch(dataset: ConformerDataset) -> None:
    def with_block(data: Data) -> Data:
        data.mol_block = "block"
        return data

    blocks = ConformerDataset(dataset.folder, transform=with_block)
    module = DipoleDataModule(blocks, random_split(blocks.mol_ids()))
    batch = next(iter(module.train_dataloader()))
    assert "mol_block" in blocks[0]
    assert "mol_block" not in batch
