"""The elementwise work of PaiNN's mixing as fused operators: schema, shapes, autograd.

Between its matrix products the mixing is a dozen elementwise steps on ``[N, 3, F]``, each of which
PyTorch reads from memory and writes back. Here it is one pass before the network and one after it.
Second derivatives are not there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dipolegnn.ops.backend import plain


@torch.library.custom_op("dipolegnn::mixing_context", mutates_args=(), device_types="cpu")
def mixing_context(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    r"""What the network of the mixing sees: :math:`[s, \sqrt{\lVert V v \rVert^2 + \epsilon}]`.

    Args:
        s: Scalar features ``[N, F]``.
        vectors: V v and U v side by side ``[N, 3, 2F]``.
        eps: Positive; keeps the gradient finite where V v is 0.

    Returns:
        ``[N, 2F]``.
    """
    from dipolegnn.ops import cpu  # here, so that numba is loaded only when it is needed

    return cpu.mixing_context(plain(s), plain(vectors), eps)


@torch.library.custom_op("dipolegnn::mixing_context_backward", mutates_args=(), device_types="cpu")
def _mixing_context_backward(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    from dipolegnn.ops import cpu

    return cpu.mixing_context_backward(plain(grad), plain(vectors), plain(out))


@torch.library.custom_op("dipolegnn::mixing_change", mutates_args=(), device_types="cpu")
def mixing_change(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    r"""What the mixing changes: :math:`a + c\,\langle U v, V v\rangle` and :math:`b\, U v`.

    Args:
        vectors: V v and U v side by side ``[N, 3, 2F]``.
        abc: What the network made of the context ``[N, 3F]``.

    Returns:
        The changes ``[N, F]`` of the scalars and ``[N, 3, F]`` of the vectors.
    """
    from dipolegnn.ops import cpu

    return cpu.mixing_change(plain(vectors), plain(abc))


@torch.library.custom_op("dipolegnn::mixing_change_backward", mutates_args=(), device_types="cpu")
def _mixing_change_backward(
    grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor
) -> tuple[Tensor, Tensor]:
    from dipolegnn.ops import cpu

    return cpu.mixing_change_backward(plain(grad_ds), plain(grad_dv), plain(vectors), plain(abc))


@mixing_context.register_kernel("cuda")
def _(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    from dipolegnn.ops import gpu

    return gpu.mixing_context(plain(s), plain(vectors), eps)


@_mixing_context_backward.register_kernel("cuda")
def _(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    from dipolegnn.ops import gpu

    return gpu.mixing_context_backward(plain(grad), plain(vectors), plain(out))


@mixing_change.register_kernel("cuda")
def _(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    from dipolegnn.ops import gpu

    return gpu.mixing_change(plain(vectors), plain(abc))


@_mixing_change_backward.register_kernel("cuda")
def _(grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    from dipolegnn.ops import gpu

    return gpu.mixing_change_backward(plain(grad_ds), plain(grad_dv), plain(vectors), plain(abc))


@mixing_context.register_fake
def _(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    return s.new_empty(s.size(0), 2 * s.size(1))


@_mixing_context_backward.register_fake
def _(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.size(0), grad.size(1) // 2), vectors.new_empty(vectors.shape)


@mixing_change.register_fake
def _(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    atoms, channels = abc.size(0), abc.size(1) // 3
    return abc.new_empty(atoms, channels), abc.new_empty(atoms, 3, channels)


@_mixing_change_backward.register_fake
def _(grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    return vectors.new_empty(vectors.shape), abc.new_empty(abc.shape)


def _keep_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, vectors, _ = inputs
    ctx.save_for_backward(vectors, output)


def _context_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_mixing_context_backward(grad, *ctx.saved_tensors), None


def _keep_change(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _change_gradient(ctx: Any, grad_ds: Tensor, grad_dv: Tensor) -> tuple[Tensor, Tensor]:
    return _mixing_change_backward(grad_ds, grad_dv, *ctx.saved_tensors)


mixing_context.register_autograd(_context_gradient, setup_context=_keep_context)
mixing_change.register_autograd(_change_gradient, setup_context=_keep_change)

for _operator in (mixing_context, mixing_change):
    for _device in ("cpu", "cuda"):
        _operator.register_autocast(_device, torch.float32)  # as in operators.py
