"""Errors of single molecules ``[B]``, in the unit of the label; NaN where there is no label."""

from __future__ import annotations

import torch
from torch import Tensor

ANGLE_THRESHOLD = 0.1
"""Shortest reference dipole, in debye, whose direction counts in :func:`angle`."""

_DEGREES_PER_RADIAN = 57.29577951308232


def absolute_error(predicted: Tensor, reference: Tensor) -> Tensor:
    r"""Absolute error of a number, :math:`|y - y_0|`."""
    return unless_unlabelled((predicted - reference).abs(), reference)


def squared_error(predicted: Tensor, reference: Tensor) -> Tensor:
    r"""Squared error of a number, :math:`(y - y_0)^2`."""
    return unless_unlabelled((predicted - reference).square(), reference)


def length_of_error(predicted: Tensor, reference: Tensor) -> Tensor:
    r"""Length of the error of a vector, :math:`|\mu-\mu_0|`; of a tensor its Frobenius norm.

    Unlike a mean over components it does not depend on the orientation of the molecule.
    """
    length = torch.linalg.vector_norm((predicted - reference).flatten(1), dim=1)
    return unless_unlabelled(length, reference)


def angle(predicted: Tensor, reference: Tensor) -> Tensor:
    """Angle between predicted and reference dipole, in degrees.

    NaN also where the reference is shorter than :data:`ANGLE_THRESHOLD`: the direction of a dipole
    that is nearly 0 is noise. A predicted dipole of exactly 0 counts as 90 degrees.
    """
    # atan2 keeps its precision at 0 and 180 degrees, where acos loses it.
    cross = torch.linalg.vector_norm(torch.linalg.cross(predicted, reference, dim=1), dim=1)
    dot = (predicted * reference).sum(dim=1)
    degrees = torch.atan2(cross, dot) * _DEGREES_PER_RADIAN
    degrees = degrees.where((cross != 0) | (dot != 0), 90.0)
    has_direction = torch.linalg.vector_norm(reference, dim=1) >= ANGLE_THRESHOLD
    return degrees.nan_to_num(nan=torch.inf).where(has_direction, torch.nan)


def unless_unlabelled(value: Tensor, reference: Tensor) -> Tensor:
    """``value`` where the reference is known, else NaN; a NaN prediction is an error, not a gap."""
    known = ~reference.reshape(reference.size(0), -1).isnan().any(dim=1)
    return value.nan_to_num(nan=torch.inf).where(known, torch.nan)
