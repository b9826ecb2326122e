from __future__ import annotations

import math

import pytest
import torch

from dipolegnn.nn import BesselRBF, CosineCutoff, GaussianRBF
from dipolegnn.nn.radial import radial_basis_layer
from tests.tolerances import assert_close

PRECISIONS = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_gaussians(dtype: torch.dtype) -> None:
    rbf = GaussianRBF(num_rbf=6, cutoff=5.0).to(dtype)  # centres 0, 1, ... 5, width 1
    values = rbf(torch.tensor([0.0, 2.0, 3.5], dtype=dtype))
    assert values.shape == (3, 6)
    assert values.dtype == dtype
    expected = [[math.exp(-((d - c) ** 2) / 2) for c in range(6)] for d in (0.0, 2.0, 3.5)]
    assert_close(values, torch.tensor(expected, dtype=torch.float64), dtype)


def test_gaussians_made_in_single_precision_are_exact_in_double() -> None:
    distances = torch.linspace(0.1, 4.9, 50, dtype=torch.float64)
    values = GaussianRBF(num_rbf=20, cutoff=5.0).double()(distances)
    centers = torch.linspace(0.0, 5.0, 20, dtype=torch.float64)
    expected = torch.exp(-0.5 * ((distances[:, None] - centers) * 19 / 5) ** 2)
    assert (values - expected).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_bessels(dtype: torch.dtype) -> None:
    rbf = BesselRBF(num_rbf=4, cutoff=3.0).to(dtype)
    values = rbf(torch.tensor([0.5, 1.0, 3.0], dtype=dtype))
    assert values.shape == (3, 4)
    assert values.dtype == dtype
    expected = [
        [math.sqrt(2 / 3) * math.sin(n * math.pi * d / 3) / d for n in (1, 2, 3, 4)]
        for d in (0.5, 1.0, 3.0)
    ]
    assert_close(values, torch.tensor(expected, dtype=torch.float64), dtype)
    assert_close(values[2], torch.zeros(4), dtype)


def test_bessels_are_orthonormal() -> None:
    """With the weight d² of a sphere: the property that their prefactor is there for."""
    d = torch.linspace(0, 5, 20001, dtype=torch.float64)[1:]
    values = BesselRBF(num_rbf=5, cutoff=5.0).double()(d)
    overlap = (values * d[:, None] ** 2).T @ values * (5 / 20000)
    assert (overlap - torch.eye(5, dtype=torch.float64)).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_cosine_cutoff(dtype: torch.dtype) -> None:
    distances = torch.tensor([0.0, 1.25, 2.5, 5.0, 6.0, 100.0], dtype=dtype)
    values = CosineCutoff(5.0)(distances)
    assert values.dtype == dtype
    quarter = (2 + math.sqrt(2)) / 4
    assert_close(values, torch.tensor([1.0, quarter, 0.5, 0, 0, 0], dtype=torch.float64), dtype)
    assert values[3:].tolist() == [0.0, 0.0, 0.0]


def test_cosine_cutoff_ends_flat() -> None:
    distances = torch.tensor([0.0, 5.0 - 1e-7, 5.0 + 1e-7], dtype=torch.float64)
    distances.requires_grad_()
    (slopes,) = torch.autograd.grad(CosineCutoff(5.0)(distances).sum(), distances)
    assert slopes.abs().max() < 1e-7


def test_unknown_basis() -> None:
    with pytest.raises(ValueError, match="'gaussian' or 'bessel', got 'spline'"):
        radial_basis_layer("spline", 4, 5.0)  # type: ignore[arg-type]
