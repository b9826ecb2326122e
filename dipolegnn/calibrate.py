"""Making the error bars of a trained model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from dipolegnn._pyg import Data, InMemoryDataset
from dipolegnn.data import DipoleDataModule, Split
from dipolegnn.nn import Calibration, DipoleModel
from dipolegnn.nn.calibration import UNSURE
from dipolegnn.nn.features import MAX_Z

TRAINING_MOLECULES = 10_000
"""Of so many the covariance of the sensitivities is taken, which is a mean."""

BATCH_SIZE = 100

LEAST_MOLECULES = 20
"""Fewer labelled molecules say nothing about how large errors are."""

LEAST_OF_A_SIZE = 3
"""Fewer training molecules with so many heavy atoms are exceptions, not what the model knows."""

RIDGES = tuple(10.0**k for k in range(-6, 1))
"""Tried as what is added to the training molecules' covariance, relative to its diagonal."""

FLOORS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Tried as the smallest scale: quantiles of what the calibration molecules have."""


class TooFewMolecules(ValueError):
    """Error bars cannot be made: too few molecules with labels are left for them."""


def calibrate_on(model: DipoleModel, dataset: InMemoryDataset, split: Split) -> None:
    """Gives a model its error bars, from the molecules of its training run.

    Args:
        model: A model trained on the training part of the data; its weights stay as they are.
        dataset: The molecules.
        split: Some thousand molecules of the training part are used; errors are those of the
            validation part.

    Raises:
        TooFewMolecules: As :func:`calibrate`.
    """
    train, val = split.train, split.val
    some = train[:: -(-len(train) // TRAINING_MOLECULES)]
    # In the order of the data, so that the same run gives the same error bars.
    nobody = train[:0]
    batches = DipoleDataModule(dataset, Split(nobody, some, val), BATCH_SIZE)
    calibrate(model, batches.val_dataloader(), batches.test_dataloader())


def calibrate(model: DipoleModel, training: Iterable[Data], calibration: Iterable[Data]) -> None:
    """Gives a model its error bars: sets ``model.calibration``.

    Half of the calibration molecules, every other one, chooses how the scale depends on the
    features, the other half says how large the errors are for a scale.

    Args:
        model: A trained model; its weights stay as they are.
        training: Batches of the molecules that it was trained on, or of some thousands of them.
        calibration: Batches of molecules with labels that it was not trained on; those without a
            magnitude are passed over.

    Raises:
        TooFewMolecules: If fewer than 20 calibration molecules have labels.
        ValueError: If there are no training molecules, or the model and its batches do not fit.
    """
    was_training = model.training
    model.eval()
    try:
        _calibrate(model, training, calibration)
    finally:
        model.train(was_training)


def _calibrate(model: DipoleModel, training: Iterable[Data], calibration: Iterable[Data]) -> None:
    weight = next(model.parameters())
    moment = torch.zeros(0)
    seen = _Seen()
    molecules = 0
    for batch in training:
        _, sensitivity = model.with_sensitivity(_in_precision_of(weight, batch))
        rows = sensitivity.double()
        moment = rows.T @ rows + (moment.to(rows) if moment.numel() else 0.0)
        molecules += rows.size(0)
        seen.add(batch)
    if not molecules:
        raise ValueError("There are no training molecules to calibrate with.")

    parts = [_errors(model, _in_precision_of(weight, batch)) for batch in calibration]
    error = torch.cat([part[0] for part in parts]) if parts else torch.zeros(0)
    if error.numel() < LEAST_MOLECULES:
        raise TooFewMolecules(
            f"Error bars need at least {LEAST_MOLECULES} molecules with reference dipoles that the "
            f"model was not trained on, got {error.numel()}."
        )
    sensitivity = torch.cat([part[1] for part in parts])
    whitening, floor = _fitted(moment / molecules, sensitivity[::2], error[::2])
    scale = _scale(sensitivity @ whitening.T, floor)
    elements, sizes, charges = seen.tensors()
    made = Calibration(
        whitening=whitening,
        floor=floor,
        scores=error[1::2] / scale[1::2],
        widest=scale.quantile(UNSURE),
        elements=elements,
        sizes=sizes,
        charges=charges,
    )
    model.calibration = made.to(weight)


def _in_precision_of(weight: Tensor, batch: Data) -> Data:
    """The batch where the model is, with its floating point numbers in the model's precision."""
    batch = batch.to(weight.device)
    if batch.pos.dtype == weight.dtype:
        return batch
    converted: Data = batch.apply(lambda x: x.to(weight.dtype) if x.is_floating_point() else x)
    return converted


def _errors(model: DipoleModel, batch: Data) -> tuple[Tensor, Tensor]:
    """Absolute errors ``[b]`` and sensitivities ``[b, P]`` of the labelled molecules of a batch."""
    output, sensitivity = model.with_sensitivity(batch)
    error = (output.magnitude - batch.dipole_magnitude).abs().double()
    labelled = error.isfinite()
    return error[labelled], sensitivity.double()[labelled]


def _fitted(moment: Tensor, sensitivity: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """The whitening and the floor under which the errors are likeliest, by Laplace's law."""
    unit = torch.eye(moment.size(0)).to(moment)
    diagonal = moment.diagonal().mean().clamp(min=torch.finfo(moment.dtype).tiny)
    best, chosen = torch.inf, (unit, moment.new_ones(()))
    for ridge in RIDGES:
        factor = torch.linalg.cholesky(moment + ridge * diagonal * unit)
        whitening = torch.linalg.solve_triangular(factor, unit, upper=False)
        distances = sensitivity @ whitening.T
        lengths = torch.linalg.vector_norm(distances, dim=1)
        for quantile in FLOORS:
            floor = lengths.quantile(quantile).clamp(min=1e-3 * float(lengths.mean()) + 1e-12)
            scale = _scale(distances, floor)
            surprise = float(scale.log().mean() + (error / scale).mean().log())
            if surprise < best:
                best, chosen = surprise, (whitening, floor)
    return chosen


def _scale(distances: Tensor, floor: Tensor) -> Tensor:
    return (distances.square().sum(dim=1) + floor.square()).sqrt()


class _Seen:
    """What kinds of molecules there were."""

    def __init__(self) -> None:
        self.elements = torch.zeros(MAX_Z + 1, dtype=torch.bool)
        self.charges: set[int] = set()
        self.sizes: Counter[int] = Counter()

    def add(self, batch: Data) -> None:
        z = batch.z.cpu()
        self.elements[z] = True
        ptr = batch.ptr.cpu()
        heavy = torch.zeros(ptr.numel() - 1, dtype=torch.long)
        heavy.index_add_(
            0, torch.arange(heavy.numel()).repeat_interleave(ptr.diff()), (z > 1).long()
        )
        self.sizes.update(heavy.tolist())
        charge = batch.get("charge")
        found = [0.0] if charge is None else charge.flatten().tolist()
        self.charges |= {round(value) for value in found}

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        usual = [size for size, count in self.sizes.items() if count >= LEAST_OF_A_SIZE]
        usual = usual or list(self.sizes)
        sizes = torch.tensor([min(usual), max(usual)])
        return self.elements, sizes, torch.tensor(sorted(self.charges))
