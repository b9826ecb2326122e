from __future__ import annotations

from typing import Literal

import pytest
import torch

from dipolegnn.nn.scatter import segment, segment_index, spread
from tests.tolerances import assert_close

PTR = torch.tensor([0, 3, 4, 4, 9, 9])
"""Five segments; the third and the last are empty."""


def test_index_is_that_of_repeat_interleave() -> None:
    expected = torch.arange(5).repeat_interleave(PTR.diff())
    assert torch.equal(segment_index(PTR, 9), expected)
    assert segment_index(torch.tensor([0]), 0).shape == (0,)


def test_rows_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(IndexError):
        torch.zeros(5)[segment_index(PTR, 10)]
    with pytest.raises(IndexError):
        segment_index(PTR, 8)


def test_torch_scatter_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_scatter.segment_csr", lambda values, ptr, reduce: reduce)
    assert [segment(torch.ones(9), PTR, reduce) for reduce in ("sum", "mean")] == ["sum", "mean"]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(9,), (9, 2), (9, 2, 3)])
def test_the_same_without_torch_scatter(
    monkeypatch: pytest.MonkeyPatch, reduce: Literal["sum", "mean"], shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    expected = segment(values, PTR, reduce)
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    (by_values,) = torch.autograd.grad(expected, values, upstream)
    monkeypatch.setattr("torch_scatter.segment_csr", None)
    monkeypatch.setattr("torch_geometric.typing.WITH_TORCH_SCATTER", False)
    got = segment(values, PTR, reduce)
    assert_close(got, expected, torch.float64)
    assert_close(torch.autograd.grad(got, values, upstream)[0], by_values, torch.float64)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(9,), (9, 2), (9, 2, 3)])
def test_traced_as_not_traced(
    monkeypatch: pytest.MonkeyPatch, reduce: Literal["sum", "mean"], shape: tuple[int, ...]
) -> None:
    ptr = torch.tensor([0, 3, 4, 9])
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = segment(values, ptr, reduce)
    each = spread(plain, ptr, 9)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(segment(values, ptr, reduce), plain, torch.float64)
    assert torch.equal(spread(plain, ptr, 9), each)
