"""Grid of distances on which filters are tabulated, and interpolation in it.

Between grid points the kernels use the polynomial through the nearest points: for the value 4
points (cubic) in float32 and 8 (degree 7) in float64; for the derivative always 8, in float32 of
every fourth row, because differences of close rows are mostly rounding. With h the spacing of the
rows and w the shortest length scale of the filter (for Gaussians h/w is 1/32), the relative error
of the value is of the order (h/w)^4/43 and (h/w)^8/1000, that of the derivative (h/w)^7/100, which
is below the rounding of either precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

STENCIL_POINTS = {torch.float32: 4, torch.float64: 8}
"""Number of points of the polynomial for the value of a filter."""

SLOPE_POINTS = 8
"""Number of points of the polynomial for the derivative of a filter."""

_SLOPE_STRIDE = {torch.float32: 4, torch.float64: 1}
"""Number of rows from one point to the next, for the derivative."""


def distance_grid(cutoff: float, intervals: int, like: Tensor) -> Tensor:
    """Distances ``[intervals + 1]`` in angstrom, evenly spaced, from 0 to the cutoff.

    Args:
        cutoff: Cutoff radius in angstrom.
        intervals: Number of intervals, a multiple of 4 and at least 32; about 32 for each length
            scale of the filter.
        like: Tensor with the dtype and device of the grid.

    Raises:
        ValueError: If the number of intervals is invalid.
    """
    if intervals < 32 or intervals % 4:
        raise ValueError(f"intervals must be a multiple of 4 and at least 32, got {intervals}.")
    return torch.linspace(0.0, cutoff, intervals + 1, dtype=like.dtype, device=like.device)


def slope_table(table: Tensor) -> Tensor:
    """The rows of a table ``[T, C]`` for its derivative."""
    return table[:: _SLOPE_STRIDE[table.dtype]].contiguous()


def rows_per_length(table: Tensor, cutoff: float) -> float:
    """Rows of a table per angstrom."""
    return (table.size(0) - 1) / cutoff
