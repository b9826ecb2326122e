"""The fused operators as PyTorch sees them: schema, shapes, autograd.

Both take a graph in which every edge has its reverse, as
:func:`dipolegnn.radius_graph` makes it, sorted by target and compressed (``rowptr``, ``col``),
and a filter tabulated on :func:`dipolegnn.ops.distance_grid`. Gradients flow to features, table
and positions. Second derivatives are not there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dipolegnn.ops.backend import plain


@torch.library.custom_op("dipolegnn::painn_message", mutates_args=(), device_types="cpu")
def painn_message(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    r"""Sum of PaiNN's messages over the neighbours of each atom.

    .. math::
        (a, b, c)_{ij} = x_j \circ W(d_{ij}), \qquad
        \Delta s_i = \sum_j a_{ij}, \qquad
        \Delta v_i = \sum_j b_{ij}\, \hat r_{ij} + c_{ij} \circ v_j

    Args:
        x: Scalar features after the atomwise layers ``[N, 3F]``.
        v: Vector features ``[N, 3, F]``.
        table: The filter W, cutoff function included, at T distances ``[T, 3F]``.
        pos: Positions ``[N, 3]`` in angstrom.
        rowptr: First edge of each target, and E: ``[N + 1]``.
        col: Source of each edge ``[E]``.
        cutoff: Last distance of the table, in angstrom.

    Returns:
        The change ``[N, F]`` of the scalars and that ``[N, 3, F]`` of the vectors.
    """
    from dipolegnn.ops import cpu  # here, so that numba is loaded only when it is needed

    return cpu.painn_message(
        plain(x), plain(v), plain(table), plain(pos), plain(rowptr), plain(col), cutoff
    )


@torch.library.custom_op("dipolegnn::painn_message_backward", mutates_args=(), device_types="cpu")
def _painn_message_backward(
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
    from dipolegnn.ops import cpu

    return cpu.painn_message_backward(
        plain(grad_ds),
        plain(grad_dv),
        plain(x),
        plain(v),
        plain(table),
        plain(pos),
        plain(rowptr),
        plain(col),
        cutoff,
        positions,
    )


@torch.library.custom_op("dipolegnn::cfconv", mutates_args=(), device_types="cpu")
def cfconv(
    x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> Tensor:
    r"""Continuous-filter convolution of SchNet: :math:`\sum_j x_j \circ W(d_{ij})`.

    Args:
        x: Scalar features after the first atomwise layer ``[N, F]``.
        table: The filter W, cutoff function included, at T distances ``[T, F]``.
        pos: Positions ``[N, 3]`` in angstrom.
        rowptr: First edge of each target, and E: ``[N + 1]``.
        col: Source of each edge ``[E]``.
        cutoff: Last distance of the table, in angstrom.

    Returns:
        The sums ``[N, F]``.
    """
    from dipolegnn.ops import cpu

    return cpu.cfconv(plain(x), plain(table), plain(pos), plain(rowptr), plain(col), cutoff)


@torch.library.custom_op("dipolegnn::cfconv_backward", mutates_args=(), device_types="cpu")
def _cfconv_backward(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    pos: Tensor,
    rowptr: Tensor,
    col: Tensor,
    cutoff: float,
    positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from dipolegnn.ops import cpu

    return cpu.cfconv_backward(
        plain(grad),
        plain(x),
        plain(table),
        plain(pos),
        plain(rowptr),
        plain(col),
        cutoff,
        positions,
    )


@painn_message.register_kernel("cuda")
def _(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    from dipolegnn.ops import gpu

    return gpu.painn_message(
        plain(x), plain(v), plain(table), plain(pos), plain(rowptr), plain(col), cutoff
    )


@_painn_message_backward.register_kernel("cuda")
def _(
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
    from dipolegnn.ops import gpu

    return gpu.painn_message_backward(
        plain(grad_ds),
        plain(grad_dv),
        plain(x),
        plain(v),
        plain(table),
        plain(pos),
        plain(rowptr),
        plain(col),
        cutoff,
        positions,
    )


@cfconv.register_kernel("cuda")
def _(x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float) -> Tensor:
    from dipolegnn.ops import gpu

    return gpu.cfconv(plain(x), plain(table), plain(pos), plain(rowptr), plain(col), cutoff)


@_cfconv_backward.register_kernel("cuda")
def _(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    pos: Tensor,
    rowptr: Tensor,
    col: Tensor,
    cutoff: float,
    positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from dipolegnn.ops import gpu

    return gpu.cfconv_backward(
        plain(grad),
        plain(x),
        plain(table),
        plain(pos),
        plain(rowptr),
        plain(col),
        cutoff,
        positions,
    )


@painn_message.register_fake
def _(
    x: Tensor, v: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.size(0), v.size(2)), v.new_empty(v.shape)


@_painn_message_backward.register_fake
def _(
    grad_ds: Tensor,
    grad_dv: Tensor,
    x: Tensor,
    v: Tensor,
    table: Tensor,
    pos: Tensor,
    *_rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        v.new_empty(v.shape),
        table.new_empty(table.shape),
        pos.new_empty(pos.shape),
    )


@cfconv.register_fake
def _(x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor, cutoff: float) -> Tensor:
    return x.new_empty(x.shape)


@_cfconv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, table: Tensor, pos: Tensor, *_rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), table.new_empty(table.shape), pos.new_empty(pos.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.cutoff = inputs
    ctx.save_for_backward(*tensors)


def _painn_message_gradient(
    ctx: Any, grad_ds: Tensor, grad_dv: Tensor
) -> tuple[Tensor | None, ...]:
    positions = ctx.needs_input_grad[3]
    gradients = _painn_message_backward(grad_ds, grad_dv, *ctx.saved_tensors, ctx.cutoff, positions)
    return *gradients[:3], gradients[3] if positions else None, None, None, None


def _cfconv_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    positions = ctx.needs_input_grad[2]
    gradients = _cfconv_backward(grad, *ctx.saved_tensors, ctx.cutoff, positions)
    return *gradients[:2], gradients[2] if positions else None, None, None, None


painn_message.register_autograd(_painn_message_gradient, setup_context=_keep_inputs)
cfconv.register_autograd(_cfconv_gradient, setup_context=_keep_inputs)

for _operator in (painn_message, cfconv):
    for _device in ("cpu", "cuda"):
        # Under autocast the matrix products before it may hand over half precision.
        _operator.register_autocast(_device, torch.float32)
