"""Prediction of structures with a model."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import nn

from dipolegnn._pyg import Data
from dipolegnn.inference.result import ErrorBar, Prediction
from dipolegnn.molecules import MoleculeError
from dipolegnn.nn import Calibration, DipoleModel
from dipolegnn.nn.features import MAX_Z

BATCH_ATOMS = 2000
"""Atoms per batch. Memory is proportional to the number of edges, at 5 Å at most about 60 per atom:
one edge tensor of PaiNN with 128 channels is below 200 MB."""


def predict(
    model: DipoleModel,
    molecules: Sequence[Data],
    *,
    batch_atoms: int = BATCH_ATOMS,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> list[Prediction]:
    """Predicts the dipole moments of structures.

    Args:
        model: The model.
        molecules: Structures with ``z [N]``, ``pos [N, 3]`` in angstrom and, for ions, ``charge``
            in e. Other fields are not used.
        batch_atoms: Maximum number of atoms per batch; a larger molecule is a separate batch.
        device: Device of the computation; on another device than that of the model, a copy of the
            model is used. None: the device of the model.
        progress: True to show a progress bar on standard error.

    Returns:
        One prediction per structure, in the same order.

    Raises:
        MoleculeError: If a structure has no atoms or coordinates, or an element beyond 100.
        TypeError: If the model predicts another property.
        ValueError: If ``batch_atoms`` is below 1.

    Example:
        >>> import torch
        >>> from dipolegnn import ModelConfig
        >>> from dipolegnn.molecules import from_smiles
        >>> from dipolegnn.nn import build_model
        >>> methane = from_smiles("C")
        >>> round(predict(build_model(ModelConfig()), methane)[0].magnitude, 2)  # by symmetry
        0.0
    """
    if not hasattr(model, "calibration"):  # not isinstance: torch.compile wraps the model
        raise TypeError(
            "predict needs a model of dipole moments (dipolegnn.DipoleModel), got "
            f"{type(model).__name__}. Call a model of another property with batches: model(batch)."
        )
    if batch_atoms < 1:
        raise ValueError(f"batch_atoms must be at least 1, got {batch_atoms}.")
    for number, data in enumerate(molecules, start=1):
        problem = unsupported(data)
        if problem is not None:
            raise problem.located(row=number)
    model = on_device(model, device)
    predictions: list[Prediction] = []
    console = Console(file=sys.stderr)
    with (
        evaluating(model),
        torch.no_grad(),
        Progress(console=console, disable=not progress) as bar,
    ):
        task = bar.add_task("Predicting", total=len(molecules))
        for batch in _batches(molecules, batch_atoms):
            predictions += _predict_batch(model, batch)
            bar.advance(task, len(batch))
    return predictions


def on_device(model: DipoleModel, device: torch.device | str | None) -> DipoleModel:
    """Returns the model, or a copy of it if ``device`` is not the device of the model."""
    if device is None:
        return model
    wanted, here = torch.device(device), next(model.parameters()).device
    if wanted.type == here.type and wanted.index in (None, here.index):
        return model
    return copy.deepcopy(model).to(wanted)


def with_plain_kernels(model: DipoleModel) -> DipoleModel:
    """Returns a model with the same (shared) weights that does not use fused kernels."""
    twin = copy.copy(model)
    twin.kernels = "plain"
    return twin


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switches to evaluation mode and restores the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def unsupported(data: Data) -> MoleculeError | None:
    """Error of a structure that cannot be predicted, else None."""
    name = str(data.get("name") or data.get("smiles") or "")
    z, pos = data.get("z"), data.get("pos")
    if z is None or pos is None or not z.numel() or tuple(pos.shape) != (z.numel(), 3):
        return MoleculeError(
            "The structure needs atoms z [N] and coordinates pos [N, 3]",
            remedy="Create it with dipolegnn.molecules.make_data",
            molecule=name,
        )
    if not 1 <= int(z.min()) <= int(z.max()) <= MAX_Z:
        wrong = int(z.max()) if int(z.max()) > MAX_Z else int(z.min())
        return MoleculeError(
            f"It has an atom with the atomic number {wrong}, expected 1 to {MAX_Z}",
            remedy="Remove the molecule",
            molecule=name,
        )
    return None


def _batches(molecules: Sequence[Data], batch_atoms: int) -> Iterator[list[Data]]:
    batch: list[Data] = []
    atoms = 0
    for data in molecules:
        if batch and atoms + data.z.numel() > batch_atoms:
            yield batch
            batch, atoms = [], 0
        batch.append(data)
        atoms += data.z.numel()
    if batch:
        yield batch


def _predict_batch(model: DipoleModel, molecules: Sequence[Data]) -> list[Prediction]:
    weight = next(model.parameters())
    sizes = torch.tensor([data.z.numel() for data in molecules])
    charges = [0.0 if data.get("charge") is None else float(data.charge) for data in molecules]
    batch = Data(
        z=torch.cat([data.z for data in molecules]),
        pos=torch.cat([data.pos for data in molecules]).to(weight.dtype),
        charge=torch.tensor(charges, dtype=weight.dtype),
        batch=torch.arange(len(molecules)).repeat_interleave(sizes),
    ).to(weight.device)
    errors: list[ErrorBar] | list[None] = [None] * len(molecules)
    if model.calibration is None:
        output = model(batch)
    else:
        output, sensitivity = model.with_sensitivity(batch)
        errors = _error_bars(model.calibration, molecules, sensitivity)
    ends = np.cumsum(sizes.numpy())[:-1]
    magnitudes = _numpy(output.magnitude)
    dipoles, atomic = _numpy(output.dipole), np.split(_numpy(output.charges), ends)
    return [
        Prediction(data, float(magnitude), dipole, charge, error)
        for data, magnitude, dipole, charge, error in zip(
            molecules, magnitudes, dipoles, atomic, errors, strict=True
        )
    ]


def _error_bars(
    calibration: Calibration, molecules: Sequence[Data], sensitivity: torch.Tensor
) -> list[ErrorBar]:
    scales = calibration.scale(sensitivity).tolist()
    doubts = calibration.doubts(molecules, scales)
    return [ErrorBar(s, d, calibration) for s, d in zip(scales, doubts, strict=True)]


def _numpy(values: torch.Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
