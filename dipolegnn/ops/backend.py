"""Which kernels can run where."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from dipolegnn.ops.table import STENCIL_POINTS


def why_not_fused(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the fused kernels cannot run on such tensors; None if they can."""
    if dtype not in STENCIL_POINTS:
        return f"the kernels have float32 and float64, not {dtype}"
    if device.type == "cpu":
        return _missing("numba", "pip install numba")
    if device.type == "cuda":
        return _missing("triton", "pip install triton (Linux)")
    return f"there are kernels for cpu and cuda, not for {device.type}"


_INSTALLED: dict[str, bool] = {}
"""What has been looked for. (A functools.cache would make torch.compile warn.)"""


def _missing(package: str, remedy: str) -> str | None:
    if package not in _INSTALLED:
        _INSTALLED[package] = find_spec(package) is not None
    return None if _INSTALLED[package] else f"{package} is not installed: {remedy}"


def plain(tensor: Tensor) -> Tensor:
    """The tensor as the kernels want it: contiguous, known to no autograd."""
    return tensor.detach().contiguous()
