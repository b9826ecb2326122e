"""Which kernels can run where."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch

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


@functools.cache
def _missing(package: str, remedy: str) -> str | None:
    return None if find_spec(package) else f"{package} is not installed: {remedy}"
