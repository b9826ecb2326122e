"""Fused message passing: sums over neighbours that never write a tensor per edge.

A filter depends on the distance alone. It is evaluated on a grid of distances (a small matrix
product, by ordinary PyTorch, so any radial basis and any filter network will do) and the kernels
interpolate in that table; gradients flow back through the table to the weights. A graph in which
every edge has its reverse needs each distance once for both directions, and lets every atom
gather its own gradient, without atomics.

``operators.py`` holds the operators as autograd sees them, ``cpu_*.py`` and ``gpu_*.py`` the
kernels; ``mixing.py`` the elementwise work of PaiNN's mixing, done in the same way.
"""

from dipolegnn.ops.backend import why_not_fused
from dipolegnn.ops.mixing import mixing_change, mixing_context
from dipolegnn.ops.operators import cfconv, painn_message
from dipolegnn.ops.table import distance_grid

__all__ = [
    "cfconv",
    "distance_grid",
    "mixing_change",
    "mixing_context",
    "painn_message",
    "why_not_fused",
]
