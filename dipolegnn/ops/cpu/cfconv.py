"""The continuous-filter convolution of SchNet on the CPU, forward and backward, by numba.

Each pair of neighbours is processed once, at the edge with the smaller source, and its filter is
used for both directions. Arrays: ``x [N, F]``, ``table [T, F]``, ``pos [N, 3]``, ``out [N, F]``.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from dipolegnn.ops.cpu.compile import compiled, shared_out
from dipolegnn.ops.cpu.interpolation import (
    combine_rows,
    dot,
    lagrange_scales,
    lagrange_slopes,
    lagrange_weights,
    spread_rows,
    stencil_start,
)
from dipolegnn.ops.cpu.launch import buffers, per_length, plan, run, total
from dipolegnn.ops.table import SLOPE_POINTS, STENCIL_POINTS, slope_table


@compiled
def forward(first, last, low, high, points, rowptr, col, pos, x, table, per_length, out):
    """Adds the messages between the atoms ``first:last`` to the channels ``low:high`` of out."""
    lo, hi = np.uint64(low), np.uint64(high)
    w = np.empty(x.shape[1], x.dtype)
    weights, scales = np.empty(points, x.dtype), lagrange_scales(points, x)
    for i in range(first, last):
        for e in range(rowptr[i], rowptr[i + 1]):
            j = col[e]
            if j >= i:
                continue
            rx, ry, rz = pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]
            d = math.sqrt(rx * rx + ry * ry + rz * rz)
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, scales, weights)
            combine_rows(table, start, weights, lo, hi, w)
            for f in range(lo, hi):
                out[i, f] += x[j, f] * w[f]
                out[j, f] += x[i, f] * w[f]


@compiled
def backward(
    first, last, low, high, points, rowptr, col, pos, x, table, per_length,
    grad, grad_x, grad_table, grad_pos, slopes_from, slopes_per_length, positions,
):  # fmt: skip
    """Adds the gradients of the same messages to grad_x, grad_table and grad_pos.

    ``grad [N, F]`` is the gradient of ``out``. ``slopes_from`` contains the rows of the table for
    its derivative; it and ``grad_pos`` are used only with ``positions``.
    """
    lo, hi = np.uint64(low), np.uint64(high)
    w, gw = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    weights, scales = np.empty(points, x.dtype), lagrange_scales(points, x)
    slopes = np.empty(SLOPE_POINTS, x.dtype)
    for i in range(first, last):
        for e in range(rowptr[i], rowptr[i + 1]):
            j = col[e]
            if j >= i:
                continue
            rx, ry, rz = pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]
            d = math.sqrt(rx * rx + ry * ry + rz * rz)
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, scales, weights)
            combine_rows(table, start, weights, lo, hi, w)
            for f in range(lo, hi):
                gw[f] = grad[i, f] * x[j, f] + grad[j, f] * x[i, f]
                grad_x[j, f] += grad[i, f] * w[f]
                grad_x[i, f] += grad[j, f] * w[f]
            spread_rows(grad_table, start, weights, lo, hi, gw)
            if positions:
                start = stencil_start(d * slopes_per_length, SLOPE_POINTS, slopes_from.shape[0])
                lagrange_slopes(d * slopes_per_length - start, slopes)
                combine_rows(slopes_from, start, slopes, lo, hi, w)
                gd = dot(gw, w, lo, hi) * slopes_per_length / d
                grad_pos[j, 0] += gd * rx
                grad_pos[j, 1] += gd * ry
                grad_pos[j, 2] += gd * rz
                grad_pos[i, 0] -= gd * rx
                grad_pos[i, 1] -= gd * ry
                grad_pos[i, 2] -= gd * rz


@shared_out
def forward_shares(shares, points, rowptr, col, pos, x, table, per_length, out):
    """:func:`forward` for each share."""
    for k in numba.prange(shares.shape[0]):
        forward(
            shares[k, 0], shares[k, 1], shares[k, 2], shares[k, 3], points, rowptr, col, pos,
            x, table, per_length, out,
        )  # fmt: skip


@shared_out
def backward_shares(
    shares, points, rowptr, col, pos, x, table, per_length,
    grad, grad_x, grad_tables, grad_places, slopes_from, slopes_per_length, positions,
):  # fmt: skip
    """:func:`backward` for each share, with its slot of ``grad_tables`` and its ``grad_places``."""
    for k in numba.prange(shares.shape[0]):
        backward(
            shares[k, 0], shares[k, 1], shares[k, 2], shares[k, 3], points, rowptr, col, pos,
            x, table, per_length, grad, grad_x, grad_tables[shares[k, 4]], grad_places[k],
            slopes_from, slopes_per_length, positions,
        )  # fmt: skip


def cfconv(
    x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> Tensor:
    """Runs the kernel: see ops/cfconv.py."""
    out = torch.zeros_like(x)
    run(
        forward_shares, plan(rowptr, col, x.size(1)), STENCIL_POINTS[x.dtype], rowptr, col, pos,
        x, table, per_length(table, cutoff), out,
    )  # fmt: skip
    return out


def cfconv_backward(
    grad: Tensor, x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor,
    cutoff: float, positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs the kernel: see ops/cfconv.py."""
    shares = plan(rowptr, col, x.size(1))
    grad_x, slopes_from = torch.zeros_like(x), slope_table(table)
    tables, places = buffers(shares, table, pos)
    run(
        backward_shares, shares, STENCIL_POINTS[x.dtype], rowptr, col, pos,
        x, table, per_length(table, cutoff), grad, grad_x, tables, places,
        slopes_from, per_length(slopes_from, cutoff), positions,
    )  # fmt: skip
    return grad_x, total(tables), total(places)
