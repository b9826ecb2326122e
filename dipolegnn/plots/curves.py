"""How good a model is, and how it got there: parity plot and learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

BLUE, ORANGE, GREY = "#1f5a96", "#d1701f", "#8a8a8a"

SCATTER_UP_TO = 1000
"""More molecules than this are shown by their density."""


def parity_plot(reference: ArrayLike, predicted: ArrayLike, title: str = "") -> Figure:
    """Predicted against reference magnitudes, and the errors below.

    Args:
        reference: Reference magnitudes ``[B]`` in debye; molecules with NaN are left out.
        predicted: Predicted magnitudes ``[B]`` in debye.
        title: What is compared with what.

    Returns:
        The figure, with number of molecules, MAE and RMSE.

    Raises:
        ValueError: If the shapes differ or no molecule has a reference.
    """
    x, y = np.asarray(reference, dtype=float), np.asarray(predicted, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(
            f"reference and predicted must be one number per molecule each, got the shapes "
            f"{x.shape} and {y.shape}."
        )
    known = np.isfinite(x)
    x, y = x[known], y[known]
    if len(x) == 0:
        raise ValueError(f"None of the {len(known)} molecules has a reference magnitude.")
    error = y - x
    figure = Figure(figsize=(5.6, 6.8), layout="constrained")
    top, bottom = figure.subplots(
        2, 1, sharex=True, height_ratios=[3.4, 1], gridspec_kw={"hspace": 0.02}
    )
    low = min(0.0, float(np.nanmin(y)))
    high = 1.03 * max(float(x.max()), float(np.nanmax(y)), 0.1)
    spread = max(1.15 * float(np.nanquantile(np.abs(error), 0.995)), 1e-3)
    if len(x) > SCATTER_UP_TO:
        shown = top.hexbin(
            x, y, gridsize=70, extent=(low, high, low, high), bins="log", cmap="viridis", mincnt=1
        )
        bottom.hexbin(
            x,
            np.clip(error, -spread, spread),
            gridsize=(70, 18),
            extent=(low, high, -spread, spread),
            norm=LogNorm(),
            cmap="viridis",
            mincnt=1,
        )
        figure.colorbar(shown, ax=[top, bottom], label="molecules", shrink=0.5, pad=0.01)
    else:
        style = {"s": 16, "color": BLUE, "alpha": 0.55, "linewidths": 0}
        top.scatter(x, y, **style)
        bottom.scatter(x, np.clip(error, -spread, spread), **style)
    top.plot([low, high], [low, high], color=GREY, linewidth=1, zorder=0)
    bottom.axhline(0, color=GREY, linewidth=1, zorder=0)
    top.set(xlim=(low, high), ylim=(low, high), ylabel="predicted |μ| (D)")
    top.set_box_aspect(1)
    bottom.set_box_aspect(1 / 3.4)
    bottom.set(ylim=(-spread, spread), xlabel="reference |μ| (D)", ylabel="error (D)")
    beyond = int((np.abs(error) > spread).sum())
    if beyond:
        bottom.text(
            0.99,
            0.03,
            f"drawn at the edges: {beyond} larger",
            transform=bottom.transAxes,
            ha="right",
            fontsize=8,
            color=GREY,
        )
    mae, rmse = np.abs(error).mean(), np.sqrt((error**2).mean())
    top.set_title(title, fontsize=12)
    top.text(
        0.04,
        0.96,
        f"{len(x):,} molecules\nMAE {mae:.3f} D\nRMSE {rmse:.3f} D",
        transform=top.transAxes,
        va="top",
        fontsize=11,
        linespacing=1.4,
    )
    bare(top, bottom)
    return figure


def learning_curve(history: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    """Loss, error and learning rate over the epochs of a training run.

    Args:
        history: A row per epoch with ``epoch``, ``lr``, ``train/loss``, ``val/loss`` and, where
            there is one, ``val/dipole_mae``; what ``read_history`` reads.
        title: Name of the run.

    Returns:
        The figure; the epoch with the lowest validation loss is marked.

    Raises:
        ValueError: If there is no epoch.
    """
    if not history:
        raise ValueError("There is no learning curve of 0 epochs; train for at least one.")
    best = min(history, key=lambda row: row["val/loss"])
    figure = Figure(figsize=(6.4, 7.0), layout="constrained")
    loss, mae, rate = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 1])
    marker = "o" if len(history) == 1 else ""

    def curve(axes: Axes, name: str, label: str, color: str) -> None:
        rows = [row for row in history if row.get(name, 0.0) > 0]
        axes.plot(
            [row["epoch"] for row in rows],
            [row[name] for row in rows],
            label=label,
            color=color,
            marker=marker,
        )

    curve(loss, "train/loss", "training", BLUE)
    curve(loss, "val/loss", "validation", ORANGE)
    curve(mae, "train/dipole_mae", "training", BLUE)
    curve(mae, "val/dipole_mae", "validation", ORANGE)
    curve(rate, "lr", "learning rate", GREY)
    for axes in (loss, mae, rate):
        # A run of one epoch may have a learning rate of 0 and nothing else, which has no logarithm.
        if any(len(line.get_ydata()) for line in axes.lines):
            axes.set_yscale("log")
        axes.axvline(best["epoch"], color=GREY, linewidth=1, linestyle=":", zorder=0)
    loss.set_ylabel("loss")
    mae.set_ylabel("MAE of |μ| (D)")
    rate.set(ylabel="learning rate", xlabel="epoch")
    loss.legend(frameon=False)
    found = f"best epoch {best['epoch']:.0f}"
    if "val/dipole_mae" in best:
        found += f": validation MAE {best['val/dipole_mae']:.3f} D"
    loss.set_title(f"{title}\n{found}" if title else found, fontsize=11)
    bare(loss, mae, rate)
    return figure


def bare(*panels: Axes) -> None:
    """Takes away the frame that carries no scale."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
