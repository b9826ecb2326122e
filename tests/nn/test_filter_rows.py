"""Filters on the grid are kept while nothing changes, and never when something did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dipolegnn.nn import DipoleModel
from tests.nn.models import make_model
from tests.nn.structures import random_molecule


class Counted(nn.Module):
    """A filter network that counts how often it runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.runs = 0

    def forward(self, rbf: torch.Tensor) -> Any:
        self.runs += 1
        return self.network(rbf)


def counted_model(representation: str) -> tuple[DipoleModel, Counted]:
    model = make_model(representation, "dipole", torch.float32)
    network_: Any = model.representation
    layer = network_.interactions[0]
    network = Counted(layer.filter)
    layer.filter = network
    return model, network


@pytest.mark.parametrize("representation", ["painn", "schnet"])
def test_worked_out_once_for_many_predictions(representation: str) -> None:
    model, network = counted_model(representation)
    data = random_molecule(9, seed=1, dtype=torch.float32)
    with torch.no_grad():
        results = [model(data).dipole for _ in range(3)]
    with torch.inference_mode():
        results.append(model(data).dipole)
    assert network.runs == 1
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.allclose(model(data).dipole, results[0])  # with gradients, so made anew
    assert network.runs == 2


@pytest.mark.parametrize("representation", ["painn", "schnet"])
@pytest.mark.parametrize("first", [torch.no_grad, torch.inference_mode])
def test_made_anew_after_any_change_of_the_weights(representation: str, first: Any) -> None:
    model, network = counted_model(representation)
    data = random_molecule(9, seed=1, dtype=torch.float32)
    with first():
        before = model(data).dipole
    weight = next(network.parameters())
    # Past version counters, as moving averages are swapped.
    weight.data.mul_(1.5)
    with torch.no_grad():
        after = model(data).dipole
    assert network.runs == 2
    assert not torch.equal(before, after)
    model(data).dipole.sum().backward()  # what was kept is no obstacle to training
    assert weight.grad is not None


def test_follows_the_precision() -> None:
    model, _ = counted_model("painn")
    data = random_molecule(9, seed=1, dtype=torch.float32)
    with torch.no_grad():
        single = model(data).dipole
        double = model.double()(random_molecule(9, seed=1)).dipole
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-4)


def test_gradients_by_positions_alone() -> None:
    model, network = counted_model("painn")
    model.requires_grad_(False)
    data = random_molecule(9, seed=1, dtype=torch.float32)
    data.pos.requires_grad_()
    with torch.inference_mode():
        model(data)
    (gradient,) = torch.autograd.grad(model(data).dipole.sum(), data.pos)
    assert network.runs == 1
    assert gradient.abs().sum() > 0
