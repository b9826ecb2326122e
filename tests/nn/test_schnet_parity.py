"""SchNet against torch_geometric's own, by weight transfer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dipolegnn._pyg import Batch
from dipolegnn.graph import radius_graph
from dipolegnn.nn import SchNet
from tests.nn.models import randomize
from tests.nn.structures import molecule, random_molecule

PARITY = 1e-12
"""Relative to the largest number: both sides are in double precision."""


def pyg_features(ours: SchNet, batch: Batch) -> Tensor:
    """The features of torch_geometric's SchNet before its readout, with our weights."""
    # Imported here: at the top, before dipolegnn, torch_geometric would warn of torch-cluster.
    from torch_geometric.nn.models import SchNet as PyGSchNet

    def graph(pos: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        edges = radius_graph(pos, ours.cutoff, index)
        return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=1)

    theirs = PyGSchNet(
        hidden_channels=ours.hidden_channels,
        num_filters=ours.hidden_channels,
        num_interactions=ours.num_interactions,
        num_gaussians=ours.num_rbf,
        cutoff=ours.cutoff,
        interaction_graph=graph,
    ).double()
    weights = {"embedding.weight": ours.embedding.weight[:100]}
    names = {
        "filter.0": "mlp.0",
        "filter.2": "mlp.2",
        "in_layer": "conv.lin1",
        "out_layers.0": "conv.lin2",
        "out_layers.2": "lin",
    }
    for name, parameter in ours.named_parameters():
        if name.startswith("interactions"):
            _, t, rest = name.split(".", 2)
            layer, part = rest.rsplit(".", 1)
            weights[f"interactions.{t}.{names[layer]}.{part}"] = parameter
            if layer.startswith("filter"):  # they hold the filter network twice
                weights[f"interactions.{t}.conv.nn.{layer[-1]}.{part}"] = parameter
    smearing = theirs.distance_expansion
    width = ours.cutoff / (ours.num_rbf - 1)
    weights["distance_expansion.offset"] = width * torch.arange(ours.num_rbf, dtype=torch.float64)
    # Both numbers they round to single precision.
    smearing.coeff = -0.5 / width**2
    for module in theirs.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert set(missing) == {"lin1.weight", "lin1.bias", "lin2.weight", "lin2.bias"}  # the readout
    assert not unexpected

    features: list[Tensor] = []
    theirs.lin1.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    theirs(batch.z, batch.pos, batch.batch)
    return features[0]


@pytest.mark.parametrize(
    ("hidden", "interactions", "num_rbf", "cutoff"), [(32, 3, 20, 5.0), (128, 6, 50, 3.3)]
)
def test_torch_geometric(hidden: int, interactions: int, num_rbf: int, cutoff: float) -> None:
    model = SchNet(hidden, interactions, num_rbf, cutoff)
    randomize(model, seed=3)
    model.double()
    batch = Batch.from_data_list(
        [random_molecule(12, seed=1), random_molecule(40, seed=2), molecule([8], [[1, 2, 3]])]
    )
    pos = batch.pos.requires_grad_()
    ours = model(batch.z, pos, radius_graph(pos, cutoff, batch.batch))
    assert ours.v is None
    theirs = pyg_features(model, batch)
    weights = torch.randn(hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((ours.s @ weights).sum(), pos)
    (expected,) = torch.autograd.grad((theirs @ weights).sum(), pos)
    for actual, reference in ((ours.s, theirs), (gradient, expected)):
        scale = reference.abs().max().item()
        assert 0.1 < scale < 1e6
        assert np.abs((actual - reference).detach().numpy()).max() < PARITY * scale
