"""Dipoles for ASE, and how they change as the atoms move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.config import ModelConfig, XTBConfig
from dipolegnn.inference.calculator import DipoleCalculator
from dipolegnn.inference.derivatives import polar_tensors
from dipolegnn.inference.structures import predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import load_model
from dipolegnn.molecules import MoleculeError, from_ase, from_smiles, to_ase
from dipolegnn.nn import DipoleModel, build_model
from dipolegnn.units import DEBYE_PER_E_ANGSTROM, centre_of_mass, move_origin

STEP = 1e-4  # angstrom


def small_model(representation: str = "painn", head: str = "dipole") -> DipoleModel:
    torch.manual_seed(0)
    config = ModelConfig(
        hidden_channels=16,
        num_interactions=2,
        representation=representation,
        head=head,
    )
    model: DipoleModel = build_model(config)
    return model.double()


def vector(model: DipoleModel, data: Data) -> NDArray[np.float64]:
    """About a fixed origin, in e·angstrom."""
    (found,) = predict(model, [data])
    assert found.dipole is not None
    mass = model.masses[data.z].double()
    centre = (mass @ data.pos.double() / mass.sum()).numpy()
    return found.dipole / DEBYE_PER_E_ANGSTROM + float(data.charge) * centre


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("representation", ["painn", "schnet"])
@pytest.mark.parametrize("smiles", ["CCO", "[NH4+]", "CC(=O)[O-]"])
def test_polar_tensors_are_finite_differences(
    smiles: str, representation: str, kernels: str
) -> None:
    model = small_model(representation)
    model.kernels = kernels  # type: ignore[assignment]
    if kernels == "fused" and model.representation.why_not_fused() is not None:
        pytest.skip("the kernels do not run here")
    (data,) = from_smiles(smiles)
    # Off symmetry: where vectors vanish, their norms curve too much for finite differences.
    shifts = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(0))
    data.pos = (data.pos + 0.05 * shifts).double()
    tensors = polar_tensors(model, data)

    for atom, axis in ((0, 0), (1, 2), (data.z.numel() - 1, 1)):
        moved = []
        for sign in (1, -1):
            other = data.clone()
            other.pos[atom, axis] += sign * STEP
            moved.append(vector(model, other))
        difference = (moved[0] - moved[1]) / (2 * STEP)
        assert tensors[atom, :, axis] == pytest.approx(difference, abs=1e-6)

    charge = round(float(data.charge))
    assert tensors.sum(axis=0) == pytest.approx(charge * np.eye(3), abs=1e-10)


def test_polar_tensors_turn_with_the_molecule() -> None:
    model = small_model()
    (data,) = from_smiles("CO")
    data.pos = data.pos.double()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turned = data.clone()
    turned.pos = data.pos @ turn.T
    expected = torch.einsum("ab,nbc,dc->nad", turn, torch.tensor(polar_tensors(model, data)), turn)
    assert polar_tensors(model, turned) == pytest.approx(expected.numpy(), abs=1e-9)


def test_a_trained_model_has_the_polar_tensors_of_water() -> None:
    # Hydrogen's mean dynamic charge, a third of the trace, is about 0.3 e (Person and Newton 1974).
    (water,) = from_smiles("O")
    tensors = polar_tensors(load_model("painn-qm9"), water)
    mean = np.trace(tensors, axis1=1, axis2=2) / 3
    assert mean[1] == pytest.approx(mean[2], abs=1e-3)
    assert 0.1 < mean[1] < 0.5
    assert mean[0] == pytest.approx(-2 * mean[1], abs=1e-4)


def test_no_vectors_no_polar_tensors() -> None:
    (water,) = from_smiles("O")
    with pytest.raises(ValueError, match="AtomwiseHead"):
        polar_tensors(small_model(head="atomwise"), water)
    with pytest.raises(MoleculeError, match="atoms z"):
        polar_tensors(small_model(), Data())


def test_the_calculator_agrees_with_predict() -> None:
    atoms = molecule("CH3CHO")
    atoms.calc = DipoleCalculator("painn-qm9")
    (expected,) = predict(load_model("painn-qm9"), [from_ase(molecule("CH3CHO"))])
    assert expected.dipole is not None
    assert atoms.get_dipole_moment() * DEBYE_PER_E_ANGSTROM == pytest.approx(expected.dipole)
    assert atoms.get_charges() == pytest.approx(expected.charges)

    before = atoms.get_dipole_moment()
    atoms.rattle(0.05, seed=1)  # and it is calculated anew
    assert not np.allclose(atoms.get_dipole_moment(), before)


def test_an_ion_is_about_the_origin_as_everywhere_in_ase() -> None:
    model = small_model()
    (data,) = from_smiles("[NH4+]")
    found = []
    for shift in (0.0, 2.0):
        atoms = Atoms(
            data.z.numpy(), data.pos.numpy() + np.array([shift, 0, 0]), info={"charge": 1}
        )
        atoms.calc = DipoleCalculator(model)
        found.append(atoms.get_dipole_moment())
        # A label made with it is about the centre of mass again.
        labelled = label(from_ase(atoms), WithEnergy(model))
        assert labelled.dipole.norm() < 1e-4
    assert found[1] - found[0] == pytest.approx([2.0, 0, 0], abs=1e-5)


def test_an_ion_has_the_same_dipole_in_ase_and_elsewhere_about_the_same_origin() -> None:
    model = small_model()
    (data,) = from_smiles("[OH-]")
    data.pos = data.pos + torch.tensor([3.0, -1.0, 2.0])
    (prediction,) = predict(model, [data])
    atoms = to_ase(data)
    atoms.calc = DipoleCalculator(model)

    centre = centre_of_mass(atoms.numbers, atoms.positions)
    moved = move_origin(atoms.get_dipole_moment(), charge=-1, shift=centre) * DEBYE_PER_E_ANGSTROM
    # float64 throughout, of numbers of the size of 4.8 D/(e angstrom) x 4 angstrom
    assert moved == pytest.approx(prediction.dipole, abs=1e-12)
    labelled = label(data, WithEnergy(model))
    assert labelled.dipole[0].numpy() == pytest.approx(prediction.dipole, rel=1e-6)


@pytest.mark.parametrize("name", ["charge", "total_charge", "Q"])
def test_another_charge_is_another_molecule(name: str) -> None:
    (data,) = from_smiles("[NH4+]")
    atoms = Atoms(data.z.numpy(), data.pos.numpy(), info={name: 1})
    atoms.calc = DipoleCalculator(small_model())
    assert atoms.get_charges().sum() == pytest.approx(1, abs=1e-5)
    atoms.info[name] = -1
    assert atoms.get_charges().sum() == pytest.approx(-1, abs=1e-5)
    before = atoms.calc.results["charges"]
    atoms.get_dipole_moment()
    assert atoms.calc.results["charges"] is before  # nothing has changed since


class WithEnergy(DipoleCalculator):
    """With an energy, as labels ask for."""

    def __init__(self, model: DipoleModel) -> None:
        super().__init__(model, EMT())


def test_energy_and_forces_come_from_another_calculator() -> None:
    pytest.importorskip("tblite")
    atoms = molecule("H2O")
    other = xtb_calculator(XTBConfig())
    atoms.calc = DipoleCalculator("painn-qm9", others=other)
    alone = molecule("H2O")
    alone.calc = xtb_calculator(XTBConfig())
    assert atoms.get_potential_energy() == pytest.approx(alone.get_potential_energy())
    assert atoms.get_forces() == pytest.approx(alone.get_forces(), abs=1e-6)

    lengths = []
    dynamics = VelocityVerlet(atoms, timestep=0.05)
    for _ in range(5):
        dynamics.run(1)
        lengths.append(float(np.linalg.norm(atoms.get_dipole_moment())))
    assert len(set(lengths)) == 5
    assert lengths[0] != pytest.approx(float(np.linalg.norm(alone.get_dipole_moment())), rel=1e-2)


def test_the_calculator_refuses() -> None:
    crystal = molecule("H2O", vacuum=2.0, pbc=True)
    crystal.calc = DipoleCalculator("painn-qm9")
    with pytest.raises(MoleculeError, match="periodic"):
        crystal.get_dipole_moment()
    chloromethane = molecule("CH3Cl")
    chloromethane.calc = DipoleCalculator("painn-qm9")
    with pytest.raises(MoleculeError, match=r"It contains Cl, .*Use the model painn-organic"):
        chloromethane.get_dipole_moment()
    water = molecule("H2O")
    water.calc = DipoleCalculator(small_model(head="atomwise"))
    with pytest.raises(ValueError, match="AtomwiseHead"):
        water.get_dipole_moment()
    water.calc = DipoleCalculator("painn-qm9")
    with pytest.raises(Exception, match="not implemented"):
        water.get_potential_energy()
    with pytest.raises(FileNotFoundError, match="no model"):
        DipoleCalculator("painn")
