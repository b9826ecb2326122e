"""ASE calculators of the predefined levels of theory, which are optional dependencies."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import version
from types import ModuleType
from typing import TypeAlias

import torch
from ase.calculators.calculator import BaseCalculator

from dipolegnn.config import DFTConfig, XTBConfig


@dataclass(frozen=True)
class ASEConfig:
    """Labels from any ASE calculator with the properties dipole and energy.

    Example:
        >>> from ase.calculators.emt import EMT
        >>> ASEConfig(lambda charge: EMT(), name="EMT").optimize
        False
    """

    calculator: Callable[[int], BaseCalculator]
    """Function that returns the calculator for a molecule of the given total charge in e. With
    several workers it must be defined at the top level of a module."""
    name: str
    """Level of theory, for the card. It identifies finished labels: change the name if the
    calculator changes."""
    optimize: bool = False
    """Optimize the geometry with the same calculator before labelling."""
    fmax: float = 0.02
    """Convergence threshold of the forces, in eV/angstrom."""
    max_steps: int = 500
    """Maximum number of optimization steps; a molecule that does not converge fails."""


LabelMethod: TypeAlias = XTBConfig | DFTConfig | ASEConfig
"""A method of computing labels."""


def make_calculator(method: LabelMethod, charge: int = 0) -> BaseCalculator:
    """Creates the calculator of a level of theory.

    Args:
        method: Level of theory.
        charge: Total charge of the molecule in e.

    Raises:
        ImportError: The program of the method is not installed.
    """
    if isinstance(method, XTBConfig):
        return xtb_calculator(method, charge)
    if isinstance(method, DFTConfig):
        return dft_calculator(method, charge)
    return method.calculator(charge)


def method_settings(method: LabelMethod) -> dict[str, object]:
    """The settings that identify a method, without the function of ``ASEConfig``."""
    settings = {field.name: getattr(method, field.name) for field in fields(method)}
    settings.pop("calculator", None)
    return {"method": type(method).__name__, **settings}


def xtb_calculator(config: XTBConfig, charge: int = 0) -> BaseCalculator:
    """GFN2-xTB in tblite: semi-empirical, milliseconds per molecule.

    The dipoles differ from B3LYP by about 0.4 D on QM9 and are mostly too large: suitable for many
    molecules, not for high accuracy.

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
    # Imported here: the module requires PySCF.
    from dipolegnn.labels.dft import PySCFCalculator

    return PySCFCalculator(config, charge)


def engine_version(method: LabelMethod) -> str:
    """Name and version of the program of a method.

    Raises:
        ImportError: The program is not installed.
    """
    if isinstance(method, ASEConfig):
        return f"ase {version('ase')}"
    name, extra = ("tblite", "xtb") if isinstance(method, XTBConfig) else ("pyscf", "dft")
    _import(name, extra=extra)
    return f"{name} {version(name)}"


def _import(name: str, *, extra: str) -> ModuleType:
    try:
        with _processor_named():
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"These labels need {name.partition('.')[0]}, which cannot be imported ({error}). "
            f"Install it with: pip install 'dipolegnn[{extra}]'"
        ) from error


_KERNELS = {"AVX2": "Haswell", "AVX512": "SkylakeX"}
"""Names of OpenBLAS's kernels by the instructions of the processor."""


@contextmanager
def _processor_named() -> Iterator[None]:
    """Tells libraries that are loaded meanwhile the processor, unless the user does.

    PySCF's wheels (2.14) bring an OpenBLAS of 2018. It takes its slowest kernels on processors that
    it does not know: 20 instead of 50 GFLOP/s on one core of an Intel Xeon with AVX-512.
    """
    variable = "OPENBLAS_CORETYPE"
    kernels = _KERNELS.get(torch.backends.cpu.get_cpu_capability())
    if kernels is None or variable in os.environ:
        yield
        return
    os.environ[variable] = kernels
    try:
        yield
    finally:
        del os.environ[variable]
