"""The continuous-filter convolution of SchNet."""

from __future__ import annotations

from torch import Tensor

from dipolegnn.ops.backend import operator, set_gradient


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


set_gradient("cfconv", cfconv_backward)
