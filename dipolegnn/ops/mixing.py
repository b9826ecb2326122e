"""The elementwise operations of PaiNN's mixing, in one pass before and one after its network.

In plain PyTorch these are a dozen operations on ``[N, 3, F]``, each of which reads and writes
memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import register_autograd

from dipolegnn.ops.backend import operator


@operator
def mixing_context(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    r"""Input of the network of the mixing: :math:`[s, \sqrt{\lVert V v \rVert^2 + \epsilon}]`.

    Args:
        s: Scalar features ``[N, F]``.
        vectors: V v and U v, concatenated ``[N, 3, 2F]``.
        eps: Positive; keeps the gradient finite where V v is 0.

    Returns:
        ``[N, 2F]``.
    """
    return s.new_empty(s.size(0), 2 * s.size(1))


@operator
def mixing_context_backward(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by s and vectors; ``out`` is the result of :func:`mixing_context`."""
    return grad.new_empty(grad.size(0), grad.size(1) // 2), vectors.new_empty(vectors.shape)


@operator
def mixing_change(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    r"""Result of the mixing: :math:`a + c\,\langle U v, V v\rangle` and :math:`b\, U v`.

    Args:
        vectors: V v and U v, concatenated ``[N, 3, 2F]``.
        abc: Output of the network ``[N, 3F]``.

    Returns:
        The changes ``[N, F]`` of the scalars and ``[N, 3, F]`` of the vectors.
    """
    atoms, channels = abc.size(0), abc.size(1) // 3
    return abc.new_empty(atoms, channels), abc.new_empty(atoms, 3, channels)


@operator
def mixing_change_backward(
    grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by vectors and abc."""
    return vectors.new_empty(vectors.shape), abc.new_empty(abc.shape)


def _keep_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], output)


def _context_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *mixing_context_backward(grad, *ctx.saved_tensors), None


def _keep_change(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _change_gradient(ctx: Any, grad_ds: Tensor, grad_dv: Tensor) -> tuple[Tensor, Tensor]:
    return mixing_change_backward(grad_ds, grad_dv, *ctx.saved_tensors)


register_autograd("dipolegnn::mixing_context", _context_gradient, setup_context=_keep_context)
register_autograd("dipolegnn::mixing_change", _change_gradient, setup_context=_keep_change)
