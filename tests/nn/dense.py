"""PaiNN, SchNet and their heads once more, from the formulas, in NumPy and plain loops.

Slow on purpose: one atom, one neighbour at a time, double precision, nothing from the package.
Weights come as arrays by name, matrices as ``[out, in]``. Vector features are ``[3, F]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
Basis = Callable[[float], Array]

DEBYE = 1.602176634e-19 * 1e-10 / (1e-21 / 299792458)  # 1 e Å in D


def gaussians(num_rbf: int, cutoff: float) -> Basis:
    centers = np.linspace(0, cutoff, num_rbf)
    width = centers[1] - centers[0]
    return lambda d: np.exp(-((d - centers) ** 2) / (2 * width**2))


def bessels(num_rbf: int, cutoff: float) -> Basis:
    n = np.arange(1, num_rbf + 1)
    return lambda d: np.sqrt(2 / cutoff) * np.sin(n * np.pi * d / cutoff) / d


def cosine_cutoff(d: float, cutoff: float) -> float:
    return 0.5 * (np.cos(np.pi * d / cutoff) + 1) if d < cutoff else 0.0


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def shifted_softplus(x: Array) -> Array:
    return np.log(0.5 * np.exp(x) + 0.5)


def affine(w: Weights, name: str, x: Array) -> Array:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def mlp(w: Weights, name: str, x: Array, activation: Callable[[Array], Array] = silu) -> Array:
    """Two layers, as ``nn.Sequential`` numbers them."""
    return affine(w, f"{name}.2", activation(affine(w, f"{name}.0", x)))


def painn(
    w: Weights, z: Array, pos: Array, cutoff: float, interactions: int, basis: Basis
) -> tuple[Array, Array]:
    """Scalar features ``[N, F]`` and vector features ``[N, 3, F]``."""
    atoms = range(len(z))
    s = w["embedding.weight"][z]
    v = np.zeros((len(z), 3, s.shape[1]))
    for t in range(interactions):
        phi, filters = f"interactions.{t}.phi", f"interactions.{t}.filter"
        new_s, new_v = s.copy(), v.copy()
        for i in atoms:
            for j in atoms:
                r_ij = pos[j] - pos[i]
                d = float(np.sqrt(r_ij @ r_ij))
                if i == j or d >= cutoff:
                    continue
                w_ij = affine(w, filters, basis(d)) * cosine_cutoff(d, cutoff)
                ds, d_r, dv = np.split(mlp(w, phi, s[j]) * w_ij, 3)
                new_s[i] += ds
                for x in range(3):
                    new_v[i, x] += d_r * r_ij[x] / d + dv * v[j, x]
        s, v = new_s, new_v

        mixed = w[f"mixings.{t}.vectors.weight"]
        new_s, new_v = s.copy(), v.copy()
        for i in atoms:
            v_v, w_v = np.split(np.stack([mixed @ v[i, x] for x in range(3)]), 2, axis=1)
            norm = np.sqrt((v_v**2).sum(axis=0) + 1e-8)
            a, b, c = np.split(mlp(w, f"mixings.{t}.psi", np.concatenate([s[i], norm])), 3)
            new_s[i] += a + c * (v_v * w_v).sum(axis=0)
            new_v[i] += b * w_v
        s, v = new_s, new_v
    return s, v


def schnet(
    w: Weights, z: Array, pos: Array, cutoff: float, interactions: int, basis: Basis
) -> Array:
    """Scalar features ``[N, F]``."""
    atoms = range(len(z))
    s = w["embedding.weight"][z]
    for t in range(interactions):
        name = f"interactions.{t}"
        x = np.zeros_like(s)
        for i in atoms:
            for j in atoms:
                d = float(np.sqrt(((pos[j] - pos[i]) ** 2).sum()))
                if i == j or d >= cutoff:
                    continue
                w_ij = mlp(w, f"{name}.filter", basis(d), shifted_softplus)
                x[i] += (w[f"{name}.in_layer.weight"] @ s[j]) * w_ij * cosine_cutoff(d, cutoff)
        change = [mlp(w, f"{name}.out_layers", x[i], shifted_softplus) for i in atoms]
        s = s + np.stack(change)
    return s


def _gated(w: Weights, name: str, s: Array, v: Array, last: bool) -> tuple[Array, Array]:
    mixed = w[f"{name}.vectors.weight"]
    v_v, w_v = np.split(np.stack([mixed @ v[x] for x in range(3)]), 2, axis=1)
    norm = np.sqrt((v_v**2).sum(axis=0))
    s_out, gate = np.split(mlp(w, f"{name}.scalars", np.concatenate([s, norm])), 2)
    return (s_out if last else silu(s_out)), gate * w_v


def dipole(
    w: Weights, s: Array, v: Array | None, pos: Array, total_charge: float
) -> tuple[Array, Array]:
    """Dipole ``[3]`` in debye about the origin of ``pos``, and charges ``[N]``."""
    charges, local = np.zeros(len(s)), np.zeros((len(s), 3))
    for i in range(len(s)):
        if v is None:
            charges[i] = mlp(w, "charge", s[i])[0]
        else:
            s_i, v_i = _gated(w, "blocks.0", s[i], v[i], last=False)
            s_i, v_i = _gated(w, "blocks.1", s_i, v_i, last=True)
            charges[i], local[i] = s_i[0], v_i[:, 0]
    share = np.ones(len(s))
    if "weight.0.weight" in w:
        share = np.array([np.log1p(np.exp(mlp(w, "weight", s_i)[0])) for s_i in s])
    charges += (total_charge - charges.sum()) * share / share.sum()
    return DEBYE * sum(q * r + m for q, r, m in zip(charges, pos, local, strict=True)), charges


def atomwise(w: Weights, s: Array) -> float:
    """The sum over the atoms of a scalar each."""
    return float(sum(mlp(w, "layers", s_i)[0] for s_i in s))
