"""A small data set whose dipoles a model can learn, and a small model."""

from __future__ import annotations

import torch
from torch import Tensor

from dipolegnn._pyg import Data, InMemoryDataset
from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.data import DipoleDataModule, Split
from dipolegnn.nn import AtomwiseHead, DipoleHead, DipoleModel, DipoleOutput, build_model

MODEL = ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5)
CHARGES = {1: 0.25, 6: -0.1, 8: -0.5}


class ToyDataset(InMemoryDataset):
    """Random clusters of H, C and O with fixed charges; every other one has only a magnitude."""

    def __init__(self, count: int, vectors: bool = True) -> None:
        super().__init__(root=None)
        generator = torch.Generator().manual_seed(1)
        self.data, self.slices = self.collate(
            [molecule(i, generator, vectors and i % 2 == 0) for i in range(count)]
        )


def molecule(number: int, generator: torch.Generator, vector: bool) -> Data:
    atoms = 3 + number % 4
    z = torch.tensor(list(CHARGES))[torch.randint(3, (atoms,), generator=generator)]
    charges = torch.tensor([CHARGES[int(element)] for element in z])
    charges -= charges.mean()
    pos = 1.5 * torch.randn(atoms, 3, generator=generator)
    dipole = 4.8032 * (charges.unsqueeze(1) * pos).sum(0, keepdim=True)
    return Data(
        z=z,
        pos=pos,
        charge=torch.zeros(1),
        dipole=dipole if vector else torch.full((1, 3), torch.nan),
        dipole_magnitude=dipole.norm(dim=1),
        atomic_charges=torch.full((atoms,), torch.nan),
        energy=torch.full((1,), torch.nan),
        mol_id=torch.tensor([number]),
        smiles="",
        name=f"toy {number}",
    )


def toy_parts(count: int = 40, vectors: bool = True) -> tuple[ToyDataset, Split]:
    """The data set and a split: two thirds for training, the rest for validation and test."""
    numbers = torch.arange(count)
    cut = [2 * count // 3, 5 * count // 6]
    split = Split(train=numbers[: cut[0]], val=numbers[cut[0] : cut[1]], test=numbers[cut[1] :])
    return ToyDataset(count, vectors), split


def toy_data(config: TrainConfig, count: int = 40, vectors: bool = True) -> DipoleDataModule:
    """Its batches."""
    dataset, split = toy_parts(count, vectors)
    return DipoleDataModule(dataset, split, batch_size=config.batch_size, seed=config.seed)


def dipole_loss(
    output: DipoleOutput,
    batch: Data,
    config: TrainConfig,
    head: type[DipoleHead | AtomwiseHead] = DipoleHead,
) -> Tensor:
    """The mean of the loss over the labelled molecules."""
    losses, labelled = head(2).losses(output, batch, config)
    return losses.sum() / labelled.sum()


def toy_model(seed: int = 0, config: ModelConfig = MODEL) -> DipoleModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: DipoleModel = build_model(config)
    return model
