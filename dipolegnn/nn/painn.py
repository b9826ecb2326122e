"""PaiNN: the polarizable atom interaction neural network.

Schütt, Unke, Gastegger, Equivariant message passing for the prediction of tensorial properties
and molecular spectra, ICML 2021, arXiv:2102.03150. Names follow the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dipolegnn._pyg import MessagePassing
from dipolegnn.nn.features import Linear, RadialNetwork
from dipolegnn.nn.filters import FilterRows, RadialFeatures, checked_edges
from dipolegnn.nn.graph import RadiusGraph
from dipolegnn.nn.parts import AtomFeatures, Edges
from dipolegnn.ops import mixing_change, mixing_context, painn_message

_NORM_EPS = 1e-8
"""Keeps the gradient of |V v| finite where V v is 0, as at the start of the first interaction."""


class PaiNN(RadialNetwork):
    r"""PaiNN: scalar and vector features of each atom by equivariant message passing.

    Each interaction is a :class:`PaiNNInteraction` followed by a :class:`PaiNNMixing` (the paper's
    message block and update block, figure 2). ``s`` starts as an embedding of the element, ``v``
    as 0.

    Deviation from the paper: the radial basis is Gaussian by default, as in the authors' later
    code. The paper uses Bessel functions (``radial_basis="bessel"``).

    Args:
        hidden_channels: Width F of the features.
        num_interactions: Number of interactions.
        num_rbf: Number of radial basis functions R.
        cutoff: Cutoff radius in angstrom.
        radial_basis: Radial basis functions, ``"gaussian"`` or ``"bessel"``.
        levels: Names of the levels of theory that the features depend on, the default first; empty:
            one level, without a name.

    Raises:
        ValueError: If a size is too small, the cutoff is not positive, or a level occurs twice.

    Example:
        >>> import torch
        >>> from dipolegnn import PaiNN, radius_graph
        >>> water = torch.tensor([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
        >>> painn = PaiNN(hidden_channels=32)
        >>> features = painn(torch.tensor([8, 1, 1]), water, radius_graph(water, painn.cutoff))
        >>> features.s.shape, features.v.shape
        (torch.Size([3, 32]), torch.Size([3, 3, 32]))
    """

    has_vectors: ClassVar[bool] = True

    def __init__(
        self,
        hidden_channels: int = 128,
        num_interactions: int = 3,
        num_rbf: int = 20,
        cutoff: float = 5.0,
        radial_basis: Literal["gaussian", "bessel"] = "gaussian",
        levels: Sequence[str] = (),
    ) -> None:
        super().__init__(hidden_channels, num_interactions, num_rbf, cutoff, radial_basis, levels)
        self.interactions = nn.ModuleList(
            PaiNNInteraction(hidden_channels, num_rbf, self.cutoff) for _ in range(num_interactions)
        )
        self.mixings = nn.ModuleList(PaiNNMixing(hidden_channels) for _ in range(num_interactions))

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
            ``s [N, F]`` and ``v [N, 3, F]``.

        Raises:
            ValueError: If ``z`` contains an element outside the embedding, or if the graph has
                self-loops, was built from other positions, or has a larger cutoff.
        """
        edges = checked_edges(edge_index, pos, self.cutoff)
        radial = self.radial(pos, edges)
        s = self.initial(z, level)  # [N, F]
        v = s.new_zeros(s.size(0), 3, s.size(1))  # [N, 3, F]
        for interaction, mixing in zip(self.interactions, self.mixings, strict=True):
            ds, dv = interaction(s, v, pos, edges, radial)
            s, v = s + ds, v + dv
            ds, dv = mixing(s, v, fused=isinstance(edges, RadiusGraph))
            s, v = s + ds, v + dv
        return AtomFeatures(s, v)


class PaiNNInteraction(MessagePassing):
    r"""The message block of PaiNN (equations 7 and 8).

    .. math::
        W_{ij} &= \left(\mathbf{W}\, e(d_{ij}) + b\right) f_c(d_{ij}) \\
        (a, b, c)_{ij} &= \phi(s_j) \circ W_{ij} \\
        \Delta s_i &= \sum_j a_{ij}, \qquad
        \Delta v_i = \sum_j b_{ij}\, \hat r_{ij} + c_{ij} \circ v_j

    with :math:`\hat r_{ij} = (r_j - r_i) / d_{ij}`.

    Args:
        hidden_channels: Width F of the features.
        num_rbf: Number of radial basis functions R.
    """

    def __init__(self, hidden_channels: int, num_rbf: int, cutoff: float) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.cutoff = cutoff
        self.filter_rows = FilterRows()
        self.phi = nn.Sequential(
            Linear(hidden_channels, hidden_channels),
            nn.SiLU(),
            Linear(hidden_channels, 3 * hidden_channels),
        )
        self.filter = Linear(num_rbf, 3 * hidden_channels)

    def forward(
        self, s: Tensor, v: Tensor, pos: Tensor, edges: Edges, radial: RadialFeatures
    ) -> tuple[Tensor, Tensor]:
        """Computes the changes ``[N, F]`` of ``s`` and ``[N, 3, F]`` of ``v``.

        Args:
            s: Scalar features ``[N, F]``.
            v: Vector features ``[N, 3, F]``.
            pos: Positions ``[N, 3]`` in angstrom.
            edges: ``edge_index [2, E]``, or a radius graph for the fused kernel.
            radial: Expanded distances.
        """
        w = self.filter_rows(self.filter, radial)  # [E or T, 3F]
        x = self.phi(s)  # [N, 3F]
        if isinstance(edges, RadiusGraph):
            return painn_message(x, v, w, pos, edges.rowptr, edges.col, self.cutoff)
        ds, dv = self.propagate(edges, x=x, v=v, w=w, unit=radial.unit).split([1, 3], dim=1)
        return ds.squeeze(1), dv

    def message(self, x_j: Tensor, v_j: Tensor, w: Tensor, unit: Tensor) -> Tensor:
        """Returns the scalar and vector messages of each edge, stacked: ``[E, 4, F]``."""
        a, b, c = (x_j * w).chunk(3, dim=1)  # [E, F] each
        vector = b.unsqueeze(1) * unit.unsqueeze(2) + c.unsqueeze(1) * v_j  # [E, 3, F]
        return torch.cat([a.unsqueeze(1), vector], dim=1)


class PaiNNMixing(nn.Module):
    r"""The update block of PaiNN (equations 9 and 10): mixes scalars and vectors of each atom.

    .. math::
        (a, b, c)_i &= \psi\left(s_i, \lVert \mathbf{V} v_i \rVert\right) \\
        \Delta s_i &= a_i + c_i \langle \mathbf{U} v_i, \mathbf{V} v_i \rangle, \qquad
        \Delta v_i = b_i\, \mathbf{U} v_i

    Args:
        hidden_channels: Width F of the features.
    """

    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        self.vectors = Linear(hidden_channels, 2 * hidden_channels, bias=False)
        self.psi = nn.Sequential(
            Linear(2 * hidden_channels, hidden_channels),
            nn.SiLU(),
            Linear(hidden_channels, 3 * hidden_channels),
        )

    def forward(self, s: Tensor, v: Tensor, fused: bool = False) -> tuple[Tensor, Tensor]:
        """Returns the changes ``[N, F]`` of ``s`` and ``[N, 3, F]`` of ``v``.

        Args:
            s: Scalar features ``[N, F]``.
            v: Vector features ``[N, 3, F]``.
            fused: True to compute the elementwise operations with the fused kernels.
        """
        vectors = self.vectors(v)  # [N, 3, 2F]
        if fused:
            return mixing_change(vectors, self.psi(mixing_context(s, vectors, _NORM_EPS)))
        vv, uv = vectors.chunk(2, dim=2)  # [N, 3, F] each
        norm = torch.sqrt(vv.square().sum(dim=1) + _NORM_EPS)  # [N, F]
        a, b, c = self.psi(torch.cat([s, norm], dim=1)).chunk(3, dim=1)  # [N, F] each
        return a + c * (uv * vv).sum(dim=1), b.unsqueeze(1) * uv
