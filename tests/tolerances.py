"""How closely numbers must agree, by precision: the one table that all tests use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dipolegnn.units import DEBYE_PER_E_ANGSTROM


class Tolerance(NamedTuple):
    """``|actual - expected| <= atol + rtol * |expected|``."""

    rtol: float
    atol: float


TOLERANCES = {
    # Some hundred to a thousand roundings: a few layers of sums over about a hundred terms.
    torch.float32: Tolerance(rtol=1e-4, atol=2e-5),
    # Looser than a thousand roundings: mathematical functions differ in their last places.
    torch.float64: Tolerance(rtol=1e-9, atol=1e-10),
}
"""By the precision that the compared numbers were computed in."""


PRINTED_D, PRINTED_E = 1.01e-4, 1.01e-5
"""Difference between two numbers in text files, in debye and in e, whose last digit differs by 1
(and the rounding to binary): a number may lie in the middle between two that are printed."""


def rounding(count: int, dtype: torch.dtype) -> float:
    """Relative error of a number that took ``count`` roundings.

    Each is off by up to half an eps of its size, and with random signs they grow as the square
    root of their number (Higham and Mary 2019, doi:10.1137/18M1226312); both of the numbers that
    are compared have such an error.
    """
    return float(torch.finfo(dtype).eps) * count**0.5


def dipole_rounding(charges: Tensor, pos: Tensor) -> float:
    """Error in debye of the dipole of point charges ``[N]`` in e at ``pos [N, 3]`` in angstrom.

    The terms of the sum cancel; its error goes with their sizes, not with that of the result. Each
    term takes N + 3 roundings: the position, the product, the N - 1 additions, and the unit.
    """
    terms = charges.detach().abs().unsqueeze(1) * pos.abs()  # [N, 3]
    size = DEBYE_PER_E_ANGSTROM * float(terms.sum(dim=0).max())
    return size * rounding(len(charges) + 3, charges.dtype)


def model_rounding(model: nn.Module, dtype: torch.dtype) -> float:
    """Error of what a model predicts, relative to the size of its atomic contributions.

    A number that comes out of a linear layer is a sum of ``in_features`` products, and each layer
    takes what the one before it gave.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return rounding(sum(layer.in_features for layer in layers), dtype)


def assert_close(
    actual: Tensor | np.ndarray | float,
    expected: Tensor | np.ndarray | float,
    dtype: torch.dtype,
    error: float = 0.0,
) -> None:
    """Asserts that two arrays of one shape agree within the tolerance of ``dtype``.

    The precision of the computation is stated by the caller, because a reference may be given
    in a higher one. ``error`` is what rounding makes of these very numbers, where that is more
    than of numbers of about 1.
    """
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(
        torch.as_tensor(actual).detach().cpu().to(torch.float64),
        torch.as_tensor(expected).detach().cpu().to(torch.float64),
        rtol=rtol,
        atol=max(atol, error),
    )
