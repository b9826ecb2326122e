"""Scatter and gather between atoms and molecules.

PyG's ``segment`` computes sums with torch-scatter, or with PyTorch if torch-scatter is not
installed. While a model is traced (by torch.export or torch.compile), only PyTorch operators that
can be exported are used.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dipolegnn import _pyg


def segment(values: Tensor, ptr: Tensor, reduce: Literal["sum", "mean"] = "sum") -> Tensor:
    """Sum or mean of the rows of each segment.

    Args:
        values: ``[N, ...]``.
        ptr: First row of each segment, and N: ``[B + 1]``.
        reduce: ``"sum"`` or ``"mean"``.

    Returns:
        ``[B, ...]``.
    """
    if not torch.compiler.is_compiling():
        reduced: Tensor = _pyg.segment(values, ptr, reduce=reduce)
        return reduced
    zeros = values.new_zeros((ptr.size(0) - 1, *values.shape[1:]))
    sums = zeros.index_add(0, segment_index(ptr, values.size(0)), values)
    if reduce == "sum":
        return sums
    return sums / ptr.diff().view(-1, *[1] * (values.dim() - 1))


def spread(values: Tensor, ptr: Tensor, rows: int) -> Tensor:
    """Repeats the value of each segment for all of its rows.

    Args:
        values: ``[B, ...]``.
        ptr: First row of each segment, and N: ``[B + 1]``.
        rows: Number of rows N.

    Returns:
        ``[N, ...]``.
    """
    if torch.compiler.is_compiling():
        return values[segment_index(ptr, rows)]
    return values.repeat_interleave(ptr.diff(), dim=0, output_size=rows)


def segment_index(ptr: Tensor, rows: int) -> Tensor:
    """Index of the segment of each row ``[N]``, as from ``repeat_interleave``.

    The ONNX converter implements ``repeat_interleave`` by comparing all rows with all segments.

    Args:
        ptr: First row of each segment, and N: ``[B + 1]``.
        rows: Number of rows N.
    """
    # One extra entry for ptr[-1]. Rows beyond it get the index B, which is out of range.
    begun = ptr.new_zeros(rows + 1).index_add(0, ptr, torch.ones_like(ptr))
    return begun.cumsum(0)[:-1] - 1
