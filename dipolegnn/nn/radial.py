"""Radial basis functions and the cutoff function."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn


class GaussianRBF(nn.Module):
    r"""Gaussians of one width, evenly spaced from 0 to the cutoff.

    .. math:: e_k(d) = \exp\left(-\tfrac12 (d / w - k)^2\right), \quad
        w = \frac{r_c}{R - 1}, \quad k = 0 \dots R - 1

    The centres are fixed, as in SchNet (Schütt et al., arXiv:1706.08566). They are stored in units
    of the width, as integers, so that they are exact in every precision.

    Args:
        num_rbf: Number of functions R, at least 2.
        cutoff: Cutoff radius in angstrom.

    Attributes:
        intervals: Into how many intervals the cutoff has to be divided so that the fused kernels
            can interpolate between them; 32 for the shortest length scale.
    """

    orders: Tensor

    def __init__(self, num_rbf: int, cutoff: float) -> None:
        super().__init__()
        self.num_rbf, self.cutoff = num_rbf, cutoff
        self.intervals = 32 * (num_rbf - 1) if num_rbf > 2 else 64
        self.register_buffer("orders", torch.arange(float(num_rbf)), persistent=False)

    def forward(self, dist: Tensor) -> Tensor:
        """Expands distances ``[E]`` in angstrom into ``[E, R]``."""
        width = self.cutoff / (self.num_rbf - 1)
        return torch.exp(-0.5 * (dist.unsqueeze(-1) / width - self.orders).square())


class BesselRBF(nn.Module):
    r"""Spherical Bessel functions of order 0 that vanish at the cutoff.

    .. math:: e_n(d) = \sqrt{2 / r_c}\, \frac{\sin(n \pi d / r_c)}{d}, \quad n = 1 \dots R

    From DimeNet (Gasteiger et al., arXiv:2003.03123, equation 7), with fixed frequencies.

    Args:
        num_rbf: Number of functions R, at least 2.
        cutoff: Cutoff radius in angstrom.

    Attributes:
        intervals: Into how many intervals the cutoff has to be divided so that the fused kernels
            can interpolate between them; 32 for the shortest length scale.
    """

    orders: Tensor

    def __init__(self, num_rbf: int, cutoff: float) -> None:
        super().__init__()
        self.num_rbf, self.cutoff = num_rbf, cutoff
        self.intervals = 96 * num_rbf
        self.register_buffer("orders", torch.arange(1.0, num_rbf + 1.0), persistent=False)

    def forward(self, dist: Tensor) -> Tensor:
        """Expands distances ``[E]`` in angstrom into ``[E, R]``."""
        # sin(n pi x) / x as n pi sinc(n x), which has its limit at 0.
        waves = torch.sinc(dist.unsqueeze(-1) / self.cutoff * self.orders)
        return math.sqrt(2.0 / self.cutoff) * (math.pi / self.cutoff) * self.orders * waves


class CosineCutoff(nn.Module):
    r"""A factor that falls smoothly from 1 to 0 at the cutoff.

    .. math:: f(d) = \tfrac12 \left(\cos(\pi d / r_c) + 1\right) \text{ for } d < r_c,
        \text{ else } 0

    Args:
        cutoff: Cutoff radius in angstrom.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, dist: Tensor) -> Tensor:
        """Maps distances ``[E]`` in angstrom to factors ``[E]``."""
        inside = 0.5 * (torch.cos(dist * (math.pi / self.cutoff)) + 1.0)
        return torch.where(dist < self.cutoff, inside, torch.zeros_like(inside))


def radial_basis_layer(
    kind: Literal["gaussian", "bessel"], num_rbf: int, cutoff: float
) -> GaussianRBF | BesselRBF:
    """Returns a radial basis by its name.

    Raises:
        ValueError: If ``kind`` is neither ``"gaussian"`` nor ``"bessel"``.
    """
    if kind == "gaussian":
        return GaussianRBF(num_rbf, cutoff)
    if kind == "bessel":
        return BesselRBF(num_rbf, cutoff)
    raise ValueError(f"radial_basis must be 'gaussian' or 'bessel', got {kind!r}.")
