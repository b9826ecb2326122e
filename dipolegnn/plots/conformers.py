"""Magnitude against energy of the conformers of a molecule. Requires plotly (extra ``app``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

try:
    from plotly.graph_objects import Figure, Scatter
except ImportError as error:
    raise ImportError(
        f"The plot of conformers needs plotly, which cannot be imported ({error}). "
        "Install it with: pip install 'dipolegnn[app]'"
    ) from error

BLUE, RED = "#1f5a96", "#b3123f"

LARGEST_POINT, SMALLEST_POINT = 34.0, 5.0  # pixels


def conformer_plot(
    energies: ArrayLike,
    magnitudes: ArrayLike,
    weights: ArrayLike,
    *,
    average: float,
    half_width: float | None = None,
    selected: int | None = None,
) -> Figure:
    """One point per conformer, with its weight as area; the average and its interval as a band.

    Args:
        energies: Energies relative to the lowest ``[K]`` in kcal/mol.
        magnitudes: Magnitudes of the dipole moments ``[K]`` in debye.
        weights: Boltzmann weights ``[K]``.
        average: Average magnitude in debye.
        half_width: Half the width of its interval in debye; None: no interval.
        selected: Number of a conformer that is marked, from 0.

    Raises:
        ValueError: If the numbers of values differ.

    Example:
        >>> figure = conformer_plot([0.0, 1.1], [0.0, 2.6], [0.86, 0.14], average=0.36)
        >>> [trace.name for trace in figure.data]
        ['conformers']
    """
    x, y, share = (np.asarray(v, dtype=float) for v in (energies, magnitudes, weights))
    if not x.shape == y.shape == share.shape == (len(x),):
        raise ValueError(
            "Expected as many energies as magnitudes and weights, got the shapes "
            f"{x.shape}, {y.shape} and {share.shape}."
        )
    diameter = LARGEST_POINT * np.sqrt(share / share.max())
    edge = [RED if k == selected else "white" for k in range(len(x))]
    points = Scatter(
        x=x,
        y=y,
        mode="markers",
        name="conformers",
        customdata=np.column_stack([np.arange(1, len(x) + 1), share]),
        hovertemplate=(
            "conformer %{customdata[0]}<br>%{x:.2f} kcal/mol, |μ| = %{y:.3f} D<br>"
            "weight %{customdata[1]:.3f}<extra></extra>"
        ),
        marker={
            "size": np.maximum(diameter, SMALLEST_POINT),
            "color": BLUE,
            "opacity": 0.75,
            "line": {"color": edge, "width": [2.5 if k == selected else 1 for k in range(len(x))]},
        },
    )
    figure = Figure([points])
    figure.add_hline(average, line={"color": RED, "width": 1.5})
    top, bar = max(float(y.max()), average), ""
    if half_width is not None and np.isfinite(half_width):
        low = max(average - half_width, 0.0)
        figure.add_hrect(low, average + half_width, fillcolor=RED, opacity=0.1, line_width=0)
        top = max(top, average + half_width)
        bar = f" ± {half_width:.3f}"
    width = max(float(x.max()), 0.5)
    figure.update_layout(
        title={"text": f"average {average:.3f}{bar} D", "font": {"size": 14}},
        xaxis={"title": "energy (kcal/mol)", "range": [-0.05 * width, 1.03 * width]},
        yaxis={"title": "|μ| (D)", "range": [-0.04 * top, 1.08 * max(top, 0.1)]},
        template="simple_white",
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        showlegend=False,
    )
    return figure
