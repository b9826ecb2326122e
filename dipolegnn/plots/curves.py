"""Parity plot, errors by group, and learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dipolegnn.metrics import Group

BLUE, ORANGE, GREY = "#1f5a96", "#d1701f", "#8a8a8a"

SCATTER_UP_TO = 1000
"""Largest number of molecules that are drawn as points; more are drawn as a density."""

MANY = 10
"""Smallest number of molecules of a group that affects the scale of :func:`error_bars`."""

_TITLES = {"size": "heavy atoms", "element": "molecules with", "magnitude": "reference |μ|"}


def parity_plot(reference: ArrayLike, predicted: ArrayLike, title: str = "") -> Figure:
    """Predicted against reference magnitudes, with the errors in a second panel.

    Args:
        reference: Reference magnitudes ``[B]`` in debye; molecules with NaN are omitted.
        predicted: Predicted magnitudes ``[B]`` in debye.
        title: Title, such as model and data set.

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
    shown = np.clip(error, -spread, spread)
    if len(x) > SCATTER_UP_TO:
        style = {"bins": "log", "cmap": "viridis", "mincnt": 1}
        density = top.hexbin(x, y, gridsize=70, extent=(low, high, low, high), **style)
        extent = (low, high, -spread, spread)
        bottom.hexbin(x, shown, gridsize=(70, 18), extent=extent, **style)
        figure.colorbar(density, ax=[top, bottom], label="molecules", shrink=0.5, pad=0.01)
    else:
        for axes, values in ((top, y), (bottom, shown)):
            axes.scatter(x, values, s=16, color=BLUE, alpha=0.55, linewidths=0)
    top.plot([low, high], [low, high], color=GREY, linewidth=1, zorder=0)
    bottom.axhline(0, color=GREY, linewidth=1, zorder=0)
    top.set(xlim=(low, high), ylim=(low, high), ylabel="predicted |μ| (D)")
    top.set_box_aspect(1)
    bottom.set_box_aspect(1 / 3.4)
    bottom.set(ylim=(-spread, spread), xlabel="reference |μ| (D)", ylabel="error (D)")
    beyond = int((np.abs(error) > spread).sum())
    if beyond:
        text, at = f"drawn at the edges: {beyond} larger", bottom.transAxes
        bottom.text(0.99, 0.03, text, transform=at, ha="right", fontsize=8, color=GREY)
    mae, rmse = np.abs(error).mean(), np.sqrt((error**2).mean())
    top.set_title(title, fontsize=12)
    text = f"{len(x):,} molecules\nMAE {mae:.3f} D\nRMSE {rmse:.3f} D"
    top.text(0.04, 0.96, text, transform=top.transAxes, va="top", fontsize=11, linespacing=1.4)
    _remove_frame(top, bottom)
    return figure


def error_bars(groups: Sequence[Group], title: str = "") -> Figure:
    """Mean absolute error and bias by size, by element and by magnitude.

    Args:
        groups: Groups from :func:`dipolegnn.metrics.breakdown`.
        title: Title, such as model and data set.

    Returns:
        The figure: a bar for each group, with its number of molecules.

    Raises:
        ValueError: If there is no group.
    """
    kinds = [by for by in _TITLES if any(group.by == by for group in groups)]
    if not kinds:
        raise ValueError("There are no errors to draw: no molecule has a reference magnitude.")
    rows = [[group for group in groups if group.by == by] for by in kinds]
    height = 0.9 + 0.32 * len(groups) + 0.5 * len(kinds)
    figure = Figure(figsize=(6.4, height), layout="constrained")
    panels = figure.subplots(
        len(kinds), 1, sharex=True, squeeze=False, height_ratios=[len(some) + 0.6 for some in rows]
    )[:, 0]
    # Small groups can have very large errors; the bars of the other groups would become too short.
    large = [group for group in groups if group.molecules >= MANY] or groups
    widest = max(max(group.mae, abs(group.bias)) for group in large)
    edge = 1.1 * widest
    for axes, by, some in zip(panels, kinds, rows, strict=True):
        at = np.arange(len(some))
        mae = axes.barh(at, [min(group.mae, edge) for group in some], height=0.66, color=BLUE)
        biases = np.clip([group.bias for group in some], -edge, edge)
        bias = axes.scatter(biases, at, color=ORANGE, s=26, zorder=3)
        for y, group in zip(at, some, strict=True):
            x = min(max(group.mae, group.bias, 0), edge) + 0.025 * widest
            axes.text(x, y, _label(group, edge), va="center", fontsize=8, color=GREY)
        axes.axvline(0, color=GREY, linewidth=1, zorder=0)
        axes.set_yticks(at, [group.name for group in some])
        axes.set_ylim(len(some) - 0.4, -0.6)
        axes.set_ylabel(_TITLES[by])
        _remove_frame(axes)
    lowest = max(min(0.0, *(group.bias for group in groups)), -edge)
    panels[0].set_xlim(1.1 * lowest - 0.02 * widest, 1.6 * widest)
    panels[-1].set_xlabel("error of |μ| (D)")
    names = ["mean absolute error", "bias (mean of predicted − reference)"]
    figure.legend(
        [mae, bias], names, loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _label(group: Group, edge: float) -> str:
    count = f"{group.molecules:,} molecule{'s' * (group.molecules > 1)}"
    if group.mae <= edge:
        return f"{group.mae:.3f} D, {count}"
    return f"{group.mae:.3f} D, bias {group.bias:+.3f} D,\n{count}, drawn at the edge"


def learning_curve(history: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    """Loss, error and learning rate over the epochs of a training run.

    Args:
        history: A row per epoch with ``epoch``, ``lr``, ``train/loss``, ``val/loss`` and, if
            computed, ``train/dipole_mae`` and ``val/dipole_mae``, as read by ``read_history``.
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
    for axes, name, label, color in (
        (loss, "train/loss", "training", BLUE),
        (loss, "val/loss", "validation", ORANGE),
        (mae, "train/dipole_mae", "training", BLUE),
        (mae, "val/dipole_mae", "validation", ORANGE),
        (rate, "lr", "learning rate", GREY),
    ):
        rows = [row for row in history if row.get(name, 0.0) > 0]
        epochs, values = [row["epoch"] for row in rows], [row[name] for row in rows]
        axes.plot(epochs, values, label=label, color=color, marker=marker)
        if rows:
            axes.set_yscale("log")
    for axes in (loss, mae, rate):
        axes.axvline(best["epoch"], color=GREY, linewidth=1, linestyle=":", zorder=0)
    loss.set_ylabel("loss")
    mae.set_ylabel("MAE of |μ| (D)")
    rate.set(ylabel="learning rate", xlabel="epoch")
    loss.legend(frameon=False)
    found = f"best epoch {best['epoch']:.0f}"
    if "val/dipole_mae" in best:
        found += f": validation MAE {best['val/dipole_mae']:.3f} D"
    loss.set_title(f"{title}\n{found}" if title else found, fontsize=11)
    _remove_frame(loss, mae, rate)
    return figure


def _remove_frame(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
