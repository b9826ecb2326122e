"""The LightningDataModule: batches of molecules for training, validation and test.

PyG creates a ``Data`` per molecule and collates them, which is a large part of the time of a
training step. An ``InMemoryDataset`` already stores its molecules contiguously, so that a batch is
an indexing operation (:class:`PackedBatches`). All sizes are computed on the CPU, which avoids GPU
synchronizations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import pytorch_lightning as pl
import torch
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, DistributedSampler

from dipolegnn._pyg import Batch, DataLoader, InMemoryDataset
from dipolegnn.data.splits import PARTS, Split
from dipolegnn.nn.graph import MoleculeGraphs

Loader: TypeAlias = TorchDataLoader[Any]
"""Base class of PyG's ``DataLoader``."""

_PerWhat = Literal["atom", "molecule"]

_CHUNK = 1000
"""Number of molecules whose radius graphs are built at once."""

_LEFT_OUT = ("mol_block", "notes")
"""Fields that no batch needs."""


class DipoleDataModule(pl.LightningDataModule):
    """LightningDataModule of the training, validation and test parts of a data set.

    The order of the training molecules depends on ``(seed, epoch)`` only, not on the state of a
    random number generator, so that a resumed run has the same batches as an uninterrupted one.
    Several devices have disjoint shares, in training of equal size (a few molecules are repeated);
    in evaluation each molecule is used exactly once.

    If possible (:func:`why_not_packed`), the arrays of the data set are
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
        together: True to keep the structures of a molecule (equal ``mol_id``) together when the
            training part is shuffled.

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
        together: bool = False,
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
        self.together = together

    def train_dataloader(self) -> Loader:
        """Training molecules, shuffled in each epoch.

        Raises:
            ValueError: The training part is empty.
        """
        part = self._part("train")
        replicas, rank = self._share()
        kind = MoleculeSampler if self.together else DistributedSampler
        sampler: DistributedSampler[Any] = kind(
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
            # A device without a batch would wait for the others forever.
            raise ValueError(
                f"The {name} part has {len(part)} structures for {replicas} devices; each needs at "
                f"least one. Use fewer devices, or a larger part."
            )
        # DistributedSampler repeats molecules to make the shares equal, which would count them
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
        """Number of devices, and rank of this one."""
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
                collate_fn=_identity,
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
        """Device of packed batches; worker processes make them on the CPU."""
        if self.trainer is None or self.num_workers > 0:
            return torch.device("cpu")
        device: torch.device = self.trainer.strategy.root_device
        return device


class MoleculeSampler(DistributedSampler[Any]):
    """Shuffles molecules; the structures of a molecule (equal ``mol_id``) stay together.

    A device gets consecutive structures, so that at most one molecule is divided between two.
    """

    dataset: InMemoryDataset

    def __iter__(self) -> Iterator[int]:
        """Positions of the structures of this device, in the order of the epoch."""
        # One entry per structure, without making a Data of each.
        ids = self.dataset._data.mol_id[torch.tensor(list(self.dataset.indices()))]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        molecule = ids.unique(return_inverse=True)[1]
        place = torch.randperm(int(molecule.max()) + 1, generator=generator)[molecule]
        order = place.argsort(stable=True)
        order = torch.cat([order, order[: self.total_size - len(order)]])
        first = self.rank * self.num_samples
        return iter(order[first : first + self.num_samples].tolist())


def _identity(batch: Batch) -> Batch:
    return batch


class PackedBatches(Dataset[Any]):
    """Batches of an in-memory data set: ``packed[positions]`` is the batch of these molecules.

    All fields equal those of ``Batch.from_data_list([dataset[k] for k in positions])``. A
    ``DataLoader`` gets complete batches by ``__getitems__``.

    Args:
        dataset: The molecules; see :func:`why_not_packed` for the requirements.
        device: Device of the arrays and the batches.
        exclude: Fields that are not in the batches.
        cutoff: Cutoff in angstrom of cached radius graphs, which are added to the batches as
            ``radius_graph``; None: no graphs. The model rebuilds the graph of a batch whose atoms
            have moved.

    Raises:
        ValueError: If the data set does not meet the requirements.
    """

    def __init__(
        self,
        dataset: InMemoryDataset,
        device: torch.device | str = "cpu",
        exclude: tuple[str, ...] = (),
        cutoff: float | None = None,
    ) -> None:
        reason = why_not_packed(dataset)
        if reason is not None:
            raise ValueError(f"This data set cannot be packed: {reason}.")
        whole = dataset._data
        self.device = torch.device(device)
        self._base_class = type(whole)
        self._atoms: Tensor = dataset.slices["pos"]  # [M + 1], on the CPU: nothing waits for it
        self._positions = torch.as_tensor(list(dataset.indices()))
        self._per: dict[str, _PerWhat] = {}
        self._tensors: dict[str, Tensor] = {}
        self._texts: dict[str, list[str]] = {}
        for field, value in whole.to_dict().items():
            if field in exclude:
                continue
            self._per[field] = _per_what(dataset, field)
            if isinstance(value, Tensor):
                self._tensors[field] = value.to(self.device)
            else:
                self._texts[field] = value
        self._graphs: MoleculeGraphs | None = None
        if cutoff is not None:
            chunks = torch.arange(len(self)).split(_CHUNK)
            self._graphs = MoleculeGraphs(cutoff, (self[chunk] for chunk in chunks))

    def __len__(self) -> int:
        return len(self._positions)

    # Tensors made in inference mode do not count in-place changes, by which a graph on a GPU
    # detects that atoms were moved.
    @torch.inference_mode(False)
    def __getitem__(self, positions: list[int] | Tensor) -> Batch:
        """The batch of the molecules at these positions, in this order."""
        chosen = torch.as_tensor(positions, dtype=torch.long)  # [B]
        rows = self._positions[chosen]
        atoms = _Pieces.of(self._atoms, rows, self.device)
        slices = {"atom": atoms.ptr, "molecule": torch.arange(len(rows) + 1)}
        where = {"atom": atoms.rows, "molecule": _sent(rows, self.device)}
        batch = Batch(_base_cls=self._base_class)
        for field, per in self._per.items():
            if field in self._tensors:
                batch[field] = self._tensors[field].index_select(0, where[per])
            else:
                texts = self._texts[field]
                batch[field] = [texts[row] for row in rows.tolist()]
        # What Batch.to_data_list takes a batch apart by.
        batch._num_graphs = len(rows)
        batch._slice_dict = {field: slices[per] for field, per in self._per.items()}
        batch._inc_dict = {
            field: torch.zeros(len(rows), dtype=torch.long) if field in self._tensors else None
            for field in self._per
        }
        batch.batch, batch.ptr = atoms.owner, _sent(atoms.ptr, self.device)
        if self._graphs is not None:
            edges = _Pieces.of(self._graphs.ends, chosen, self.device)
            batch.radius_graph = self._graphs.joined(
                edges.rows, edges.owner, batch.pos, batch.batch, batch.ptr
            )
        return batch

    __getitems__ = __getitem__


class _Pieces(NamedTuple):
    """Concatenation of selected segments of an array."""

    rows: Tensor
    """The rows, on the device."""
    owner: Tensor
    """Number of the piece of each row, on the device."""
    ptr: Tensor
    """First row of each piece in the result, and their number; on the CPU."""

    @classmethod
    def of(cls, ends: Tensor, pieces: Tensor, device: torch.device) -> _Pieces:
        """The pieces with these numbers; ``ends [M + 1]`` holds where each begins and ends."""
        first = ends[pieces]
        sizes = ends[pieces + 1] - first
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        total = int(ptr[-1])
        small = _sent(torch.stack([sizes, first - ptr[:-1]]), device)  # [2, pieces]
        owner = torch.arange(len(pieces), device=device)
        owner = owner.repeat_interleave(small[0], output_size=total)
        return cls(torch.arange(total, device=device) + small[1][owner], owner, ptr)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a small CPU tensor to the device asynchronously."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def why_not_packed(dataset: InMemoryDataset) -> str | None:
    """Reason why a data set cannot be packed; None if it can."""
    if dataset.transform is not None:
        return "it has a transform, which is called with each molecule at each access"
    if dataset.slices is None or "pos" not in dataset.slices:
        return "it holds a single molecule, or none with coordinates"
    whole = dataset._data
    for field, value in whole.to_dict().items():
        if isinstance(value, Tensor):
            if whole.__cat_dim__(field, value) != 0 or whole.__inc__(field, value) != 0:
                return f"{field} is put together by rules of PyG's own"
        elif not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            return f"{field} is neither a tensor nor text"
        per = _per_what(dataset, field)
        if per is None:
            return f"{field} has neither one row per atom nor one per molecule"
    return None


def _per_what(dataset: InMemoryDataset, field: str) -> Any:
    """Whether a field has one row per atom or per molecule; None if neither."""
    ends = dataset.slices[field]
    if torch.equal(ends, torch.arange(len(ends))):
        return "molecule"
    return "atom" if torch.equal(ends, dataset.slices["pos"]) else None
