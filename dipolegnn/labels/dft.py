"""Kohn-Sham DFT in PySCF as an ASE calculator, and the basis set of QM9.

Imported only for DFT labels, because PySCF is optional.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    InputError,
    all_changes,
)
from ase.units import Bohr, Hartree
from numpy.typing import NDArray
from pyscf import dft, gto
from pyscf.scf.atom_hf import AtomHF1e, AtomSphAverageRHF
from pyscf.scf.hf import SCF

from dipolegnn.config import DFTConfig

QM9_BASIS = "6-31g(2df,p)"
"""The basis set of QM9. PySCF's basis set of this name has the exponents of 6-311G, which changes
the dipole of water from 1.86 to 1.98 D; therefore it is defined here."""

# Polarization functions of 6-31G(2df,p). The two d shells have 2 and 0.5 times the exponent of
# 6-31G*, Frisch, Pople, Binkley, J. Chem. Phys. 80, 3265 (1984).
_P = {"H": 1.1}
_D = {"C": 0.8, "N": 0.8, "O": 0.8, "F": 0.8, "S": 0.65, "Cl": 0.75}
_F = {"C": 0.8, "N": 1.0, "O": 1.4, "F": 1.85, "S": 0.55, "Cl": 0.7}


LAST_ALL_ELECTRON = 36
"""Krypton: common basis sets are all-electron up to this element."""

GRID_BLOCK = 20_000
"""Grid points per block of the density evaluation: about 250 MB with 400 functions."""

Shell = list[Any]
"""A shell in PySCF's format: angular momentum, then [exponent, coefficient] of each primitive."""


def basis_set(name: str, symbols: Sequence[str]) -> str | dict[str, list[Shell]]:
    """Returns a basis set for PySCF: its name, or for QM9's basis set the shells by element.

    Args:
        name: Name of the basis set.
        symbols: Elements of the molecule.

    Raises:
        InputError: QM9's basis set is not defined for an element.
    """
    if name.lower().replace(" ", "") != QM9_BASIS:
        return name
    shells: dict[str, list[Shell]] = {}
    for symbol in sorted(set(symbols)):
        if symbol in _P:
            polarization: list[Shell] = [[1, [_P[symbol], 1.0]]]
        elif symbol in _D:
            polarization = [[2, [factor * _D[symbol], 1.0]] for factor in (2.0, 0.5)]
            polarization.append([3, [_F[symbol], 1.0]])
        else:
            raise InputError(
                f"6-31G(2df,p) is known here for {', '.join((*_P, *_D))}, not for {symbol}; take "
                f"another basis set, for instance def2-svp"
            )
        shells[symbol] = gto.basis.load("6-31g", symbol) + polarization
    return shells


def core_potentials(name: str, symbols: Sequence[str]) -> dict[str, Any]:
    """Effective core potentials of a basis set, by element; ``{}`` if there are none.

    PySCF applies a core potential only if it is specified. Otherwise all electrons of a heavy
    element (in def2, from rubidium on, including iodine) would occupy its valence basis set.

    Args:
        name: Name of the basis set.
        symbols: Elements of the molecule.
    """
    found = {}
    for symbol in sorted(set(symbols)):
        if gto.charge(symbol) <= LAST_ALL_ELECTRON:
            continue
        try:
            found[symbol] = gto.basis.load_ecp(name, symbol)
        except (KeyError, RuntimeError):  # an all-electron basis set
            continue
    return {symbol: potential for symbol, potential in found.items() if potential}


class PySCFCalculator(Calculator):
    """Restricted Kohn-Sham energy, forces, dipole (e·Å, about the origin) and Hirshfeld charges.

    Args:
        config: Functional, basis set, density fitting.
        charge: Total charge in e.
    """

    # Declared as in ASE.
    implemented_properties = ["energy", "forces", "dipole", "charges"]  # noqa: RUF012

    def __init__(self, config: DFTConfig, charge: int = 0) -> None:
        super().__init__()
        self.config = config
        self.charge = charge
        self._density: NDArray[np.float64] | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Runs the calculation; called by ASE.

        Raises:
            CalculationFailed: The SCF did not converge.
            InputError: The basis set lacks an element, or the input is invalid for PySCF.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        if "numbers" in system_changes:
            self._density = None
        assert self.atoms is not None, "the base class has just set it"
        field = self._mean_field(self.atoms)
        field.kernel(dm0=self._density)
        if not field.converged:
            raise CalculationFailed(
                f"the SCF did not converge in {field.max_cycle} cycles ({self.config.xc}/"
                f"{self.config.basis})"
            )
        # The density is the initial guess for the next geometry of an optimization.
        self._density = field.make_rdm1()
        dipole = field.dip_moment(unit="AU", origin=np.zeros(3), verbose=0)
        self.results = {
            "energy": float(field.e_tot) * Hartree,
            "dipole": np.asarray(dipole) * Bohr,
            "charges": hirshfeld_charges(field, self._density),
        }
        if "forces" in properties:
            gradient = field.nuc_grad_method()
            gradient.verbose = 0
            self.results["forces"] = -np.asarray(gradient.kernel()) * Hartree / Bohr

    def _mean_field(self, atoms: Atoms) -> SCF:
        symbols = atoms.get_chemical_symbols()
        try:
            dft.libxc.parse_xc(self.config.xc)
            molecule = gto.M(
                atom=list(zip(symbols, atoms.positions.tolist(), strict=True)),
                basis=basis_set(self.config.basis, symbols),
                ecp=core_potentials(self.config.basis, symbols),
                charge=self.charge,
                spin=0,
                unit="Angstrom",
                verbose=0,
            )
            field = dft.RKS(molecule, xc=self.config.xc)
            if self.config.density_fit:
                field = field.density_fit()
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(f"PySCF refuses the input: {error}") from error
        _without_restart_file(field)
        field.conv_tol = self.config.scf_tolerance
        field.grids.level = self.config.grid_level
        return field


def hirshfeld_charges(field: SCF, density: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Atomic charges by Hirshfeld's partition of the electron density.

    .. math:: q_A = Z_A - \int \frac{\rho_A(r)}{\sum_B \rho_B(r)}\, \rho(r)\, dr

    with the spherical densities :math:`\rho_A` of the neutral atoms (Hartree-Fock). Unlike
    Mulliken's, these charges hardly depend on the basis set, also with diffuse functions. The
    error of numerical integration (about 1e-4 e) is spread evenly, so that they sum to the charge.

    Args:
        field: A converged calculation with a grid.
        density: Its density matrix.

    Returns:
        ``[N]`` in e.

    Source: Hirshfeld, Theor. Chim. Acta 44, 129 (1977).
    """
    molecule, grids = field.mol, field.grids
    symbols = [molecule.atom_symbol(k) for k in range(molecule.natm)]
    atoms = {symbol: _free_atom(molecule, symbol) for symbol in set(symbols)}
    bounds = [(first, last) for *_, first, last in molecule.aoslice_by_atom()]
    electrons = np.zeros(molecule.natm)
    for start in range(0, grids.weights.size, GRID_BLOCK):
        points = slice(start, start + GRID_BLOCK)
        values = field._numint.eval_ao(molecule, grids.coords[points])  # [G, functions]
        rho = np.einsum("gi,gi->g", values @ density, values)
        free = np.stack(
            [
                np.einsum("gi,gi->g", values[:, a:b] @ atoms[symbol], values[:, a:b])
                for symbol, (a, b) in zip(symbols, bounds, strict=True)
            ]
        )  # [N, G]
        total = free.sum(axis=0)
        # Without any atomic density there is nothing to partition.
        share = np.divide(free, total, out=np.zeros_like(free), where=total > 1e-30)
        electrons += share @ (grids.weights[points] * rho)
    charges: NDArray[np.float64] = molecule.atom_charges() - electrons
    return charges + (molecule.charge - charges.sum()) / molecule.natm


def _free_atom(molecule: gto.Mole, symbol: str) -> NDArray[np.float64]:
    """Density matrix of the neutral atom, averaged over directions, in its basis in a molecule."""
    atom = gto.M(
        atom=[(symbol, (0.0, 0.0, 0.0))],
        basis={symbol: molecule._basis[symbol]},
        ecp={symbol: molecule._ecp[symbol]} if symbol in molecule._ecp else {},
        spin=None,
        verbose=0,
    )
    with warnings.catch_warnings():
        # PySCF 2.14 uses a function that it has deprecated.
        warnings.filterwarnings("ignore", "remove_linear_dep_ is deprecated", DeprecationWarning)
        field = (AtomHF1e if atom.nelectron == 1 else AtomSphAverageRHF)(atom)
    _without_restart_file(field)
    field.kernel()
    density: NDArray[np.float64] = np.asarray(field.make_rdm1())
    # Of one electron PySCF gives both spins.
    return density.sum(axis=0) if density.ndim == 3 else density


def _without_restart_file(field: SCF) -> None:
    """Disables the restart file, which PySCF keeps open until garbage collection."""
    field._chkfile.close()
    field.chkfile = None
