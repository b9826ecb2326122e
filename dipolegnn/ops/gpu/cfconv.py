"""The continuous-filter convolution of SchNet on the GPU, forward and backward, in Triton.

Arrays as on the CPU: ``x [N, F]``, ``table [T, F]``, ``out [N, F]``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipolegnn.ops.gpu.interpolation import (
    interpolate,
    pair_geometry,
    stencil,
    weights,
)
from dipolegnn.ops.gpu.launch import block_size, cut_into_chunks, summed
from dipolegnn.ops.table import SLOPE_POINTS, STENCIL_POINTS, rows_per_length, slope_table


@triton.jit
def forward(x, table, pos, rowptr, col, out, per_length, rows,
            F: tl.constexpr, BLOCK: tl.constexpr, POINTS: tl.constexpr):  # fmt: skip
    """One program sums the messages to one atom, for one block of channels.

    With ``grad`` as ``x``, the result is the gradient of ``x``, as every edge has its reverse.
    """
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    total = tl.zeros_like(tl.load(x + f, mask=mask, other=0.0))
    for e in range(tl.load(rowptr + i), tl.load(rowptr + i + 1)):
        j = tl.load(col + e)
        d, _, _, _ = pair_geometry(pos, i, j)
        start, offset = stencil(d, per_length, rows, POINTS)
        w = interpolate(table, start, offset, f, mask, F, POINTS)
        total += w * tl.load(x + F * j + f, mask=mask, other=0.0)
    tl.store(out + F * i + f, total, mask=mask)


@triton.jit
def backward_positions(x, slopes, pos, rowptr, col, grad, grad_pos, per_length, rows, atoms,
                       F: tl.constexpr, BLOCK: tl.constexpr, SLOPE: tl.constexpr):  # fmt: skip
    """One program sums the gradient of one atom's position, for one block of channels.

    ``grad_pos [channel blocks, N, 3]``.
    """
    j = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    f = block * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    xj = tl.load(x + F * j + f, mask=mask, other=0.0)
    gj = tl.load(grad + F * j + f, mask=mask, other=0.0)
    px = tl.sum(xj * 0, 0)
    py, pz = px, px
    for e in range(tl.load(rowptr + j), tl.load(rowptr + j + 1)):
        i = tl.load(col + e)
        d, ux, uy, uz = pair_geometry(pos, i, j)
        start, offset = stencil(d, per_length, rows, SLOPE)
        dw = interpolate(slopes, start, offset, f, mask, F, SLOPE, True)
        xi = tl.load(x + F * i + f, mask=mask, other=0.0)
        gi = tl.load(grad + F * i + f, mask=mask, other=0.0)
        gd = tl.sum(dw * (gi * xj + gj * xi), 0) * per_length
        px += gd * ux
        py += gd * uy
        pz += gd * uz
    place = grad_pos + 3 * (block * atoms + j)
    tl.store(place, px)
    tl.store(place + 1, py)
    tl.store(place + 2, pz)


@triton.jit
def backward_table(x, pos, source, target, row, chunk_first, chunk_last, grad, partial,
                   per_length, F: tl.constexpr, BLOCK: tl.constexpr,
                   POINTS: tl.constexpr):  # fmt: skip
    """One program sums the filter's gradients over a chunk of edges that share a stencil.

    ``partial [chunks, POINTS, F]``; :func:`~dipolegnn.ops.gpu.interpolation.sum_chunks` adds them.
    """
    chunk = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    m = tl.arange(0, POINTS)
    zero = tl.zeros_like(tl.load(x + f, mask=mask, other=0.0))
    total = m[:, None].to(zero.dtype) * zero[None, :]
    for e in range(tl.load(chunk_first + chunk), tl.load(chunk_last + chunk)):
        j, i = tl.load(source + e), tl.load(target + e)
        d, _, _, _ = pair_geometry(pos, i, j)
        share = weights(d * per_length - tl.load(row + e), m, POINTS)[:, None]
        xj = tl.load(x + F * j + f, mask=mask, other=0.0)
        gi = tl.load(grad + F * i + f, mask=mask, other=0.0)
        total += share * (gi * xj)[None, :]
    place = partial + (chunk * POINTS + m[:, None]) * F + f[None, :]
    tl.store(place, total, mask=mask[None, :])


def cfconv(
    x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> Tensor:
    """Runs the kernel: see ops/cfconv.py."""
    atoms, channels = x.shape
    out = torch.empty_like(x)
    if atoms:
        block, rows = block_size(channels), table.size(0)
        forward[(atoms, triton.cdiv(channels, block))](
            x, table, pos, rowptr, col, out, rows_per_length(table, cutoff), rows,
            channels, block, STENCIL_POINTS[x.dtype],
        )  # fmt: skip
    return out


def cfconv_backward(
    grad: Tensor, x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor,
    cutoff: float, positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs the kernels: see ops/cfconv.py."""
    atoms, channels = x.shape
    # Every edge has its reverse: the gradient by x is the same sum over neighbours.
    grad_x = cfconv(grad, table, pos, rowptr, col, cutoff)
    if not atoms:
        return grad_x, torch.zeros_like(table), torch.zeros_like(pos)
    points, block = STENCIL_POINTS[x.dtype], block_size(channels)
    blocks, scale = triton.cdiv(channels, block), rows_per_length(table, cutoff)
    places = pos.new_zeros(blocks if positions else 1, atoms, 3)
    slopes_from = slope_table(table)
    if positions:
        backward_positions[(atoms, blocks)](
            x, slopes_from, pos, rowptr, col, grad, places,
            rows_per_length(slopes_from, cutoff), slopes_from.size(0), atoms, channels, block,
            SLOPE_POINTS,
        )  # fmt: skip
    chunks = cut_into_chunks(table, pos, rowptr, col, cutoff, points)
    partial = table.new_empty(chunks.first.numel(), points, channels)
    backward_table[(chunks.first.numel(), blocks)](
        x, pos, chunks.source, chunks.target, chunks.row, chunks.first, chunks.last,
        grad, partial, scale, channels, block, points,
    )  # fmt: skip
    return grad_x, summed(partial, chunks, table, points), places.sum(dim=0)
