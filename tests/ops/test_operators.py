"""The fused operators against the same sums written out edge by edge, values and gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module

import pytest
import torch
from torch import Tensor

from dipolegnn.ops import cfconv, painn_message
from tests.ops.examples import (
    CUTOFF,
    Example,
    example,
    plain_cfconv,
    plain_painn_message,
    table,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest relative deviation (2-norm) of a value or gradient from the plain float64 sums."""


def fused_painn_message(given: Example) -> Tensor:
    """Scalars and vectors stacked, as the plain sum has them: ``[N, 4, F]``."""
    ds, dv = painn_message(
        given.x, given.v, table(given.coefficients), given.pos, given.rowptr, given.col, CUTOFF
    )
    return torch.cat([ds.unsqueeze(1), dv], dim=1)


def fused_cfconv(given: Example) -> Tensor:
    return cfconv(given.x, table(given.coefficients), given.pos, given.rowptr, given.col, CUTOFF)


Operator = Callable[[Example], Tensor]
OPERATORS = [
    pytest.param(fused_painn_message, plain_painn_message, 3, id="painn_message"),
    pytest.param(fused_cfconv, plain_cfconv, 1, id="cfconv"),
]
DTYPES = [torch.float64, torch.float32]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Small examples are shared out between threads as well."""
    monkeypatch.setattr("dipolegnn.ops.cpu.launch._LEAST_EDGES", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def with_gradients(operator: Operator, given: Example) -> list[Tensor]:
    """The result, and its gradients by features, coefficients and positions, in double."""
    leaves = given._replace(
        **{
            name: getattr(given, name).detach().requires_grad_()
            for name in ("x", "v", "coefficients", "pos")
        }
    )
    out = operator(leaves)
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    inputs = [leaves.x, leaves.coefficients, leaves.pos]
    if out.dim() == 3:
        inputs.append(leaves.v)
    return [part.detach().double() for part in (out, *torch.autograd.grad(out, inputs, upstream))]


def as_double(given: Example) -> Example:
    return Example(*(t.double() if t.is_floating_point() else t for t in given))


def deviation(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 17, 64, 128, 256])
@pytest.mark.parametrize(("fused", "plain", "parts"), OPERATORS)
def test_equals_the_sum_over_edges(
    fused: Operator, plain: Operator, parts: int, channels: int, dtype: torch.dtype
) -> None:
    given = example(channels, dtype, parts=parts)
    got = with_gradients(fused, given)
    expected = with_gradients(plain, as_double(given))
    names = ("value", "x", "coefficients", "pos", "v")
    assert {
        name: deviation(a, b)
        for name, a, b in zip(names, got, expected, strict=False)
        if deviation(a, b) > TOLERANCE[dtype]
    } == {}


@pytest.mark.parametrize(("fused", "plain", "parts"), OPERATORS)
def test_one_large_molecule_is_shared_out_by_channels(
    fused: Operator, plain: Operator, parts: int
) -> None:
    given = example(64, torch.float64, sizes=(40,), parts=parts)
    for a, b in zip(with_gradients(fused, given), with_gradients(plain, given), strict=True):
        assert deviation(a, b) < TOLERANCE[torch.float64]


@pytest.mark.parametrize(("fused", "plain", "parts"), OPERATORS)
def test_the_same_to_the_last_bit_from_run_to_run(
    fused: Operator, plain: Operator, parts: int
) -> None:
    given = example(64, torch.float32, sizes=(20,) * 8, parts=parts)
    first, second = with_gradients(fused, given), with_gradients(fused, given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("fused", "plain", "parts"), OPERATORS)
def test_gradcheck(fused: Operator, plain: Operator, parts: int) -> None:
    given = example(3, torch.float64, sizes=(4, 3), parts=parts)

    def function(x: Tensor, v: Tensor, coefficients: Tensor, pos: Tensor) -> Tensor:
        return fused(given._replace(x=x, v=v, coefficients=coefficients, pos=pos))

    inputs = [
        t.detach().requires_grad_() for t in (given.x, given.v, given.coefficients, given.pos)
    ]
    if parts == 1:
        inputs[1].requires_grad_(False)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1, 1)], ids=str)
@pytest.mark.parametrize(("fused", "plain", "parts"), OPERATORS)
def test_atoms_without_neighbours_hear_nothing(
    fused: Operator, plain: Operator, parts: int, sizes: tuple[int, ...]
) -> None:
    given = example(5, torch.float32, sizes=sizes, parts=parts)
    assert given.col.numel() == 0
    got = with_gradients(fused, given)
    assert all(not part.any() for part in got)
    assert got[0].size(0) == len(sizes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pytorch_finds_nothing_wrong(dtype: torch.dtype) -> None:
    """Schema, shapes without data, autograd registration: torch.library's own checks."""
    given = example(4, dtype, sizes=(5,))
    tensors = [t.requires_grad_() for t in (given.x, given.v, table(given.coefficients))]
    torch.library.opcheck(
        torch.ops.dipolegnn.painn_message.default,
        (*tensors, given.pos.requires_grad_(), given.rowptr, given.col, CUTOFF),
    )
    given = example(4, dtype, sizes=(5,), parts=1)
    tensors = [t.requires_grad_() for t in (given.x, table(given.coefficients), given.pos)]
    torch.library.opcheck(
        torch.ops.dipolegnn.cfconv.default, (*tensors, given.rowptr, given.col, CUTOFF)
    )


@pytest.mark.parametrize("module", ["painn", "cfconv", "mixing"])
@pytest.mark.parametrize("folder", ["cpu", "gpu"])
def test_kernels_are_launched_with_the_arguments_of_the_operator(folder: str, module: str) -> None:
    if folder == "gpu":
        pytest.importorskip("triton", reason="Triton is not installed (extra dev, Linux)")
    declared = vars(import_module(f"dipolegnn.ops.{module}"))
    operators = [name for name in declared if name[0] != "_" and hasattr(torch.ops.dipolegnn, name)]
    assert len(operators) >= 2  # forward and backward
    for name in operators:
        launch = getattr(import_module(f"dipolegnn.ops.{folder}.{module}"), name)
        schema = getattr(torch.ops.dipolegnn, name).default._schema
        assert list(inspect.signature(launch).parameters) == [a.name for a in schema.arguments]
