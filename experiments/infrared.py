"""Harmonic infrared spectra: vibrations of GFN2-xTB, intensities of a model.

The intensity of a vibration is the square of the change of the dipole moment along it. The
vibrations come from the Hessian of GFN2-xTB (finite differences of its forces), the change of the
dipole from the model, by automatic differentiation, and for comparison from GFN2-xTB, by finite
differences. ``painn-xtb`` was trained on GFN2-xTB dipoles, also of displaced molecules, so the two
should agree; ``painn-qm9`` was trained on B3LYP dipoles of equilibrium geometries only.

It writes ``RUN/infrared.png``, ``RUN/infrared.csv`` (each vibration) and ``RUN/infrared.json``.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from ase import Atoms
from ase.units import invcm
from ase.vibrations import Infrared
from common import ROOT
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import track

from dipolegnn.config import XTBConfig
from dipolegnn.inference.derivatives import polar_tensors
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import load_model, pretrained_names, unknown_elements
from dipolegnn.molecules import MoleculeError, from_ase, from_smiles, to_ase
from dipolegnn.units import DEBYE_PER_E_ANGSTROM

MOLECULES = {"water": "O", "ethanol": "CCO", "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O"}

KM_PER_MOL = 42.2561
"""1 (D/Å)²/amu in km/mol: N_A / (12 ε0 c²)."""

LOWEST_WAVENUMBER = 50.0
"""Below this, in 1/cm, lie translations, rotations, and what is not harmonic in the least."""

FWHM = 20.0
"""Width of the Lorentzian of each vibration in the picture, in 1/cm."""

DISPLACEMENT = 0.005  # angstrom


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw infrared spectra."""

    output: Path = ROOT / "runs" / "infrared"
    """Folder for the results."""
    models: tuple[str, ...] = ("painn-xtb", "painn-qm9")
    """Models that come along."""
    smiles: tuple[str, ...] = tuple(MOLECULES.values())
    """Molecules."""


class Vibrations(NamedTuple):
    """Harmonic vibrations of a molecule."""

    wavenumber: NDArray[np.float64]
    """In 1/cm, ``[K]``."""
    intensity: dict[str, NDArray[np.float64]]
    """By method, in km/mol, ``[K]``."""
    sum_rule: dict[str, float]
    """By model: largest deviation of the sum of the polar tensors from the total charge, in e."""


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the spectra."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    for name in options.models:
        if name not in pretrained_names():
            raise SystemExit(
                f"There is no model {name}; there are {', '.join(pretrained_names())}."
            )
    names = {smiles: name for name, smiles in MOLECULES.items()}
    found: dict[str, Vibrations] = {}
    for smiles in options.smiles:
        try:
            found[names.get(smiles, smiles)] = vibrations(smiles, options.models)
        except MoleculeError as error:
            raise SystemExit(str(error)) from None
    options.output.mkdir(parents=True, exist_ok=True)
    draw(found).savefig(options.output / "infrared.png", dpi=120)
    write(options.output, found)
    for name, result in found.items():
        for method in options.models:
            if method in result.intensity:
                print(
                    f"{name}: {method} against GFN2-xTB: overlap of the spectra "
                    f"{overlap(result, method):.2f}; sum rule to {result.sum_rule[method]:.0e} e"
                )
    print(f"wrote infrared.png, infrared.csv and infrared.json in {options.output}")


def vibrations(smiles: str, models: Sequence[str]) -> Vibrations:
    """The vibrations of a molecule at its GFN2-xTB geometry.

    Raises:
        MoleculeError: If the SMILES or its geometry cannot be used.
    """
    (data,) = from_smiles(smiles)
    charge = round(float(data.charge))
    data = label(data, xtb_calculator(XTBConfig(), charge), optimize=True, fmax=0.001)
    atoms = to_ase(data)
    atoms.calc = xtb_calculator(XTBConfig(), charge)
    energies, modes, dipole_squares = harmonic(atoms, name=smiles)
    wavenumber = energies / invcm
    real = wavenumber > LOWEST_WAVENUMBER
    intensity = {"GFN2-xTB": dipole_squares[real]}
    sum_rule = {}
    bare = from_ase(atoms)
    for name in models:
        model = load_model(name)
        if unknown_elements(model, bare) is not None:
            print(f"{smiles}: {name} was not trained on all of its elements; skipped")
            continue
        tensors = polar_tensors(model, bare)  # [N, 3, 3] e
        intensity[name] = intensities(tensors, modes)[real]
        deviation = tensors.sum(axis=0) - charge * np.eye(3)
        sum_rule[name] = float(np.abs(deviation).max())
    return Vibrations(wavenumber[real], intensity, sum_rule)


def intensities(tensors: NDArray[np.float64], modes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intensities ``[K]`` in km/mol.

    From polar tensors ``[N, 3, 3]`` in e and modes ``[K, N, 3]`` per root of amu.
    """
    along = np.einsum("iab,kib->ka", tensors, modes) * DEBYE_PER_E_ANGSTROM
    return KM_PER_MOL * np.square(along).sum(axis=1)


def harmonic(
    atoms: Atoms, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """All 3N degrees of freedom of a molecule.

    Returns:
        Energies in eV (0 where imaginary), modes ``[3N, N, 3]`` per root of amu, and the
        calculator's own intensities in km/mol.
    """
    with tempfile.TemporaryDirectory() as folder:
        infrared = Infrared(atoms, name=str(Path(folder) / "ir"), delta=DISPLACEMENT)
        steps = infrared.iterdisplace(inplace=True)
        total = 6 * len(atoms) + 1
        for displacement, moved in track(steps, f"Hessian, {name}", total=total, transient=True):
            with infrared.cache.lock(displacement.name) as handle:
                handle.save(infrared.calculate(moved, displacement))
        infrared.read()
        energies, modes = infrared.get_vibrations().get_energies_and_modes()
        own = np.asarray(infrared.intensities, dtype=float) * KM_PER_MOL
    return np.asarray(energies).real, np.asarray(modes), own


def broadened(result: Vibrations, method: str, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The spectrum on a grid of wavenumbers, in km/mol per 1/cm."""
    half = FWHM / 2
    offset = grid[:, None] - result.wavenumber
    lines = half / np.pi / (np.square(offset) + half**2)
    return np.asarray(lines @ result.intensity[method])


def overlap(result: Vibrations, method: str) -> float:
    """Similarity in shape of two spectra: the cosine between them."""
    grid = np.arange(0.0, 4500.0, 2.0)
    one, other = broadened(result, method, grid), broadened(result, "GFN2-xTB", grid)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def draw(found: dict[str, Vibrations]) -> Figure:
    """The spectra, one molecule below the other."""
    colors = ["#8a8a8a", "#1f5a96", "#d1701f", "#2e8b57", "#7a3b8f"]
    figure = Figure(figsize=(8.0, 2.3 * len(found) + 0.6), layout="constrained")
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    grid = np.arange(0.0, 4000.0, 1.0)
    for axes, (name, result) in zip(panels, found.items(), strict=True):
        for color, method in zip(colors, result.intensity, strict=False):
            spectrum = broadened(result, method, grid)
            if method == "GFN2-xTB":
                axes.fill_between(
                    grid, spectrum, color=color, alpha=0.35, linewidth=0, label=method
                )
            else:
                axes.plot(grid, spectrum, color=color, linewidth=1.3, label=method)
        axes.set_title(name, fontsize=11, loc="left")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    panels[-1].set(xlim=(grid[-1], 0), xlabel="wavenumber (1/cm), vibrations of GFN2-xTB")
    figure.supylabel("intensity (km/mol per 1/cm)")
    return figure


def write(folder: Path, found: dict[str, Vibrations]) -> None:
    """Writes each vibration and the overlaps of the spectra."""
    with (folder / "infrared.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("molecule", "method", "wavenumber_per_cm", "intensity_km_per_mol"))
        for name, result in found.items():
            for method, intensity in result.intensity.items():
                for at, value in zip(result.wavenumber, intensity, strict=True):
                    writer.writerow((name, method, f"{at:.1f}", f"{value:.2f}"))
    content = {
        name: {
            method: {"overlap": overlap(result, method), "sum_rule_e": result.sum_rule[method]}
            for method in result.sum_rule
        }
        for name, result in found.items()
    }
    (folder / "infrared.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
