"""Layers shared by several networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dipolegnn.nn.filters import RadialLayer
from dipolegnn.nn.graph import can_check_values
from dipolegnn.nn.parts import Representation
from dipolegnn.nn.radial import radial_basis_layer
from dipolegnn.ops import why_not_fused

MAX_Z = 100
"""Elements 1 to 100 have an embedding."""


class ElementEmbedding(nn.Embedding):
    """Element embedding with N(0, 1) weights that checks the atomic numbers."""

    def __init__(self, hidden_channels: int) -> None:
        super().__init__(MAX_Z + 1, hidden_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Looks up ``z [N]`` and returns ``[N, F]``.

        Raises:
            ValueError: If an atomic number is outside 1 to 100. On a GPU this is not checked;
                PyTorch itself raises an error for numbers above 100.
        """
        if can_check_values(z) and z.numel():
            low, high = int(z.min()), int(z.max())
            if low < 1 or high > MAX_Z:
                raise ValueError(
                    f"z contains the atomic number {low if low < 1 else high}, expected 1 to "
                    f"{MAX_Z}. Check the elements of the molecule (dummy atoms have number 0)."
                )
        return super().forward(z)


class LevelEmbedding(nn.Embedding):
    """Embedding of the level of theory; all levels are equal (0) before training."""

    def __init__(self, levels: Sequence[str], hidden_channels: int) -> None:
        if len(set(levels)) < len(levels):
            raise ValueError(f"Each level of theory must occur once, got {', '.join(levels)}.")
        super().__init__(len(levels), hidden_channels)

    def reset_parameters(self) -> None:
        """Sets the weights to 0."""
        nn.init.zeros_(self.weight)


class Linear(nn.Linear):
    """A linear layer with Xavier-uniform weights and zero biases."""

    def reset_parameters(self) -> None:
        """Draws new weights."""
        # PyTorch's initial weights are drawn first and replaced: this keeps the sequence of random
        # numbers, and so the weights for a given seed, as in version 0.1.
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RadialNetwork(Representation):
    """Base class of PaiNN and SchNet: sizes, element embedding, radial basis, fused kernels.

    Args:
        hidden_channels: Width F of the features.
        num_interactions: Number of interactions.
        num_rbf: Number of radial basis functions R.
        cutoff: Cutoff radius in angstrom.
        radial_basis: Radial basis functions.
        levels: Names of the levels of theory; empty: one level, without a name.

    Raises:
        ValueError: If a size is too small, the cutoff is not positive, or a level occurs twice.
    """

    interactions: nn.ModuleList
    """Message passing layers, created by the subclass."""

    def __init__(
        self,
        hidden_channels: int,
        num_interactions: int,
        num_rbf: int,
        cutoff: float,
        radial_basis: Literal["gaussian", "bessel"],
        levels: Sequence[str],
    ) -> None:
        super().__init__()
        check_sizes(hidden_channels, num_interactions, num_rbf, cutoff)
        self.hidden_channels = hidden_channels
        self.num_interactions = num_interactions
        self.num_rbf = num_rbf
        self.cutoff = float(cutoff)
        self.radial_basis: Literal["gaussian", "bessel"] = radial_basis
        self.levels = list(levels)
        self.embedding = ElementEmbedding(hidden_channels)
        self.level_embedding = LevelEmbedding(self.levels, hidden_channels) if levels else None
        self.radial = RadialLayer(radial_basis_layer(radial_basis, num_rbf, self.cutoff))

    def initial(self, z: Tensor, level: Tensor | None) -> Tensor:
        """Initial scalar features ``[N, F]`` from elements and levels ``[N]``."""
        s: Tensor = self.embedding(z)
        if self.level_embedding is None:
            return s
        # None: the first level, of which there is one row.
        rows = z.new_zeros(1) if level is None else level
        return s + self.level_embedding(rows)

    def why_not_fused(self) -> str | None:
        """Reason why fused kernels cannot run on the device of the weights; None if they can."""
        if any(layer.explain for layer in self.interactions):
            return "an explainer reads the messages, which the kernels do not store"
        if torch.compiler.is_compiling():
            return "torch.compile traces the plain message passing"
        return why_not_fused(self.embedding.weight.device, self.embedding.weight.dtype)

    def fused_pays(self, num_edges: int) -> bool:
        """True unless tabulating the filters is slower than evaluating them at every edge.

        Tabulating is slower in a training step with fewer edges than the table has rows. Without
        gradients, the table is computed once and cached.
        """
        training = torch.is_grad_enabled() and self.embedding.weight.requires_grad
        return not training or num_edges > self.radial.rbf.intervals


def check_sizes(hidden_channels: int, num_interactions: int, num_rbf: int, cutoff: float) -> None:
    """Checks the sizes of a network.

    Raises:
        ValueError: If a size is too small or the cutoff is not positive.
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
