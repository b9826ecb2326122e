"""Lagrange interpolation in a filter table for the CPU kernels, compiled by numba.

Weights and positions of the stencil are computed once per pair of atoms. Channel indices are
unsigned: signed ones can be negative and count from the end, which prevents vectorization. Arrays
are indexed directly, because a view of a row takes as much time as 20 channels.
"""

from __future__ import annotations

import numpy as np

from dipolegnn.ops.cpu.compile import compiled


@compiled
def stencil_start(position, points, rows):
    """First row of the stencil around a position (in units of the spacing)."""
    start = int(position) - (points // 2 - 1)
    return min(max(start, 0), rows - points)


@compiled
def lagrange_scales(points, like):
    """Reciprocals of the denominators of the weights, in the type of ``like``."""
    scales = np.empty(points, like.dtype)
    for m in range(points):
        product = 1.0
        for n in range(points):
            if n != m:
                product *= m - n
        scales[m] = 1.0 / product
    return scales


@compiled
def lagrange_weights(offset, scales, weights):
    """Weights of the stencil rows at 0, 1, ... for the value at an offset."""
    points = weights.shape[0]
    for m in range(points):
        value = scales[m]
        for n in range(points):
            if n != m:
                value *= offset - n
        weights[m] = value


@compiled
def lagrange_slopes(offset, slopes):
    """Weights of the stencil rows at 0, 1, ... for the derivative at an offset."""
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
def combine_rows(table, start, weights, first, last, out):
    """out[f] = sum_m weights[m] * table[start + m, f] for the columns ``first:last``."""
    for m in range(0, weights.shape[0], 4):
        w0, w1, w2, w3 = weights[m], weights[m + 1], weights[m + 2], weights[m + 3]
        t0 = np.uint64(start + m)
        t1, t2, t3 = t0 + np.uint64(1), t0 + np.uint64(2), t0 + np.uint64(3)
        if m == 0:
            for f in range(first, last):
                out[f] = (
                    w0 * table[t0, f] + w1 * table[t1, f] + w2 * table[t2, f] + w3 * table[t3, f]
                )
        else:
            for f in range(first, last):
                out[f] += (
                    w0 * table[t0, f] + w1 * table[t1, f] + w2 * table[t2, f] + w3 * table[t3, f]
                )


@compiled
def spread_rows(table, start, weights, first, last, values):
    """table[start + m, f] += weights[m] * values[f], the adjoint of combine_rows."""
    for m in range(0, weights.shape[0], 4):
        w0, w1, w2, w3 = weights[m], weights[m + 1], weights[m + 2], weights[m + 3]
        t0 = np.uint64(start + m)
        t1, t2, t3 = t0 + np.uint64(1), t0 + np.uint64(2), t0 + np.uint64(3)
        for f in range(first, last):
            value = values[f]
            table[t0, f] += w0 * value
            table[t1, f] += w1 * value
            table[t2, f] += w2 * value
            table[t3, f] += w3 * value


@compiled
def dot(a, b, first, last):
    """Sum of products of the entries ``first:last``."""
    total = a[0] * 0
    for f in range(first, last):
        total += a[f] * b[f]
    return total


@compiled
def closed_boundaries(rowptr, col):
    """Atoms at which the graph can be divided without cutting an edge, including 0 and N."""
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
