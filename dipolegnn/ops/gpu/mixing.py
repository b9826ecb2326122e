"""The elementwise work of PaiNN's mixing on the GPU, forward and backward, in Triton.

Arrays as on the CPU: ``s [N, F]``, ``vectors [N, 6F]``, ``context [N, 2F]``, ``abc [N, 3F]``,
``ds [N, F]``, ``dv [N, 3F]``. One program does one atom, for one block of channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    a = tl.load(abc + 3 * F * i + f, mask=mask, other=0.0)
    b = tl.load(abc + 3 * F * i + F + f, mask=mask, other=0.0)
    c = tl.load(abc + 3 * F * i + 2 * F + f, mask=mask, other=0.0)
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
    tl.store(grad_abc + 3 * F * i + f, gs, mask=mask)
    tl.store(grad_abc + 3 * F * i + F + f, gb, mask=mask)
    tl.store(grad_abc + 3 * F * i + 2 * F + f, gc, mask=mask)


def mixing_context(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    """Runs the kernel: see ops/mixing.py."""
    atoms, channels = s.shape
    out = s.new_empty(atoms, 2 * channels)
    if atoms:
        block = block_size(channels)
        context[(atoms, triton.cdiv(channels, block))](s, vectors, out, eps, channels, block)
    return out


def mixing_context_backward(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    atoms, channels = grad.size(0), grad.size(1) // 2
    grad_s, grad_vectors = grad.new_empty(atoms, channels), torch.empty_like(vectors)
    if atoms:
        block = block_size(channels)
        context_backward[(atoms, triton.cdiv(channels, block))](
            grad, vectors, out, grad_s, grad_vectors, channels, block
        )
    return grad_s, grad_vectors


def mixing_change(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    atoms, channels = abc.size(0), abc.size(1) // 3
    ds, dv = abc.new_empty(atoms, channels), abc.new_empty(atoms, 3, channels)
    if atoms:
        block = block_size(channels)
        change[(atoms, triton.cdiv(channels, block))](vectors, abc, ds, dv, channels, block)
    return ds, dv


def mixing_change_backward(
    grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    grad_vectors, grad_abc = torch.empty_like(vectors), torch.empty_like(abc)
    atoms, channels = grad_ds.shape
    if atoms:
        block = block_size(channels)
        change_backward[(atoms, triton.cdiv(channels, block))](
            grad_ds, grad_dv, vectors, abc, grad_vectors, grad_abc, channels, block
        )
    return grad_vectors, grad_abc
