"""Fused message passing: sums over neighbours without a tensor per edge.

A filter depends only on the distance. PyTorch evaluates it on a grid of distances (a small matrix
product; any radial basis and filter network is possible), and the kernels interpolate in that
table; gradients by the weights are computed through the table. In a graph in which every edge has
its reverse, both directions share a distance, and each atom sums its own gradient, without atomics.

:func:`painn_message` and :func:`cfconv` take such a graph
(:class:`dipolegnn.nn.graph.RadiusGraph`), sorted by target and compressed (``rowptr``, ``col``),
and a filter tabulated on :func:`distance_grid`. Gradients flow to features, table and positions.
:func:`mixing_context` and :func:`mixing_change` are the elementwise operations of PaiNN's mixing.
No operator has a second derivative. The plain formulas are in ``nn/painn.py`` and ``nn/schnet.py``.

The files here declare operators and their gradients; ``cpu/`` (numba) and ``gpu/`` (Triton)
contain the kernels and the functions that launch them.
"""

from dipolegnn.ops.backend import why_not_fused
from dipolegnn.ops.cfconv import cfconv
from dipolegnn.ops.mixing import mixing_change, mixing_context
from dipolegnn.ops.painn import painn_message
from dipolegnn.ops.table import distance_grid

__all__ = [
    "cfconv",
    "distance_grid",
    "mixing_change",
    "mixing_context",
    "painn_message",
    "why_not_fused",
]
