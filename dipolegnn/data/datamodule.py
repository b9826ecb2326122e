"""The LightningDataModule: batches of molecules for training, validation and test."""

from __future__ import annotations

from typing import Any, TypeAlias

import pytorch_lightning as pl
import torch
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import DistributedSampler

from dipolegnn._pyg import Batch, DataLoader, InMemoryDataset
from dipolegnn.data.packed import PackedBatches, why_not_packed
from dipolegnn.data.splits import PARTS, Split

Loader: TypeAlias = TorchDataLoader[Any]
"""PyG's ``DataLoader`` is one as well."""

_LEFT_OUT = ("mol_block",)
"""Fields that no batch needs."""


class DipoleDataModule(pl.LightningDataModule):
    """LightningDataModule of the training, validation and test parts of a data set.

    The order of the training molecules depends on ``(seed, epoch)`` only, not on the state of a
    random number generator, so that a resumed run has the same batches as an uninterrupted one.
    Several devices have disjoint shares, in training of equal size (a few molecules are repeated);
    in evaluation each molecule is used exactly once.

    If possible (:func:`dipolegnn.data.packed.why_not_packed`), the arrays of the data set are
    stored on the device of the trainer and batches are sliced from them; else PyG's ``DataLoader``
    collates one ``Data`` per molecule. The batches are the same, except that sliced batches contain
    cached radius graphs if the trained module has ``cutoff_of_graphs``.

    Args:
        dataset: The molecules.
        split: Positions of the training, validation and test molecules in ``dataset``.
        batch_size: Molecules per training batch and device.
        eval_batch_size: Molecules per batch in evaluation; as in training where it is ``None``.
        seed: Seed of the order of the training molecules.
        num_workers: Processes that make the batches; 0 makes them in the training process.

    Raises:
        ValueError: A size is below 1, or the split reaches beyond the data set.
    """

    def __init__(
        self,
        dataset: InMemoryDataset,
        split: Split,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if eval_batch_size is None:
            eval_batch_size = batch_size
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        for part in PARTS:
            positions = getattr(split, part)
            if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(
                dataset
            ):
                raise ValueError(
                    f"The {part} part of the split has positions from {int(positions.min())} to "
                    f"{int(positions.max())}, but the data set has {len(dataset)} structures: it "
                    f"is the split of another data set."
                )
        self.dataset = dataset
        self.split = split
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers

    def train_dataloader(self) -> Loader:
        """Training molecules, shuffled in each epoch.

        Raises:
            ValueError: The training part is empty.
        """
        part = self._part("train")
        replicas, rank = self._share()
        sampler: DistributedSampler[Any] = DistributedSampler(
            part, num_replicas=replicas, rank=rank, shuffle=True, seed=self.seed
        )
        return self._loader(part, sampler, self.batch_size)

    def val_dataloader(self) -> Loader:
        """The validation molecules, in the order of the data set.

        Raises:
            ValueError: There are none, or fewer than devices.
        """
        return self._eval_dataloader("val")

    def test_dataloader(self) -> Loader:
        """The test molecules, in the order of the data set.

        Raises:
            ValueError: There are none, or fewer than devices.
        """
        return self._eval_dataloader("test")

    def _eval_dataloader(self, name: str) -> Loader:
        part = self._part(name)
        replicas, rank = self._share()
        if len(part) < replicas:
            # Without a batch of its own a device would wait for the others for ever.
            raise ValueError(
                f"The {name} part has {len(part)} structures for {replicas} devices; each needs at "
                f"least one. Use fewer devices, or a larger part."
            )
        # Torch's own sampler repeats molecules to make the shares equal, which would count these
        # twice in an average.
        sampler = UnrepeatedDistributedSampler(
            part, num_replicas=replicas, rank=rank, shuffle=False
        )
        return self._loader(part, sampler, self.eval_batch_size)

    def _part(self, name: str) -> InMemoryDataset:
        positions = getattr(self.split, name)
        if not len(positions):
            raise ValueError(
                f"The {name} part of the split is empty ({self.split}): make a split that has one."
            )
        part: InMemoryDataset = self.dataset[positions]
        return part

    def _share(self) -> tuple[int, int]:
        """Number of devices, and which of them this is."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _loader(
        self, part: InMemoryDataset, sampler: DistributedSampler[Any], batch_size: int
    ) -> Loader:
        if why_not_packed(part) is None:
            return TorchDataLoader(
                PackedBatches(
                    part, self._device(), exclude=_LEFT_OUT, cutoff=self._cutoff_of_graphs()
                ),
                batch_size=batch_size,
                sampler=sampler,
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                collate_fn=_as_it_is,
            )
        return DataLoader(
            part,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            exclude_keys=list(_LEFT_OUT),
        )

    def _cutoff_of_graphs(self) -> float | None:
        """Cutoff of cached graphs, if the module supports them."""
        module = None if self.trainer is None else self.trainer.lightning_module
        cutoff: float | None = getattr(module, "cutoff_of_graphs", None)
        return cutoff

    def _device(self) -> torch.device:
        """Where packed batches are made; worker processes make them on the CPU."""
        if self.trainer is None or self.num_workers > 0:
            return torch.device("cpu")
        device: torch.device = self.trainer.strategy.root_device
        return device


def _as_it_is(batch: Batch) -> Batch:
    return batch
