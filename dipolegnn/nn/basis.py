"""What the filters of all interactions are made from: the radial basis and the cutoff function.

Plain message passing evaluates them at the distance of every edge; the fused kernels evaluate them
on a fixed grid of distances and interpolate (see ``dipolegnn/ops``). The interactions do not see
the difference: they turn :class:`RadialFeatures` into filters, one row per distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipolegnn._pyg import EdgeIndex
from dipolegnn.nn.radial import BesselRBF, CosineCutoff, GaussianRBF
from dipolegnn.ops import distance_grid


class RadialFeatures(NamedTuple):
    """Expanded distances, and where they were taken.

    Attributes:
        rbf: Radial basis functions ``[E, R]``, or ``[T, R]`` on the grid.
        envelope: Cutoff factors ``[E, 1]``, or ``[T, 1]`` on the grid.
        unit: Unit vectors from target to source ``[E, 3]``; None on the grid, where the kernels
            take them from the positions.
    """

    rbf: Tensor
    envelope: Tensor
    unit: Tensor | None


class RadialLayer(nn.Module):
    """Expands the distances of a graph.

    Args:
        rbf: Radial basis.
        cutoff: Cutoff radius in angstrom.
    """

    def __init__(self, rbf: GaussianRBF | BesselRBF, cutoff: float) -> None:
        super().__init__()
        self.rbf = rbf
        self.envelope = CosineCutoff(cutoff)

    def forward(self, pos: Tensor, edge_index: Tensor) -> RadialFeatures:
        """Returns the features of every edge; of the grid where ``edge_index`` asks for kernels.

        Args:
            pos: Positions ``[N, 3]`` in angstrom.
            edge_index: ``[2, E]``; an ``EdgeIndex`` asks for the kernels.
        """
        if isinstance(edge_index, EdgeIndex):
            grid = distance_grid(self.rbf.cutoff, self.rbf.intervals, pos)
            return RadialFeatures(self.rbf(grid), self.envelope(grid).unsqueeze(1), None)
        j, i = edge_index[0], edge_index[1]
        edge_vec = pos[j] - pos[i]  # [E, 3]
        dist = torch.linalg.vector_norm(edge_vec, dim=1)  # [E]
        unit = edge_vec / dist.unsqueeze(1)
        return RadialFeatures(self.rbf(dist), self.envelope(dist).unsqueeze(1), unit)
