from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from dipolegnn._pyg import Batch, Data
from dipolegnn.config import TrainConfig
from dipolegnn.nn import AtomwiseHead, DipoleHead, DipoleOutput
from tests.training.toy import dipole_loss

NAN = float("nan")
Kind = Literal["huber", "l1", "mse"]
KINDS: list[Kind] = ["huber", "l1", "mse"]


def labels(dipole: Tensor, magnitude: Tensor) -> Data:
    return Batch(
        dipole=dipole, dipole_magnitude=magnitude, mol_id=torch.arange(len(magnitude)) + 70
    )


def output(dipole: Tensor) -> DipoleOutput:
    return DipoleOutput(dipole, torch.linalg.vector_norm(dipole, dim=1), torch.zeros(0))


def config(loss: Kind, beta: float = 0.1) -> TrainConfig:
    return TrainConfig(loss=loss, huber_beta=beta)


@pytest.mark.parametrize(
    ("loss", "expected"),
    # Errors: 5 D of a vector, 0.06 D and 2 D of magnitudes.
    [
        ("mse", (25 + 0.06**2 + 4) / 3),
        ("l1", (5 + 0.06 + 2) / 3),
        ("huber", (4.95 + 0.06**2 / 0.2 + 1.95) / 3),
    ],
)
def test_by_hand(loss: Kind, expected: float) -> None:
    predicted = torch.tensor([[3.0, 0, 4], [1.06, 0, 0], [0, 0, 3]], dtype=torch.float64)
    dipole = torch.full((3, 3), NAN, dtype=torch.float64)
    dipole[0] = 0.0
    magnitude = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    value = dipole_loss(output(predicted), labels(dipole, magnitude), config(loss))
    assert float(value) == pytest.approx(expected)


def test_huber_of_magnitudes_is_that_of_torch_over_beta() -> None:
    predicted, reference = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    value = dipole_loss(
        DipoleOutput(torch.full((50, 3), NAN), predicted, torch.zeros(0)),
        labels(torch.full((50, 3), NAN), reference),
        config("huber", beta=0.3),
        AtomwiseHead,
    )
    assert float(value) == pytest.approx(float(huber_loss(predicted, reference, delta=0.3) / 0.3))


@pytest.mark.parametrize("loss", KINDS)
def test_does_not_depend_on_how_the_molecule_is_turned(loss: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, reference = torch.randn(2, 20, 3, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q
    magnitude = reference.norm(dim=1)
    values = [
        dipole_loss(output(predicted @ q), labels(reference @ q, magnitude), config(loss, 1.0))
        for q in (torch.eye(3, dtype=torch.float64), turn)
    ]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-12)


@pytest.mark.parametrize("loss", KINDS)
def test_gradient_is_finite_with_missing_labels_and_at_no_error(loss: Kind) -> None:
    predicted = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 2, 0], [0, 0, 3]], requires_grad=True)
    # A vector that fits exactly, a dipole of 0 that fits, a magnitude alone, and nothing.
    dipole = torch.tensor([[1.0, 0, 0], [0, 0, 0], [NAN] * 3, [NAN] * 3])
    magnitude = torch.tensor([1.0, 0.0, 1.0, NAN])
    dipole_loss(output(predicted), labels(dipole, magnitude), config(loss)).backward()
    gradient = predicted.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert (gradient[:2] == 0).all()
    assert gradient[2, 1] > 0
    assert (gradient[3] == 0).all()


@pytest.mark.parametrize("loss", KINDS)
def test_gradient_against_finite_differences(loss: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, reference = 0.2 * torch.randn(2, 12, 3, dtype=torch.float64, generator=generator)
    reference[::2] = NAN
    batch = labels(reference, torch.rand(12, dtype=torch.float64, generator=generator))
    assert torch.autograd.gradcheck(
        lambda x: dipole_loss(output(x), batch, config(loss)), predicted.requires_grad_()
    )


def test_a_vector_counts_even_if_its_magnitude_is_unknown() -> None:
    batch = labels(torch.zeros(1, 3), torch.tensor([NAN]))
    assert float(dipole_loss(output(torch.ones(1, 3)), batch, config("mse"))) == pytest.approx(3.0)


def test_a_model_without_vectors_learns_the_magnitude() -> None:
    batch = labels(torch.zeros(1, 3), torch.tensor([2.0]))
    magnitude_alone = DipoleOutput(torch.full((1, 3), NAN), torch.tensor([3.0]), torch.zeros(0))
    value = dipole_loss(magnitude_alone, batch, config("mse"), AtomwiseHead)
    assert float(value) == pytest.approx(1.0)


def test_no_label_at_all_names_the_molecules() -> None:
    batch = labels(torch.full((2, 3), NAN), torch.full((2,), NAN))
    with pytest.raises(ValueError, match=r"vector or magnitude \(mol_id \[70, 71\]\)"):
        dipole_loss(output(torch.ones(2, 3)), batch, config("mse"))


def test_charges_have_a_weight() -> None:
    """Two molecules of 2 and 3 atoms, of which the second has no reference charges."""
    batch = labels(torch.zeros(2, 3), torch.zeros(2))
    batch.atomic_charges = torch.tensor([0.5, -0.5, NAN, NAN, NAN])
    batch.ptr = torch.tensor([0, 2, 5])
    charges = torch.tensor([0.1, -0.1, 0.2, 0.3, -0.5], requires_grad=True)
    found = DipoleOutput(torch.zeros(2, 3), torch.zeros(2), charges)
    recipe = TrainConfig(charge_loss=10.0)
    losses, labelled = DipoleHead(8).losses(found, batch, recipe)
    assert losses.tolist() == pytest.approx([10 * 0.4**2, 0.0])
    assert labelled.tolist() == [True, True]
    losses.sum().backward()
    assert charges.grad is not None
    assert charges.grad.tolist() == pytest.approx([-4.0, 4.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="AtomwiseHead predicts no atomic charges"):
        AtomwiseHead(8).losses(found, batch, recipe)
