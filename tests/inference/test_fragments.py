"""Structures of several molecules: from the file to the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Data
from dipolegnn.inference import predict
from dipolegnn.inference.calculator import DipoleCalculator
from dipolegnn.inference.derivatives import polar_tensors
from dipolegnn.models import load_model
from dipolegnn.molecules import from_smiles, make_data, read_file, to_ase, write_file
from dipolegnn.nn import DipoleModel
from dipolegnn.units import DEBYE_PER_E_ANGSTROM, centre_of_mass


@pytest.fixture(scope="module")
def model() -> DipoleModel:
    return load_model("painn-qm9")


def apart(path: Path, parts: Sequence[Data], distance: float) -> Data:
    """The parts along x as one structure, written to a file without bonds and read again."""
    shifts = [torch.tensor([distance * k, 0.0, 0.0]) for k in range(len(parts))]
    together = make_data(
        torch.cat([part.z for part in parts]),
        torch.cat([part.pos + shift for part, shift in zip(parts, shifts, strict=True)]),
        charge=sum(float(part.charge) for part in parts),
    )
    write_file(path, [together])
    (data,) = read_file(path).data
    return data


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz"])
@pytest.mark.parametrize(
    "smiles",
    [("O", "C=O"), ("C[NH3+]", "CC(=O)[O-]"), ("O", "[NH4+]", "O")],
    ids=".".join,
)
@pytest.mark.parametrize("distance", [12.0, 40.0])
def test_distant_molecules_add(
    model: DipoleModel, tmp_path: Path, smiles: tuple[str, ...], distance: float, suffix: str
) -> None:
    parts = [from_smiles(text)[0] for text in smiles]
    data = apart(tmp_path / f"apart{suffix}", parts, distance)
    (found,) = predict(model, [data])
    single = predict(model, parts)
    charges = np.concatenate([prediction.charges for prediction in single])
    # Five decimals of the positions are written; the charges follow with a slope of about 1 e/Å.
    assert found.charges == pytest.approx(charges, abs=1e-4)
    centre = centre_of_mass(data.z, data.pos)
    expected = sum(prediction.dipole for prediction in single)
    for k, part in enumerate(parts):
        own = centre_of_mass(part.z, part.pos) + np.array([distance * k, 0, 0]) - centre
        expected = expected + DEBYE_PER_E_ANGSTROM * float(part.charge) * own
    assert found.dipole == pytest.approx(expected, abs=0.02)


def test_polar_tensors_of_an_ion_pair(model: DipoleModel, tmp_path: Path) -> None:
    """The rows of each ion sum to its charge."""
    parts = [from_smiles(text)[0] for text in ("C[NH3+]", "CC(=O)[O-]")]
    data = apart(tmp_path / "apart.xyz", parts, 30.0)
    tensors = polar_tensors(model, data)
    first = len(parts[0].z)
    assert tensors[:first].sum(axis=0) == pytest.approx(np.eye(3), abs=1e-4)
    assert tensors[first:].sum(axis=0) == pytest.approx(-np.eye(3), abs=1e-4)


def test_the_calculator_restores_the_charge_of_each_molecule(
    model: DipoleModel, tmp_path: Path
) -> None:
    parts = [from_smiles(text)[0] for text in ("C[NH3+]", "CC(=O)[O-]")]
    atoms = to_ase(apart(tmp_path / "apart.xyz", parts, 30.0))
    atoms.calc = DipoleCalculator(model)
    assert atoms.get_charges()[: len(parts[0].z)].sum() == pytest.approx(1.0, abs=1e-5)
