"""The GPU kernels against the CPU's: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dipolegnn.ops import distance_grid
from dipolegnn.ops.cpu import cfconv, mixing, painn
from tests.ops.examples import CUTOFF, example, filters

pytest.importorskip("triton", reason="Triton is not installed (extra dev, Linux)")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
"""Largest deviation, relative to the largest entry."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow: 17 channels are more than a block, 3 edges more than a chunk."""
    monkeypatch.setattr("dipolegnn.ops.gpu.launch._LARGEST_BLOCK", 16)
    monkeypatch.setattr("dipolegnn.ops.gpu.launch._CHUNK", 2)


def coarse_table(coefficients: Tensor) -> Tensor:
    """A filter on few rows: both sides interpolate in the same table, however coarse."""
    return filters(distance_grid(CUTOFF, 32, coefficients), coefficients)


def there(tensor: Tensor) -> Tensor:
    return tensor.to(DEVICE)


def check(got: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> None:
    for a, b in zip(
        (got,) if isinstance(got, Tensor) else got,
        (expected,) if isinstance(expected, Tensor) else expected,
        strict=True,
    ):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if b.numel():
            scale = float(b.abs().max()) or 1.0
            assert float((a.cpu() - b).abs().max()) / scale < TOLERANCE[b.dtype]


@pytest.mark.parametrize("sizes", [(4, 1, 3), (1,)], ids=str)
@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_painn_message(dtype: torch.dtype, channels: int, sizes: tuple[int, ...]) -> None:
    from dipolegnn.ops.gpu import painn as gpu

    g = example(channels, dtype, sizes)
    w = coarse_table(g.coefficients)
    up_s, up_v = torch.randn(g.x.size(0), channels, dtype=dtype), torch.randn_like(g.v)
    x, v, rows, pos, ptr, col = map(there, (g.x, g.v, w, g.pos, g.rowptr, g.col))
    check(
        gpu.painn_message(x, v, rows, pos, ptr, col, CUTOFF),
        painn.painn_message(g.x, g.v, w, g.pos, g.rowptr, g.col, CUTOFF),
    )
    for by_pos in (True, False):
        check(
            gpu.painn_message_backward(
                there(up_s), there(up_v), x, v, rows, pos, ptr, col, CUTOFF, by_pos
            ),
            painn.painn_message_backward(
                up_s, up_v, g.x, g.v, w, g.pos, g.rowptr, g.col, CUTOFF, by_pos
            ),
        )


@pytest.mark.parametrize("sizes", [(4, 1, 3), (1,)], ids=str)
@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cfconv(dtype: torch.dtype, channels: int, sizes: tuple[int, ...]) -> None:
    from dipolegnn.ops.gpu import cfconv as gpu

    g = example(channels, dtype, sizes, parts=1)
    w, up = coarse_table(g.coefficients), torch.randn(g.x.shape, dtype=dtype)
    x, rows, pos, ptr, col = map(there, (g.x, w, g.pos, g.rowptr, g.col))
    check(
        gpu.cfconv(x, rows, pos, ptr, col, CUTOFF),
        cfconv.cfconv(g.x, w, g.pos, g.rowptr, g.col, CUTOFF),
    )
    for by_pos in (True, False):
        check(
            gpu.cfconv_backward(there(up), x, rows, pos, ptr, col, CUTOFF, by_pos),
            cfconv.cfconv_backward(up, g.x, w, g.pos, g.rowptr, g.col, CUTOFF, by_pos),
        )


@pytest.mark.parametrize("atoms", [0, 3])
@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_mixing(dtype: torch.dtype, channels: int, atoms: int) -> None:
    from dipolegnn.ops.gpu import mixing as gpu

    def normal(*shape: int) -> Tensor:
        return torch.randn(atoms, *shape, dtype=dtype)

    s, vectors, abc = normal(channels), normal(3, 2 * channels), normal(3 * channels)
    up, up_s, up_v = normal(2 * channels), normal(channels), normal(3, channels)
    context = mixing.mixing_context(s, vectors, 1e-8)
    check(gpu.mixing_context(there(s), there(vectors), 1e-8), context)
    check(
        gpu.mixing_context_backward(there(up), there(vectors), there(context)),
        mixing.mixing_context_backward(up, vectors, context),
    )
    check(gpu.mixing_change(there(vectors), there(abc)), mixing.mixing_change(vectors, abc))
    check(
        gpu.mixing_change_backward(there(up_s), there(up_v), there(vectors), there(abc)),
        mixing.mixing_change_backward(up_s, up_v, vectors, abc),
    )
