"""Predictions of structures, and averages over the conformers of molecules."""

from __future__ import annotations

import copy
import html
import io
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import nn

from dipolegnn._pyg import Data
from dipolegnn.config import COVERAGE
from dipolegnn.molecules import Failure, MoleculeError
from dipolegnn.molecules.fragments import broken_bonds
from dipolegnn.nn import Calibration, DipoleModel, PropertyModel
from dipolegnn.nn.features import MAX_Z
from dipolegnn.nn.model import Model
from dipolegnn.units import BOLTZMANN_KCAL_PER_MOL_K, ROOM_TEMPERATURE_K

BATCH_ATOMS = 2000
"""Atoms per batch. Memory is proportional to the number of edges, at 5 Å at most about 60 per atom:
one edge tensor of PaiNN with 128 channels is below 200 MB."""


ENERGY_ERROR = 2.0
"""Standard deviation of the energies of conformers, in kcal/mol: that of MMFF94s, also used for
other energies."""

SEARCH_ERROR = 0.07
"""Standard deviation of an average of one rotatable bond or flexible ring, relative to the largest
magnitude of a conformer: conformers that the search does not find, and geometries. With this, the
90 % intervals of 96 drug-like training molecules hold for 88 %."""

DECIMALS_KCAL = 2
"""Decimals of kcal/mol to which energies of conformers are compared."""

DRAWS = 500
"""Number of random errors of an average."""


@dataclass(frozen=True, eq=False)
class ErrorBar:
    """Error bar of a predicted magnitude.

    Attributes:
        scale: Uncertainty relative to other molecules, in an arbitrary unit.
        doubts: Warnings that the interval may be too small: properties of the molecule outside the
            training data, or an unusually large uncertainty.
        calibration: Calibration that converts the scale to debye.
        level: Level of theory, an index into those of the model.
    """

    scale: float
    doubts: tuple[str, ...]
    calibration: Calibration
    level: int = 0

    def half_width(self, coverage: float = COVERAGE) -> float:
        """Half the width of the interval of this coverage around the prediction, in debye.

        Infinite if the model was calibrated with too few molecules for the coverage.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        scale = self.calibration.scores.new_tensor([self.scale])
        level = torch.tensor([self.level], device=scale.device)
        return float(self.calibration.half_width(scale, coverage, level))


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The prediction of one structure.

    Attributes:
        data: The given structure.
        magnitude: Magnitude of the dipole moment in debye.
        dipole: Dipole vector ``[3]`` in debye, in the frame of ``data.pos``, for ions about the
            centre of mass; NaN if the model predicts only magnitudes.
        charges: Atomic charges ``[N]`` in e, in the order of the atoms; NaN if the model predicts
            only magnitudes. Fitted to reproduce the dipole; not a population analysis.
        error: Error bar of the magnitude; None if the model has no error bars.
        level: Level of theory of the prediction; empty if the model does not distinguish levels.
        broken_bond: A broken or stretched bond of the structure, in words; empty if there is none.
            The interval is then infinite.
    """

    data: Data
    magnitude: float
    dipole: NDArray[np.float64]
    charges: NDArray[np.float64]
    error: ErrorBar | None = None
    level: str = ""
    broken_bond: str = ""

    @property
    def has_vector(self) -> bool:
        """False if the model predicts only magnitudes."""
        return bool(np.isfinite(self.dipole).all())

    def __repr__(self) -> str:
        return f"Prediction({_name(self)!r}, {_value(self)}{_remarks(self)})"

    def _repr_html_(self) -> str:
        """Drawing of the structure with its dipole moment, for notebooks."""
        return _picture(self, self)

    def half_width(self, coverage: float = COVERAGE) -> float | None:
        """Half the width of the interval of this coverage around ``magnitude``, in debye.

        None if the model has no error bars.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        return None if self.error is None else self.error.half_width(coverage)

    @property
    def symbols(self) -> list[str]:
        """Symbols of the elements, in the order of the atoms."""
        return [chemical_symbols[z] for z in self.data.z.tolist()]

    @property
    def total_charge(self) -> int:
        """Total charge in e."""
        return round(float(self.data.charge))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Warnings that the interval may be too small; see :class:`ErrorBar`."""
        doubts = () if self.error is None else self.error.doubts
        if not self.broken_bond:
            return doubts
        return (f"{self.broken_bond}: do not rely on the prediction, it has no interval", *doubts)

    def as_labels(self) -> Data:
        """Returns a copy of the structure with the prediction as its labels."""
        data = self.data.clone()
        data.dipole = torch.tensor(self.dipole[None]).float()
        data.dipole_magnitude = torch.tensor([self.magnitude])
        data.atomic_charges = torch.tensor(self.charges).float()
        return data


@dataclass(frozen=True, eq=False, repr=False)
class MoleculePrediction:
    """Prediction of a molecule: an average over its conformers.

    Attributes:
        conformers: The conformers, lowest energy first.
        weights: Their Boltzmann weights ``[K]``; they sum to 1.
        magnitude: Mean of the magnitudes with these weights, in debye.
        source: Name of the file of the molecule; empty if there is none.
        row: Row, record or frame in the file, from 1.
        model: Name of the model; empty if it has none.
        accuracy: Accuracy of the model in one line; empty if not known.
        energies: What the energies of the weights come from; empty for one conformer.
        notes: Notes and warnings for the user.
        errors: Random errors of the average, in debye, that energies and search of the conformers
            may have (:func:`average_errors`); empty for given structures and rigid molecules.
    """

    conformers: Sequence[Prediction]
    weights: NDArray[np.float64]
    magnitude: float
    source: str = ""
    row: int = 0
    model: str = ""
    accuracy: str = ""
    energies: str = ""
    notes: tuple[str, ...] = ()
    errors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __repr__(self) -> str:
        count = len(self.conformers)
        return (
            f"MoleculePrediction({_name(self.lowest)!r}, {_value(self)}, {count} "
            f"conformer{'s' * (count > 1)}{_remarks(self)})"
        )

    def _repr_html_(self) -> str:
        """Drawing of the lowest conformer with its dipole moment, for notebooks."""
        return _picture(self, self.lowest)

    @property
    def lowest(self) -> Prediction:
        """The conformer of the lowest energy."""
        return self.conformers[0]

    @property
    def level(self) -> str:
        """Level of theory of the prediction; empty if the model does not distinguish levels."""
        return self.lowest.level

    def half_width(self, coverage: float = COVERAGE) -> float | None:
        """Half the width of the interval of this coverage around ``magnitude``, in debye.

        The weighted mean over the conformers, because the errors of conformers of a molecule are
        similar; of flexible molecules from SMILES also, as the root of the sum of squares, the
        interval of ``errors``. None if the model has no error bars.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        widths = [c.error.half_width(coverage) for c in self.conformers if c.error is not None]
        if not widths:
            return None
        spread = np.quantile(np.abs(self.errors), coverage) if self.errors.size else 0.0
        return math.hypot(np.dot(self.weights, widths), spread)

    @property
    def doubts(self) -> list[str]:
        """Warnings that the interval may be too small; see :class:`ErrorBar`."""
        return list(dict.fromkeys(doubt for c in self.conformers for doubt in c.doubts))

    @property
    def smallest(self) -> float:
        """Smallest magnitude of a conformer, in debye."""
        return min(conformer.magnitude for conformer in self.conformers)

    @property
    def largest(self) -> float:
        """Largest magnitude of a conformer, in debye."""
        return max(conformer.magnitude for conformer in self.conformers)


class Predictions(NamedTuple):
    """Predictions of molecules, in order, and failures."""

    molecules: list[MoleculePrediction]
    failures: list[Failure]

    @classmethod
    def of(cls, outcomes: Iterable[MoleculePrediction | Failure]) -> Predictions:
        """Separates predictions and failures."""
        found = cls([], [])
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                found.failures.append(outcome)
            else:
                found.molecules.append(outcome)
        return found

    @property
    def levels(self) -> list[str]:
        """Levels of theory of the predictions; empty if the models do not distinguish levels."""
        return list(dict.fromkeys(molecule.level for molecule in self.molecules if molecule.level))


def average(
    predictions: Sequence[Prediction], temperature: float = ROOM_TEMPERATURE_K
) -> list[MoleculePrediction]:
    """Averages over the conformers of each molecule.

    Conformers are consecutive structures with the same ``mol_id``. Structures without an energy
    (from most files) are separate molecules, because their weights are not known.

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
    r"""Boltzmann average of the magnitude over the conformers of a molecule.

    .. math:: \langle|\mu|\rangle = \sum_k w_k |\mu_k|, \qquad w_k \propto e^{-E_k / RT}

    This is the mean of the magnitudes, not the root mean square of dielectric measurements (which
    is never smaller), and not the magnitude of the mean vector, since conformers rotate
    independently. The energies :math:`E_k` are ``data.energy``. Force-field energies (SMILES) have
    errors of about 1 kcal/mol; the range of the magnitudes shows how much this can matter.

    Args:
        conformers: Predictions for the conformers of one molecule, with energies in kcal/mol.
        temperature: Temperature T in kelvin.

    Returns:
        The average, with conformers sorted by energy.

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
    # Energies of mirror images are equal, and those of a network only to rounding.
    order = np.argsort(np.round(energies - energies.min(), DECIMALS_KCAL), kind="stable")
    weights = _weights(energies[order], temperature)
    ordered = [conformers[k] for k in order]
    magnitudes = np.array([conformer.magnitude for conformer in ordered])
    return MoleculePrediction(ordered, weights, float((weights * magnitudes).sum()))


def average_errors(
    conformers: Sequence[Prediction], temperature: float, motions: int
) -> NDArray[np.float64]:
    r"""Random errors ``[S]`` of an average over conformers from a search, in debye.

    The average with energies :math:`E_k + 2\,\mathrm{kcal/mol}\;g_k` less the average with
    :math:`E_k`, plus :math:`0.07 \sqrt{m} \max_k |\mu_k|\, g_0` for m rotatable bonds and flexible
    rings; the g are standard normal.

    Args:
        conformers: The conformers of one molecule, with energies in kcal/mol.
        temperature: Temperature in kelvin.
        motions: Number of rotatable bonds and flexible rings.
    """
    energies = np.array([float(conformer.data.energy) for conformer in conformers])  # [K]
    magnitudes = np.array([conformer.magnitude for conformer in conformers])  # [K]
    normal = np.random.default_rng(0).standard_normal((DRAWS, len(energies) + 1))  # [S, K + 1]
    drawn = _weights(energies + ENERGY_ERROR * normal[:, 1:], temperature) @ magnitudes  # [S]
    mean = _weights(energies, temperature) @ magnitudes
    missed = SEARCH_ERROR * math.sqrt(motions) * magnitudes.max()
    errors: NDArray[np.float64] = drawn - mean + missed * normal[:, 0]
    return errors


def _weights(energies: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Boltzmann weights ``[..., K]`` of conformers with these energies in kcal/mol ``[..., K]``."""
    relative = energies - energies.min(axis=-1, keepdims=True)
    weights: NDArray[np.float64] = np.exp(-relative / (BOLTZMANN_KCAL_PER_MOL_K * temperature))
    return weights / weights.sum(axis=-1, keepdims=True)


def _name(prediction: Prediction) -> str:
    return str(prediction.data.get("name") or prediction.data.get("smiles") or "")


def _value(found: Prediction | MoleculePrediction) -> str:
    width = found.half_width()
    level = f" at {found.level}" if found.level else ""
    return f"|μ| = {found.magnitude:.3f}{'' if width is None else f' ± {width:.3f}'} D{level}"


def _remarks(found: Prediction | MoleculePrediction) -> str:
    return "".join(f"; {doubt}" for doubt in found.doubts)


def _picture(found: Prediction | MoleculePrediction, drawn: Prediction) -> str:
    """Drawing (SVG) of a structure, with magnitude and warnings below."""
    from dipolegnn.plots import draw_molecule  # importing matplotlib is slow

    figure = draw_molecule(drawn.data.z, drawn.data.pos, drawn.dipole, magnitude=drawn.magnitude)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    drawing = text.getvalue()
    return (
        f'<div style="max-width: 380px">{drawing[drawing.index("<svg") :]}'
        f"<p><b>{html.escape(_name(drawn))}</b>: {html.escape(_value(found))}"
        f"{html.escape(_remarks(found))}</p></div>"
    )


def predict(
    model: DipoleModel,
    molecules: Sequence[Data],
    *,
    level: str | None = None,
    batch_atoms: int = BATCH_ATOMS,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> list[Prediction]:
    """Predicts the dipole moments of structures.

    Args:
        model: The model.
        molecules: Structures with ``z [N]``, ``pos [N, 3]`` in angstrom and, for ions, ``charge``
            in e. ``fragment``, ``fragment_charge`` and ``level`` are used if they are there, other
            fields are not.
        level: Level of theory, one of ``model.levels``; None: ``level`` of each
            structure, else the first of the model.
        batch_atoms: Maximum number of atoms per batch; a larger molecule is a separate batch.
        device: Device of the computation; on another device than that of the model, a copy of the
            model is used. None: the device of the model.
        progress: True to show a progress bar on standard error.

    Returns:
        One prediction per structure, in the same order.

    Raises:
        MoleculeError: If a structure has no atoms or coordinates, or an element beyond 100.
        TypeError: If the model predicts another property.
        ValueError: If ``batch_atoms`` is below 1, or the model does not have the level.

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
    if level is not None:
        level = model.level_named(level)
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
        for batch in in_batches(molecules, batch_atoms):
            predictions += _predict_batch(model, batch, level)
            bar.advance(task, len(batch))
    return predictions


def on_device(model: Model, device: torch.device | str | None) -> Model:
    """Returns the model, or a copy of it if ``device`` is not the device of the model."""
    if device is None:
        return model
    wanted, here = torch.device(device), next(model.parameters()).device
    if wanted.type == here.type and wanted.index in (None, here.index):
        return model
    return copy.deepcopy(model).to(wanted)


def with_plain_kernels(model: Model) -> Model:
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
    z, pos = data.get("z"), data.get("pos")
    if z is None or pos is None or not z.numel() or tuple(pos.shape) != (z.numel(), 3):
        problem = "The structure needs atoms z [N] and coordinates pos [N, 3]"
        remedy = "Create it with dipolegnn.molecules.make_data"
    elif not 1 <= int(z.min()) <= int(z.max()) <= MAX_Z:
        wrong = int(z.max()) if int(z.max()) > MAX_Z else int(z.min())
        problem = f"It has an atom with the atomic number {wrong}, expected 1 to {MAX_Z}"
        remedy = "Remove the molecule"
    else:
        return None
    name = str(data.get("name") or data.get("smiles") or "")
    return MoleculeError(problem, remedy=remedy, molecule=name)


def require_vectors(model: DipoleModel) -> None:
    """Raises a ValueError if the model predicts magnitudes only."""
    if "dipole" not in model.head.outputs:
        raise ValueError(
            f"The head {type(model.head).__name__} of the model predicts magnitudes and no "
            "vectors; use a model with a dipole head."
        )


def in_batches(molecules: Sequence[Data], batch_atoms: int) -> Iterator[list[Data]]:
    """Consecutive structures of at most so many atoms, or single larger ones."""
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


def model_input(
    model: PropertyModel[Any], molecules: Sequence[Data], level: str | None = None
) -> Data:
    """Batch of the fields that a model reads, on its device and in its precision.

    ``charge``, ``fragment``, ``fragment_charge`` and ``level`` of a molecule are optional; the
    argument ``level`` takes precedence over that of a molecule.
    """
    weight = next(model.parameters())
    sizes = torch.tensor([data.z.numel() for data in molecules])
    charges = [0.0 if data.get("charge") is None else float(data.charge) for data in molecules]
    fragments = [
        (data.fragment, data.fragment_charge)
        if "fragment" in data
        else (torch.zeros_like(data.z), torch.full(data.z.shape, charge))
        for data, charge in zip(molecules, charges, strict=True)
    ]
    batch = Data(
        z=torch.cat([data.z for data in molecules]),
        pos=torch.cat([data.pos for data in molecules]).to(weight.dtype),
        charge=torch.tensor(charges, dtype=weight.dtype),
        fragment=torch.cat([fragment for fragment, _ in fragments]),
        fragment_charge=torch.cat([charge.to(weight.dtype) for _, charge in fragments]),
        batch=torch.arange(len(molecules)).repeat_interleave(sizes),
    ).to(weight.device)
    if model.representation.levels:
        batch.level = [model.level_named(level or data.get("level")) for data in molecules]
    return batch


def _predict_batch(
    model: DipoleModel, molecules: Sequence[Data], level: str | None
) -> list[Prediction]:
    batch = model_input(model, molecules, level)
    levels = batch.get("level") or [""] * len(molecules)
    errors: list[ErrorBar] | list[None] = [None] * len(molecules)
    broken = _broken_bonds(batch)
    calibration = model.calibration
    if calibration is None:
        output = model(batch)
    else:
        output, sensitivity = model.with_sensitivity(batch)
        places = model.level_places(levels)
        rows = torch.tensor(places, device=sensitivity.device)
        scales = calibration.scale(sensitivity, rows).tolist()
        doubts = calibration.doubts(molecules, scales, rows)
        for place in broken:
            scales[place] = math.inf
        errors = [
            ErrorBar(scale, doubt, calibration, place)
            for scale, doubt, place in zip(scales, doubts, places, strict=True)
        ]
    ends = np.cumsum([data.z.numel() for data in molecules])[:-1]
    magnitudes = _numpy(output.magnitude)
    dipoles, atomic = _numpy(output.dipole), np.split(_numpy(output.charges), ends)
    return [
        Prediction(data, float(magnitude), dipole, charge, error, of_level, broken.get(place, ""))
        for place, (data, magnitude, dipole, charge, error, of_level) in enumerate(
            zip(molecules, magnitudes, dipoles, atomic, errors, levels, strict=True)
        )
    ]


def _broken_bonds(batch: Data) -> dict[int, str]:
    """Broken bonds of the structures of :func:`model_input`, by the number of the structure."""
    whole = (batch[name].cpu().numpy() for name in ("z", "batch", "fragment"))
    numbers, molecule, fragment = whole
    charges = _numpy(batch.fragment_charge)
    return broken_bonds(numbers, _numpy(batch.pos), molecule, fragment, charges)


def _numpy(values: torch.Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
