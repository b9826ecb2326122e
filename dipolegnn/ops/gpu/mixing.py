"""The elementwise work of PaiNN's mixing on the GPU, forward and backward, in Triton.

Arrays as on the CPU: ``s [N, F]``, ``vectors [N, 6F]``, ``context [N, 2F]``, ``abc [N, 3F]``,
``ds [N, F]``, ``dv [N, 3F]``. One program per atom and block of channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipolegnn.ops.gpu.interpolation import load3, store3
from dipolegnn.ops.gpu.launch import block_size


@triton.jit
def _vectors(vectors, i, f, mask, direction: tl.constexpr, F: tl.constexpr):
    """One direction of V v and of U v."""
    place = vectors + 6 * F * i + 2 * direction * F + f
    return tl.load(place, mask=mask, other=0.0), tl.load(place + F, mask=mask, other=0.0)


@triton.jit
def context(s, vectors, out, eps, F: tl.constexpr, BLOCK: tl.constexpr):
    """Out = [s, sqrt(|V v|² + eps)]."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    own = tl.load(s + F * i + f, mask=mask, other=0.0)
    square = tl.zeros_like(own) + eps
    for direction in tl.static_range(3):
        v, _ = _vectors(vectors, i, f, mask, direction, F)
        square += v * v
    tl.store(out + 2 * F * i + f, own, mask=mask)
    tl.store(out + 2 * F * i + F + f, tl.sqrt(square), mask=mask)


@triton.jit
def context_backward(grad, vectors, out, grad_s, grad_vectors,
                     F: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Gradients of :func:`context`; that of U v is 0."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    tl.store(grad_s + F * i + f, tl.load(grad + 2 * F * i + f, mask=mask, other=0.0), mask=mask)
    up = tl.load(grad + 2 * F * i + F + f, mask=mask, other=0.0)
    up /= tl.load(out + 2 * F * i + F + f, mask=mask, other=1.0)
    for direction in tl.static_range(3):
        v, _ = _vectors(vectors, i, f, mask, direction, F)
        place = grad_vectors + 6 * F * i + 2 * direction * F + f
        tl.store(place, up * v, mask=mask)
        tl.store(place + F, tl.zeros_like(up), mask=mask)


@triton.jit
def change(vectors, abc, ds, dv, F: tl.constexpr, BLOCK: tl.constexpr):
    """Ds = a + c <U v, V v>, dv = b U v."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    a, b, c = load3(abc, i, f, mask, F)
    inner = tl.zeros_like(a)
    for direction in tl.static_range(3):
        v, u = _vectors(vectors, i, f, mask, direction, F)
        inner += u * v
        tl.store(dv + 3 * F * i + direction * F + f, b * u, mask=mask)
    tl.store(ds + F * i + f, a + c * inner, mask=mask)


@triton.jit
def change_backward(grad_ds, grad_dv, vectors, abc, grad_vectors, grad_abc,
                    F: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Gradients of :func:`change`, from those of ds and dv."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    b = tl.load(abc + 3 * F * i + F + f, mask=mask, other=0.0)
    c = tl.load(abc + 3 * F * i + 2 * F + f, mask=mask, other=0.0)
    gs = tl.load(grad_ds + F * i + f, mask=mask, other=0.0)
    gb, gc = tl.zeros_like(gs), tl.zeros_like(gs)
    for direction in tl.static_range(3):
        v, u = _vectors(vectors, i, f, mask, direction, F)
        gd = tl.load(grad_dv + 3 * F * i + direction * F + f, mask=mask, other=0.0)
        gb += gd * u
        gc += gs * u * v
        place = grad_vectors + 6 * F * i + 2 * direction * F + f
        tl.store(place, gs * c * u, mask=mask)
        tl.store(place + F, gs * c * v + gd * b, mask=mask)
    store3(grad_abc, i, f, mask, F, gs, gb, gc)


def _run(kernel: Any, atoms: int, channels: int, *arguments: Any) -> None:
    if atoms:
        block = block_size(channels)
        kernel[(atoms, triton.cdiv(channels, block))](*arguments, channels, block)


def mixing_context(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    """Runs the kernel: see ops/mixing.py."""
    atoms, channels = s.shape
    out = s.new_empty(atoms, 2 * channels)
    _run(context, atoms, channels, s, vectors, out, eps)
    return out


def mixing_context_backward(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    atoms, channels = grad.size(0), grad.size(1) // 2
    grad_s, grad_vectors = grad.new_empty(atoms, channels), torch.empty_like(vectors)
    _run(context_backward, atoms, channels, grad, vectors, out, grad_s, grad_vectors)
    return grad_s, grad_vectors


def mixing_change(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    atoms, channels = abc.size(0), abc.size(1) // 3
    ds, dv = abc.new_empty(atoms, channels), abc.new_empty(atoms, 3, channels)
    _run(change, atoms, channels, vectors, abc, ds, dv)
    return ds, dv


def mixing_change_backward(
    grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    grad_vectors, grad_abc = torch.empty_like(vectors), torch.empty_like(abc)
    _run(change_backward, *grad_ds.shape, grad_ds, grad_dv, vectors, abc, grad_vectors, grad_abc)
    return grad_vectors, grad_abc
