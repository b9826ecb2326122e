"""Where the errors lie, as bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dipolegnn.metrics import Group
from dipolegnn.plots.curves import BLUE, GREY, ORANGE, bare

MANY = 10
"""Groups of fewer molecules do not set the scale."""

_TITLES = {"size": "heavy atoms", "element": "molecules with", "magnitude": "reference |μ|"}


def error_bars(groups: Sequence[Group], title: str = "") -> Figure:
    """Mean absolute error by size, by element and by magnitude, and the bias in it.

    Args:
        groups: What :func:`dipolegnn.metrics.breakdown` returns.
        title: What is compared with what.

    Returns:
        The figure: a bar for each group, with its number of molecules.

    Raises:
        ValueError: If there is no group.
    """
    kinds = [by for by in _TITLES if any(group.by == by for group in groups)]
    if not kinds:
        raise ValueError("There are no errors to draw: no molecule has a reference magnitude.")
    rows = [[group for group in groups if group.by == by] for by in kinds]
    figure = Figure(
        figsize=(6.4, 0.9 + 0.32 * len(groups) + 0.5 * len(kinds)), layout="constrained"
    )
    panels = figure.subplots(
        len(kinds), 1, sharex=True, squeeze=False, height_ratios=[len(some) + 0.6 for some in rows]
    )[:, 0]
    # A group of a few molecules may be far off, and must not hide what the others are like.
    large = [group for group in groups if group.molecules >= MANY] or groups
    widest = max(max(group.mae, abs(group.bias)) for group in large)
    edge = 1.1 * widest
    for axes, by, some in zip(panels, kinds, rows, strict=True):
        at = np.arange(len(some))
        mae = axes.barh(at, [min(group.mae, edge) for group in some], height=0.66, color=BLUE)
        biases = np.clip([group.bias for group in some], -edge, edge)
        bias = axes.scatter(biases, at, color=ORANGE, s=26, zorder=3)
        for y, group in zip(at, some, strict=True):
            axes.text(
                min(max(group.mae, group.bias, 0), edge) + 0.025 * widest,
                y,
                _label(group, edge),
                va="center",
                fontsize=8,
                color=GREY,
            )
        axes.axvline(0, color=GREY, linewidth=1, zorder=0)
        axes.set_yticks(at, [group.name for group in some])
        axes.set_ylim(len(some) - 0.4, -0.6)
        axes.set_ylabel(_TITLES[by])
        bare(axes)
    lowest = max(min(0.0, *(group.bias for group in groups)), -edge)
    panels[0].set_xlim(1.1 * lowest - 0.02 * widest, 1.6 * widest)
    panels[-1].set_xlabel("error of |μ| (D)")
    figure.legend(
        [mae, bias],
        ["mean absolute error", "bias (mean of predicted − reference)"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _label(group: Group, edge: float) -> str:
    count = f"{group.molecules:,} molecule{'s' * (group.molecules > 1)}"
    if group.mae <= edge:
        return f"{group.mae:.3f} D, {count}"
    return f"{group.mae:.3f} D, bias {group.bias:+.3f} D,\n{count}, drawn at the edge"
