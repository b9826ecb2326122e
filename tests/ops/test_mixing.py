"""The fused elementwise work of the mixing against the same formulas in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dipolegnn.ops import mixing_change, mixing_context
from tests.tolerances import assert_close

EPS = 1e-8
DTYPES = [torch.float64, torch.float32]


def plain_context(s: Tensor, vectors: Tensor) -> Tensor:
    vv, _ = vectors.chunk(2, dim=2)
    return torch.cat([s, torch.sqrt(vv.square().sum(dim=1) + EPS)], dim=1)


def plain_change(vectors: Tensor, abc: Tensor) -> Tensor:
    (vv, uv), (a, b, c) = vectors.chunk(2, dim=2), abc.chunk(3, dim=1)
    ds = a + c * (uv * vv).sum(dim=1)
    return torch.cat([ds.unsqueeze(1), b.unsqueeze(1) * uv], dim=1)


def fused_change(vectors: Tensor, abc: Tensor) -> Tensor:
    ds, dv = mixing_change(vectors, abc)
    return torch.cat([ds.unsqueeze(1), dv], dim=1)


def inputs(atoms: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """s, vectors and abc; the vectors of the first atom are 0, as all are at the start of PaiNN."""
    generator = torch.Generator().manual_seed(channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    vectors = normal(atoms, 3, 2 * channels)
    vectors[:1] = 0
    return normal(atoms, channels), vectors, normal(atoms, 3 * channels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 17, 128])
@pytest.mark.parametrize("atoms", [0, 1, 200])
def test_equal_to_the_formulas(atoms: int, channels: int, dtype: torch.dtype) -> None:
    s, vectors, abc = inputs(atoms, channels, dtype)
    for fused, plain, given in (
        (lambda s, w: mixing_context(s, w, EPS), plain_context, (s, vectors)),
        (fused_change, plain_change, (vectors, abc)),
    ):
        leaves = [t.clone().requires_grad_() for t in given]
        references = [t.double().requires_grad_() for t in given]
        got, expected = fused(*leaves), plain(*references)
        assert_close(got, expected, dtype)
        upstream = torch.randn_like(expected)
        for a, b in zip(
            torch.autograd.grad(got, leaves, upstream.to(dtype)),
            torch.autograd.grad(expected, references, upstream),
            strict=True,
        ):
            assert a.dtype == dtype
            assert_close(a, b, dtype)


def test_gradcheck() -> None:
    s, vectors, abc = (t.requires_grad_() for t in inputs(3, 2, torch.float64))
    # Not where V v is 0: the curvature of the root there is 1 / sqrt(eps).
    moved = (vectors.detach() + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, w: mixing_context(s, w, EPS), (s, moved))
    assert torch.autograd.gradcheck(mixing_change, (vectors, abc))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pytorch_finds_nothing_wrong(dtype: torch.dtype) -> None:
    """Schema, shapes without data, autograd registration: torch.library's own checks."""
    s, vectors, abc = (t.requires_grad_() for t in inputs(3, 4, dtype))
    torch.library.opcheck(torch.ops.dipolegnn.mixing_context.default, (s, vectors, EPS))
    torch.library.opcheck(torch.ops.dipolegnn.mixing_change.default, (vectors, abc))
