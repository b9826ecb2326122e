"""Calibration of the error bars of a trained model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from dipolegnn._pyg import Data, InMemoryDataset
from dipolegnn.data import DipoleDataModule, Split
from dipolegnn.nn import Calibration, DipoleModel
from dipolegnn.nn.calibration import UNSURE, scale_of
from dipolegnn.nn.features import MAX_Z
from dipolegnn.nn.scatter import segment

TRAINING_MOLECULES = 10_000
"""Number of training molecules used to estimate the covariance of the last-layer gradients."""

BATCH_SIZE = 100

LEAST_MOLECULES = 20
"""Smallest number of labelled molecules in a calibration set, and of a level of theory that gets a
distribution of errors of its own."""

LEAST_OF_A_SIZE = 3
"""Smallest number of training molecules with n heavy atoms for which n is in the covered range."""

RIDGES = tuple(10.0**k for k in range(-6, 1))
"""Candidates for the ridge added to the covariance, relative to the mean of its diagonal."""

FLOORS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Candidates for the smallest scale, as quantiles of the scales of the calibration set."""


class TooFewMolecules(ValueError):
    """The calibration set has too few molecules with labels."""


def calibrate_on(model: DipoleModel, dataset: InMemoryDataset, split: Split) -> None:
    """Calibrates a model with the molecules of its training run.

    Args:
        model: A model trained on the training part of the data. Its weights are not changed.
        dataset: The molecules.
        split: The training part (at most 10,000 molecules) gives the covariance, the validation
            part the errors.

    Raises:
        TooFewMolecules: If fewer than 20 validation molecules have labels.
    """
    train, val = split.train, split.val
    some = train[:: -(-len(train) // TRAINING_MOLECULES)]
    # Passed as validation and test part, which are not shuffled.
    batches = DipoleDataModule(dataset, Split(train[:0], some, val), BATCH_SIZE)
    calibrate(model, batches.val_dataloader(), batches.test_dataloader())


def calibrate(model: DipoleModel, training: Iterable[Data], calibration: Iterable[Data]) -> None:
    """Sets ``model.calibration``, which adds error bars to predictions.

    One half of the calibration set is used to choose the ridge and the floor of the scale, the
    other half for the distribution of errors relative to the scale. If the model distinguishes
    levels of theory, each level with at least 20 labelled molecules has its own floor and its own
    distribution; the other levels have those of all molecules together. The covariance is that of
    the training molecules of all levels.

    Args:
        model: A trained model. Its weights are not changed.
        training: Batches of training molecules; a few thousand molecules suffice.
        calibration: Batches of labelled molecules that were not used for training. Molecules
            without a magnitude are skipped.

    Raises:
        TooFewMolecules: If fewer than 20 calibration molecules have labels.
        ValueError: If there are no training molecules, or the batches are invalid.
    """
    was_training = model.training
    model.eval()
    try:
        _calibrate(model, training, calibration)
    finally:
        model.train(was_training)


def _calibrate(model: DipoleModel, training: Iterable[Data], calibration: Iterable[Data]) -> None:
    weight = next(model.parameters())
    moment = torch.zeros(())
    elements = torch.zeros(MAX_Z + 1, dtype=torch.bool)
    charges: set[int] = set()
    sizes: Counter[int] = Counter()
    for batch in training:
        _, sensitivity = model.with_sensitivity(_in_precision_of(weight, batch))
        rows = sensitivity.double()
        moment = rows.T @ rows + moment.to(rows)
        elements[batch.z.cpu()] = True
        sizes.update(segment((batch.z > 1).long(), batch.ptr).tolist())
        charge = batch.get("charge")
        charges |= {0} if charge is None else {round(value) for value in charge.flatten().tolist()}
    molecules = sizes.total()
    if not molecules:
        raise ValueError("There are no training molecules to calibrate with.")
    usual = [size for size, count in sizes.items() if count >= LEAST_OF_A_SIZE] or list(sizes)

    parts = [_errors(model, _in_precision_of(weight, batch)) for batch in calibration]
    error = torch.cat([part[0] for part in parts]) if parts else torch.zeros(0)
    if error.numel() < LEAST_MOLECULES:
        raise TooFewMolecules(
            f"Error bars need at least {LEAST_MOLECULES} molecules with reference dipoles that the "
            f"model was not trained on, got {error.numel()}."
        )
    sensitivity = torch.cat([part[1] for part in parts])
    level = torch.cat([part[2] for part in parts])
    levels = range(max(1, len(model.representation.levels)))
    fitting = torch.zeros_like(level, dtype=torch.bool)
    for k in levels:
        fitting[(level == k).nonzero()[::2]] = True
    whitening = _whitening(moment / molecules, sensitivity[fitting], error[fitting])
    distances = sensitivity @ whitening.T
    floor, scores, widest = _distribution(distances, error, fitting)
    if model.representation.levels:
        of_levels: list[tuple[Tensor, Tensor, Tensor]] = []
        for k in levels:
            own = level == k
            enough = int(own.sum()) >= LEAST_MOLECULES
            one = _distribution(distances[own], error[own], fitting[own]) if enough else None
            of_levels.append(one or (floor, scores, widest))
        longest = max(row[1].numel() for row in of_levels)
        floor, widest = (torch.stack([row[k] for row in of_levels]) for k in (0, 2))
        scores = torch.stack(
            [pad(row[1], (0, longest - row[1].numel()), value=torch.inf) for row in of_levels]
        )
    made = Calibration(
        whitening=whitening,
        floor=floor,
        scores=scores,
        widest=widest,
        elements=elements,
        sizes=torch.tensor([min(usual), max(usual)]),
        charges=torch.tensor(sorted(charges)),
    )
    model.calibration = made.to(weight)


def _in_precision_of(weight: Tensor, batch: Data) -> Data:
    """The batch on the device and in the precision of the model."""
    batch = batch.to(weight.device)
    if batch.pos.dtype == weight.dtype:
        return batch
    converted: Data = batch.apply(lambda x: x.to(weight.dtype) if x.is_floating_point() else x)
    return converted


def _errors(model: DipoleModel, batch: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Of the labelled molecules: errors ``[b]``, sensitivities ``[b, P]`` and levels ``[b]``."""
    output, sensitivity = model.with_sensitivity(batch)
    error = (output.magnitude - batch.dipole_magnitude).abs().double()
    labelled = error.isfinite()
    names = batch.get("level") or [None] * error.numel()
    level = torch.tensor(model.level_places(names), device=error.device)
    return error[labelled], sensitivity.double()[labelled], level[labelled]


def _whitening(moment: Tensor, sensitivity: Tensor, error: Tensor) -> Tensor:
    """Chooses the whitening by the likelihood of Laplace-distributed errors."""
    unit = torch.eye(moment.size(0)).to(moment)
    diagonal = moment.diagonal().mean().clamp(min=torch.finfo(moment.dtype).tiny)
    best, chosen = -torch.inf, unit
    for ridge in RIDGES:
        factor = torch.linalg.cholesky(moment + ridge * diagonal * unit)
        whitening = torch.linalg.solve_triangular(factor, unit, upper=False)
        likelihood, _ = _floor(sensitivity @ whitening.T, error)
        if likelihood > best:
            best, chosen = likelihood, whitening
    return chosen


def _floor(distances: Tensor, error: Tensor) -> tuple[float, Tensor]:
    """Largest likelihood of Laplace-distributed errors, and the floor that gives it."""
    lengths = torch.linalg.vector_norm(distances, dim=1)
    best, chosen = -torch.inf, distances.new_ones(())
    for quantile in FLOORS:
        floor = lengths.quantile(quantile).clamp(min=1e-3 * float(lengths.mean()) + 1e-12)
        scale = scale_of(distances, floor)
        likelihood = -float(scale.log().mean() + (error / scale).mean().log())
        if likelihood > best:
            best, chosen = likelihood, floor
    return best, chosen


def _distribution(
    distances: Tensor, error: Tensor, fitting: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Floor, from the molecules for ``fitting``; scores, from the others; and widest scale."""
    _, floor = _floor(distances[fitting], error[fitting])
    scale = scale_of(distances, floor)
    return floor, (error / scale)[~fitting], scale.quantile(UNSURE)
