"""Are error bars from the last layer of one network as good as those from an ensemble?

Takes networks that were trained on the same molecules with different seeds, and the validation
molecules that none of them was trained on. One half of these calibrates (split conformal), the
other measures: how often an interval that is to hold for 90 % holds, how wide it is in the mean,
and how well the widths rank the errors (Spearman's correlation). A width that is the same for all
molecules is the least that any method has to beat.

It writes ``RUN/ensemble.json`` and ``RUN/ensemble.md``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from common import NOTHING, markdown_table
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dipolegnn.calibrate import calibrate_on
from dipolegnn.checkpoint import load_model
from dipolegnn.data import ConformerDataset, DipoleDataModule
from dipolegnn.predict import predict
from dipolegnn.predictions import Prediction

COVERAGE = 0.9

REPEATS = 200
"""Ways of halving the molecules, over which is averaged."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare error bars of one network with those of an ensemble."""

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Data set that the networks were trained on."""
    runs: tuple[Path, ...]
    """Folders of their runs, or model files; at least two."""
    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder for the results."""


@dataclass(frozen=True)
class Row:
    """How good one way of making error bars is."""

    what: str
    mae: float
    """Mean absolute error of the prediction itself, in debye."""
    correlation: float
    coverage: float
    half_width: float
    """Mean half width of the intervals, in debye."""
    seconds: float
    """For all molecules."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    if len(options.runs) < 2:
        raise SystemExit(f"An ensemble needs at least two networks, got {len(options.runs)}.")
    dataset = ConformerDataset(options.data)
    split = dataset.split()
    data = list(dataset[split.val])
    reference = np.array([float(molecule.dipole_magnitude) for molecule in data])
    members: list[list[Prediction]] = []
    times = []
    for run in options.runs:
        model, _ = load_model(run / "model.safetensors" if run.is_dir() else run)
        if model.calibration is None:  # from before there were error bars
            calibrate_on(model, DipoleDataModule(dataset, split))
        predict(model, data[:100])  # loads the kernels
        start = time.perf_counter()
        members.append(predict(model, data, progress=True))
        times.append(time.perf_counter() - start)

    rows = []
    for number, predictions in enumerate(members, start=1):
        magnitude = np.array([prediction.magnitude for prediction in predictions])
        scales = [p.error.scale for p in predictions if p.error is not None]
        error = np.abs(magnitude - reference)
        seconds = times[number - 1]
        rows.append(measured(f"network {number}, last layer", error, np.array(scales), seconds))
        rows.append(
            measured(f"network {number}, one width for all", error, np.ones_like(error), seconds)
        )
    vectors = np.array(
        [[prediction.dipole for prediction in each] for each in members]
    )  # [K, M, 3]
    mean = vectors.mean(axis=0)
    error = np.abs(np.linalg.norm(mean, axis=1) - reference)
    spread = np.sqrt(np.square(vectors - mean).sum(axis=2).mean(axis=0))  # [M]
    what = f"average of {len(members)}"
    # Members that agree by chance are not sure for that: without a floor intervals could vanish.
    rows.append(measured(f"{what}, their spread", error, spread + np.median(spread), sum(times)))
    last = np.mean([[p.error.scale for p in each if p.error is not None] for each in members], 0)
    rows.append(measured(f"{what}, last layers", error, last, sum(times)))
    rows.append(measured(f"{what}, one width for all", error, np.ones_like(error), sum(times)))

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "ensemble.json"
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    text = described(rows, len(data))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"{text}\nwrote {path} and {path.stem}.md")


def measured(what: str, error: Numbers, scale: Numbers, seconds: float) -> Row:
    """Calibrates on one half and measures on the other, many times.

    Args:
        what: Name of the row.
        error: Absolute errors ``[M]`` in debye.
        scale: How unsure each prediction is ``[M]``.
        seconds: What the predictions took.
    """
    generator = np.random.default_rng(0)
    coverages, widths = [], []
    for _ in range(REPEATS):
        order = generator.permutation(len(error))
        half = len(order) // 2
        calibrating, measuring = order[:half], order[half:]
        scores = np.sort(error[calibrating] / scale[calibrating])
        rank = int(np.ceil((half + 1) * COVERAGE)) - 1  # split conformal
        width = scores[min(rank, half - 1)] * scale[measuring]
        coverages.append(np.mean(error[measuring] <= width))
        widths.append(width.mean())
    varies = float(np.ptp(scale)) > 0
    return Row(
        what,
        float(error.mean()),
        float(spearmanr(scale, error).statistic) if varies else float("nan"),
        float(np.mean(coverages)),
        float(np.mean(widths)),
        seconds,
    )


def described(rows: Sequence[Row], molecules: int) -> str:
    """The result as Markdown."""
    text = (
        "# Error bars from one network and from an ensemble\n\n"
        f"{molecules:,} validation molecules, one half to calibrate, one to measure (mean over "
        f"{REPEATS} halvings); intervals of {100 * COVERAGE:g} %. The correlation is Spearman's, "
        "of widths and errors.\n\n"
    )
    text += markdown_table(
        ("error bars", "MAE (D)", "correlation", "holds for", "mean half width (D)", "time (s)"),
        [
            (
                row.what,
                f"{row.mae:.4f}",
                NOTHING if np.isnan(row.correlation) else f"{row.correlation:.2f}",
                f"{100 * row.coverage:.1f} %",
                f"{row.half_width:.4f}",
                f"{row.seconds:.1f}",
            )
            for row in rows
        ],
    )
    return text + "\n"


if __name__ == "__main__":
    main()
