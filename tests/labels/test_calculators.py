"""The ready-made levels of theory: DFT as QM9 has it, and what is said where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms

from dipolegnn._pyg import Data
from dipolegnn.config import DFTConfig, XTBConfig
from dipolegnn.labels import dft_calculator, label, make_calculator, xtb_calculator
from dipolegnn.molecules import MoleculeError, make_data
from tests.labels.toys import diatomic, water

# Geometries (angstrom) and dipoles (debye) of QM9 (Ramakrishnan et al., Sci. Data 1, 140022
# (2014), CC0), B3LYP/6-31G(2df,p): molecules 2, 3 and 6.
AMMONIA = (
    [7, 1, 1, 1],
    [
        [-0.04042605, 1.02410769, 0.06256380],
        [0.01725746, 0.01254521, -0.02737716],
        [0.91578937, 1.35874522, -0.02875776],
        [-0.52027774, 1.34353209, -0.77554262],
    ],
    1.6256,
)
WATER = (
    [8, 1, 1],
    [
        [-0.03436049, 0.97753960, 0.00760159],
        [0.06476649, 0.02057220, 0.00153463],
        [0.87179035, 1.30079246, 0.00069313],
    ],
    1.8511,
)
FORMALDEHYDE = (
    [6, 8, 1, 1],
    [
        [-0.01397770, 1.18021142, 0.00775250],
        [0.00231399, -0.01966366, 0.00216107],
        [0.91496027, 1.78951120, 0.00395657],
        [-0.95910972, 1.76401794, 0.01718284],
    ],
    2.1089,
)

QUICK = DFTConfig(xc="lda,vwn", basis="sto-3g")
"""Not for use; only to see that things are put together."""


def molecule(example: tuple[list[int], list[list[float]], float]) -> Data:
    return make_data(example[0], example[1])


class TestDFT:
    @pytest.mark.parametrize("example", [AMMONIA, WATER, FORMALDEHYDE])
    def test_agrees_with_qm9(self, example: tuple[list[int], list[list[float]], float]) -> None:
        labelled = label(molecule(example), dft_calculator(DFTConfig()))
        assert labelled.dipole_magnitude.item() == pytest.approx(example[2], abs=0.02)
        assert labelled.atomic_charges.sum().item() == pytest.approx(0, abs=1e-4)

    def test_density_fitting_changes_little(self) -> None:
        fitted = label(molecule(WATER), dft_calculator(DFTConfig()))
        exact = label(molecule(WATER), dft_calculator(DFTConfig(density_fit=False)))
        difference = (fitted.dipole - exact.dipole).norm().item()
        assert 0 < difference < 2e-3

    def test_hirshfeld_charges_hardly_depend_on_the_basis(self) -> None:
        # Mulliken's charge of this oxygen changes by 0.4 e between the two.
        compact, diffuse = (
            label(water(), dft_calculator(DFTConfig(basis=basis))).atomic_charges
            for basis in ("def2-svp", "def2-svpd")
        )
        assert compact[0].item() == pytest.approx(diffuse[0].item(), abs=0.03)
        assert -0.5 < diffuse[0].item() < -0.2
        assert diffuse.sum().item() == pytest.approx(0, abs=1e-5)

    def test_hirshfeld_charges_of_an_ion_sum_to_its_charge(self) -> None:
        hydroxide = diatomic((8, 1), 0.97, charge=-1)
        charges = label(hydroxide, dft_calculator(QUICK, -1)).atomic_charges
        assert charges.sum().item() == pytest.approx(-1, abs=1e-5)

    def test_heavy_elements_have_their_core_potential(self) -> None:
        from dipolegnn.labels.dft import core_potentials

        assert list(core_potentials("def2-svpd", ["C", "I", "H"])) == ["I"]
        assert core_potentials("def2-svpd", ["C", "H"]) == {}
        # Experiment: 0.448 D (NIST CCCBDB), the hydrogen positive.
        iodide = label(diatomic((53, 1), 1.609), dft_calculator(DFTConfig(basis="def2-svpd")))
        assert iodide.dipole_magnitude.item() == pytest.approx(0.448, abs=0.1)
        assert iodide.dipole[0].sum().item() > 0

    def test_points_at_the_hydrogens(self) -> None:
        labelled = label(water(), dft_calculator(QUICK))
        assert labelled.dipole[0, 2] > 1.0
        assert labelled.dipole[0, :2].abs().max() < 1e-3
        assert labelled.atomic_charges[0] < 0

    def test_dipole_of_an_ion_does_not_depend_on_where_it_is(self) -> None:
        hydroxide = diatomic((8, 1), 0.97, charge=-1)
        here = label(hydroxide, dft_calculator(QUICK, -1)).dipole
        hydroxide.pos = hydroxide.pos + 4.0
        there = label(hydroxide, dft_calculator(QUICK, -1)).dipole
        np.testing.assert_allclose(there.numpy(), here.numpy(), atol=2e-3)

    def test_forces_are_the_slope_of_the_energy(self) -> None:
        atoms = Atoms("HF", [[0, 0, 0], [1.0, 0, 0]], calculator=dft_calculator(QUICK))
        force = atoms.get_forces()[1, 0]
        energies = []
        for step in (-0.01, 0.01):
            atoms.positions[1, 0] = 1.0 + step
            energies.append(atoms.get_potential_energy())
        assert force == pytest.approx(-(energies[1] - energies[0]) / 0.02, abs=0.02)

    def test_relaxes(self) -> None:
        relaxed = label(
            diatomic((1, 1), 0.8), dft_calculator(QUICK), optimize=True, fmax=0.02, max_steps=30
        )
        assert (relaxed.pos[1] - relaxed.pos[0]).norm().item() == pytest.approx(0.74, abs=0.05)

    def test_basis_is_not_the_one_that_pyscf_has_under_the_name(self) -> None:
        from dipolegnn.labels.dft import basis_set

        shells = basis_set("6-31G(2df,p)", ["O", "H", "O"])
        assert not isinstance(shells, str)
        assert sorted(shells) == ["H", "O"]
        oxygen = {
            momentum: [s[1][0] for s in shells["O"] if s[0] == momentum] for momentum in (2, 3)
        }
        assert oxygen == {2: [1.6, 0.4], 3: [1.4]}
        assert basis_set("def2-svp", ["O"]) == "def2-svp"

    def test_element_without_that_basis(self) -> None:
        with pytest.raises(MoleculeError, match=r"6-31G\(2df,p\) is known here for .* not for Br"):
            label(diatomic((1, 35), 1.41), dft_calculator(DFTConfig()))

    @pytest.mark.filterwarnings("ignore:Basis may be available in basis-set-exchange")
    @pytest.mark.parametrize("wrong", [DFTConfig(basis="no-such-basis"), DFTConfig(xc="nothing")])
    def test_unknown_basis_or_functional(self, wrong: DFTConfig) -> None:
        with pytest.raises(MoleculeError, match="PySCF refuses the input"):
            label(diatomic((1, 9), 0.92), dft_calculator(wrong))

    def test_scf_that_does_not_converge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pyscf.scf.hf import SCF

        monkeypatch.setattr(SCF, "max_cycle", 1)
        with pytest.raises(MoleculeError, match="the SCF did not converge in 1 cycles"):
            label(water(), dft_calculator(QUICK))


@pytest.mark.parametrize(
    ("method", "package", "extra"),
    [(XTBConfig(), "tblite", "xtb"), (DFTConfig(), "pyscf", "dft")],
)
def test_missing_program_names_the_extra(
    method: XTBConfig | DFTConfig, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"need {package}.*pip install 'dipolegnn\[{extra}\]'"):
        make_calculator(method)


def test_electronic_temperature_counts() -> None:
    # A stretched bond has a small gap: heat moves electrons and with them the dipole.
    stretched = diatomic((9, 1), 1.8)
    cold, hot = (
        label(stretched, xtb_calculator(XTBConfig(electronic_temperature=t))).dipole
        for t in (300.0, 8000.0)
    )
    assert (hot - cold).norm().item() > 0.05


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"},
    reason="OpenBLAS has no faster kernels for this processor",
)
@pytest.mark.parametrize("named", [None, "Prescott"])
def test_pyscf_takes_the_kernels_of_the_processor(named: str | None) -> None:
    pytest.importorskip("pyscf")
    code = (
        "import ctypes, os, pathlib\n"
        "from dipolegnn.config import DFTConfig\n"
        "from dipolegnn.labels import dft_calculator\n"
        "dft_calculator(DFTConfig())\n"
        "lines = pathlib.Path('/proc/self/maps').read_text().splitlines()\n"
        "paths = {line.split()[-1] for line in lines if 'pyscf' in line and 'openblas' in line}\n"
        "for path in paths:\n"
        "    name = ctypes.CDLL(path).openblas_get_corename\n"
        "    name.restype = ctypes.c_char_p\n"
        "    print(name().decode())\n"
        "print(os.environ.get('OPENBLAS_CORETYPE'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    if named:
        environment["OPENBLAS_CORETYPE"] = named
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    *kernels, variable = done.stdout.split()
    if not kernels:
        pytest.skip("this PySCF brings no OpenBLAS of its own")
    assert variable == str(named)  # as it was
    assert (kernels == ["Prescott"]) == (named == "Prescott")
