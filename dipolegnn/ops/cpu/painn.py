"""The message of PaiNN on the CPU, forward and backward, compiled by numba.

Each pair of neighbours is processed once, at the edge with the smaller source, and its filter is
used for both directions. Arrays: ``x [N, 3F]``, ``v [N, 3F]`` (the three directions of a channel F
apart), ``table [T, 3F]``, ``pos [N, 3]``, ``ds [N, F]``, ``dv [N, 3F]``.
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
def forward(first, last, low, high, points, rowptr, col, pos, x, v, table, per_length, ds, dv):
    """Adds the messages between the atoms ``first:last`` to the channels ``low:high`` of ds, dv."""
    F = np.uint64(x.shape[1] // 3)
    G = F + F
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
            ux, uy, uz = rx / d, ry / d, rz / d
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, scales, weights)
            _combine(table, start, weights, F, lo, hi, w)
            for f in range(lo, hi):
                ds[i, f] += x[j, f] * w[f]
                ds[j, f] += x[i, f] * w[f]
            for f in range(lo, hi):
                bi, bj = x[j, F + f] * w[F + f], x[i, F + f] * w[F + f]
                ci, cj = x[j, G + f] * w[G + f], x[i, G + f] * w[G + f]
                dv[i, f] += bi * ux + ci * v[j, f]
                dv[i, F + f] += bi * uy + ci * v[j, F + f]
                dv[i, G + f] += bi * uz + ci * v[j, G + f]
                dv[j, f] += cj * v[i, f] - bj * ux
                dv[j, F + f] += cj * v[i, F + f] - bj * uy
                dv[j, G + f] += cj * v[i, G + f] - bj * uz


@compiled
def _combine(table, start, weights, F, lo, hi, w):
    """Interpolates the three parts of the filter, for the channels ``lo:hi``."""
    if hi - lo == F:  # the parts are contiguous
        combine_rows(table, start, weights, lo, np.uint64(3) * F, w)
    else:
        for part in range(np.uint64(3)):
            combine_rows(table, start, weights, part * F + lo, part * F + hi, w)


@compiled
def _spread(table, start, weights, F, lo, hi, gw):
    """Adjoint of _combine."""
    if hi - lo == F:
        spread_rows(table, start, weights, lo, np.uint64(3) * F, gw)
    else:
        for part in range(np.uint64(3)):
            spread_rows(table, start, weights, part * F + lo, part * F + hi, gw)


@compiled
def backward(
    first, last, low, high, points, rowptr, col, pos, x, v, table, per_length,
    gs, gv, grad_x, grad_v, grad_table, grad_pos, slopes_from, slopes_per_length, positions,
):  # fmt: skip
    """Adds the gradients of the same messages to grad_x, grad_v, grad_table and grad_pos.

    ``gs`` and ``gv`` are the gradients of ds and dv. ``slopes_from`` contains the rows of the table
    for its derivative; it and ``grad_pos`` are used only with ``positions``.
    """
    F = np.uint64(x.shape[1] // 3)
    G = F + F
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
            ux, uy, uz = rx / d, ry / d, rz / d
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, scales, weights)
            _combine(table, start, weights, F, lo, hi, w)
            for f in range(lo, hi):
                gw[f] = gs[i, f] * x[j, f] + gs[j, f] * x[i, f]
                grad_x[j, f] += gs[i, f] * w[f]
                grad_x[i, f] += gs[j, f] * w[f]
                bi = ux * gv[i, f] + uy * gv[i, F + f] + uz * gv[i, G + f]
                bj = ux * gv[j, f] + uy * gv[j, F + f] + uz * gv[j, G + f]
                gw[F + f] = bi * x[j, F + f] - bj * x[i, F + f]
                grad_x[j, F + f] += bi * w[F + f]
                grad_x[i, F + f] -= bj * w[F + f]
            for f in range(lo, hi):
                ci = v[j, f] * gv[i, f] + v[j, F + f] * gv[i, F + f] + v[j, G + f] * gv[i, G + f]
                cj = v[i, f] * gv[j, f] + v[i, F + f] * gv[j, F + f] + v[i, G + f] * gv[j, G + f]
                gw[G + f] = ci * x[j, G + f] + cj * x[i, G + f]
                grad_x[j, G + f] += ci * w[G + f]
                grad_x[i, G + f] += cj * w[G + f]
            for f in range(lo, hi):
                kj, ki = x[j, G + f] * w[G + f], x[i, G + f] * w[G + f]
                grad_v[j, f] += kj * gv[i, f]
                grad_v[j, F + f] += kj * gv[i, F + f]
                grad_v[j, G + f] += kj * gv[i, G + f]
                grad_v[i, f] += ki * gv[j, f]
                grad_v[i, F + f] += ki * gv[j, F + f]
                grad_v[i, G + f] += ki * gv[j, G + f]
            _spread(grad_table, start, weights, F, lo, hi, gw)
            if positions:
                # Gradient by the unit vector; w is then overwritten with the slopes.
                tx, ty, tz = ux * 0, ux * 0, ux * 0
                for f in range(lo, hi):
                    bj, bi = x[j, F + f] * w[F + f], x[i, F + f] * w[F + f]
                    tx += bj * gv[i, f] - bi * gv[j, f]
                    ty += bj * gv[i, F + f] - bi * gv[j, F + f]
                    tz += bj * gv[i, G + f] - bi * gv[j, G + f]
                start = stencil_start(d * slopes_per_length, SLOPE_POINTS, slopes_from.shape[0])
                lagrange_slopes(d * slopes_per_length - start, slopes)
                _combine(slopes_from, start, slopes, F, lo, hi, w)
                gd = dot(gw, w, lo, hi) + dot(gw, w, F + lo, F + hi) + dot(gw, w, G + lo, G + hi)
                gd *= slopes_per_length
                along = tx * ux + ty * uy + tz * uz
                gx = gd * ux + (tx - along * ux) / d
                gy = gd * uy + (ty - along * uy) / d
                gz = gd * uz + (tz - along * uz) / d
                grad_pos[j, 0] += gx
                grad_pos[j, 1] += gy
                grad_pos[j, 2] += gz
                grad_pos[i, 0] -= gx
                grad_pos[i, 1] -= gy
                grad_pos[i, 2] -= gz


@shared_out
def forward_shares(shares, points, rowptr, col, pos, x, v, table, per_length, ds, dv):
    """:func:`forward` for each share."""
    for k in numba.prange(shares.shape[0]):
        forward(
            shares[k, 0], shares[k, 1], shares[k, 2], shares[k, 3], points, rowptr, col, pos,
            x, v, table, per_length, ds, dv,
        )  # fmt: skip


@shared_out
def backward_shares(
    shares, points, rowptr, col, pos, x, v, table, per_length,
    grad_ds, grad_dv, grad_x, grad_v, grad_tables, grad_places,
    slopes_from, slopes_per_length, positions,
):  # fmt: skip
    """:func:`backward` for each share, with its slot of ``grad_tables`` and its ``grad_places``."""
    for k in numba.prange(shares.shape[0]):
        backward(
            shares[k, 0], shares[k, 1], shares[k, 2], shares[k, 3], points, rowptr, col, pos,
            x, v, table, per_length, grad_ds, grad_dv, grad_x, grad_v,
            grad_tables[shares[k, 4]], grad_places[k], slopes_from, slopes_per_length, positions,
        )  # fmt: skip


def painn_message(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/painn.py."""
    ds, dv = x.new_zeros(x.size(0), v.size(2)), torch.zeros_like(v)
    run(
        forward_shares, plan(rowptr, col, v.size(2)), STENCIL_POINTS[x.dtype], rowptr, col, pos,
        x, v.flatten(1), table, per_length(table, cutoff), ds, dv.flatten(1),
    )  # fmt: skip
    return ds, dv


def painn_message_backward(
    grad_ds: Tensor, grad_dv: Tensor, x: Tensor, v: Tensor, table: Tensor, pos: Tensor,
    rowptr: Tensor, col: Tensor, cutoff: float, positions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs the kernel: see ops/painn.py."""
    shares = plan(rowptr, col, v.size(2))
    grad_x, grad_v, slopes_from = torch.zeros_like(x), torch.zeros_like(v), slope_table(table)
    tables, places = buffers(shares, table, pos)
    run(
        backward_shares, shares, STENCIL_POINTS[x.dtype], rowptr, col, pos,
        x, v.flatten(1), table, per_length(table, cutoff), grad_ds, grad_dv.flatten(1),
        grad_x, grad_v.flatten(1), tables, places,
        slopes_from, per_length(slopes_from, cutoff), positions,
    )  # fmt: skip
    return grad_x, grad_v, total(tables), total(places)
