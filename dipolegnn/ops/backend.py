"""Registration of operators with kernels for CPU and GPU, and availability of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.library import custom_op, infer_schema, register_autograd

from dipolegnn.ops.table import STENCIL_POINTS

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def operator(declaration: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes an operator without a gradient from its declaration, and registers its kernels.

    The kernels are the functions of the same name in the same module of ``ops/cpu/`` and
    ``ops/gpu/``. They are imported at the first call, and receive contiguous tensors without a
    gradient; under autocast, half-precision inputs are converted to single precision.

    Args:
        declaration: Function with the signature of the operator that returns empty tensors with
            the shapes of the results, for tracing.
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


def set_gradient(name: str, backward: Callable[..., tuple[Tensor, ...]]) -> None:
    """Sets the gradient of a sum over neighbours: its last inputs are pos, rowptr, col, cutoff.

    Args:
        name: Name of the operator.
        backward: Operator of the gradients of all inputs up to ``pos``, from those of the results,
            the inputs, and whether the gradient of ``pos`` is needed.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.cutoff = inputs
        ctx.save_for_backward(*tensors)

    def gradient(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        positions = ctx.needs_input_grad[-4]
        *gradients, by_pos = backward(*upstream, *ctx.saved_tensors, ctx.cutoff, positions)
        return *gradients, by_pos if positions else None, None, None, None

    register_autograd(f"dipolegnn::{name}", gradient, setup_context=keep)


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
"""Results of earlier searches. (torch.compile would warn about functools.cache.)"""


def _missing(package: str, remedy: str) -> str | None:
    if package not in _INSTALLED:
        _INSTALLED[package] = find_spec(package) is not None
    return None if _INSTALLED[package] else f"{package} is not installed: {remedy}"
