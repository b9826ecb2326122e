"""The CPU kernels called with tensors: checks, buffers, threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dipolegnn.ops import cpu_cfconv, cpu_painn
from dipolegnn.ops.table import STENCIL_POINTS, rows_per_length, slope_table
from dipolegnn.ops.threads import Share, plan, run


def _per_length(table: Tensor, cutoff: float) -> np.floating:
    """Rows per angstrom, as a number of the table's precision."""
    return table.numpy().dtype.type(rows_per_length(table, cutoff))


def painn_message(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> Tensor:
    """See operators.py. Returns ``[N, 4, F]``."""
    atoms, channels = x.size(0), x.size(1) // 3
    out = x.new_zeros(atoms, 4 * channels)
    graph = (rowptr.numpy(), col.numpy(), pos.detach().numpy())
    arrays = (*graph, x.numpy(), v.view(atoms, 3 * channels).numpy(), table.numpy())
    scale, target = _per_length(table, cutoff), out.numpy()

    def work(share: Share) -> None:
        a, b, low, high, _ = share
        cpu_painn.forward(a, b, low, high, STENCIL_POINTS[x.dtype], *arrays, scale, target)

    run(plan(*graph[:2], channels), work)
    return out.view(atoms, 4, channels)


def painn_message_backward(
    grad: Tensor,
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
    graph = (rowptr.numpy(), col.numpy(), pos.detach().numpy())
    arrays = (*graph, x.numpy(), v.view(atoms, 3 * channels).numpy(), table.numpy())
    scale, upstream = _per_length(table, cutoff), grad.view(atoms, 4 * channels).numpy()
    grad_x, grad_v = torch.zeros_like(x), x.new_zeros(atoms, 3 * channels)
    slopes_from = slope_table(table)

    def work(share: Share, grad_table: np.ndarray, grad_pos: np.ndarray) -> None:
        a, b, low, high, _ = share
        cpu_painn.backward(
            a, b, low, high, STENCIL_POINTS[x.dtype], *arrays, scale, upstream,
            grad_x.numpy(), grad_v.numpy(), grad_table, grad_pos,
            slopes_from.numpy(), _per_length(slopes_from, cutoff), positions,
        )  # fmt: skip

    grad_table, grad_pos = _reduced(plan(*graph[:2], channels), work, table, pos)
    return grad_x, grad_v.view_as(v), grad_table, grad_pos


def cfconv(
    x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> Tensor:
    """See operators.py. Returns ``[N, F]``."""
    out = torch.zeros_like(x)
    graph = (rowptr.numpy(), col.numpy(), pos.detach().numpy())
    scale, target = _per_length(table, cutoff), out.numpy()

    def work(share: Share) -> None:
        a, b, low, high, _ = share
        cpu_cfconv.forward(
            a,
            b,
            low,
            high,
            STENCIL_POINTS[x.dtype],
            *graph,
            x.numpy(),
            table.numpy(),
            scale,
            target,
        )

    run(plan(*graph[:2], x.size(1)), work)
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
    graph = (rowptr.numpy(), col.numpy(), pos.detach().numpy())
    scale = _per_length(table, cutoff)
    grad_x = torch.zeros_like(x)
    slopes_from = slope_table(table)

    def work(share: Share, grad_table: np.ndarray, grad_pos: np.ndarray) -> None:
        a, b, low, high, _ = share
        cpu_cfconv.backward(
            a, b, low, high, STENCIL_POINTS[x.dtype], *graph, x.numpy(), table.numpy(), scale,
            grad.numpy(), grad_x.numpy(), grad_table, grad_pos,
            slopes_from.numpy(), _per_length(slopes_from, cutoff), positions,
        )  # fmt: skip

    grad_table, grad_pos = _reduced(plan(*graph[:2], x.size(1)), work, table, pos)
    return grad_x, grad_table, grad_pos


def _reduced(
    shares: list[Share],
    work: Callable[[Share, np.ndarray, np.ndarray], None],
    table: Tensor,
    pos: Tensor,
) -> tuple[Tensor, Tensor]:
    """Runs the shares with buffers of their own where they would meet, and adds those in order.

    Shares of atoms meet in the table, shares of channels in the positions.
    """
    slots = max(share.slot for share in shares) + 1
    tables = table.new_zeros(slots, *table.shape)
    places = [torch.zeros_like(pos, memory_format=torch.contiguous_format) for _ in shares]
    buffers = {share: place.numpy() for share, place in zip(shares, places, strict=True)}

    def one(share: Share) -> None:
        work(share, tables[share.slot].numpy(), buffers[share])

    run(shares, one)
    grad_table = tables[0] if slots == 1 else tables.sum(dim=0)
    grad_pos = places[0]
    for place in places[1:]:
        grad_pos += place
    return grad_table, grad_pos
