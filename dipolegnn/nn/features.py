"""What a representation makes of a molecule, and the layers that everybody uses."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from dipolegnn.nn.graph import can_check_values

MAX_Z = 100
"""Elements 1 to 100 have an embedding."""


class AtomFeatures(NamedTuple):
    """Features of each atom, as a representation returns them.

    Attributes:
        s: Scalar features ``[N, F]``, unchanged by rotation.
        v: Vector features ``[N, 3, F]``, which rotate with the molecule; None where the
            representation has none (SchNet).
    """

    s: Tensor
    v: Tensor | None


class ElementEmbedding(nn.Embedding):
    """A vector per element, with N(0, 1) weights; refuses what is not an element it has."""

    def __init__(self, hidden_channels: int) -> None:
        super().__init__(MAX_Z + 1, hidden_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Looks up ``z [N]`` and returns ``[N, F]``.

        Raises:
            ValueError: If an atomic number is outside 1 to 100. On a GPU nobody looks; there
                PyTorch's own check stops at numbers above 100.
        """
        if can_check_values(z) and z.numel():
            low, high = int(z.min()), int(z.max())
            if low < 1 or high > MAX_Z:
                raise ValueError(
                    f"z holds the atomic number {low if low < 1 else high}; the embedding knows "
                    f"the elements 1 to {MAX_Z}. Check the molecule's elements (dummy atoms "
                    "have number 0)."
                )
        return super().forward(z)


def linear(in_channels: int, out_channels: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero biases."""
    layer = nn.Linear(in_channels, out_channels, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def check_sizes(hidden_channels: int, num_interactions: int, num_rbf: int, cutoff: float) -> None:
    """Refuses sizes that no network can be made of.

    Raises:
        ValueError: Naming the argument, what came and what was expected.
    """
    for name, value, least in (
        ("hidden_channels", hidden_channels, 1),
        ("num_interactions", num_interactions, 1),
        ("num_rbf", num_rbf, 2),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if not 0 < cutoff < math.inf:
        raise ValueError(f"cutoff must be a positive distance in angstrom, got {cutoff}.")
