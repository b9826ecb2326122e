"""The message of PaiNN on the CPU, forward and backward, compiled by numba.

Each pair of neighbours is visited once, at the edge whose source comes first; its filter serves
both directions. Arrays: ``x [N, 3F]``, ``v [N, 3F]`` (the three directions of a channel F apart),
``table [T, 3F]``, ``pos [N, 3]``, ``out [N, 4F]`` (scalars, then the three directions).
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
def forward(first, last, low, high, points, rowptr, col, pos, x, v, table, per_length, out):
    """Adds the messages between the atoms ``first:last`` to the channels ``low:high`` of out."""
    channels = x.shape[1] // 3
    width = high - low
    w = np.empty((3, width), x.dtype)
    weights = np.empty(points, x.dtype)
    for i in range(first, last):
        for e in range(rowptr[i], rowptr[i + 1]):
            j = col[e]
            if j >= i:
                continue
            rx, ry, rz = pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]
            d = math.sqrt(rx * rx + ry * ry + rz * rz)
            ux, uy, uz = rx / d, ry / d, rz / d
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, weights)
            for part in range(3):
                combine_rows(table, start, weights, part * channels + low, w[part])
            _send(x[j], v[j], w, ux, uy, uz, out[i], channels, low)
            _send(x[i], v[i], w, -ux, -uy, -uz, out[j], channels, low)


@compiled
def _send(x, v, w, ux, uy, uz, out, channels, low):
    """One message: from the source's x and v into the target's out."""
    width = w.shape[1]
    high = low + width
    xa, xb = x[low:high], x[channels + low : channels + high]
    xc = x[2 * channels + low : 2 * channels + high]
    vx, vy = v[low:high], v[channels + low : channels + high]
    vz = v[2 * channels + low : 2 * channels + high]
    os, ox = out[low:high], out[channels + low : channels + high]
    oy = out[2 * channels + low : 2 * channels + high]
    oz = out[3 * channels + low : 3 * channels + high]
    wa, wb, wc = w[0], w[1], w[2]
    for f in range(width):
        os[f] += xa[f] * wa[f]
        b = xb[f] * wb[f]
        c = xc[f] * wc[f]
        ox[f] += b * ux + c * vx[f]
        oy[f] += b * uy + c * vy[f]
        oz[f] += b * uz + c * vz[f]


@compiled
def backward(
    first, last, low, high, points, rowptr, col, pos, x, v, table, per_length,
    grad, grad_x, grad_v, grad_table, grad_pos, slopes_from, slopes_per_length, positions,
):  # fmt: skip
    """Adds the gradients of the same messages to grad_x, grad_v, grad_table and grad_pos.

    ``grad [N, 4F]`` is the gradient of ``out``. ``slopes_from`` holds the rows of the
    table that its derivative is taken from; it and ``grad_pos`` matter only with ``positions``.
    """
    channels = x.shape[1] // 3
    width = high - low
    w = np.empty((3, width), x.dtype)
    gw = np.empty((3, width), x.dtype)
    dw = np.empty(width, x.dtype)
    weights = np.empty(points, x.dtype)
    slopes = np.empty(SLOPE_POINTS, x.dtype)
    gu = np.zeros(3, x.dtype)
    for i in range(first, last):
        for e in range(rowptr[i], rowptr[i + 1]):
            j = col[e]
            if j >= i:
                continue
            rx, ry, rz = pos[j, 0] - pos[i, 0], pos[j, 1] - pos[i, 1], pos[j, 2] - pos[i, 2]
            d = math.sqrt(rx * rx + ry * ry + rz * rz)
            ux, uy, uz = rx / d, ry / d, rz / d
            start = stencil_start(d * per_length, points, table.shape[0])
            lagrange_weights(d * per_length - start, weights)
            for part in range(3):
                combine_rows(table, start, weights, part * channels + low, w[part])
            gw[:] = 0
            _send_back(x[j], v[j], w, ux, uy, uz, grad[i], grad_x[j], grad_v[j], gw, channels, low)
            _send_back(
                x[i], v[i], w, -ux, -uy, -uz, grad[j], grad_x[i], grad_v[i], gw, channels, low
            )
            for part in range(3):
                spread_rows(grad_table, start, weights, part * channels + low, gw[part])
            if positions:
                start = stencil_start(d * slopes_per_length, SLOPE_POINTS, slopes_from.shape[0])
                lagrange_slopes(d * slopes_per_length - start, slopes)
                gd = x.dtype.type(0)
                for part in range(3):
                    combine_rows(slopes_from, start, slopes, part * channels + low, dw)
                    gd += dot(gw[part], dw)
                gd *= slopes_per_length
                gu[:] = 0
                _unit_gradient(x[j], w, grad[i], 1, gu, channels, low)
                _unit_gradient(x[i], w, grad[j], -1, gu, channels, low)
                along = gu[0] * ux + gu[1] * uy + gu[2] * uz
                gx = gd * ux + (gu[0] - along * ux) / d
                gy = gd * uy + (gu[1] - along * uy) / d
                gz = gd * uz + (gu[2] - along * uz) / d
                grad_pos[j, 0] += gx
                grad_pos[j, 1] += gy
                grad_pos[j, 2] += gz
                grad_pos[i, 0] -= gx
                grad_pos[i, 1] -= gy
                grad_pos[i, 2] -= gz


@compiled
def _send_back(x, v, w, ux, uy, uz, grad, grad_x, grad_v, gw, channels, low):
    """The gradients of one message: source rows x, v, grad_x, grad_v; target row grad."""
    width = w.shape[1]
    high = low + width
    xa, xb = x[low:high], x[channels + low : channels + high]
    xc = x[2 * channels + low : 2 * channels + high]
    vx, vy = v[low:high], v[channels + low : channels + high]
    vz = v[2 * channels + low : 2 * channels + high]
    gs, gx = grad[low:high], grad[channels + low : channels + high]
    gy = grad[2 * channels + low : 2 * channels + high]
    gz = grad[3 * channels + low : 3 * channels + high]
    gxa, gxb = grad_x[low:high], grad_x[channels + low : channels + high]
    gxc = grad_x[2 * channels + low : 2 * channels + high]
    gvx, gvy = grad_v[low:high], grad_v[channels + low : channels + high]
    gvz = grad_v[2 * channels + low : 2 * channels + high]
    wa, wb, wc = w[0], w[1], w[2]
    gwa, gwb, gwc = gw[0], gw[1], gw[2]
    for f in range(width):
        b = ux * gx[f] + uy * gy[f] + uz * gz[f]
        gxa[f] += gs[f] * wa[f]
        gwa[f] += gs[f] * xa[f]
        gxb[f] += b * wb[f]
        gwb[f] += b * xb[f]
    for f in range(width):
        c = vx[f] * gx[f] + vy[f] * gy[f] + vz[f] * gz[f]
        gxc[f] += c * wc[f]
        gwc[f] += c * xc[f]
        k = xc[f] * wc[f]
        gvx[f] += k * gx[f]
        gvy[f] += k * gy[f]
        gvz[f] += k * gz[f]


@compiled
def _unit_gradient(x, w, grad, sign, gu, channels, low):
    """Adds the gradient of one message by the pair's unit vector."""
    width = w.shape[1]
    xb = x[channels + low : channels + low + width]
    for direction in range(3):
        start = (direction + 1) * channels + low
        g = grad[start : start + width]
        total = x[0] * 0
        for f in range(width):
            total += xb[f] * w[1, f] * g[f]
        gu[direction] += sign * total
