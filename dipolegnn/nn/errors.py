"""Error functions: errors ``[B]`` in the unit of the label, NaN for molecules without a label."""

from __future__ import annotations

import torch
from torch import Tensor

ANGLE_THRESHOLD = 0.1
"""Shortest reference dipole, in debye, whose direction counts in :func:`angle`."""

_DEGREES_PER_RADIAN = 57.29577951308232


def absolute_error(predicted: Tensor, reference: Tensor) -> Tensor:
    r"""Absolute error of a scalar property, :math:`|y - y_0|`."""
    return unless_unlabelled((predicted - reference).abs(), reference)


def squared_error(predicted: Tensor, reference: Tensor) -> Tensor:
    r"""Squared error of a scalar property, :math:`(y - y_0)^2`."""
    return unless_unlabelled((predicted - reference).square(), reference)


def length_of_error(predicted: Tensor, reference: Tensor) -> Tensor:
    r"""Norm of the error of a vector, :math:`|\mu-\mu_0|`, or of a tensor (Frobenius norm).

    Unlike a mean over components, the norm does not depend on the orientation of the molecule.
    """
    length = torch.linalg.vector_norm((predicted - reference).flatten(1), dim=1)
    return unless_unlabelled(length, reference)


def angle(predicted: Tensor, reference: Tensor) -> Tensor:
    """Angle between predicted and reference dipole, in degrees.

    The angle is NaN if the reference is shorter than :data:`ANGLE_THRESHOLD`, because the direction
    of a dipole near 0 is noise. It is 90 degrees for a predicted dipole of exactly 0.
    """
    # atan2 is precise near 0 and 180 degrees, acos is not.
    cross = torch.linalg.vector_norm(torch.linalg.cross(predicted, reference, dim=1), dim=1)
    dot = (predicted * reference).sum(dim=1)
    degrees = torch.atan2(cross, dot) * _DEGREES_PER_RADIAN
    degrees = degrees.where((cross != 0) | (dot != 0), 90.0)
    has_direction = torch.linalg.vector_norm(reference, dim=1) >= ANGLE_THRESHOLD
    return degrees.nan_to_num(nan=torch.inf).where(has_direction, torch.nan)


def unless_unlabelled(value: Tensor, reference: Tensor) -> Tensor:
    """Sets molecules without a reference to NaN, and NaN predictions to infinite errors."""
    known = ~reference.reshape(reference.size(0), -1).isnan().any(dim=1)
    return value.nan_to_num(nan=torch.inf).where(known, torch.nan)
