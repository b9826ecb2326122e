"""Results: predictions of structures and of molecules."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.config import COVERAGE
from dipolegnn.molecules.errors import Failure
from dipolegnn.nn import Calibration
from dipolegnn.units import BOLTZMANN_KCAL_PER_MOL_K, ROOM_TEMPERATURE_K


@dataclass(frozen=True, eq=False)
class ErrorBar:
    """Error bar of a predicted magnitude.

    Attributes:
        scale: Uncertainty relative to other molecules, in an arbitrary unit.
        doubts: Warnings that the interval may be too small: properties of the molecule outside the
            training data, or an unusually large uncertainty.
        calibration: Calibration that converts the scale to debye.
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
    """The prediction of one structure.

    Attributes:
        data: The given structure.
        magnitude: Magnitude of the dipole moment in debye.
        dipole: Dipole vector ``[3]`` in debye, in the frame of ``data.pos``, for ions about the
            centre of mass; NaN if the model predicts only magnitudes.
        charges: Atomic charges ``[N]`` in e, in the order of the atoms; NaN if the model predicts
            only magnitudes. Fitted to reproduce the dipole; not a population analysis.
        error: Error bar of the magnitude; None if the model has no error bars.
    """

    data: Data
    magnitude: float
    dipole: NDArray[np.float64]
    charges: NDArray[np.float64]
    error: ErrorBar | None = None

    @property
    def has_vector(self) -> bool:
        """False if the model predicts only magnitudes."""
        return bool(np.isfinite(self.dipole).all())

    def __repr__(self) -> str:
        value = _value(self.magnitude, self.half_width())
        return f"Prediction({_name(self)!r}, |μ| = {value}{_remarks(self.doubts)})"

    def _repr_html_(self) -> str:
        """The molecule with its dipole moment, for notebooks."""
        return _picture(self, _value(self.magnitude, self.half_width()), self.doubts)

    def half_width(self, coverage: float = COVERAGE) -> float | None:
        """Half the width of the interval around ``magnitude`` that holds so often, in debye.

        None from a model without error bars.

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
        """What speaks against relying on the interval; see :class:`ErrorBar`."""
        return () if self.error is None else self.error.doubts

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
        notes: Notes and warnings for the user.
    """

    conformers: Sequence[Prediction]
    weights: NDArray[np.float64]
    magnitude: float
    source: str = ""
    row: int = 0
    model: str = ""
    accuracy: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        value = _value(self.magnitude, self.half_width())
        count = len(self.conformers)
        return (
            f"MoleculePrediction({_name(self.lowest)!r}, |μ| = {value}, {count} "
            f"conformer{'s' * (count > 1)}{_remarks(self.doubts)})"
        )

    def _repr_html_(self) -> str:
        """The lowest conformer with its dipole moment, and the average, for notebooks."""
        return _picture(self.lowest, _value(self.magnitude, self.half_width()), self.doubts)

    @property
    def lowest(self) -> Prediction:
        """The conformer of the lowest energy."""
        return self.conformers[0]

    def half_width(self, coverage: float = COVERAGE) -> float | None:
        """Half the width of the interval around ``magnitude`` that holds so often, in debye.

        The weighted mean over the conformers, because the errors of conformers of a molecule are
        similar. Errors of energies and geometries are not included. None if the model has no error
        bars.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        widths = [c.error.half_width(coverage) for c in self.conformers if c.error is not None]
        return float(np.dot(self.weights, widths)) if widths else None

    @property
    def doubts(self) -> list[str]:
        """What speaks against relying on the interval; see :class:`ErrorBar`."""
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
    order = np.argsort(energies, kind="stable")
    relative = energies[order] - energies[order[0]]
    weights = np.exp(-relative / (BOLTZMANN_KCAL_PER_MOL_K * temperature))
    weights /= weights.sum()
    magnitudes = np.array([conformers[k].magnitude for k in order])
    return MoleculePrediction(
        [conformers[k] for k in order], weights, float((weights * magnitudes).sum())
    )


def _name(prediction: Prediction) -> str:
    return str(prediction.data.get("name") or prediction.data.get("smiles") or "")


def _value(magnitude: float, half_width: float | None) -> str:
    bar = "" if half_width is None else f" ± {half_width:.3f}"
    return f"{magnitude:.3f}{bar} D"


def _remarks(doubts: Sequence[str]) -> str:
    return "".join(f"; {doubt}" for doubt in doubts)


def _picture(prediction: Prediction, value: str, doubts: Sequence[str]) -> str:
    """A drawing (SVG) with the magnitude below, and what speaks against it."""
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
        f"<p><b>{html.escape(_name(prediction))}</b>: |μ| = {value}"
        f"{html.escape(_remarks(doubts))}</p></div>"
    )
