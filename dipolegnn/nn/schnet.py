"""SchNet: continuous-filter convolutions over atoms.

Schütt, Kindermans, Sauceda, Chmiela, Tkatchenko, Müller, SchNet: a continuous-filter
convolutional neural network for modeling quantum interactions, NeurIPS 2017, arXiv:1706.08566.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from dipolegnn._pyg import MessagePassing
from dipolegnn.nn.features import Linear, RadialNetwork
from dipolegnn.nn.filters import FilterRows, RadialFeatures, checked_edges
from dipolegnn.nn.graph import RadiusGraph
from dipolegnn.nn.parts import AtomFeatures, Edges
from dipolegnn.ops import cfconv


class ShiftedSoftplus(nn.Module):
    r"""The activation of SchNet, :math:`\ln(\tfrac12 e^x + \tfrac12)`, which is 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies the function elementwise."""
        return nn.functional.softplus(x) - math.log(2.0)


class SchNet(RadialNetwork):
    r"""SchNet: scalar features of each atom by continuous-filter convolutions.

    ``s`` starts as an embedding of the element; each :class:`SchNetInteraction` adds to it.

    Deviation from the paper: filters are multiplied by a cosine cutoff, as in the authors' later
    code, so that the features are continuous when an atom crosses the cutoff.

    Args:
        hidden_channels: Width F of the features and of the filters.
        num_interactions: Number of interactions.
        num_rbf: Number of radial basis functions R.
        cutoff: Cutoff radius in angstrom.
        radial_basis: Radial basis functions, ``"gaussian"`` or ``"bessel"``.
        levels: Names of the levels of theory that the features depend on, the default first; empty:
            one level, without a name.

    Raises:
        ValueError: If a size is too small, the cutoff is not positive, or a level occurs twice.
    """

    def __init__(
        self,
        hidden_channels: int = 128,
        num_interactions: int = 6,
        num_rbf: int = 50,
        cutoff: float = 5.0,
        radial_basis: Literal["gaussian", "bessel"] = "gaussian",
        levels: Sequence[str] = (),
    ) -> None:
        super().__init__(hidden_channels, num_interactions, num_rbf, cutoff, radial_basis, levels)
        self.interactions = nn.ModuleList(
            SchNetInteraction(hidden_channels, num_rbf, self.cutoff)
            for _ in range(num_interactions)
        )

    def forward(
        self, z: Tensor, pos: Tensor, edge_index: Edges, level: Tensor | None = None
    ) -> AtomFeatures:
        """Computes the features of each atom.

        Args:
            z: Atomic numbers ``[N]``.
            pos: Positions ``[N, 3]`` in angstrom.
            edge_index: Edges ``[2, E]`` of any graph without self-loops: row 0 sources j, row 1
                targets i. Edges longer than the cutoff contribute nothing. The fused kernels are
                used for a :class:`~dipolegnn.nn.graph.RadiusGraph`.
            level: Level of theory of each atom ``[N]``, an index into ``levels``; None: the first.

        Returns:
            ``s [N, F]``; ``v`` is None.

        Raises:
            ValueError: If ``z`` contains an element outside the embedding, or if the graph has
                self-loops, was built from other positions, or has a larger cutoff.
        """
        edges = checked_edges(edge_index, pos, self.cutoff)
        radial = self.radial(pos, edges)
        s = self.initial(z, level)  # [N, F]
        for interaction in self.interactions:
            s = s + interaction(s, pos, edges, radial)
        return AtomFeatures(s, None)


class SchNetInteraction(MessagePassing):
    r"""One interaction block of SchNet (figure 2 of the paper).

    .. math::
        W_{ij} &= \left(\mathbf{W}_2\, \sigma(\mathbf{W}_1 e(d_{ij}) + b_1) + b_2\right)
            f_c(d_{ij}) \\
        \Delta s_i &= \mathbf{W}_5\, \sigma\left(\mathbf{W}_4 \sum_j (\mathbf{W}_3 s_j) \circ W_{ij}
            + b_4\right) + b_5

    Args:
        hidden_channels: Width F of the features and of the filters.
        num_rbf: Number of radial basis functions R.
    """

    def __init__(self, hidden_channels: int, num_rbf: int, cutoff: float) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.cutoff = cutoff
        self.filter_rows = FilterRows()
        self.filter = nn.Sequential(
            Linear(num_rbf, hidden_channels),
            ShiftedSoftplus(),
            Linear(hidden_channels, hidden_channels),
        )
        self.in_layer = Linear(hidden_channels, hidden_channels, bias=False)
        self.out_layers = nn.Sequential(
            Linear(hidden_channels, hidden_channels),
            ShiftedSoftplus(),
            Linear(hidden_channels, hidden_channels),
        )

    def forward(self, s: Tensor, pos: Tensor, edges: Edges, radial: RadialFeatures) -> Tensor:
        """Returns the change ``[N, F]`` of ``s``.

        Args:
            s: Scalar features ``[N, F]``.
            pos: Positions ``[N, 3]`` in angstrom.
            edges: ``edge_index [2, E]``, or a radius graph for the fused kernel.
            radial: Expanded distances.
        """
        w = self.filter_rows(self.filter, radial)  # [E or T, F]
        x = self.in_layer(s)  # [N, F]
        if isinstance(edges, RadiusGraph):
            sums = cfconv(x, w, pos, edges.rowptr, edges.col, self.cutoff)
        else:
            sums = self.propagate(edges, x=x, w=w)
        return self.out_layers(sums)

    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        """Returns the message of each edge ``[E, F]``."""
        return x_j * w
