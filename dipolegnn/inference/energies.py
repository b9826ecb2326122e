"""Energies of conformers, which determine their weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import groupby

import torch

from dipolegnn._pyg import Data
from dipolegnn.config import EnergyMethod, XTBConfig
from dipolegnn.inference.structures import BATCH_ATOMS, evaluating, in_batches, model_input
from dipolegnn.molecules import MoleculeError
from dipolegnn.molecules.chemistry import force_field_energies
from dipolegnn.nn import EnergyOutput, PropertyModel

SOURCES: dict[EnergyMethod, str] = {
    "model": "conformer-energies (DLPNO-CCSD(T))",
    "xtb": "GFN2-xTB",
    "mmff": "the force field (MMFF94s, else UFF)",
}
"""What the energies of each method come from, for the output."""


def with_energies(
    structures: Sequence[Data],
    method: EnergyMethod,
    model: PropertyModel[EnergyOutput] | None,
    *,
    embedded: bool,
) -> list[Data | MoleculeError]:
    """Returns conformers with the energies of a method, in kcal/mol.

    Args:
        structures: Conformers of one or several molecules, those of a molecule one after the other
            and with the same ``mol_id``; not changed.
        method: ``"model"``, ``"xtb"``, or ``"mmff"``, with which those from SMILES are returned as
            they are.
        model: The model of energies; only with ``"model"``.
        embedded: True for geometries of the force field.

    Returns:
        Copies, or the reason why there is no energy.

    Raises:
        ImportError: GFN2-xTB is not installed.
    """
    if (method == "mmff" and embedded) or not structures:
        return list(structures)
    energies: list[float | MoleculeError] = []
    if method == "model":
        assert model is not None
        energies += model_energies(model, structures, embedded=embedded)
    elif method == "xtb":
        energies += _xtb_energies(structures)
    else:
        for _, conformers in groupby(structures, lambda data: int(data.mol_id)):
            energies += force_field_energies(list(conformers))
    return [
        energy if isinstance(energy, MoleculeError) else _with_energy(data, energy)
        for data, energy in zip(structures, energies, strict=True)
    ]


def _xtb_energies(structures: Sequence[Data]) -> list[float | MoleculeError]:
    from dipolegnn.labels import label_many  # only here: it imports ASE's optimizers

    numbered = [_with_energy(data, math.nan) for data in structures]
    for place, data in enumerate(numbered):
        data.mol_id = torch.tensor([place])
    labelled = label_many(numbered, XTBConfig())
    found: list[float | MoleculeError] = [
        MoleculeError("GFN2-xTB gives no energy", remedy="Use other energies")
    ] * len(structures)
    for data in labelled.data:
        found[int(data.mol_id)] = float(data.energy)
    for failure in labelled.failures:
        assert failure.row is not None
        found[failure.row - 1] = MoleculeError(failure.problem, remedy=failure.remedy)
    return found


def model_energies(
    model: PropertyModel[EnergyOutput], structures: Sequence[Data], *, embedded: bool = False
) -> list[float]:
    """Energies of conformers in kcal/mol, up to a constant of each molecule.

    Args:
        model: The model of energies (:func:`dipolegnn.models.energy_model`).
        structures: The conformers.
        embedded: True for geometries of the force field, as those from SMILES are.
    """
    level = model.level_named(None, embedded) or None
    energies: list[float] = []
    with evaluating(model), torch.no_grad():
        for batch in in_batches(structures, BATCH_ATOMS):
            energies += model(model_input(model, batch, level)).energy.tolist()
    return energies


def _with_energy(data: Data, energy: float) -> Data:
    changed = copy.copy(data)
    changed.energy = torch.tensor([energy])
    return changed
