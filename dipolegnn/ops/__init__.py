"""Fused message passing: sums over neighbours that never write a tensor per edge.

A filter depends on the distance alone. It is evaluated on a grid of distances (a small matrix
product, by ordinary PyTorch, so any radial basis and any filter network will do) and the kernels
interpolate in that table; gradients flow back through the table to the weights. A graph in which
every edge has its reverse needs each distance once for both directions, and lets every atom
gather its own gradient, without atomics.

:func:`painn_message` and :func:`cfconv` take such a graph
(:class:`dipolegnn.nn.graph.RadiusGraph`), sorted by target and compressed (``rowptr``, ``col``),
and a filter tabulated on :func:`distance_grid`. Gradients flow to features, table and positions.
:func:`mixing_context` and :func:`mixing_change` are the elementwise work of PaiNN's mixing. None
of the operators has a second derivative. The plain formulas are in ``nn/painn.py`` and
``nn/schnet.py``.

A file here declares operators and their gradients; ``cpu/`` (numba) and ``gpu/`` (Triton) hold
the kernels, each with the function that launches it.
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
