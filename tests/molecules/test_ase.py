from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses

from dipolegnn.molecules import MoleculeError, from_ase, make_data, to_ase
from dipolegnn.units import DEBYE_PER_E_ANGSTROM


def hydrogen_fluoride(charge_shift: float = 0.0) -> Atoms:
    return Atoms("FH", positions=[[charge_shift, 0, 0], [charge_shift, 0, 0.917]])


def test_labels_of_a_calculator_are_converted() -> None:
    atoms = hydrogen_fluoride()
    atoms.calc = SinglePointCalculator(
        atoms, dipole=np.array([0.0, 0.0, 0.38]), charges=np.array([-0.4, 0.4]), energy=-1.0
    )
    data = from_ase(atoms, name="HF", mol_id=3)
    assert data.dipole[0, 2].item() == pytest.approx(0.38 * 4.8032, rel=1e-4)
    assert data.dipole_magnitude.item() == pytest.approx(1.8252, abs=1e-4)
    assert data.atomic_charges.tolist() == pytest.approx([-0.4, 0.4])
    assert data.energy.item() == pytest.approx(-23.0605, abs=1e-3)
    assert (data.name, data.mol_id.item()) == ("HF", 3)


def test_nothing_is_calculated_and_stale_labels_are_left_out() -> None:
    atoms = hydrogen_fluoride()
    atoms.calc = EMT()
    assert from_ase(atoms).energy.isnan().all()
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    atoms.positions[1, 2] = 1.0
    assert from_ase(atoms).energy.isnan().all()


def test_dipole_in_info_counts_where_the_calculator_has_none() -> None:
    atoms = hydrogen_fluoride()
    atoms.info["dipole"] = [0.0, 0.0, 1.0]
    assert from_ase(atoms).dipole[0, 2].item() == pytest.approx(DEBYE_PER_E_ANGSTROM)


def test_dipole_of_an_ion_moves_from_the_origin_to_the_centre_of_mass() -> None:
    # Point charges -1.5 on O and +0.5 on H. About the centre of mass that dipole is
    # 0.97 (0.5 m_O + 1.5 m_H) / (m_O + m_H), wherever the ion lies.
    m_o, m_h = atomic_masses[8], atomic_masses[1]
    expected = 0.97 * (0.5 * m_o + 1.5 * m_h) / (m_o + m_h) * DEBYE_PER_E_ANGSTROM
    for shift in (0.0, 5.0):
        positions = np.array([[shift, 0.0, 0.0], [shift, 0.0, 0.97]])
        atoms = Atoms("OH", positions=positions, info={"charge": -1})
        atoms.calc = SinglePointCalculator(atoms, dipole=np.array([-1.5, 0.5]) @ positions)
        data = from_ase(atoms)
        assert data.dipole[0].tolist() == pytest.approx([0.0, 0.0, expected], abs=1e-5)
        back = to_ase(data)
        assert back.get_dipole_moment() == pytest.approx(atoms.get_dipole_moment(), abs=1e-5)


def test_charge_is_the_argument_else_info_else_the_sum_of_initial_charges() -> None:
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.97]])
    with pytest.raises(MoleculeError, match=r"molecule 'OH': 9 electrons.*give its charge"):
        from_ase(atoms)
    assert from_ase(atoms, charge=-1).charge.item() == -1.0
    atoms.set_initial_charges([-1.2, 0.2])
    assert from_ase(atoms).charge.item() == -1.0
    atoms.info["charge"] = 1
    with pytest.raises(MoleculeError, match=r"\+1 e and the sum of the initial charges -1 e"):
        from_ase(atoms)
    atoms.set_initial_charges(None)
    assert from_ase(atoms).charge.item() == 1.0


def test_round_trip() -> None:
    data = make_data(
        [9, 1],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.917]],
        dipole=[0.0, 0.1, 1.82],
        atomic_charges=[-0.4, 0.4],
        energy=-12.0,
        mol_id=9,
        smiles="F",
        name="hydrogen fluoride",
    )
    back = from_ase(to_ase(data))
    for field in ("dipole", "dipole_magnitude", "atomic_charges", "energy", "pos"):
        assert back[field].flatten().tolist() == pytest.approx(data[field].flatten().tolist())
    assert (back.name, back.smiles, back.mol_id.item()) == (data.name, "F", 9)
    magnitude_only = make_data([9, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.917]], dipole_magnitude=1.82)
    back = from_ase(to_ase(magnitude_only))
    assert back.dipole.isnan().all()
    assert back.dipole_magnitude.item() == pytest.approx(1.82)


def test_refused() -> None:
    atoms = hydrogen_fluoride()
    atoms.info["dipole"] = [1.0, 2.0]
    with pytest.raises(MoleculeError, match="expected 3 numbers"):
        from_ase(atoms)
    atoms.info = {"charge": "much"}
    with pytest.raises(MoleculeError, match="charge is 'much'"):
        from_ase(atoms)
    with pytest.raises(MoleculeError, match="periodic"):
        from_ase(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]], cell=[5, 5, 5], pbc=True))
    ghost = Atoms("XH", positions=[[0, 0, 0], [0, 0, 1]])
    with pytest.raises(MoleculeError, match="Atom 1 has the atomic number 0"):
        from_ase(ghost)
