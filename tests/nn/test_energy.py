"""Energies of conformers: only differences within a molecule count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dipolegnn._pyg import Batch
from dipolegnn.config import TrainConfig
from dipolegnn.molecules import from_smiles
from dipolegnn.nn import ConformerEnergyHead, EnergyOutput, PaiNN, PropertyModel, SchNet

NAN = math.nan


def batch(energies: list[float], molecules: list[int]) -> Batch:
    return Batch(energy=torch.tensor(energies), mol_id=torch.tensor(molecules))


def test_constants_of_molecules_do_not_count() -> None:
    """Two molecules with interleaved conformers; the last conformer has no label."""
    labelled = batch([10.0, -500.0, 12.0, -503.0, NAN], [4, 9, 4, 9, 4])
    energy = torch.tensor([0.0, 7.0, 3.0, 7.0, 100.0], requires_grad=True)
    head = ConformerEnergyHead(8)
    losses, known = head.losses(EnergyOutput(energy), labelled, TrainConfig(loss="l1"))
    # Relative to the means: -1.5 and 1.5 against -1 and 1; 0 and 0 against 1.5 and -1.5.
    assert losses.tolist() == pytest.approx([0.5, 1.5, 0.5, 1.5, 0.0])
    assert known.tolist() == [True, True, True, True, False]
    losses.sum().backward()
    assert energy.grad is not None
    assert energy.grad[4] == 0
    assert energy.grad[:4].tolist() == pytest.approx([-1.0, -1.0, 1.0, 1.0])
    # Another constant for a molecule, in predictions or labels, changes nothing.
    moved = batch([1010.0, -500.0, 1012.0, -503.0, NAN], [4, 9, 4, 9, 4])
    again, _ = head.losses(EnergyOutput(energy), moved, TrainConfig(loss="l1"))
    torch.testing.assert_close(again, losses)


def test_a_single_conformer_has_no_error() -> None:
    losses, _ = ConformerEnergyHead(8).losses(
        EnergyOutput(torch.tensor([3.0])), batch([-100.0], [0]), TrainConfig()
    )
    assert losses.tolist() == [0.0]


def rotation() -> Tensor:
    return torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]


@pytest.mark.parametrize("kind", [PaiNN, SchNet])
def test_the_energy_is_an_invariant_sum(kind: type[PaiNN | SchNet]) -> None:
    torch.manual_seed(0)
    model = PropertyModel(kind(hidden_channels=16, num_interactions=2), ConformerEnergyHead(16))
    conformers = from_smiles("OCCCN", conformers=4)
    energy = model(Batch.from_data_list(conformers)).energy
    assert energy.std() > 0
    turned = [data.clone() for data in conformers]
    for data in turned:
        data.pos = data.pos @ rotation().T + 3.0
    torch.testing.assert_close(
        model(Batch.from_data_list(turned)).energy, energy, rtol=1e-4, atol=1e-4
    )
    alone = [model(data).energy.item() for data in conformers]
    np.testing.assert_allclose(energy.detach(), alone, rtol=1e-4, atol=1e-4)


def test_the_width_is_checked() -> None:
    with pytest.raises(ValueError, match="hidden_channels must be at least 2, got 1"):
        ConformerEnergyHead(1)
