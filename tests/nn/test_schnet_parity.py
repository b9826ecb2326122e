"""SchNet against torch_geometric's own, by weight transfer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peers import PyGSchNetPeer
from torch import Tensor

from dipolegnn._pyg import Batch
from dipolegnn.nn import AtomwiseHead, DipoleModel, SchNet
from dipolegnn.nn.graph import radius_graph
from tests.nn.models import randomize
from tests.nn.structures import molecule, random_molecule

PARITY = 1e-12
"""Relative to the largest number: both sides are in double precision."""


def pyg_features(ours: SchNet, batch: Batch) -> Tensor:
    """The features of torch_geometric's SchNet before its readout, with our weights."""
    model = DipoleModel(ours, AtomwiseHead(ours.hidden_channels)).double()
    theirs = PyGSchNetPeer(model).net
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
