"""How closely numbers must agree, by precision: the one table that all tests use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


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


def assert_close(
    actual: Tensor | np.ndarray | float,
    expected: Tensor | np.ndarray | float,
    dtype: torch.dtype,
) -> None:
    """Asserts that two arrays of one shape agree within the tolerance of ``dtype``.

    The precision of the computation is stated by the caller, because a reference may be given
    in a higher one.
    """
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(
        torch.as_tensor(actual).detach().cpu().to(torch.float64),
        torch.as_tensor(expected).detach().cpu().to(torch.float64),
        rtol=rtol,
        atol=atol,
    )
