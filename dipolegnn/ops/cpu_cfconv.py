"""The continuous-filter convolution of SchNet on the CPU, forward and backward, by numba.

Each pair of neighbours is visited once, at the edge whose source comes first; its filter serves
both directions. Arrays: ``x [N, F]``, ``table [T, F]``, ``pos [N, 3]``, ``out [N, F]``.
"""

from __future__ import annotations

import math

import numpy as np

from dipolegnn.ops.cpu_interpolation import (
    combine_rows,
    compiled,
    dot,
    lagrange_slopes,
    lagrange_weights,
    spread_rows,
    stencil_start,
)
from dipolegnn.ops.table import SLOPE_POINTS


@compiled
def forward(first, last, low, high, points, rowptr, col, pos, x, table, per_length, out):
    """Adds the messages between the atoms ``first:last`` to the channels ``low:high`` of out."""
    w = np.empty(high - low, x.dtype)
    weights = np.empty(points, x.dtype)
    for i in range(first, last):
        for e in range(rowptr[i], rowptr[i + 1]):
            j = col[e]
            if j >= i:
                continue
            rx, ry, rz = pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]
            d = math.sqrt(rx * rx + ry * ry + rz * rz)
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, weights)
            combine_rows(table, start, weights, low, w)
            _add_product(x[j, low:high], w, out[i, low:high])
            _add_product(x[i, low:high], w, out[j, low:high])


@compiled
def _add_product(a, b, out):
    for f in range(out.shape[0]):
        out[f] += a[f] * b[f]


@compiled
def backward(
    first, last, low, high, points, rowptr, col, pos, x, table, per_length,
    grad, grad_x, grad_table, grad_pos, slopes_from, slopes_per_length, positions,
):  # fmt: skip
    """Adds the gradients of the same messages to grad_x, grad_table and grad_pos.

    ``grad [N, F]`` is the gradient of ``out``. ``slopes_from`` holds the rows of the
    table that its derivative is taken from; it and ``grad_pos`` matter only with ``positions``.
    """
    w = np.empty(high - low, x.dtype)
    gw = np.empty(high - low, x.dtype)
    weights = np.empty(points, x.dtype)
    slopes = np.empty(SLOPE_POINTS, x.dtype)
    for i in range(first, last):
        for e in range(rowptr[i], rowptr[i + 1]):
            j = col[e]
            if j >= i:
                continue
            rx, ry, rz = pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]
            d = math.sqrt(rx * rx + ry * ry + rz * rz)
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, weights)
            combine_rows(table, start, weights, low, w)
            gw[:] = 0
            _add_product(grad[i, low:high], w, grad_x[j, low:high])
            _add_product(grad[j, low:high], w, grad_x[i, low:high])
            _add_product(grad[i, low:high], x[j, low:high], gw)
            _add_product(grad[j, low:high], x[i, low:high], gw)
            spread_rows(grad_table, start, weights, low, gw)
            if positions:
                start = stencil_start(d * slopes_per_length, SLOPE_POINTS, slopes_from.shape[0])
                lagrange_slopes(d * slopes_per_length - start, slopes)
                combine_rows(slopes_from, start, slopes, low, w)
                gd = dot(gw, w) * slopes_per_length / d
                grad_pos[j, 0] += gd * rx
                grad_pos[j, 1] += gd * ry
                grad_pos[j, 2] += gd * rz
                grad_pos[i, 0] -= gd * rx
                grad_pos[i, 1] -= gd * ry
                grad_pos[i, 2] -= gd * rz
