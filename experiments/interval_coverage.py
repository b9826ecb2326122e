"""Coverage and width of the error bars of the pretrained models.

On molecules like those that a model was trained on, intervals of 68, 90 and 95 % should hold for
68, 90 and 95 %, for small and large molecules and dipoles alike. For another level of
theory, other elements or larger molecules this is not guaranteed: the intervals should be wider
there, and the predictions carry warnings.

It writes ``RUN/coverage.md``, ``RUN/coverage.json`` and ``RUN/coverage.png``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from common import ROOT, data_folder, markdown_table, read_arrays, read_npz
from geometry import from_their_smiles, relax_all, same_conformer
from matplotlib.figure import Figure
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.inference.structures import Prediction, predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.metrics import groupings
from dipolegnn.models import load_model, pretrained_names
from dipolegnn.molecules import MoleculeError, can_turn

QM9, QM7B = "qm9_dipole.npz", "qm7b_ccsd.npz"
COVERAGES = (0.68, 0.90, 0.95)

FROM_SMILES = 1500
"""Molecules that are embedded at most; a tenth are strained, and take a second."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure error bars."""

    output: Path = ROOT / "runs" / "coverage"
    """Folder for the results."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the reference data; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    molecules: int = 5000
    """Molecules of a set at most, drawn at random."""


class Sample(NamedTuple):
    """Labelled structures for a measurement."""

    model: str
    name: str
    own: bool
    """Whether they are of the kind that its error bars come from."""
    molecules: list[Data]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurement."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    folder = data_folder(options.data, QM9)
    rows: list[dict[str, Any]] = []
    for sample in samples(folder, options.molecules):
        if not sample.molecules:
            continue
        model = load_model(sample.model)
        if model.calibration is None:
            raise SystemExit(f"{sample.model} has no error bars.")
        start = time.perf_counter()
        predictions = predict(model, sample.molecules)
        with_bars = time.perf_counter() - start
        model.calibration = None
        start = time.perf_counter()
        predict(model, sample.molecules)
        without = time.perf_counter() - start
        for part, values in measure(predictions, groups=sample.own):
            rows.append(
                {"model": sample.model, "set": sample.name, "part": part, **values}
                | ({"time_ratio": with_bars / without} if part == "all" else {})
            )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "coverage.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = table(rows)
    (options.output / "coverage.md").write_text(text, encoding="utf-8")
    draw(rows).savefig(options.output / "coverage.png", dpi=120)
    print(text)


def samples(folder: Path, limit: int) -> Iterator[Sample]:
    """The samples for each model."""
    names = pretrained_names()
    rng = np.random.default_rng(0)
    test = rng.permutation(np.flatnonzero(read_arrays(folder / QM9)["split"] == 2))[:limit]
    qm9 = read_npz(folder / QM9, number="qm9_index", vectors=False, rows=np.sort(test)).data
    # The file does not number its molecules; numbers of atoms stand in and do not matter.
    qm7b = read_npz(folder / QM7B, number="n", vectors=False).data
    covered = [data for data in qm7b if set(data.z.tolist()) <= {1, 6, 7, 8}]
    beyond = [data for data in qm7b if not set(data.z.tolist()) <= {1, 6, 7, 8}]
    if "painn-qm9" in names:
        yield Sample("painn-qm9", "QM9, test", True, qm9)
        yield Sample("painn-qm9", "QM7b (CCSD), H C N O", False, covered[:limit])
        yield Sample("painn-qm9", "QM7b (CCSD), with S or Cl", False, beyond[:limit])
    if "painn-qm9-mmff94s" in names:
        relaxed = [data for data in relax_all(qm9)[0] if data is not None]
        yield Sample("painn-qm9-mmff94s", "QM9, test, at MMFF94s geometries", False, relaxed)
        yield Sample("painn-qm9-mmff94s", "QM9, test, at its own geometries", False, qm9)
        pairs = from_their_smiles([qm9[k] for k in rng.permutation(len(qm9))[:FROM_SMILES]])
        turning = [pair for pair in pairs if can_turn(pair[0].smiles)]
        still = [data for data, _ in pairs if not can_turn(data.smiles)]
        yield Sample("painn-qm9-mmff94s", "QM9, test, from SMILES, nothing turns", True, still)
        for name, chosen in by_conformer(turning):
            yield Sample("painn-qm9-mmff94s", f"likewise, parts turn, {name}", False, chosen)
    if "painn-xtb" in names:
        small = ConformerDataset(ROOT / "datasets" / "small_molecules")
        own = list(small[small.split().test])[:limit]
        yield Sample("painn-xtb", "small_molecules, test", True, own)
        larger = [data for data in qm9 if int((data.z > 1).sum()) > 8][: min(limit, 1000)]
        yield Sample("painn-xtb", "9 heavy atoms (QM9), GFN2-xTB", False, by_xtb(larger))


def by_conformer(pairs: Sequence[tuple[Data, Data]]) -> Iterator[tuple[str, list[Data]]]:
    """Embedded structures, grouped by whether they have the conformer of the given ones."""
    found: dict[bool, list[Data]] = {True: [], False: []}
    for data, given in pairs:
        with suppress(MoleculeError):  # the bonds may be perceived otherwise
            found[same_conformer(data, given)].append(data)
    yield "the same conformer", found[True]
    yield "another one", found[False]


def by_xtb(molecules: Sequence[Data]) -> list[Data]:
    """Labelled with GFN2-xTB at the same geometries; failures are left out."""
    calculator = xtb_calculator(XTBConfig())
    found = []
    for data in track(molecules, "GFN2-xTB", transient=True):
        try:
            found.append(label(data, calculator))
        except MoleculeError as error:
            print(f"left out: {error}")
    return found


def measure(
    predictions: Sequence[Prediction], *, groups: bool
) -> Iterator[tuple[str, dict[str, float]]]:
    """Coverage and width over all molecules and, if wanted, by size and magnitude."""
    reference = np.array([float(p.data.dipole_magnitude) for p in predictions])
    error = np.abs(np.array([p.magnitude for p in predictions]) - reference)
    bars = [p.error for p in predictions if p.error is not None]
    widths = {c: np.array([bar.half_width(c) for bar in bars]) for c in COVERAGES}
    doubted = np.array([bool(bar.doubts) for bar in bars])
    parts = [("all", np.ones(len(error), dtype=bool))]
    if groups:
        numbers = [p.data.z.tolist() for p in predictions]
        found = groupings(numbers, reference)
        parts += [(f"{by} {name}", mask) for by, name, mask in found if by != "element"]
    for part, mask in parts:
        if mask.any():
            yield (
                part,
                {
                    "molecules": int(mask.sum()),
                    "mae_D": float(error[mask].mean()),
                    "half_width_90_D": float(widths[0.90][mask].mean()),
                    "doubted": float(doubted[mask].mean()),
                    **{
                        f"coverage_{100 * c:.0f}": float((error <= widths[c])[mask].mean())
                        for c in COVERAGES
                    },
                },
            )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    widths = ("MAE, D", "half width at 90 %, D")
    shares = ("holds at 68 %", "at 90 %", "at 95 %", "doubted")
    text = markdown_table(
        ("model", "on", "part", "molecules", *widths, *shares),
        [
            (
                *(row[name] for name in ("model", "set", "part", "molecules")),
                *(f"{row[name]:.3f}" for name in ("mae_D", "half_width_90_D")),
                *(f"{100 * row[f'coverage_{100 * c:.0f}']:.1f} %" for c in COVERAGES),
                f"{100 * row['doubted']:.1f} %",
            )
            for row in rows
        ],
    )
    ratios = [row["time_ratio"] for row in rows if "time_ratio" in row]
    return f"{text}\n\nPredicting with error bars takes {np.median(ratios):.2f} times as long.\n"


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Coverage at 90 % for all samples."""
    figure = Figure(figsize=(7.6, 1.0 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(rows))
    colors = ["#1f5a96" if row["part"] != "all" else "#d1701f" for row in rows]
    axes.barh(at, [100 * row["coverage_90"] for row in rows], color=colors, height=0.7)
    axes.axvline(90, color="black", linewidth=1)
    names = [
        f"{row['model']}: {row['set']}" if row["part"] == "all" else row["part"] for row in rows
    ]
    axes.set_yticks(at, names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("molecules inside their interval of 90 % (%)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
