"""The message of PaiNN, summed over neighbours."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import register_autograd

from dipolegnn.ops.backend import operator


@operator
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
    return x.new_empty(x.size(0), v.size(2)), v.new_empty(v.shape)


@operator
def painn_message_backward(
    grad_ds: Tensor, grad_dv: Tensor, x: Tensor, v: Tensor, table: Tensor, pos: Tensor,
    rowptr: Tensor, col: Tensor, cutoff: float, positions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by x, v, table and pos (zeros unless ``positions``)."""
    return (
        x.new_empty(x.shape),
        v.new_empty(v.shape),
        table.new_empty(table.shape),
        pos.new_empty(pos.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.cutoff = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad_ds: Tensor, grad_dv: Tensor) -> tuple[Tensor | None, ...]:
    positions = ctx.needs_input_grad[3]
    given = (*ctx.saved_tensors, ctx.cutoff, positions)
    *gradients, by_pos = painn_message_backward(grad_ds, grad_dv, *given)
    return *gradients, by_pos if positions else None, None, None, None


register_autograd("dipolegnn::painn_message", _gradient, setup_context=_keep)
