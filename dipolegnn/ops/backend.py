"""Operators of PyTorch with kernels for CPU and GPU, and where the kernels can run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.library import custom_op, infer_schema

from dipolegnn.ops.table import STENCIL_POINTS

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def operator(declaration: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes an operator from its declaration, and registers its kernels, without a gradient.

    The kernels are the functions of the same name in the same module of ``ops/cpu/`` and
    ``ops/gpu/``. They are imported at the first call, and get contiguous tensors without a
    gradient; under autocast, single precision (the matrix products before hand over half).

    Args:
        declaration: Its signature is that of the operator. Its body returns empty tensors with the
            shapes of the results, for tracing.
    """
    name, module = declaration.__name__, declaration.__module__.rpartition(".")[2]

    def kernel(folder: str) -> Callable[..., Any]:
        @cache
        def launcher() -> Callable[..., Any]:
            found: Callable[..., Any] = getattr(
                import_module(f"dipolegnn.ops.{folder}.{module}"), name
            )
            return found

        def call(*arguments: Any) -> Any:
            return launcher()(
                *[a.detach().contiguous() if isinstance(a, Tensor) else a for a in arguments]
            )

        return call

    made: Any = custom_op(
        f"dipolegnn::{name}",
        kernel("cpu"),
        mutates_args=(),
        device_types="cpu",
        schema=infer_schema(declaration, mutates_args=()),
    )
    made.register_kernel("cuda")(kernel("gpu"))
    made.register_fake(declaration)
    for device in ("cpu", "cuda"):
        made.register_autocast(device, torch.float32)
    registered: Callable[Arguments, Result] = made
    return registered


def why_not_fused(device: torch.device, dtype: torch.dtype) -> str | None:
    """Reason why the fused kernels cannot run on such tensors; None if they can."""
    if dtype not in STENCIL_POINTS:
        return f"the kernels have float32 and float64, not {dtype}"
    if device.type == "cpu":
        return _missing("numba", "pip install numba")
    if device.type == "cuda":
        return _missing("triton", "pip install triton (Linux)")
    return f"there are kernels for cpu and cuda, not for {device.type}"


_INSTALLED: dict[str, bool] = {}
"""Packages that were searched for. (A functools.cache would make torch.compile warn.)"""


def _missing(package: str, remedy: str) -> str | None:
    if package not in _INSTALLED:
        _INSTALLED[package] = find_spec(package) is not None
    return None if _INSTALLED[package] else f"{package} is not installed: {remedy}"
