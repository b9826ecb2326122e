"""What the CPU kernels share: Lagrange interpolation in a filter table, compiled by numba.

Loops run over views of rows, so that LLVM sees unit stride and vectorizes; weights and positions
of the stencil are worked out once per pair of atoms.
"""

from __future__ import annotations

import numba
import numpy as np

compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
"""nogil: threads run side by side; fastmath: sums may be reordered, which vectorizing needs;
cache: compiled once per machine, kept on disk."""


@compiled
def stencil_start(position, points, rows):
    """First row of the stencil around a position (in units of the spacing)."""
    start = int(position) - (points // 2 - 1)
    return min(max(start, 0), rows - points)


@compiled
def lagrange_weights(offset, weights):
    """Weights of the stencil's rows, which lie at 0, 1, ..., for the value at an offset."""
    points = weights.shape[0]
    for m in range(points):
        value = offset * 0 + 1
        for n in range(points):
            if n != m:
                value *= (offset - n) / (m - n)
        weights[m] = value


@compiled
def lagrange_slopes(offset, slopes):
    """Weights of the stencil's rows, which lie at 0, 1, ..., for the derivative at an offset."""
    points = slopes.shape[0]
    for m in range(points):
        value = offset * 0 + 1
        slope = offset * 0
        for n in range(points):
            if n != m:
                factor = (offset - n) / (m - n)
                slope = slope * factor + value / (m - n)
                value = value * factor
        slopes[m] = slope


@compiled
def combine_rows(table, start, weights, column, out):
    """out[f] = sum_m weights[m] * table[start + m, column + f]."""
    width = out.shape[0]
    for m in range(0, weights.shape[0], 4):
        w0, w1, w2, w3 = weights[m], weights[m + 1], weights[m + 2], weights[m + 3]
        t0 = table[start + m, column : column + width]
        t1 = table[start + m + 1, column : column + width]
        t2 = table[start + m + 2, column : column + width]
        t3 = table[start + m + 3, column : column + width]
        if m == 0:
            for f in range(width):
                out[f] = w0 * t0[f] + w1 * t1[f] + w2 * t2[f] + w3 * t3[f]
        else:
            for f in range(width):
                out[f] += w0 * t0[f] + w1 * t1[f] + w2 * t2[f] + w3 * t3[f]


@compiled
def spread_rows(table, start, weights, column, values):
    """table[start + m, column + f] += weights[m] * values[f]: the adjoint of combine_rows."""
    width = values.shape[0]
    for m in range(0, weights.shape[0], 4):
        w0, w1, w2, w3 = weights[m], weights[m + 1], weights[m + 2], weights[m + 3]
        t0 = table[start + m, column : column + width]
        t1 = table[start + m + 1, column : column + width]
        t2 = table[start + m + 2, column : column + width]
        t3 = table[start + m + 3, column : column + width]
        for f in range(width):
            value = values[f]
            t0[f] += w0 * value
            t1[f] += w1 * value
            t2[f] += w2 * value
            t3[f] += w3 * value


@compiled
def dot(a, b):
    """Sum of products of two rows."""
    total = a[0] * 0
    for f in range(a.shape[0]):
        total += a[f] * b[f]
    return total


@compiled
def closed_boundaries(rowptr, col):
    """Atoms at which the graph can be cut without cutting an edge, 0 and N included."""
    atoms = rowptr.shape[0] - 1
    cuts = np.empty(atoms + 1, np.int64)
    count = 0
    reach = -1
    for i in range(atoms):
        if reach < i:
            cuts[count] = i
            count += 1
        reach = max(reach, i)
        for e in range(rowptr[i], rowptr[i + 1]):
            reach = max(reach, col[e])
    cuts[count] = atoms
    return cuts[: count + 1]
