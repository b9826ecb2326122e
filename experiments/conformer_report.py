"""Errors of conformer averages: weights from several energies, and averages from SMILES.

``RUN/conformers.md`` and ``conformers.json``: for the neutral validation molecules of
``drug_conformers``, the Boltzmann average of the dipole moment,

- over the given conformers (DFT geometries and DFT dipoles), with weights from several energies,
  against that with DLPNO-CCSD(T) energies;
- from the SMILES, as ``dipolegnn predict`` computes it, against the average over the given
  conformers with DLPNO-CCSD(T) energies. This reference has only the conformers of its pool (ten at
  most, chosen for diversity), so that a perfect prediction would not reach 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from common import NOTHING, ROOT, data_folder, markdown_table
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig, EnergyMethod
from dipolegnn.data import ConformerDataset
from dipolegnn.inference.energies import model_energies
from dipolegnn.inference.pipeline import predict_smiles
from dipolegnn.models import energy_model, load_model
from dipolegnn.molecules import make_data
from dipolegnn.nn import EnergyOutput, PropertyModel
from dipolegnn.units import BOLTZMANN_KCAL_PER_MOL_K, ROOM_TEMPERATURE_K

SOURCE = "drug_conformers.npz"
REFERENCE = "energy_dlpno"
STORED = {"MMFF94s": "energy_mmff", "GFN2-xTB": "energy_gfn2", "B3LYP-D3BJ": "energy_b3lyp"}
"""Energies in the file, by their name in the table."""

METHODS: tuple[EnergyMethod, ...] = ("mmff", "xtb", "model")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure averages over conformers."""

    sets: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the data sets (datasets/public/build.py)."""
    energies: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Model of energies (file or folder of a run) for the first table; left out: the pretrained."""
    output: Path = ROOT / "runs" / "conformers"
    """Folder of the results."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the reference data; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    smiles: bool = True
    """Measure averages from SMILES, too, with the pretrained models."""
    methods: tuple[EnergyMethod, ...] = METHODS
    """Energies of conformers from SMILES."""
    one: bool = False
    """Also from the SMILES with one conformer."""


@dataclass(frozen=True)
class Pool:
    """The given conformers of a molecule."""

    smiles: str
    structures: list[Data]
    magnitudes: NDArray[np.float64]
    energies: dict[str, NDArray[np.float64]]
    """Relative energies by their name in the file, in kcal/mol."""

    def average(self, energies: NDArray[np.float64]) -> float:
        """Boltzmann average of the magnitude in debye."""
        thermal = BOLTZMANN_KCAL_PER_MOL_K * ROOM_TEMPERATURE_K
        weights = np.exp((energies.min() - energies) / thermal)
        return float(weights @ self.magnitudes / weights.sum())

    @property
    def reference(self) -> float:
        """Average with DLPNO-CCSD(T) energies in debye."""
        return self.average(self.energies[REFERENCE])


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    options.output.mkdir(parents=True, exist_ok=True)
    folder = data_folder(options.data, SOURCE)
    dataset = ConformerDataset(options.sets / "drug_conformers")
    validation = {dataset[int(place)].smiles for place in dataset.split().val}
    found = [pool for pool in pools(folder / SOURCE) if pool.smiles in validation]
    model = energy_model() if options.energies is None else load_model(options.energies, [])
    rows = of_energies(found, model)
    text = [table(rows)]
    if options.smiles:
        counts: list[int | str] = [*([1] if options.one else []), "auto"]
        further = [row for count in counts for row in from_smiles(found, count, options.methods)]
        text.append(table(further))
        rows += further
    (options.output / "conformers.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.output / "conformers.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys, some of which may be missing, as Markdown."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    return markdown_table(header, ([row.get(key, NOTHING) for key in header] for row in rows))


def pools(path: Path) -> Iterator[Pool]:
    """Neutral molecules with several conformers, all of which have reference energies."""
    with np.load(path) as file:
        arrays = dict(file)
    ends = np.cumsum(arrays["n"])
    names = arrays["molecule"]
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        energies = {key: arrays[key][rows].astype(float) for key in (REFERENCE, *STORED.values())}
        if len(rows) == 1 or arrays["charge"][rows].any() or np.isnan(energies[REFERENCE]).any():
            continue
        atoms = [slice(ends[row] - arrays["n"][row], ends[row]) for row in rows]
        structures = [make_data(arrays["z"][part], arrays["pos"][part]) for part in atoms]
        smiles = str(arrays["smiles"][rows[0]])
        yield Pool(smiles, structures, arrays["mu_b3lyp"][rows].astype(float), energies)


def of_energies(found: Sequence[Pool], model: PropertyModel[EnergyOutput]) -> list[dict[str, Any]]:
    """Errors of averages over the given conformers."""
    rows = []
    methods = ["equal weights", *STORED, "model"]
    for method in methods:
        errors, deviations = [], []
        start = time.process_time()
        for pool in found:
            if method == "model":
                energies = np.array(model_energies(model, pool.structures))
            elif method in STORED:
                energies = pool.energies[STORED[method]]
            else:
                energies = np.zeros(len(pool.structures))
            if np.isnan(energies).any():
                continue
            errors.append(abs(pool.average(energies) - pool.reference))
            difference = energies - pool.energies[REFERENCE]
            deviations.append(float(np.std(difference)))
        row = {
            "energies": method,
            "molecules": len(errors),
            "average, MAE (D)": round(float(np.mean(errors)), 3),
            "median (D)": round(float(np.median(errors)), 3),
            "RMSE of energies, median (kcal/mol)": round(float(np.median(deviations)), 2),
        }
        if method == "model":
            conformers = sum(len(pool.structures) for pool in found)
            row["time per conformer (ms)"] = round(
                1000 * (time.process_time() - start) / conformers, 1
            )
        rows.append(row)
    return rows


def from_smiles(
    found: Sequence[Pool], conformers: int | str, methods: Sequence[EnergyMethod]
) -> Iterator[dict[str, Any]]:
    """Errors of averages from SMILES."""
    model = load_model("painn-organic")
    embedding = ConformerConfig(conformers="auto" if conformers == "auto" else int(conformers))
    for method in methods if conformers == "auto" else methods[:1]:
        start = time.process_time()
        predictions = predict_smiles(
            model,
            [pool.smiles for pool in found],
            conformers=embedding,
            energies=method,
            progress=True,
        )
        seconds = time.process_time() - start
        by_row = {one.row: one for one in predictions.molecules}
        pairs = [(pool, by_row[row]) for row, pool in enumerate(found, start=1) if row in by_row]
        errors = np.array([abs(one.magnitude - pool.reference) for pool, one in pairs])
        widths = np.array([one.half_width() or np.nan for _, one in pairs])
        yield {
            "conformers": conformers,
            "energies": method,
            "molecules": len(pairs),
            "MAE (D)": round(float(errors.mean()), 3),
            "median (D)": round(float(np.median(errors)), 3),
            "in the interval of 90 %": f"{100 * np.mean(errors <= widths):.0f} %",
            "s per molecule": round(seconds / len(found), 2),
        }


if __name__ == "__main__":
    main()
