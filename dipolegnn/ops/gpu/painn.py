"""The message of PaiNN on the GPU, forward and backward, in Triton.

Arrays as on the CPU: ``x [N, 3F]``, ``v [N, 3F]``, ``table [T, 3F]``, ``ds [N, F]``,
``dv [N, 3F]``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipolegnn.ops.gpu.interpolation import (
    interpolate,
    load3,
    pair_geometry,
    stencil,
    store3,
    weights,
)
from dipolegnn.ops.gpu.launch import block_size, cut_into_chunks, summed
from dipolegnn.ops.table import SLOPE_POINTS, STENCIL_POINTS, rows_per_length, slope_table


@triton.jit
def forward(x, v, table, pos, rowptr, col, ds, dv, per_length, rows,
            F: tl.constexpr, BLOCK: tl.constexpr, POINTS: tl.constexpr):  # fmt: skip
    """One program sums the messages to one atom, for one block of channels."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    zero = tl.zeros_like(tl.load(x + f, mask=mask, other=0.0))
    s, vx, vy, vz = zero, zero, zero, zero
    for e in range(tl.load(rowptr + i), tl.load(rowptr + i + 1)):
        j = tl.load(col + e)
        d, ux, uy, uz = pair_geometry(pos, i, j)
        start, offset = stencil(d, per_length, rows, POINTS)
        a = interpolate(table, start, offset, f, mask, 3 * F, POINTS)
        b = interpolate(table, start, offset, F + f, mask, 3 * F, POINTS)
        c = interpolate(table, start, offset, 2 * F + f, mask, 3 * F, POINTS)
        xa, xb, xc = load3(x, j, f, mask, F)
        a *= xa
        b *= xb
        c *= xc
        wx, wy, wz = load3(v, j, f, mask, F)
        s += a
        vx += b * ux + c * wx
        vy += b * uy + c * wy
        vz += b * uz + c * wz
    tl.store(ds + F * i + f, s, mask=mask)
    store3(dv, i, f, mask, F, vx, vy, vz)


@triton.jit
def backward_atoms(x, v, table, pos, rowptr, col, grad_ds, grad_dv, grad_x, grad_v, grad_pos,
                   per_length, rows, slopes, slopes_per_length, slope_rows, atoms,
                   F: tl.constexpr, BLOCK: tl.constexpr, POINTS: tl.constexpr,
                   SLOPE: tl.constexpr, POSITIONS: tl.constexpr):  # fmt: skip
    """One program sums the gradients of the features and the position of one atom j.

    Every edge has its reverse, so the targets of atom j are also its sources.
    ``grad_pos [channel blocks, N, 3]`` receives the part of this block of channels; ``slopes``
    contains the rows of the table for its derivative.
    """
    j = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    f = block * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    xa, xb, xc = load3(x, j, f, mask, F)
    vx, vy, vz = load3(v, j, f, mask, F)
    hs = tl.load(grad_ds + F * j + f, mask=mask, other=0.0)
    hx, hy, hz = load3(grad_dv, j, f, mask, F)
    ga, gb, gc = tl.zeros_like(xa), tl.zeros_like(xa), tl.zeros_like(xa)
    gvx, gvy, gvz = tl.zeros_like(xa), tl.zeros_like(xa), tl.zeros_like(xa)
    px = tl.sum(ga, 0)
    py, pz = px, px
    for e in range(tl.load(rowptr + j), tl.load(rowptr + j + 1)):
        i = tl.load(col + e)
        d, ux, uy, uz = pair_geometry(pos, i, j)
        start, offset = stencil(d, per_length, rows, POINTS)
        wa = interpolate(table, start, offset, f, mask, 3 * F, POINTS)
        wb = interpolate(table, start, offset, F + f, mask, 3 * F, POINTS)
        wc = interpolate(table, start, offset, 2 * F + f, mask, 3 * F, POINTS)
        gs = tl.load(grad_ds + F * i + f, mask=mask, other=0.0)
        gx, gy, gz = load3(grad_dv, i, f, mask, F)
        along_u = ux * gx + uy * gy + uz * gz
        along_v = vx * gx + vy * gy + vz * gz
        ga += gs * wa
        gb += along_u * wb
        gc += along_v * wc
        gvx += xc * wc * gx
        gvy += xc * wc * gy
        gvz += xc * wc * gz
        if POSITIONS:
            start, offset = stencil(d, slopes_per_length, slope_rows, SLOPE)
            da = interpolate(slopes, start, offset, f, mask, 3 * F, SLOPE, True)
            db = interpolate(slopes, start, offset, F + f, mask, 3 * F, SLOPE, True)
            dc = interpolate(slopes, start, offset, 2 * F + f, mask, 3 * F, SLOPE, True)
            ya, yb, yc = load3(x, i, f, mask, F)
            tx, ty, tz = load3(v, i, f, mask, F)
            # Both messages of the pair: j to i along u, and i to j along -u.
            by_distance = da * (gs * xa + hs * ya)
            by_distance += db * (along_u * xb - (ux * hx + uy * hy + uz * hz) * yb)
            by_distance += dc * (along_v * xc + (tx * hx + ty * hy + tz * hz) * yc)
            gd = tl.sum(by_distance, 0) * slopes_per_length
            qx = tl.sum(wb * (xb * gx - yb * hx), 0)
            qy = tl.sum(wb * (xb * gy - yb * hy), 0)
            qz = tl.sum(wb * (xb * gz - yb * hz), 0)
            radial = gd - (qx * ux + qy * uy + qz * uz) / d
            px += radial * ux + qx / d
            py += radial * uy + qy / d
            pz += radial * uz + qz / d
    store3(grad_x, j, f, mask, F, ga, gb, gc)
    store3(grad_v, j, f, mask, F, gvx, gvy, gvz)
    if POSITIONS:
        place = grad_pos + 3 * (block * atoms + j)
        tl.store(place, px)
        tl.store(place + 1, py)
        tl.store(place + 2, pz)


@triton.jit
def backward_table(x, v, pos, source, target, row, chunk_first, chunk_last, grad_ds, grad_dv,
                   partial,
                   per_length, F: tl.constexpr, BLOCK: tl.constexpr,
                   POINTS: tl.constexpr):  # fmt: skip
    """One program sums the filter's gradients over a chunk of edges that share a stencil.

    ``partial [chunks, POINTS, 3F]``; :func:`~dipolegnn.ops.gpu.interpolation.sum_chunks` adds them.
    """
    chunk = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    m = tl.arange(0, POINTS)
    zero = tl.zeros_like(tl.load(x + f, mask=mask, other=0.0))
    sa = m[:, None].to(zero.dtype) * zero[None, :]
    sb, sc = sa, sa
    for e in range(tl.load(chunk_first + chunk), tl.load(chunk_last + chunk)):
        j, i = tl.load(source + e), tl.load(target + e)
        d, ux, uy, uz = pair_geometry(pos, i, j)
        share = weights(d * per_length - tl.load(row + e), m, POINTS)[:, None]
        gs = tl.load(grad_ds + F * i + f, mask=mask, other=0.0)
        gx, gy, gz = load3(grad_dv, i, f, mask, F)
        xa, xb, xc = load3(x, j, f, mask, F)
        vx, vy, vz = load3(v, j, f, mask, F)
        sa += share * (gs * xa)[None, :]
        sb += share * ((ux * gx + uy * gy + uz * gz) * xb)[None, :]
        sc += share * ((vx * gx + vy * gy + vz * gz) * xc)[None, :]
    place = partial + (chunk * POINTS + m[:, None]) * 3 * F + f[None, :]
    tl.store(place, sa, mask=mask[None, :])
    tl.store(place + F, sb, mask=mask[None, :])
    tl.store(place + 2 * F, sc, mask=mask[None, :])


def painn_message(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/painn.py."""
    atoms, channels = x.size(0), x.size(1) // 3
    ds, dv = x.new_empty(atoms, channels), torch.empty_like(v)
    if atoms:
        block, rows = block_size(channels), table.size(0)
        forward[(atoms, triton.cdiv(channels, block))](
            x, v, table, pos, rowptr, col, ds, dv, rows_per_length(table, cutoff), rows,
            channels, block, STENCIL_POINTS[x.dtype],
        )  # fmt: skip
    return ds, dv


def painn_message_backward(
    grad_ds: Tensor, grad_dv: Tensor, x: Tensor, v: Tensor, table: Tensor, pos: Tensor,
    rowptr: Tensor, col: Tensor, cutoff: float, positions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs the kernels: see ops/painn.py."""
    atoms, channels = x.size(0), x.size(1) // 3
    grad_x, grad_v = torch.empty_like(x), torch.empty_like(v)
    if not atoms:
        return grad_x, grad_v, torch.zeros_like(table), torch.zeros_like(pos)
    points, block, rows = STENCIL_POINTS[x.dtype], block_size(channels), table.size(0)
    blocks, scale = triton.cdiv(channels, block), rows_per_length(table, cutoff)
    places = pos.new_zeros(blocks if positions else 1, atoms, 3)
    slopes_from = slope_table(table)
    backward_atoms[(atoms, blocks)](
        x, v, table, pos, rowptr, col, grad_ds, grad_dv, grad_x, grad_v, places,
        scale, rows, slopes_from, rows_per_length(slopes_from, cutoff), slopes_from.size(0),
        atoms, channels, block, points, SLOPE_POINTS, positions,
    )  # fmt: skip
    chunks = cut_into_chunks(table, pos, rowptr, col, cutoff, points)
    partial = table.new_empty(chunks.first.numel(), points, table.size(1))
    backward_table[(chunks.first.numel(), blocks)](
        x, v, pos, chunks.source, chunks.target, chunks.row, chunks.first, chunks.last,
        grad_ds, grad_dv, partial, scale, channels, block, points,
    )  # fmt: skip
    return grad_x, grad_v, summed(partial, chunks, table, points), places.sum(dim=0)
