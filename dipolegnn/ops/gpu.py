"""The GPU kernels called with tensors: launch sizes and buffers.

Everything here has a size that follows from the shapes alone, so that nothing waits for the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dipolegnn.ops import gpu_cfconv, gpu_interpolation, gpu_mixing, gpu_painn
from dipolegnn.ops.table import SLOPE_POINTS, STENCIL_POINTS, rows_per_length, slope_table

_LARGEST_BLOCK = 128
"""Channels that one program handles at most."""

_CHUNK = 32
"""Edges whose filter gradients one program adds up: long enough to pay, short enough that a
common bond length does not keep one program busy while the others wait."""


class _Chunks(NamedTuple):
    """Edges sorted by stencil and cut into chunks, for the gradient of the table."""

    source: Tensor
    target: Tensor
    row: Tensor
    first: Tensor
    last: Tensor
    ptr: Tensor


def _block(channels: int) -> int:
    return min(_LARGEST_BLOCK, triton.next_power_of_2(channels))


def _chunks(
    table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float, points: int
) -> _Chunks:
    edges, rows = col.numel(), table.size(0)
    atoms = torch.arange(pos.size(0), device=pos.device)
    target = atoms.repeat_interleave(rowptr.diff(), output_size=edges)
    dist = torch.linalg.vector_norm(pos[col] - pos[target], dim=1)
    row = (dist * rows_per_length(table, cutoff)).long() - (points // 2 - 1)
    row, order = row.clamp(0, rows - points).sort(stable=True)
    intervals = rows - points + 1
    counts = torch.zeros(intervals, dtype=torch.long, device=pos.device)
    counts.index_add_(0, row, torch.ones_like(row))  # integers: exact in any order
    start = counts.cumsum(0) - counts
    ptr = torch.cat([counts.new_zeros(1), ((counts + _CHUNK - 1) // _CHUNK).cumsum(0)])
    # More chunks than this there cannot be; those beyond the last one are empty.
    chunk = torch.arange(edges // _CHUNK + intervals, device=pos.device)
    interval = (torch.searchsorted(ptr, chunk, right=True) - 1).clamp(max=intervals - 1)
    first = start[interval] + (chunk - ptr[interval]) * _CHUNK
    last = torch.minimum(first + _CHUNK, start[interval] + counts[interval])
    last = torch.where(chunk < ptr[-1], last, first)
    return _Chunks(col[order], target[order], row.to(pos.dtype), first, last, ptr)


def _summed(partial: Tensor, chunks: _Chunks, table: Tensor, points: int) -> Tensor:
    out = torch.empty_like(table)
    rows, width = table.shape
    block = _block(width)
    gpu_interpolation.sum_chunks[(rows, triton.cdiv(width, block))](
        partial, chunks.ptr, out, rows, width, block, points
    )
    return out


def painn_message(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """See operators.py. Returns ``[N, F]`` and ``[N, 3, F]``."""
    atoms, channels = x.size(0), x.size(1) // 3
    ds, dv = x.new_empty(atoms, channels), torch.empty_like(v)
    if atoms:
        block, rows = _block(channels), table.size(0)
        gpu_painn.forward[(atoms, triton.cdiv(channels, block))](
            x, v, table, pos, rowptr, col, ds, dv, rows_per_length(table, cutoff), rows,
            channels, block, STENCIL_POINTS[x.dtype],
        )  # fmt: skip
    return ds, dv


def painn_message_backward(
    grad_ds: Tensor,
    grad_dv: Tensor,
    x: Tensor,
    v: Tensor,
    table: Tensor,
    pos: Tensor,
    rowptr: Tensor,
    col: Tensor,
    cutoff: float,
    positions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, v, table and pos (zeros unless ``positions``)."""
    atoms, channels = x.size(0), x.size(1) // 3
    grad_x, grad_v = torch.empty_like(x), torch.empty_like(v)
    if not atoms:
        return grad_x, grad_v, torch.zeros_like(table), torch.zeros_like(pos)
    points, block, rows = STENCIL_POINTS[x.dtype], _block(channels), table.size(0)
    blocks, scale = triton.cdiv(channels, block), rows_per_length(table, cutoff)
    places = pos.new_zeros(blocks if positions else 1, atoms, 3)
    slopes_from = slope_table(table)
    gpu_painn.backward_atoms[(atoms, blocks)](
        x, v, table, pos, rowptr, col, grad_ds, grad_dv, grad_x, grad_v, places,
        scale, rows, slopes_from, rows_per_length(slopes_from, cutoff), slopes_from.size(0),
        atoms, channels, block, points, SLOPE_POINTS, positions,
    )  # fmt: skip
    chunks = _chunks(table, pos, rowptr, col, cutoff, points)
    partial = table.new_empty(chunks.first.numel(), points, table.size(1))
    gpu_painn.backward_table[(chunks.first.numel(), blocks)](
        x, v, pos, chunks.source, chunks.target, chunks.row, chunks.first, chunks.last,
        grad_ds, grad_dv, partial, scale, channels, block, points,
    )  # fmt: skip
    return grad_x, grad_v, _summed(partial, chunks, table, points), places.sum(dim=0)


def cfconv(
    x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> Tensor:
    """See operators.py. Returns ``[N, F]``."""
    atoms, channels = x.shape
    out = torch.empty_like(x)
    if atoms:
        block, rows = _block(channels), table.size(0)
        gpu_cfconv.forward[(atoms, triton.cdiv(channels, block))](
            x, table, pos, rowptr, col, out, rows_per_length(table, cutoff), rows,
            channels, block, STENCIL_POINTS[x.dtype],
        )  # fmt: skip
    return out


def cfconv_backward(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    pos: Tensor,
    rowptr: Tensor,
    col: Tensor,
    cutoff: float,
    positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, table and pos (zeros unless ``positions``)."""
    atoms, channels = x.shape
    # Every edge has its reverse: the gradient of the sources is the same sum over neighbours.
    grad_x = cfconv(grad, table, pos, rowptr, col, cutoff)
    if not atoms:
        return grad_x, torch.zeros_like(table), torch.zeros_like(pos)
    points, block = STENCIL_POINTS[x.dtype], _block(channels)
    blocks, scale = triton.cdiv(channels, block), rows_per_length(table, cutoff)
    places = pos.new_zeros(blocks if positions else 1, atoms, 3)
    slopes_from = slope_table(table)
    if positions:
        gpu_cfconv.backward_positions[(atoms, blocks)](
            x, slopes_from, pos, rowptr, col, grad, places,
            rows_per_length(slopes_from, cutoff), slopes_from.size(0), atoms, channels, block,
            SLOPE_POINTS,
        )  # fmt: skip
    chunks = _chunks(table, pos, rowptr, col, cutoff, points)
    partial = table.new_empty(chunks.first.numel(), points, channels)
    gpu_cfconv.backward_table[(chunks.first.numel(), blocks)](
        x, pos, chunks.source, chunks.target, chunks.row, chunks.first, chunks.last,
        grad, partial, scale, channels, block, points,
    )  # fmt: skip
    return grad_x, _summed(partial, chunks, table, points), places.sum(dim=0)


def mixing_context(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    """See mixing.py. Returns ``[N, 2F]``."""
    atoms, channels = s.shape
    out = s.new_empty(atoms, 2 * channels)
    if atoms:
        block = _block(channels)
        gpu_mixing.context[(atoms, triton.cdiv(channels, block))](
            s, vectors, out, eps, channels, block
        )
    return out


def mixing_context_backward(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by s and vectors."""
    atoms, channels = grad.size(0), grad.size(1) // 2
    grad_s, grad_vectors = grad.new_empty(atoms, channels), torch.empty_like(vectors)
    if atoms:
        block = _block(channels)
        gpu_mixing.context_backward[(atoms, triton.cdiv(channels, block))](
            grad, vectors, out, grad_s, grad_vectors, channels, block
        )
    return grad_s, grad_vectors


def mixing_change(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    """See mixing.py. Returns ``[N, F]`` and ``[N, 3, F]``."""
    atoms, channels = abc.size(0), abc.size(1) // 3
    ds, dv = abc.new_empty(atoms, channels), abc.new_empty(atoms, 3, channels)
    if atoms:
        block = _block(channels)
        gpu_mixing.change[(atoms, triton.cdiv(channels, block))](
            vectors, abc, ds, dv, channels, block
        )
    return ds, dv


def mixing_change_backward(
    grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by vectors and abc."""
    grad_vectors, grad_abc = torch.empty_like(vectors), torch.empty_like(abc)
    atoms, channels = grad_ds.shape
    if atoms:
        block = _block(channels)
        gpu_mixing.change_backward[(atoms, triton.cdiv(channels, block))](
            grad_ds, grad_dv, vectors, abc, grad_vectors, grad_abc, channels, block
        )
    return grad_vectors, grad_abc
