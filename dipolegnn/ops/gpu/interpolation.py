"""Functions of all GPU kernels, in Triton: geometry of a pair, interpolation in a filter table.

Each program processes a block of channels, so that neighbouring threads access neighbouring
addresses. There are no atomics: results are reproducible from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load3(array, row, f, mask, F: tl.constexpr):
    """The channels f of the three parts of a row of an array ``[N, 3F]``."""
    first = tl.load(array + 3 * F * row + f, mask=mask, other=0.0)
    second = tl.load(array + 3 * F * row + F + f, mask=mask, other=0.0)
    third = tl.load(array + 3 * F * row + 2 * F + f, mask=mask, other=0.0)
    return first, second, third


@triton.jit
def store3(array, row, f, mask, F: tl.constexpr, first, second, third):
    """Writes the values that :func:`load3` reads."""
    tl.store(array + 3 * F * row + f, first, mask=mask)
    tl.store(array + 3 * F * row + F + f, second, mask=mask)
    tl.store(array + 3 * F * row + 2 * F + f, third, mask=mask)


@triton.jit
def pair_geometry(pos, i, j):
    """Distance of two atoms and the unit vector from atom i to atom j."""
    rx = tl.load(pos + 3 * j) - tl.load(pos + 3 * i)
    ry = tl.load(pos + 3 * j + 1) - tl.load(pos + 3 * i + 1)
    rz = tl.load(pos + 3 * j + 2) - tl.load(pos + 3 * i + 2)
    d = tl.sqrt(rx * rx + ry * ry + rz * rz)
    return d, rx / d, ry / d, rz / d


@triton.jit
def stencil(d, per_length, rows, POINTS: tl.constexpr):
    """First row of the stencil around a distance, and the offset from it in rows."""
    t = d * per_length
    start = t.to(tl.int32) - (POINTS // 2 - 1)
    start = tl.minimum(tl.maximum(start, 0), rows - POINTS)
    return start, t - start.to(t.dtype)


@triton.jit
def weight(offset, m: tl.constexpr, POINTS: tl.constexpr):
    """Lagrange weight of row m of the stencil for the value."""
    value = offset * 0 + 1
    for n in tl.static_range(POINTS):
        if n != m:
            value = value * (offset - n) / (m - n)
    return value


@triton.jit
def weights(offset, m, POINTS: tl.constexpr):
    """Lagrange weights of the rows in the tensor ``m`` for the value."""
    value = (m * 0 + 1) * (offset * 0 + 1)
    for n in tl.static_range(POINTS):
        value = tl.where(m == n, value, value * (offset - n) / tl.where(m == n, 1, m - n))
    return value


@triton.jit
def slope(offset, m: tl.constexpr, POINTS: tl.constexpr):
    """Lagrange weight of row m of the stencil for the derivative."""
    value = offset * 0 + 1
    derivative = offset * 0
    for n in tl.static_range(POINTS):
        if n != m:
            derivative = derivative * (offset - n) / (m - n) + value / (m - n)
            value = value * (offset - n) / (m - n)
    return derivative


@triton.jit
def interpolate(table, start, offset, column, mask, WIDTH: tl.constexpr, POINTS: tl.constexpr,
                DERIVATIVE: tl.constexpr = False):  # fmt: skip
    """The filter at one distance, for a block of columns of a table with WIDTH columns.

    With DERIVATIVE, the derivative of the filter by the row of the table.
    """
    total = tl.zeros_like(tl.load(table + column, mask=mask, other=0.0))
    for m in tl.static_range(POINTS):
        row = tl.load(table + (start + m) * WIDTH + column, mask=mask, other=0.0)
        if DERIVATIVE:
            total += slope(offset, m, POINTS) * row
        else:
            total += weight(offset, m, POINTS) * row
    return total


@triton.jit
def sum_chunks(partial, chunk_ptr, out, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
               POINTS: tl.constexpr):  # fmt: skip
    """Row t of the gradient of a table: the sum of row m of all chunks of the intervals t - m."""
    t = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    total = tl.zeros_like(tl.load(out + column, mask=mask, other=0.0))
    for m in tl.static_range(POINTS):
        k = t - m
        inside = (k >= 0) & (k <= rows - POINTS)
        k = tl.minimum(tl.maximum(k, 0), rows - POINTS)
        first = tl.load(chunk_ptr + k)
        last = tl.where(inside, tl.load(chunk_ptr + k + 1), first)
        for chunk in range(first, last):
            source = partial + (chunk * POINTS + m) * WIDTH + column
            total += tl.load(source, mask=mask, other=0.0)
    tl.store(out + t * WIDTH + column, total, mask=mask)
