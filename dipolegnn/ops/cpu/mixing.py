"""The elementwise work of PaiNN's mixing on the CPU, forward and backward, by numba.

Arrays: ``s [N, F]``, ``vectors [N, 6F]`` (for each of three directions F channels of V v, then F
of U v), ``context [N, 2F]``, ``abc [N, 3F]``, ``ds [N, F]``, ``dv [N, 3F]``. Each function reads
and writes the memory once.
"""

from __future__ import annotations

import math

import numba
import torch
from torch import Tensor

from dipolegnn.ops.cpu.compile import shared_out
from dipolegnn.ops.cpu.launch import equal_shares, run, scalar


@shared_out
def context(shares, s, vectors, eps, out):
    """Out = [s, sqrt(|V v|² + eps)]."""
    channels = s.shape[1]
    for k in numba.prange(shares.shape[0]):
        for i in range(shares[k, 0], shares[k, 1]):
            out[i, :channels] = s[i]
            norm = out[i, channels:]
            vx, vy = vectors[i, :channels], vectors[i, 2 * channels : 3 * channels]
            vz = vectors[i, 4 * channels : 5 * channels]
            for f in range(channels):
                norm[f] = math.sqrt(vx[f] * vx[f] + vy[f] * vy[f] + vz[f] * vz[f] + eps)


@shared_out
def context_backward(shares, grad, vectors, out, grad_s, grad_vectors):
    """Writes the gradients of :func:`context`; that of U v is not written."""
    channels = grad_s.shape[1]
    for k in numba.prange(shares.shape[0]):
        for i in range(shares[k, 0], shares[k, 1]):
            grad_s[i] = grad[i, :channels]
            norm, up = out[i, channels:], grad[i, channels:]
            for direction in range(3):
                start = 2 * direction * channels
                v = vectors[i, start : start + channels]
                g = grad_vectors[i, start : start + channels]
                for f in range(channels):
                    g[f] = up[f] / norm[f] * v[f]


@shared_out
def change(shares, vectors, abc, ds, dv):
    """Ds = a + c <U v, V v>, dv = b U v."""
    channels = ds.shape[1]
    for k in numba.prange(shares.shape[0]):
        for i in range(shares[k, 0], shares[k, 1]):
            a, b = abc[i, :channels], abc[i, channels : 2 * channels]
            c = abc[i, 2 * channels :]
            vx, ux = vectors[i, :channels], vectors[i, channels : 2 * channels]
            vy, uy = (
                vectors[i, 2 * channels : 3 * channels],
                vectors[i, 3 * channels : 4 * channels],
            )
            vz, uz = vectors[i, 4 * channels : 5 * channels], vectors[i, 5 * channels :]
            s, dx, dy = ds[i], dv[i, :channels], dv[i, channels : 2 * channels]
            dz = dv[i, 2 * channels :]
            for f in range(channels):
                s[f] = a[f] + c[f] * (ux[f] * vx[f] + uy[f] * vy[f] + uz[f] * vz[f])
            for f in range(channels):
                dx[f] = b[f] * ux[f]
                dy[f] = b[f] * uy[f]
                dz[f] = b[f] * uz[f]


@shared_out
def change_backward(shares, grad_ds, grad_dv, vectors, abc, grad_vectors, grad_abc):
    """Writes the gradients of :func:`change`, from those of ds and dv."""
    channels = grad_ds.shape[1]
    for k in numba.prange(shares.shape[0]):
        for i in range(shares[k, 0], shares[k, 1]):
            b, c = abc[i, channels : 2 * channels], abc[i, 2 * channels :]
            gs = grad_ds[i]
            grad_abc[i, :channels] = gs
            gb, gc = grad_abc[i, channels : 2 * channels], grad_abc[i, 2 * channels :]
            gb[:] = 0
            gc[:] = 0
            for direction in range(3):
                start = 2 * direction * channels
                v = vectors[i, start : start + channels]
                u = vectors[i, start + channels : start + 2 * channels]
                gv = grad_vectors[i, start : start + channels]
                gu = grad_vectors[i, start + channels : start + 2 * channels]
                gd = grad_dv[i, direction * channels : (direction + 1) * channels]
                for f in range(channels):
                    gb[f] += gd[f] * u[f]
                    gc[f] += gs[f] * u[f] * v[f]
                for f in range(channels):
                    both = gs[f] * c[f]
                    gv[f] = both * u[f]
                    gu[f] = both * v[f] + gd[f] * b[f]


def mixing_context(s: Tensor, vectors: Tensor, eps: float) -> Tensor:
    """Runs the kernel: see ops/mixing.py."""
    out = s.new_empty(s.size(0), 2 * s.size(1))
    run(context, equal_shares(*s.shape), s, vectors.flatten(1), scalar(eps, s), out)
    return out


def mixing_context_backward(grad: Tensor, vectors: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    grad_s = grad.new_empty(grad.size(0), grad.size(1) // 2)
    grad_vectors = torch.zeros_like(vectors)
    run(
        context_backward, equal_shares(*grad_s.shape),
        grad, vectors.flatten(1), out, grad_s, grad_vectors.flatten(1),
    )  # fmt: skip
    return grad_s, grad_vectors


def mixing_change(vectors: Tensor, abc: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    atoms, channels = abc.size(0), abc.size(1) // 3
    ds, dv = abc.new_empty(atoms, channels), abc.new_empty(atoms, 3, channels)
    run(change, equal_shares(atoms, channels), vectors.flatten(1), abc, ds, dv.flatten(1))
    return ds, dv


def mixing_change_backward(
    grad_ds: Tensor, grad_dv: Tensor, vectors: Tensor, abc: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs the kernel: see ops/mixing.py."""
    grad_vectors, grad_abc = torch.empty_like(vectors), torch.empty_like(abc)
    run(
        change_backward, equal_shares(*grad_ds.shape),
        grad_ds, grad_dv.flatten(1), vectors.flatten(1), abc, grad_vectors.flatten(1), grad_abc,
    )  # fmt: skip
    return grad_vectors, grad_abc
