"""The models that the tests are about: every representation, head and precision, untrained."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from dipolegnn.nn import AtomwiseHead, DipoleHead, DipoleModel, PaiNN, SchNet

CUTOFF = 4.0
"""Cutoff of the models, in angstrom; small, so that small molecules have edges that are missing."""

HIDDEN_CHANNELS = 16


Kernels = Literal["fused", "plain"]


class Variant(NamedTuple):
    """What distinguishes the models under test."""

    representation: str
    head: str
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.representation}-{self.head}-{dtype}"


HEADS_OF = {
    "painn": ("dipole", "weights", "charges", "sum", "mean"),
    "painn-bessel": ("dipole",),
    "schnet": ("dipole", "sum", "mean"),
}
"""The heads that each representation is tested with."""

VARIANTS = [
    Variant(representation, head, dtype)
    for representation, heads in HEADS_OF.items()
    for head in heads
    for dtype in (torch.float32, torch.float64)
]
"""With the fused kernels; test_plain_is_fused and test_dense_parity hold the plain path equal."""


def make_model(
    representation: str,
    head: str,
    dtype: torch.dtype = torch.float64,
    kernels: Kernels = "fused",
    seed: int = 0,
    num_interactions: int = 3,
) -> DipoleModel:
    """A model with random weights, biases included, and dipoles of some debye.

    ``painn-bessel`` always has two interactions.
    """
    body: PaiNN | SchNet
    if representation == "schnet":
        body = SchNet(HIDDEN_CHANNELS, num_interactions, num_rbf=10, cutoff=CUTOFF)
    elif representation == "painn":
        body = PaiNN(HIDDEN_CHANNELS, num_interactions, num_rbf=10, cutoff=CUTOFF)
    else:
        assert representation == "painn-bessel"
        body = PaiNN(HIDDEN_CHANNELS, 2, num_rbf=6, cutoff=CUTOFF, radial_basis="bessel")
    model = DipoleModel(body, _make_head(head), kernels)
    randomize(model, seed)
    return model.to(dtype)


def _make_head(name: str) -> DipoleHead | AtomwiseHead:
    if name == "dipole":
        return DipoleHead(HIDDEN_CHANNELS)
    if name == "weights":
        return DipoleHead(HIDDEN_CHANNELS, charge_weights=True)
    if name == "charges":
        return DipoleHead(HIDDEN_CHANNELS, atomic_dipoles=False)
    assert name in ("sum", "mean")
    return AtomwiseHead(HIDDEN_CHANNELS, aggregation="sum" if name == "sum" else "mean")


def randomize(module: torch.nn.Module, seed: int, gain: float = 0.7) -> None:
    """Fills all parameters with random numbers, the same in every precision.

    A gain of 1 keeps the size of features in a linear layer; sums over neighbours enlarge them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            numbers = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                numbers = 0.2 * numbers
            elif "embedding" not in name:
                numbers = gain * numbers / math.sqrt(parameter.size(1))
            parameter.copy_(numbers)
