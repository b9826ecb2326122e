"""Radial features and the filters of interactions.

Plain message passing evaluates filters at the distance of every edge. Fused kernels interpolate
tabulated filters, evaluated on a fixed grid of distances (see ``dipolegnn/ops``). Interactions use
the same code for both: they map :class:`RadialFeatures` to filters, one row per distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipolegnn._pyg import EdgeIndex
from dipolegnn.nn.graph import RadiusGraph, can_check_values
from dipolegnn.nn.parts import Edges
from dipolegnn.nn.radial import BesselRBF, CosineCutoff, GaussianRBF
from dipolegnn.ops import distance_grid, why_not_fused


def checked_edges(edges: Edges, pos: Tensor, cutoff: float) -> Edges:
    """Checks the edges of a network.

    Args:
        edges: A radius graph, or ``edge_index [2, E]``. An ``EdgeIndex`` of PyG is processed by
            plain PyTorch, because it may be directed or have edges longer than the cutoff.
        pos: Positions ``[N, 3]`` in angstrom.
        cutoff: Cutoff radius of the network in angstrom.

    Raises:
        ValueError: If a radius graph has a larger cutoff or was built from other positions, if
            ``edge_index`` is not ``[2, E]``, or if it has self-loops. Self-loops are not checked on
            a GPU, where they make the features NaN.
    """
    if isinstance(edges, RadiusGraph):
        if edges.cutoff > cutoff:
            raise ValueError(
                f"The radius graph has the cutoff {edges.cutoff} Å and the network {cutoff} Å; "
                "build the graph with the cutoff of the network."
            )
        if not edges.is_of(pos):
            raise ValueError(
                "The radius graph belongs to other positions than pos: atoms have moved since it "
                "was built. Rebuild it with RadiusGraph.of(pos, cutoff, batch)."
            )
        return edges if why_not_fused(pos.device, pos.dtype) is None else edges.edge_index
    plain = edges.as_tensor() if isinstance(edges, EdgeIndex) else edges
    if plain.dim() != 2 or plain.size(0) != 2:
        raise ValueError(f"edge_index must have the shape [2, E], got {list(plain.shape)}.")
    if can_check_values(plain):
        loops = plain[0] == plain[1]  # [E]
        if bool(loops.any()):
            raise ValueError(
                f"edge_index has {int(loops.sum())} self-loops, the first at atom "
                f"{int(plain[0][loops][0])}; an atom has no distance to itself. Remove them with "
                "torch_geometric.utils.remove_self_loops."
            )
    return plain


class RadialFeatures(NamedTuple):
    """Expanded distances.

    Attributes:
        rbf: Radial basis functions ``[E, R]``, or ``[T, R]`` on the grid.
        envelope: Cutoff factors ``[E, 1]``, or ``[T, 1]`` on the grid.
        unit: Unit vectors from target to source ``[E, 3]``; None on the grid, because the kernels
            compute them from the positions.
    """

    rbf: Tensor
    envelope: Tensor
    unit: Tensor | None


class RadialLayer(nn.Module):
    """Expands the distances of a graph.

    Args:
        rbf: Radial basis.
    """

    def __init__(self, rbf: GaussianRBF | BesselRBF) -> None:
        super().__init__()
        self.rbf = rbf
        self.envelope = CosineCutoff(rbf.cutoff)
        self._grid: RadialFeatures | None = None

    def forward(self, pos: Tensor, edges: Edges) -> RadialFeatures:
        """Computes the features of every edge or, for the fused kernels, of the grid.

        Args:
            pos: Positions ``[N, 3]`` in angstrom.
            edges: ``edge_index [2, E]``, or a radius graph for the kernels.
        """
        if isinstance(edges, RadiusGraph):
            return self._on_grid(pos)
        j, i = edges[0], edges[1]
        edge_vec = pos[j] - pos[i]  # [E, 3]
        dist = torch.linalg.vector_norm(edge_vec, dim=1)  # [E]
        return self._expanded(dist, edge_vec / dist.unsqueeze(1))

    def _expanded(self, dist: Tensor, unit: Tensor | None) -> RadialFeatures:
        return RadialFeatures(self.rbf(dist), self.envelope(dist).unsqueeze(1), unit)

    def _on_grid(self, like: Tensor) -> RadialFeatures:
        """Features of the grid, which are constant; computed once per dtype and device."""
        kept = self._grid
        if kept is None or kept.rbf.dtype != like.dtype or kept.rbf.device != like.device:
            with torch.inference_mode(False), torch.no_grad():  # as in FilterRows
                grid = distance_grid(self.rbf.cutoff, self.rbf.intervals, like)
                kept = self._expanded(grid, None)
            if not torch.compiler.is_compiling():
                self._grid = kept
        return kept


class FilterRows:
    """Evaluates the filter of an interaction, one row per distance.

    The tabulated filter is cached while the weights are unchanged and do not require a gradient;
    without the cache, the table would dominate the time of a prediction for one molecule.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def __call__(self, network: nn.Module, radial: RadialFeatures) -> Tensor:
        """Returns the filter times the cutoff factors: ``[E, C]``, or ``[T, C]`` on the grid.

        Args:
            network: Computes the filter from the radial basis.
            radial: Expanded distances.
        """
        weights = tuple(network.parameters())
        if (
            radial.unit is not None
            # Comparing the weights would synchronize with a GPU at every step.
            or not can_check_values(radial.rbf)
            or (torch.is_grad_enabled() and any(weight.requires_grad for weight in weights))
        ):
            return _rows(network, radial)
        kept = self._kept  # read once: other threads may replace it
        if kept is None or not kept.is_of(radial, weights):
            # A tensor created in inference mode cannot be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                copies = tuple(weight.clone() for weight in weights)
                kept = _Kept(radial.rbf, copies, _rows(network, radial))
            self._kept = kept
        return kept.rows


def _rows(network: nn.Module, radial: RadialFeatures) -> Tensor:
    rows: Tensor = network(radial.rbf) * radial.envelope
    return rows


class _Kept(NamedTuple):
    """A tabulated filter with the basis and weights that it was computed from.

    The values of the weights are compared, which takes a few microseconds: version counters miss
    changes through ``.data``, which swap moving averages in and out.
    """

    rbf: Tensor
    weights: tuple[Tensor, ...]
    rows: Tensor

    def is_of(self, radial: RadialFeatures, weights: tuple[Tensor, ...]) -> bool:
        return self.rbf is radial.rbf and all(
            a.dtype == b.dtype and torch.equal(a, b)
            for a, b in zip(self.weights, weights, strict=True)
        )
