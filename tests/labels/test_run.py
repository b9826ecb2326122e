"""One label: signs, units, origin and everything that can go wrong."""

from __future__ import annotations

import pytest
import torch
from ase.calculators.emt import EMT

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.molecules import MoleculeError, from_smiles, make_data, to_rdkit
from dipolegnn.units import DEBYE_PER_E_ANGSTROM
from tests.labels.toys import PointCharges, Spring, diatomic, water

E_ANGSTROM = 4.803204673
"""Debye, as the textbooks have it; not taken from the package."""


def xtb(data: Data, *, optimize: bool = False, max_steps: int = 500) -> Data:
    calculator = xtb_calculator(XTBConfig(), round(data.charge.item()))
    return label(data, calculator, optimize=optimize, max_steps=max_steps)


class TestByHand:
    def test_points_from_negative_to_positive_in_debye(self) -> None:
        labelled = label(diatomic((9, 1), 1.0), PointCharges([-0.4, 0.4]))
        torch.testing.assert_close(labelled.dipole, torch.tensor([[0.4 * E_ANGSTROM, 0.0, 0.0]]))
        torch.testing.assert_close(labelled.dipole_magnitude, torch.tensor([0.4 * E_ANGSTROM]))
        torch.testing.assert_close(labelled.atomic_charges, torch.tensor([-0.4, 0.4]))

    @pytest.mark.parametrize("shift", [0.0, 7.0])
    def test_of_an_ion_is_about_the_centre_of_mass(self, shift: float) -> None:
        hydroxide = diatomic((8, 1), 1.0, charge=-1)
        hydroxide.pos = hydroxide.pos + torch.tensor([shift, -shift, 2 * shift])
        labelled = label(hydroxide, PointCharges([-1.2, 0.2]))
        centre = 1.008 / (15.999 + 1.008)  # from O towards H, in angstrom
        expected = (-1.2 * (0 - centre) + 0.2 * (1 - centre)) * E_ANGSTROM
        torch.testing.assert_close(
            labelled.dipole, torch.tensor([[expected, 0.0, 0.0]]), rtol=1e-5, atol=1e-4
        )

    def test_energy_in_kcal_per_mol(self) -> None:
        labelled = label(diatomic((9, 1), 0.9), PointCharges([-0.4, 0.4], energy=2.0))
        assert labelled.energy.item() == pytest.approx(2 * 23.0605, abs=1e-3)

    def test_without_charges_they_are_nan(self) -> None:
        labelled = label(diatomic((1, 1), 0.7), Spring(0.7))
        assert labelled.atomic_charges.isnan().all()
        assert labelled.dipole_magnitude.item() == 0.0


class TestXTB:
    def test_hydrogen_fluoride_points_at_hydrogen(self) -> None:
        dipole = xtb(diatomic((9, 1), 0.92)).dipole[0]
        assert 1.5 < dipole[0] < 2.8  # 1.8 in experiment; GFN2-xTB exaggerates
        assert dipole[1:].abs().max() < 1e-4

    def test_lithium_fluoride_points_at_lithium(self) -> None:
        # An ion pair at 1.56 Å: nearly one elementary charge over the distance.
        dipole = xtb(diatomic((3, 9), 1.56)).dipole[0]
        assert -1.0 * 1.56 * E_ANGSTROM < dipole[0] < -0.6 * 1.56 * E_ANGSTROM

    def test_water_points_along_its_axis_at_the_hydrogens(self) -> None:
        labelled = xtb(water())
        assert labelled.dipole[0, :2].abs().max() < 1e-4
        assert 1.8 < labelled.dipole[0, 2] < 2.6
        assert labelled.atomic_charges[0] < -0.3
        assert labelled.atomic_charges.sum().item() == pytest.approx(0, abs=1e-4)

    @pytest.mark.parametrize(
        ("smiles", "charge"), [("[OH-]", -1), ("[NH4+]", 1), ("O=C[O-]", -1), ("C[NH3+]", 1)]
    )
    def test_dipole_of_an_ion_does_not_depend_on_where_it_is(
        self, smiles: str, charge: int
    ) -> None:
        (ion,) = from_smiles(smiles)
        assert ion.charge.item() == charge
        moved = ion.clone()
        moved.pos = ion.pos + torch.tensor([3.0, -5.0, 8.0])
        torch.testing.assert_close(xtb(moved).dipole, xtb(ion).dipole, rtol=0, atol=2e-4)

    def test_dipole_of_ammonium_vanishes(self) -> None:
        # It would be 4.8 D per angstrom if it were about another point than the centre.
        (ion,) = from_smiles("[NH4+]")
        ion.pos = ion.pos + 2.0
        assert xtb(ion, optimize=True).dipole_magnitude.item() < 0.02

    def test_energies_of_conformers_compare(self) -> None:
        # Rotation barrier of ethane: 2.9 kcal/mol in experiment.
        (ethane,) = from_smiles("CC")
        bond = ethane.pos[1] - ethane.pos[0]
        axis = bond / bond.norm()
        turned = ethane.clone()
        hydrogens = ethane.pos[5:] - ethane.pos[1]
        along = (hydrogens @ axis)[:, None] * axis
        # Half a turn takes staggered to eclipsed.
        turned.pos = torch.cat([ethane.pos[:5], ethane.pos[1] + 2 * along - hydrogens])
        barrier = xtb(turned).energy - xtb(ethane).energy
        assert 1.5 < barrier.item() < 4.0

    def test_scf_that_does_not_converge_is_an_error(self) -> None:
        from tblite.ase import TBLite

        hasty = TBLite(method="GFN2-xTB", max_iterations=1, verbosity=0)
        with pytest.raises(MoleculeError, match=r"'water 0': The calculation failed: .*converge"):
            label(water(), hasty)


class TestRelaxation:
    def test_reaches_the_minimum(self) -> None:
        labelled = label(diatomic((1, 1), 0.8), Spring(0.74), optimize=True, fmax=1e-3)
        assert (labelled.pos[1] - labelled.pos[0]).norm().item() == pytest.approx(0.74, abs=1e-3)

    def test_label_is_that_of_the_relaxed_structure(self) -> None:
        relaxed = xtb(water(shift=0.1), optimize=True)
        bonds = (relaxed.pos[1:] - relaxed.pos[0]).norm(dim=1)
        torch.testing.assert_close(bonds, torch.full((2,), 0.96), atol=0.01, rtol=0)
        torch.testing.assert_close(relaxed.dipole, xtb(relaxed).dipole, atol=1e-3, rtol=0)

    def test_of_one_atom_is_nothing(self) -> None:
        helium = make_data([2], [[1.0, 2.0, 3.0]])
        assert torch.equal(xtb(helium, optimize=True).pos, helium.pos)

    def test_that_does_not_converge_is_an_error(self) -> None:
        with pytest.raises(MoleculeError, match=r"did not converge in 1 steps: .* eV/angstrom"):
            xtb(water(shift=0.1), optimize=True, max_steps=1)

    def test_that_breaks_a_bond_is_an_error(self) -> None:
        with pytest.raises(MoleculeError, match=r"'hydrogen': .*broke or formed bonds \(H1-H2\)"):
            label(diatomic((1, 1), 0.74, name="hydrogen"), Spring(2.0), optimize=True)


def test_input_stays_as_it_is_and_the_rest_is_kept() -> None:
    (ethanol,) = from_smiles("CCO", name="spirit", mol_id=5)
    before = ethanol.clone()
    labelled = xtb(ethanol, optimize=True)
    for field, value in before.to_dict().items():
        kept = ethanol[field]
        same = (
            torch.equal(kept.nan_to_num(), value.nan_to_num())
            if torch.is_tensor(value)
            else (kept == value)
        )
        assert same, field
    assert not torch.equal(labelled.pos, ethanol.pos)
    assert (labelled.name, labelled.smiles, labelled.mol_id.item()) == ("spirit", "CCO", 5)
    mol = to_rdkit(labelled)  # bonds of the input, coordinates of the result
    assert mol.GetNumBonds() == 8
    assert mol.GetConformer().GetAtomPosition(0).x == pytest.approx(labelled.pos[0, 0].item())


def test_calculator_without_a_dipole_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The calculator EMT does not give .*xtb_calculator"):
        label(water(), EMT())


def test_calculator_for_another_charge_is_refused() -> None:
    with pytest.raises(MoleculeError, match=r"total charge of \+0.00 e, and .* is -1 e"):
        label(diatomic((8, 1), 0.96, charge=-1), PointCharges([-0.4, 0.4]))


def test_result_that_is_not_finite_is_refused() -> None:
    with pytest.raises(MoleculeError, match="not finite"):
        label(diatomic((8, 1), 0.96, charge=-1), PointCharges([float("nan"), 0.2]))


def test_constant_is_the_textbook_one() -> None:
    assert pytest.approx(E_ANGSTROM, rel=1e-7) == DEBYE_PER_E_ANGSTROM
