"""The CPU kernels called with tensors: checks, buffers, threads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dipolegnn.ops import cpu_cfconv, cpu_mixing, cpu_painn
from dipolegnn.ops.table import STENCIL_POINTS, rows_per_length, slope_table
from dipolegnn.ops.threads import Shares, equal_shares, plan, run


def _per_length(table: Tensor, cutoff: float) -> np.floating:
    """Rows per angstrom, as a number of the table's precision."""
    return table.numpy().dtype.type(rows_per_length(table, cutoff))


def painn_message(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """See operators.py. Returns ``[N, F]`` and ``[N, 3, F]``."""
    ds, dv = x.new_zeros(x.size(0), x.size(1) // 3), torch.zeros_like(v)
    graph = (rowptr.numpy(), col.numpy())
    run(
        cpu_painn.forward_shares, plan(*graph, ds.size(1)), STENCIL_POINTS[x.dtype], *graph,
        pos.numpy(), x.numpy(), v.flatten(1).numpy(), table.numpy(), _per_length(table, cutoff),
        ds.numpy(), dv.flatten(1).numpy(),
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
    graph = (rowptr.numpy(), col.numpy())
    shares = plan(*graph, v.size(2))
    grad_x, grad_v = torch.zeros_like(x), torch.zeros_like(v)
    tables, places = _buffers(shares, table, pos)
    slopes_from = slope_table(table)
    run(
        cpu_painn.backward_shares, shares, STENCIL_POINTS[x.dtype], *graph,
        pos.numpy(), x.numpy(), v.flatten(1).numpy(), table.numpy(), _per_length(table, cutoff),
        grad_ds.numpy(), grad_dv.flatten(1).numpy(), grad_x.numpy(), grad_v.flatten(1).numpy(),
        tables.numpy(), places.numpy(),
        slopes_from.numpy(), _per_length(slopes_from, cutoff), positions,
    )  # fmt: skip
    return grad_x, grad_v, _sum(tables), _sum(places)


def cfconv(
    x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> Tensor:
    """See operators.py. Returns ``[N, F]``."""
    out = torch.zeros_like(x)
    graph = (rowptr.numpy(), col.numpy())
    run(
        cpu_cfconv.forward_shares, plan(*graph, x.size(1)), STENCIL_POINTS[x.dtype], *graph,
        pos.numpy(), x.numpy(), table.numpy(), _per_length(table, cutoff), out.numpy(),
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
    graph = (rowptr.numpy(), col.numpy())
    shares = plan(*graph, x.size(1))
    grad_x = torch.zeros_like(x)
    tables, places = _buffers(shares, table, pos)
    slopes_from = slope_table(table)
    run(
        cpu_cfconv.backward_shares, shares, STENCIL_POINTS[x.dtype], *graph,
        pos.numpy(), x.numpy(), table.numpy(), _per_length(table, cutoff),
        grad.numpy(), grad_x.numpy(), tables.numpy(), places.numpy(),
        slopes_from.numpy(), _per_length(slopes_from, cutoff), positions,
    )  # fmt: skip
    return grad_x, _sum(tables), _sum(places)


def mixing_context(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    """See mixing.py. Returns ``[N, 2F]``."""
    out = s.new_empty(s.size(0), 2 * s.size(1))
    small = s.numpy().dtype.type(eps)
    run(
        cpu_mixing.context, equal_shares(*s.shape),
        s.numpy(), vectors.flatten(1).numpy(), small, out.numpy(),
    )  # fmt: skip
    return out


def mixing_context_backward(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by s and vectors."""
    grad_s = grad.new_empty(grad.size(0), grad.size(1) // 2)
    grad_vectors = torch.zeros_like(vectors)
    run(
        cpu_mixing.context_backward, equal_shares(*grad_s.shape),
        grad.numpy(), vectors.flatten(1).numpy(), out.numpy(),
        grad_s.numpy(), grad_vectors.flatten(1).numpy(),
    )  # fmt: skip
    return grad_s, grad_vectors


def mixing_change(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    """See mixing.py. Returns ``[N, F]`` and ``[N, 3, F]``."""
    atoms, channels = abc.size(0), abc.size(1) // 3
    ds, dv = abc.new_empty(atoms, channels), abc.new_empty(atoms, 3, channels)
    run(
        cpu_mixing.change, equal_shares(atoms, channels),
        vectors.flatten(1).numpy(), abc.numpy(), ds.numpy(), dv.flatten(1).numpy(),
    )  # fmt: skip
    return ds, dv


def mixing_change_backward(
    grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by vectors and abc."""
    grad_vectors, grad_abc = torch.empty_like(vectors), torch.empty_like(abc)
    run(
        cpu_mixing.change_backward, equal_shares(*grad_ds.shape),
        grad_ds.numpy(), grad_dv.flatten(1).numpy(), vectors.flatten(1).numpy(), abc.numpy(),
        grad_vectors.flatten(1).numpy(), grad_abc.numpy(),
    )  # fmt: skip
    return grad_vectors, grad_abc


def _buffers(shares: Shares, table: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros to add to where shares meet.

    Shares of atoms meet in the table ``[slots, T, C]``, shares of channels in the positions
    ``[shares, N, 3]``.
    """
    slots = int(shares[:, 4].max()) + 1
    return table.new_zeros(slots, *table.shape), pos.new_zeros(len(shares), *pos.shape)


def _sum(buffers: Tensor) -> Tensor:
    return buffers[0] if buffers.size(0) == 1 else buffers.sum(dim=0)
