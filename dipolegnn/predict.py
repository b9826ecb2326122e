"""Predictions: dipole moments of molecules in 3D, of SMILES, and averages over conformers."""

from __future__ import annotations

import html
import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from dipolegnn._pyg import Data
from dipolegnn.config import COVERAGE, ConformerConfig
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow, embed_smiles
from dipolegnn.nn import Calibration, DipoleModel
from dipolegnn.nn.features import MAX_Z
from dipolegnn.units import BOLTZMANN_KCAL_PER_MOL_K, ROOM_TEMPERATURE_K

BATCH_ATOMS = 2000
"""Atoms per batch. Memory goes with the edges: at 5 Å at most about 60 per atom, so that one edge
tensor of PaiNN with 128 channels stays below 200 MB."""


@dataclass(frozen=True, eq=False)
class ErrorBar:
    """How far off a predicted magnitude may be.

    Attributes:
        scale: How unsure the model is, in no unit of its own.
        doubts: Why the prediction may be worse than the interval says: what the molecule has that
            the training molecules had not, or that the model is unusually unsure.
        calibration: What turns the scale into debye.
    """

    scale: float
    doubts: tuple[str, ...]
    calibration: Calibration

    def half_width(self, coverage: float = COVERAGE) -> float:
        """Half the width of the interval around the prediction that holds so often, in debye.

        Infinite, if the model was calibrated with too few molecules to tell.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        scale = self.calibration.scores.new_tensor([self.scale])
        return float(self.calibration.half_width(scale, coverage))


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a model says about one structure.

    Attributes:
        data: The structure, as it was given.
        magnitude: Magnitude of the dipole moment in debye.
        dipole: The vector ``[3]`` in debye, in the frame of ``data.pos``, about the centre of mass
            if the molecule is an ion; None from a model with an atomwise head.
        charges: Atomic charges ``[N]`` in e, in the order of the atoms; None from such a model.
            They are what the dipole asks for, not those of any population analysis.
        error: How far off the magnitude may be; None from a model without error bars.
    """

    data: Data
    magnitude: float
    dipole: NDArray[np.float64] | None
    charges: NDArray[np.float64] | None
    error: ErrorBar | None = None

    def __repr__(self) -> str:
        half_width = None if self.error is None else self.error.half_width()
        return f"Prediction({_name(self)!r}, |μ| = {_value(self.magnitude, half_width)})"

    def _repr_html_(self) -> str:
        """The molecule with its dipole moment, for notebooks."""
        half_width = None if self.error is None else self.error.half_width()
        return _picture(self, _value(self.magnitude, half_width))

    def as_labels(self) -> Data:
        """A copy of the structure that carries the prediction in the place of labels."""
        data = self.data.clone()
        nan = torch.full((1, 3), torch.nan)
        data.dipole = nan if self.dipole is None else torch.tensor(self.dipole[None]).float()
        data.dipole_magnitude = torch.tensor([self.magnitude])
        if self.charges is None:
            data.atomic_charges = torch.full((data.z.numel(),), torch.nan)
        else:
            data.atomic_charges = torch.tensor(self.charges).float()
        return data


@dataclass(frozen=True, eq=False, repr=False)
class MoleculePrediction:
    """What a model says about a molecule: an average over its conformers.

    Attributes:
        conformers: The conformers, lowest energy first.
        weights: Their Boltzmann weights ``[K]``; they sum to 1.
        magnitude: Mean of the magnitudes with these weights, in debye.
    """

    conformers: Sequence[Prediction]
    weights: NDArray[np.float64]
    magnitude: float

    def __repr__(self) -> str:
        value = _value(self.magnitude, self.half_width())
        count = len(self.conformers)
        return (
            f"MoleculePrediction({_name(self.lowest)!r}, |μ| = {value}, {count} "
            f"conformer{'s' * (count > 1)})"
        )

    def _repr_html_(self) -> str:
        """The lowest conformer with its dipole moment, and the average, for notebooks."""
        return _picture(self.lowest, _value(self.magnitude, self.half_width()))

    @property
    def lowest(self) -> Prediction:
        """The conformer of the lowest energy."""
        return self.conformers[0]

    def half_width(self, coverage: float = COVERAGE) -> float | None:
        """Half the width of the interval around ``magnitude`` that holds so often, in debye.

        The mean over the conformers, with their weights: errors of one molecule's conformers are
        much alike. What is not known about energies and geometries comes on top. None from a model
        without error bars.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        widths = [c.error.half_width(coverage) for c in self.conformers if c.error is not None]
        return float(np.dot(self.weights, widths)) if widths else None

    @property
    def doubts(self) -> list[str]:
        """What speaks against relying on the interval; see :class:`ErrorBar`."""
        found = [c.error.doubts for c in self.conformers if c.error is not None]
        return list(dict.fromkeys(doubt for doubts in found for doubt in doubts))

    @property
    def smallest(self) -> float:
        """Smallest magnitude of a conformer, in debye."""
        return min(conformer.magnitude for conformer in self.conformers)

    @property
    def largest(self) -> float:
        """Largest magnitude of a conformer, in debye."""
        return max(conformer.magnitude for conformer in self.conformers)


class Predictions(NamedTuple):
    """What a list of molecules came to: predictions, in order, and a line for each that failed."""

    molecules: list[MoleculePrediction]
    failures: list[Failure]


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
        molecules: The structures: ``z [N]``, ``pos [N, 3]`` in angstrom and, of ions, ``charge``
            in e. Nothing else of them plays a part.
        batch_atoms: Atoms per batch at most; a larger molecule is a batch of its own.
        device: Where to compute, and the model is moved there; None: where the model is.
        progress: Show a progress bar on standard error.

    Returns:
        One prediction per structure, in the same order.

    Raises:
        MoleculeError: If a structure has no atoms or coordinates, or an element beyond 100.
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
    if batch_atoms < 1:
        raise ValueError(f"batch_atoms must be at least 1, got {batch_atoms}.")
    for number, data in enumerate(molecules, start=1):
        problem = unsupported(data)
        if problem is not None:
            raise problem.located(row=number)
    if device is not None:
        model.to(device)
    was_training = model.training
    model.eval()
    predictions: list[Prediction] = []
    console = Console(file=sys.stderr)
    try:
        with torch.no_grad(), Progress(console=console, disable=not progress) as bar:
            task = bar.add_task("Predicting", total=len(molecules))
            for batch in _batches(molecules, batch_atoms):
                predictions += _predict_batch(model, batch)
                bar.advance(task, len(batch))
    finally:
        model.train(was_training)
    return predictions


def predict_smiles(
    model: DipoleModel,
    smiles: Sequence[str],
    *,
    conformers: ConformerConfig | None = None,
    temperature: float = ROOM_TEMPERATURE_K,
    workers: int = 1,
    progress: bool = False,
) -> Predictions:
    """Predicts the dipole moments of molecules from their SMILES.

    Args:
        model: The model.
        smiles: The SMILES.
        conformers: How they are embedded in 3D; None: one conformer each.
        temperature: Temperature of the average over conformers, in kelvin.
        workers: Processes that embed.
        progress: Show progress bars on standard error.

    Returns:
        A prediction for each molecule, in order, except for those in the failures.
    """
    rows = [SmilesRow(row, text) for row, text in enumerate(smiles, start=1)]
    found = embed_smiles(rows, conformers or ConformerConfig(), workers=workers, progress=progress)
    # SMILES are embedded with force fields, none of which has parameters beyond element 100.
    return Predictions(
        average(predict(model, found.data, progress=progress), temperature), found.failures
    )


def average(
    predictions: Sequence[Prediction], temperature: float = ROOM_TEMPERATURE_K
) -> list[MoleculePrediction]:
    """Averages over the conformers of each molecule.

    Conformers are neighbours with the same ``mol_id``. Structures without an energy (from most
    files) are molecules of their own: how much each would count is not known.

    Args:
        predictions: The predictions for all structures.
        temperature: Temperature in kelvin.

    Returns:
        One average per molecule, in order.
    """
    molecules = []
    for (_, has_energy), group in groupby(
        predictions, lambda p: (int(p.data.mol_id), math.isfinite(float(p.data.energy)))
    ):
        conformers = list(group)
        parts = [conformers] if has_energy else [[conformer] for conformer in conformers]
        molecules += [boltzmann(part, temperature) for part in parts]
    return molecules


def boltzmann(
    conformers: Sequence[Prediction], temperature: float = ROOM_TEMPERATURE_K
) -> MoleculePrediction:
    r"""The Boltzmann average of the magnitude over the conformers of one molecule.

    .. math:: \langle|\mu|\rangle = \sum_k w_k |\mu_k|, \qquad w_k \propto e^{-E_k / RT}

    The mean of the magnitudes, not the root of the mean square that a dielectric measurement sees
    (which is never smaller), and not the magnitude of a mean vector: each conformer tumbles by
    itself. The energies :math:`E_k` are those of ``data.energy``; from a force field (SMILES) they
    are good to about 1 kcal/mol, and the range of the magnitudes says how much hangs on that.

    Args:
        conformers: Predictions for the conformers of one molecule, with energies in kcal/mol.
        temperature: Temperature T in kelvin.

    Returns:
        The average; the conformers in it are sorted by energy.

    Raises:
        ValueError: If there are no conformers, one of several has no energy, or the temperature is
            not positive.

    Example:
        Two conformers of 1 and 3 D whose energies differ by RT ln 3 count 3 : 1:

        >>> from dipolegnn.molecules import make_data
        >>> def hydrogen(energy):
        ...     return make_data([1, 1], [[0, 0, 0], [0, 0, 0.74]], energy=energy)
        >>> gap = 298.15 * 1.987204e-3 * 1.0986123
        >>> pair = [
        ...     Prediction(hydrogen(energy), magnitude, None, None)
        ...     for energy, magnitude in ((0.0, 1.0), (gap, 3.0))
        ... ]
        >>> round(boltzmann(pair).magnitude, 4)
        1.5
    """
    if not conformers:
        raise ValueError("There are no conformers to average over; expected at least one.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, in kelvin, got {temperature}.")
    energies = np.array([float(conformer.data.energy) for conformer in conformers])  # [K]
    if len(conformers) == 1:
        energies = np.zeros(1)
    elif not np.isfinite(energies).all():
        raise ValueError(
            f"A conformer of {conformers[0].data.name or 'the molecule'} has no energy, so its "
            "weight is not known; average over conformers with energies in kcal/mol."
        )
    order = np.argsort(energies, kind="stable")
    relative = energies[order] - energies[order[0]]
    weights = np.exp(-relative / (BOLTZMANN_KCAL_PER_MOL_K * temperature))
    weights /= weights.sum()
    magnitudes = np.array([conformers[k].magnitude for k in order])
    return MoleculePrediction(
        [conformers[k] for k in order], weights, float((weights * magnitudes).sum())
    )


def unsupported(data: Data) -> MoleculeError | None:
    """Why no prediction can be made for a structure; None if one can."""
    name = str(data.get("name") or data.get("smiles") or "")
    z, pos = data.get("z"), data.get("pos")
    if z is None or pos is None or not z.numel() or tuple(pos.shape) != (z.numel(), 3):
        return MoleculeError(
            "The structure needs atoms z [N] and coordinates pos [N, 3]",
            remedy="Make it with dipolegnn.molecules.make_data",
            molecule=name,
        )
    if not 1 <= int(z.min()) <= int(z.max()) <= MAX_Z:
        wrong = int(z.max()) if int(z.max()) > MAX_Z else int(z.min())
        return MoleculeError(
            f"It has an atom with the atomic number {wrong}; models know 1 to {MAX_Z}",
            remedy="Leave the molecule out",
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
    no_values: list[None] = [None] * len(molecules)
    dipoles = no_values if output.dipole is None else _numpy(output.dipole)
    atomic = no_values if output.charges is None else np.split(_numpy(output.charges), ends)
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


def _name(prediction: Prediction) -> str:
    return str(prediction.data.get("name") or prediction.data.get("smiles") or "")


def _value(magnitude: float, half_width: float | None) -> str:
    bar = "" if half_width is None else f" ± {half_width:.3f}"
    return f"{magnitude:.3f}{bar} D"


def _picture(prediction: Prediction, value: str) -> str:
    """A drawing (SVG) with the magnitude below."""
    # Only now: matplotlib takes as long to import as predicting some molecules does.
    from dipolegnn.plots import draw_molecule

    figure = draw_molecule(
        prediction.data.z.tolist(),
        prediction.data.pos.tolist(),
        prediction.dipole,
        magnitude=prediction.magnitude,
    )
    text = io.StringIO()
    figure.savefig(text, format="svg")
    drawing = text.getvalue()
    return (
        f'<div style="max-width: 380px">{drawing[drawing.index("<svg") :]}'
        f"<p><b>{html.escape(_name(prediction))}</b>: |μ| = {value}</p></div>"
    )


def _numpy(values: torch.Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
