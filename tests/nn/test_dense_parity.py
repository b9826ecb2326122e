"""Every model against plain loops over atoms and neighbours, to twelve digits."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import ase.data
import numpy as np
import pytest
import torch
from torch import nn

from dipolegnn._pyg import Data
from dipolegnn.nn import DipoleModel
from dipolegnn.nn.graph import radius_graph
from tests.nn import dense
from tests.nn.models import CUTOFF, HEADS_OF, Kernels, make_model
from tests.nn.structures import molecule, random_molecule

PARITY = 1e-12
"""Relative to the largest number: both sides are in double precision."""

MODELS = [(representation, head) for representation, heads in HEADS_OF.items() for head in heads]


class Prediction(NamedTuple):
    s: dense.Array
    v: dense.Array | None
    dipole: dense.Array | None
    magnitude: float
    charges: dense.Array | None


def weights_of(module: nn.Module) -> dense.Weights:
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def densely(model: DipoleModel, data: Data, pos: dense.Array) -> Prediction:
    """What the loops make of the weights of a model."""
    body: Any = model.representation
    z = data.z.numpy()
    make_basis = dense.bessels if body.radial_basis == "bessel" else dense.gaussians
    basis = make_basis(body.num_rbf, body.cutoff)
    w, sizes = weights_of(body), (body.cutoff, body.num_interactions)
    v = None
    if body.has_vectors:
        s, v = dense.painn(w, z, pos, *sizes, basis)
    else:
        s = dense.schnet(w, z, pos, *sizes, basis)
    head = weights_of(model.head)
    if any(name.startswith("layers") for name in head):
        total = dense.atomwise(head, s)
        mean = model.config["head"]["aggregation"] == "mean"
        return Prediction(s, v, None, total / len(z) if mean else total, None)
    mass = ase.data.atomic_masses[z].astype(np.float32).astype(float)  # as the model has them
    centered = pos - mass @ pos / mass.sum()
    with_vectors = v if any(name.startswith("blocks") for name in head) else None
    dipole, charges = dense.dipole(head, s, with_vectors, centered, data.charge.item())
    return Prediction(s, v, dipole, float(np.linalg.norm(dipole)), charges)


def assert_parity(actual: torch.Tensor | None, expected: dense.Array | float | None) -> None:
    assert (actual is None) == (expected is None)
    if actual is not None and expected is not None:
        scale = np.abs(expected).max()
        assert scale > 1e-3
        assert np.abs(actual.detach().numpy() - expected).max() < PARITY * scale


@pytest.mark.parametrize(("representation", "head"), MODELS)
@pytest.mark.parametrize(
    "data",
    [
        random_molecule(9, seed=1),
        random_molecule(40, seed=2),
        random_molecule(6, seed=3, charge=-1.0),
        molecule([7], [[0.5, 0.0, 0.0]], charge=0.0),
        molecule([1, 17], [[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], charge=1.0),
    ],
    ids=["neutral", "crowded", "anion", "atom", "no-edges"],
)
@pytest.mark.parametrize("kernels", get_args(Kernels))
def test_prediction(representation: str, head: str, kernels: Kernels, data: Data) -> None:
    model = make_model(representation, head, kernels=kernels)
    expected = densely(model, data, data.pos.numpy())
    features = model.representation(data.z, data.pos, radius_graph(data.pos, CUTOFF))
    output = model(data)
    assert_parity(features.s, expected.s)
    if len(features.s) > 2:
        assert_parity(features.v, expected.v)
    if len(data.z) == 1 and expected.dipole is not None:
        assert output.magnitude.item() == pytest.approx(0, abs=1e-12)
        return
    assert_parity(output.magnitude, expected.magnitude)
    if expected.dipole is None:
        assert bool(output.dipole.isnan().all() and output.charges.isnan().all())
        return
    assert_parity(output.dipole, expected.dipole[None])
    assert_parity(output.charges, expected.charges)


@pytest.mark.parametrize("kernels", get_args(Kernels))
@pytest.mark.parametrize(("representation", "head"), MODELS)
def test_gradient(representation: str, head: str, kernels: Kernels) -> None:
    """Automatic derivatives with respect to the positions against differences of the loops."""
    model = make_model(representation, head, kernels=kernels)
    data = random_molecule(6, seed=7, charge=1.0)
    weights = np.array([0.3, -0.5, 0.8])

    def scalar(pos: dense.Array) -> float:
        out = densely(model, data, pos)
        return out.magnitude if out.dipole is None else float(weights @ out.dipole)

    pos, step = data.pos.numpy().copy(), 1e-5
    expected = np.zeros_like(pos)
    for index in np.ndindex(*pos.shape):
        shift = np.zeros_like(pos)
        shift[index] = step
        expected[index] = (scalar(pos + shift) - scalar(pos - shift)) / (2 * step)

    data.pos.requires_grad_()
    output = model(data)
    has_vector = bool(output.dipole.isfinite().all())
    value = output.dipole @ torch.tensor(weights) if has_vector else output.magnitude.sum()
    (gradient,) = torch.autograd.grad(value.sum(), data.pos)
    assert np.abs(expected).max() > 1e-3
    # Of the differences: the third derivative times step², and rounding divided by step.
    assert np.abs(gradient.numpy() - expected).max() < 1e-7 * np.abs(expected).max()
