"""The continuous-filter convolution of SchNet."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import register_autograd

from dipolegnn.ops.backend import operator


@operator
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
    return x.new_empty(x.shape)


@operator
def cfconv_backward(
    grad: Tensor, x: Tensor, table: Tensor, pos: Tensor, rowptr: Tensor, col: Tensor,
    cutoff: float, positions: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by x, table and pos (zeros unless ``positions``)."""
    return x.new_empty(x.shape), table.new_empty(table.shape), pos.new_empty(pos.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.cutoff = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    positions = ctx.needs_input_grad[2]
    given = (*ctx.saved_tensors, ctx.cutoff, positions)
    *gradients, by_pos = cfconv_backward(grad, *given)
    return *gradients, by_pos if positions else None, None, None, None


register_autograd("dipolegnn::cfconv", _gradient, setup_context=_keep)
