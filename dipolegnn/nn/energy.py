"""Head for the energies of conformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dipolegnn._pyg import Data
from dipolegnn.nn.errors import absolute_error, squared_error
from dipolegnn.nn.features import Linear
from dipolegnn.nn.parts import (
    AtomFeatures,
    Geometry,
    Head,
    HeadMetric,
    OutputField,
    Target,
    label,
)
from dipolegnn.nn.scatter import segment


class EnergyOutput(NamedTuple):
    """Prediction of an energy model for a batch of B structures.

    Attributes:
        energy: Energy ``[B]`` in kcal/mol, up to a constant of each molecule: only differences
            between conformers have a meaning.
    """

    energy: Tensor


class ConformerEnergyHead(Head[EnergyOutput]):
    r"""Energy of a conformer, relative to the other conformers of its molecule.

    .. math:: E = \sum_i f(s_i, \lVert v_i \rVert) + c_\text{molecule}

    Trained and measured on differences: within a batch, the mean over the structures with the same
    ``mol_id`` is subtracted from predictions and labels (``energy [B]`` in kcal/mol, NaN where
    unknown). The constant of a molecule is therefore not determined. Batches should contain several
    conformers of a molecule (:attr:`compares_conformers`).

    Args:
        hidden_channels: Width F of the atom features.

    Raises:
        ValueError: If ``hidden_channels`` is below 2.
    """

    compares_conformers: ClassVar[bool] = True
    outputs: ClassVar[Mapping[str, OutputField]] = {"energy": OutputField(("B",), "kcal/mol")}
    metrics: ClassVar[Mapping[str, HeadMetric]] = {
        "energy_mae": HeadMetric(absolute_error, "energy", "MAE {:.3f} kcal/mol", "kcal/mol"),
        "energy_rmse": HeadMetric(
            squared_error, "energy", "RMSE {:.3f} kcal/mol", "kcal/mol", root=True
        ),
    }

    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        if hidden_channels < 2:
            raise ValueError(f"hidden_channels must be at least 2, got {hidden_channels}.")
        self.hidden_channels = hidden_channels
        self.layers = nn.Sequential(
            Linear(2 * hidden_channels, hidden_channels), nn.SiLU(), Linear(hidden_channels, 1)
        )

    def forward(self, features: AtomFeatures, geometry: Geometry) -> EnergyOutput:
        """Predicts energies; charges are not used.

        Args:
            features: Features of the atoms; without vectors, their norms count as 0.
            geometry: Molecules of the batch.
        """
        norms = torch.zeros_like(features.s)
        if features.v is not None:
            norms = (features.v.square().sum(dim=1) + _SMALLEST).sqrt()  # smooth at 0
        atomic = self.layers(torch.cat([features.s, norms], dim=1)).squeeze(1)  # [N]
        return EnergyOutput(segment(atomic, geometry.ptr))

    def targets(self, output: EnergyOutput, batch: Data) -> Mapping[str, Target]:
        """Returns energies relative to the mean of the labelled conformers in the batch."""
        reference = label(batch, "energy", "[1]")
        molecule = torch.unique(label(batch, "mol_id", "[1]"), return_inverse=True)[1]
        known = reference.isfinite()
        relative = [
            energy - _means(energy.where(known, 0.0), known, molecule)
            for energy in (output.energy, reference)
        ]
        return {"energy": Target(*relative)}


_SMALLEST = 1e-8


def _means(values: Tensor, counted: Tensor, group: Tensor) -> Tensor:
    """Mean of the counted values of each group, for each member ``[B]``."""
    sums = values.new_zeros(len(values), 2).index_add(
        0, group, torch.stack([values, counted.to(values)], dim=1)
    )
    total, number = sums.index_select(0, group).unbind(1)
    return total / number.clamp(min=1)
