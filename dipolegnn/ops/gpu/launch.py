"""Launching of GPU kernels: sizes and buffers.

All sizes follow from the shapes of the inputs, which avoids GPU synchronizations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dipolegnn.ops.gpu.interpolation import sum_chunks
from dipolegnn.ops.table import rows_per_length

_LARGEST_BLOCK = 128
"""Largest number of channels per program."""

_CHUNK = 32
"""Edges per program in the gradient of the table. With longer chunks, the edges of a common bond
length would be summed by few programs."""


class Chunks(NamedTuple):
    """Edges sorted by stencil and cut into chunks, for the gradient of the table."""

    source: Tensor
    target: Tensor
    row: Tensor
    first: Tensor
    last: Tensor
    ptr: Tensor


def block_size(channels: int) -> int:
    """Number of channels per program."""
    return min(_LARGEST_BLOCK, triton.next_power_of_2(channels))


def cut_into_chunks(
    table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float, points: int
) -> Chunks:
    """Sorts the edges by the first row of their stencil and divides them into chunks."""
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
    # The largest possible number of chunks; those after the last one are empty.
    chunk = torch.arange(edges // _CHUNK + intervals, device=pos.device)
    interval = (torch.searchsorted(ptr, chunk, right=True) - 1).clamp(max=intervals - 1)
    first = start[interval] + (chunk - ptr[interval]) * _CHUNK
    last = torch.minimum(first + _CHUNK, start[interval] + counts[interval])
    last = torch.where(chunk < ptr[-1], last, first)
    return Chunks(col[order], target[order], row.to(pos.dtype), first, last, ptr)


def summed(partial: Tensor, chunks: Chunks, table: Tensor, points: int) -> Tensor:
    """Gradient of the table, from the parts ``[chunks, points, C]`` of the chunks."""
    out = torch.empty_like(table)
    rows, width = table.shape
    block = block_size(width)
    sum_chunks[(rows, triton.cdiv(width, block))](
        partial, chunks.ptr, out, rows, width, block, points
    )
    return out
