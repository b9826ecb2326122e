from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dipolegnn.metrics import MeanError
from dipolegnn.nn.errors import absolute_error, angle, length_of_error, squared_error

NAN = float("nan")


def test_numbers_that_can_be_checked_by_hand() -> None:
    predicted, reference = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 1.0, 2.0])
    mae, rmse = MeanError(absolute_error), MeanError(squared_error, root=True)
    mae.update(predicted, reference)
    rmse.update(predicted, reference)
    assert float(mae.compute()) == pytest.approx(4 / 3)
    assert float(rmse.compute()) == pytest.approx(math.sqrt(10 / 3))


def test_vector_error_is_the_length_of_the_difference() -> None:
    metric = MeanError(length_of_error)
    metric.update(
        torch.tensor([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0]]), torch.tensor([[0.0] * 3, [1.0] * 3])
    )
    assert float(metric.compute()) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("predicted", "degrees"),
    [
        ([2.0, 0.0, 0.0], 0.0),
        ([0.0, 0.5, 0.0], 90.0),
        ([-1e-3, 0.0, 0.0], 180.0),
        ([1.0, 1.0, 0.0], 45.0),
        ([0.0, 0.0, 0.0], 90.0),
        ([1.0, 1e-6, 0.0], math.degrees(1e-6)),
    ],
)
def test_angle(predicted: list[float], degrees: float) -> None:
    metric = MeanError(angle)
    metric.update(torch.tensor([predicted]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert float(metric.compute()) == pytest.approx(degrees, rel=1e-6)


def test_direction_of_a_vanishing_dipole_does_not_count() -> None:
    metric = MeanError(angle)
    reference = torch.tensor([[0.05, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    metric.update(torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), reference)
    assert float(metric.compute()) == pytest.approx(45.0)


def test_batches_of_any_size_and_order_give_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, reference = torch.rand(2, 1000, generator=generator)
    whole, parts = MeanError(squared_error, root=True), MeanError(squared_error, root=True)
    whole.update(predicted, reference)
    order = torch.randperm(1000, generator=generator)
    for part in order.split([1, 700, 7, 292]):
        parts.update(predicted[part], reference[part])
    assert float(parts.compute()) == pytest.approx(float(whole.compute()), rel=1e-14)
    by_batch = torch.stack([(predicted - reference)[p].square().mean() for p in order.split(700)])
    assert float(by_batch.mean().sqrt()) != pytest.approx(float(whole.compute()), rel=1e-4)


def test_sums_in_double_precision() -> None:
    # In float32 a sum of a million times 0.1 is off in the third digit.
    metric = MeanError(absolute_error)
    for _ in range(100):
        metric.update(torch.full((10_000,), 0.1), torch.zeros(10_000))
    assert float(metric.compute()) == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_molecules_without_a_label_are_left_out() -> None:
    metric = MeanError(absolute_error)
    metric.update(torch.tensor([1.0, 7.0]), torch.tensor([1.5, NAN]))
    assert float(metric.compute()) == pytest.approx(0.5)
    vector = MeanError(length_of_error)
    vector.update(torch.ones(2, 3), torch.tensor([[1.0, 1.0, 2.0], [NAN, 1.0, 1.0]]))
    assert float(vector.compute()) == pytest.approx(1.0)


def test_a_prediction_that_is_not_a_number_is_not_left_out() -> None:
    metric = MeanError(absolute_error)
    metric.update(torch.tensor([1.0, NAN]), torch.tensor([1.0, 1.0]))
    assert math.isinf(float(metric.compute()))
    metric = MeanError(angle)
    metric.update(torch.full((1, 3), NAN), torch.ones(1, 3))
    assert math.isinf(float(metric.compute()))


@pytest.mark.parametrize("error", [absolute_error, squared_error, length_of_error, angle])
def test_mean_of_no_errors_is_nan_without_a_warning(
    error: Callable[[Tensor, Tensor], Tensor],
) -> None:
    metric = MeanError(error)
    assert math.isnan(float(metric.compute()))
    metric.reset()
    shape = (2, 3) if error in (length_of_error, angle) else (2,)
    metric.update(torch.ones(shape), torch.full(shape, NAN))
    assert math.isnan(float(metric.compute()))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predicted \[4\] and reference \[4, 1\]"):
        MeanError(absolute_error).update(torch.ones(4), torch.ones(4, 1))
