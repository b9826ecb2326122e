"""ASE calculators of the ready-made levels of theory, each behind an optional dependency."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from types import ModuleType

from ase.calculators.calculator import BaseCalculator

from dipolegnn.config import DFTConfig, XTBConfig


def make_calculator(method: XTBConfig | DFTConfig, charge: int = 0) -> BaseCalculator:
    """The calculator of a level of theory.

    Args:
        method: Level of theory.
        charge: Total charge of the molecule in e.

    Raises:
        ImportError: The package that does the calculation is not installed.
    """
    if isinstance(method, XTBConfig):
        return xtb_calculator(method, charge)
    return dft_calculator(method, charge)


def xtb_calculator(config: XTBConfig, charge: int = 0) -> BaseCalculator:
    """GFN2-xTB in tblite: semi-empirical, milliseconds per molecule.

    About 0.4 D from B3LYP on QM9, mostly because it exaggerates: fit for many molecules, not for
    the last digit.

    Args:
        config: Electronic temperature.
        charge: Total charge of the molecule in e.

    Raises:
        ImportError: tblite is not installed.

    Source: Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
    """
    tblite_ase = _import("tblite.ase", extra="xtb")
    calculator: BaseCalculator = tblite_ase.TBLite(
        method="GFN2-xTB",
        charge=charge,
        electronic_temperature=config.electronic_temperature,
        verbosity=0,
    )
    return calculator


def dft_calculator(config: DFTConfig, charge: int = 0) -> BaseCalculator:
    """Restricted Kohn-Sham DFT in PySCF; by default at the level of QM9.

    Args:
        config: Functional, basis set, density fitting.
        charge: Total charge of the molecule in e.

    Raises:
        ImportError: PySCF is not installed.
    """
    _import("pyscf", extra="dft")
    # Only now, as the module defines a class on top of PySCF.
    from dipolegnn.labels.dft import PySCFCalculator

    return PySCFCalculator(config, charge)


def engine_version(method: XTBConfig | DFTConfig) -> str:
    """Name and version of the program that calculates.

    Raises:
        ImportError: It is not installed.
    """
    name, extra = ("tblite", "xtb") if isinstance(method, XTBConfig) else ("pyscf", "dft")
    _import(name, extra=extra)
    return f"{name} {version(name)}"


def _import(name: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"These labels need {name.partition('.')[0]}, which cannot be imported ({error}). "
            f"Install it with: pip install 'dipolegnn[{extra}]'"
        ) from error
