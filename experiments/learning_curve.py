"""How the error on QM9 falls with the number of molecules, for several kinds of models.

For each kind and each size it runs ``qm9.py`` on so many molecules, in a folder of its own, and
goes on where it was stopped. Every run sees about the same number of molecules (``--seen``), within
bounds of its number of epochs, so that the sizes are compared at about the same cost.

It writes ``RUN/learning_curve.csv``, ``RUN/learning_curve.md`` and ``RUN/learning_curve.png``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import qm9
import tyro
from common import NOTHING, markdown_table
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

Kind = Literal["painn-dipole", "painn-atomwise", "schnet-dipole", "schnet-atomwise"]

LEAST_EPOCHS = 4
MOST_EPOCHS = 100

VALIDATION_MOLECULES = 1000
"""Fewer than there are: a pass over a thousand training molecules takes less time than over all."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure learning curves on QM9."""

    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the runs and the results."""
    dataset: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder for the molecules in this package's format; left out: RUN."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with qm9_dipole.npz; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    kinds: tuple[Kind, ...] = ("painn-dipole", "schnet-dipole", "painn-atomwise")
    """Networks and heads."""
    sizes: tuple[int, ...] = (1000, 5000, 20000, 50000, 108762)
    """Numbers of training molecules."""
    seen: int = 800_000
    """Training molecules that each run sees, again and again if there are fewer."""
    fast: bool = False
    """Some seconds only, with few molecules, to see that everything works."""


class Point(NamedTuple):
    """One run."""

    kind: str
    molecules: int
    epochs: int
    val_mae: float
    test_mae: float


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what has not been run yet, and draws what there is."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    points: list[Point] = []
    # Small ones first: each size is complete, and drawn, before the next one begins.
    for size in sorted(options.sizes):
        for kind in options.kinds:
            points.append(measured(options, kind, size))
            write(options.output, points)
    print(f"wrote {options.output / 'learning_curve.csv'}, .md and .png")


def measured(options: Options, kind: str, size: int) -> Point:
    """The run of one kind on so many molecules."""
    run = options.output / f"{kind}-{size}"
    epochs = 1 if options.fast else epochs_of(size, options.seen)
    if not (run / "metrics.json").exists():
        print(f"{kind}, {size:,} molecules, {epochs} epochs", flush=True)
        representation, head = kind.split("-")
        words = ["--output", str(run), "--molecules", str(size), "--max-epochs", str(epochs)]
        words += ["--representation", representation, "--head", head, "--resume"]
        words += [] if options.fast else ["--validation", str(VALIDATION_MOLECULES)]
        words += ["--dataset", str(options.dataset or options.output)]
        words += [] if options.data is None else ["--data", str(options.data)]
        words += ["--fast"] * options.fast
        qm9.main(words)
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    maes = (float(found[part]["dipole_mae"]) for part in ("val", "test"))
    return Point(kind, size, int(found["epochs"]), *maes)


def epochs_of(size: int, seen: int) -> int:
    """Passes over so many molecules."""
    return min(max(round(seen / size), LEAST_EPOCHS), MOST_EPOCHS)


def write(folder: Path, points: Sequence[Point]) -> None:
    """Writes what there is as CSV and Markdown, and draws it."""
    with (folder / "learning_curve.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows(points)
    kinds = [kind for kind in get_args(Kind) if any(point.kind == kind for point in points)]
    cells = {(p.kind, p.molecules): f"{p.test_mae:.4f} ({p.epochs})" for p in points}
    text = (
        "# Learning curves on QM9\n\n"
        "MAE of the magnitude in debye on the 5,000 test molecules, and passes over the molecules."
        "\n\n"
    )
    text += markdown_table(
        ("molecules", *kinds),
        [
            (f"{size:,}", *(cells.get((kind, size), NOTHING) for kind in kinds))
            for size in sorted({point.molecules for point in points})
        ],
    )
    (folder / "learning_curve.md").write_text(text + "\n", encoding="utf-8")
    drawn(points, kinds).savefig(folder / "learning_curve.png", dpi=120)


def drawn(points: Sequence[Point], kinds: Sequence[str]) -> Figure:
    """Error against number of molecules, both as logarithms."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for kind in kinds:
        here = [point for point in points if point.kind == kind]
        sizes, errors = [p.molecules for p in here], [p.test_mae for p in here]
        axes.loglog(sizes, errors, marker="o", label=kind.replace("-", ", "))
    axes.set(xlabel="training molecules", ylabel="test MAE of the magnitude (D)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))  # 0.05, not 5 × 10^-2
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"\n{str(interrupt) or 'Interrupted.'}") from None
