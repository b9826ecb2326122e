"""Errors of several methods on the same molecules, over all and by size, element and magnitude."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from common import NOTHING, markdown_table
from numpy.typing import NDArray
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.breakdown import groupings
from dipolegnn.config import XTBConfig
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.molecules import Failure, MoleculeError
from dipolegnn.predictions import Prediction, average

HAS_DIRECTION = 0.5
"""Directions are compared above this magnitude, in debye."""

Predictor = Callable[[Sequence[Data]], list[Prediction]]


class Sample(NamedTuple):
    """Structures, and what is known about them; conformers of a molecule are neighbours."""

    name: str
    data: list[Data]
    magnitude: NDArray[np.float64]
    """One per molecule, in debye."""
    dipole: NDArray[np.float64] | None
    """Vectors, one per molecule, in debye."""
    failures: Sequence[Failure] = ()
    """Molecules that no structure could be made of."""


def by_xtb(molecules: Sequence[Data]) -> list[Prediction]:
    """GFN2-xTB at the same geometries; NaN where it fails."""
    calculator = xtb_calculator(XTBConfig())
    found = []
    for data in track(molecules, "GFN2-xTB", transient=True):
        try:
            dipole = label(data, calculator).dipole[0].double().numpy()
        except MoleculeError as error:
            print(f"GFN2-xTB: {error}")
            dipole = np.full(3, np.nan)
        found.append(Prediction(data, float(np.linalg.norm(dipole)), dipole, None))
    return found


def measure(sample: Sample, predictor: Predictor) -> dict[str, dict[str, float]]:
    """Errors over all molecules, by size and by element; magnitudes averaged over conformers."""
    molecules = average(predictor(sample.data))
    error = np.array([molecule.magnitude for molecule in molecules]) - sample.magnitude
    angle = np.full(len(molecules), np.nan)
    if sample.dipole is not None:
        for k, (molecule, reference) in enumerate(zip(molecules, sample.dipole, strict=True)):
            found = molecule.lowest.dipole
            if found is not None and sample.magnitude[k] > HAS_DIRECTION:
                cross = np.linalg.norm(np.cross(found, reference))
                angle[k] = np.degrees(np.arctan2(cross, found @ reference))
    atoms = [molecule.lowest.data.z.tolist() for molecule in molecules]
    parts = {"all": np.ones(len(molecules), dtype=bool)}
    parts |= {f"{by} {name}": mask for by, name, mask in groupings(atoms, sample.magnitude)}
    return {what: numbers(error[some], angle[some]) for what, some in parts.items() if some.any()}


def numbers(error: NDArray[np.float64], angle: NDArray[np.float64]) -> dict[str, float]:
    """Mean errors in debye, angles in degrees; without what cannot be said."""
    known = error[np.isfinite(error)]
    if not len(known):
        return {"molecules": 0}
    found = {
        "molecules": len(known),
        "mae_D": float(np.abs(known).mean()),
        "rmse_D": float(np.sqrt(np.square(known).mean())),
        "bias_D": float(known.mean()),
    }
    directed = angle[np.isfinite(angle)]
    if len(directed):
        found |= {
            "angle_median": float(np.median(directed)),
            "angle_99": float(np.percentile(directed, 99)),
        }
    return found


def table(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one kind as Markdown."""
    chosen = [row for row in rows if row["part"].split()[0] == part and row["molecules"]]
    columns = {
        "mae_D": "MAE, D",
        "rmse_D": "RMSE, D",
        "bias_D": "bias, D",
        "angle_median": "angle, median, °",
        "angle_99": "angle, 99 %, °",
    }
    return markdown_table(
        ("set", "molecules of", "part", "method", "molecules", *columns.values()),
        [
            (
                row["set"],
                f"{row['elements of']} ({row['left out']} left out)",
                *(row[name] for name in ("part", "method", "molecules")),
                *(f"{row[name]:.3f}" if name in row else NOTHING for name in columns),
            )
            for row in chosen
        ],
    )
