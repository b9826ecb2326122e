"""The message of PaiNN, summed over neighbours."""

from __future__ import annotations

from torch import Tensor

from dipolegnn.ops.backend import operator, set_gradient


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


set_gradient("painn_message", painn_message_backward)
