"""A molecule with its dipole moment in three dimensions, which can be rotated with the mouse.

Requires plotly (extra ``app``), which draws with WebGL. A saved page contains its JavaScript, so
that it can be viewed without network access.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull

from dipolegnn.plots.molecule import ARROW, arrow_scale, ball_radii, bonds, checked, view

try:
    from plotly.graph_objects import Figure, Mesh3d
except ImportError as error:
    raise ImportError(
        f"Pictures in three dimensions need plotly, which cannot be imported ({error}). "
        "Install it with: pip install 'dipolegnn[app]'"
    ) from error

STICK = "#b8b8b8"
STICK_RADIUS, ARROW_RADIUS = 0.09, 0.07  # angstrom

LIGHTING = {"ambient": 0.5, "diffuse": 0.7, "specular": 0.25, "roughness": 0.6, "fresnel": 0.1}


def scene(
    z: ArrayLike,
    pos: ArrayLike,
    dipole: ArrayLike | None = None,
    *,
    charges: ArrayLike | None = None,
    half_width: float | None = None,
    title: str = "",
) -> Figure:
    """A molecule as balls and sticks with its dipole moment, which points from - to +.

    Args:
        z: Atomic numbers ``[N]``.
        pos: Positions ``[N, 3]`` in angstrom.
        dipole: Dipole moment ``[3]`` in debye; None or NaN: no arrow. The arrow is centred on the
            molecule, and its scale is stated.
        charges: Atomic charges ``[N]`` in e for the colours; None or NaN: colours of the elements.
        half_width: Error bar of the magnitude, in debye; None: no error bar.
        title: Name of the molecule.

    Returns:
        The figure; ``figure.write_html(path)`` writes it as a page.

    Raises:
        ValueError: If the shapes are inconsistent.
    """
    numbers, xyz, mu = checked(z, pos, dipole)
    q = None if charges is None else np.asarray(charges, dtype=float).reshape(-1)
    if q is not None and q.shape != numbers.shape:
        raise ValueError(f"charges must be one number per atom [{len(numbers)}], got {q.shape}.")
    parts = [_atoms(numbers, xyz, None if q is None or np.isnan(q).any() else q)]
    sticks = [_tube(xyz[i], xyz[j], (STICK_RADIUS, STICK_RADIUS)) for i, j in bonds(numbers, xyz)]
    if sticks:
        parts.append(_mesh(sticks, {"color": STICK}))
    caption = ""
    if mu is not None:
        length = float(np.linalg.norm(mu))
        scale = arrow_scale(length)
        bar = "" if half_width is None else f" ± {half_width:.2f}"
        caption = f"|μ| = {length:.2f}{bar} D; arrow from – to +, {scale:.2f} Å per D"
        if scale * length > 0.04:
            parts.append(_arrow(xyz.mean(axis=0), scale * mu, f"μ, {length:.3f} D"))
    hidden = {"visible": False, "showspikes": False}
    _, up, towards = view(xyz, mu)
    camera = {"eye": 1.9 * towards, "up": up}
    figure = Figure(parts)
    figure.update_layout(
        title={"text": html.escape(title), "x": 0.5},
        scene={
            **{f"{axis}axis": hidden for axis in "xyz"},
            "aspectmode": "data",
            "camera": {
                name: dict(zip("xyz", v.tolist(), strict=True)) for name, v in camera.items()
            },
            "dragmode": "orbit",
        },
        annotations=[
            {"text": caption, "showarrow": False, "xref": "paper", "yref": "paper"}
            | {"x": 0.5, "y": 0.0, "yanchor": "top", "font": {"color": ARROW}}
        ],
        margin={"l": 0, "r": 0, "t": 40 if title else 0, "b": 24 if caption else 0},
        showlegend=False,
    )
    return figure


def write_page(path: str | Path, figures: Sequence[Figure], title: str) -> None:
    """Writes figures below each other as one .html file that contains everything it needs.

    Args:
        path: The file.
        figures: Figures from :func:`scene`.
        title: Title of the page.
    """
    shown = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"displaylogo": False})
        for number, figure in enumerate(figures)
    ]
    Path(path).write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head><body>{''.join(shown)}</body></html>\n",
        encoding="utf-8",
    )


_Surface = tuple[NDArray[np.float64], NDArray[np.int_]]
"""Points ``[P, 3]`` and triangles ``[T, 3]``."""


def _atoms(
    numbers: NDArray[np.int_], xyz: NDArray[np.float64], charges: NDArray[np.float64] | None
) -> Mesh3d:
    """All atoms as one mesh."""
    points, faces = _ball()
    balls = [(at + r * points, faces) for at, r in zip(xyz, ball_radii(numbers), strict=True)]
    labels = [f"{chemical_symbols[n]} {k}" for k, n in enumerate(numbers, start=1)]
    look: dict[str, Any] = {}
    if charges is None:
        # Slightly grey: white hydrogen atoms would be invisible on a white page.
        colors = np.round(255 * np.minimum(jmol_colors[numbers], 0.93)).astype(int)
        names = [f"rgb({r},{g},{b})" for r, g, b in colors.tolist()]
        look["vertexcolor"] = np.repeat(names, len(points))
    else:
        labels = [f"{name}: {q:+.3f} e" for name, q in zip(labels, charges, strict=True)]
        widest = max(float(np.abs(charges).max()), 1e-3)
        look["intensity"] = np.repeat(charges, len(points))
        look |= {"colorscale": "RdBu_r", "cmin": -widest, "cmax": widest}
        look["colorbar"] = {"title": {"text": "charge (e)"}, "thickness": 12, "len": 0.6}
    return _mesh(balls, look, np.repeat(labels, len(points)))


def _arrow(middle: NDArray[np.float64], along: NDArray[np.float64], text: str) -> Mesh3d:
    start, end = middle - along / 2, middle + along / 2
    neck = end - along * min(0.35, 0.45 / float(np.linalg.norm(along)))
    shaft = _tube(start, neck, (ARROW_RADIUS, ARROW_RADIUS))
    head = _tube(neck, end, (2.6 * ARROW_RADIUS, 0.0))
    return _mesh([shaft, head], {"color": ARROW}, [text] * (len(shaft[0]) + len(head[0])))


def _mesh(
    surfaces: Sequence[_Surface],
    look: Mapping[str, Any],
    text: Sequence[str] | NDArray[np.str_] | None = None,
) -> Mesh3d:
    """Combines surfaces; ``text`` has one string per point."""
    first = np.cumsum([0, *(len(points) for points, _ in surfaces)])
    points = np.round(np.concatenate([points for points, _ in surfaces]), 4)
    faces = [faces + start for (_, faces), start in zip(surfaces, first[:-1], strict=True)]
    return Mesh3d(
        **dict(zip("xyz", points.T, strict=True)),
        **dict(zip("ijk", np.concatenate(faces).T, strict=True)),
        text=text,
        hoverinfo="skip" if text is None else "text",
        lighting=LIGHTING,
        lightposition={"x": 1e4, "y": 1e4, "z": 2e4},
        **look,
    )


def _ball(rings: int = 10, around: int = 16) -> _Surface:
    """A unit sphere: the poles, and rings between them."""
    theta = np.linspace(0, np.pi, rings + 1)[1:-1, None]
    phi = np.linspace(0, 2 * np.pi, around, endpoint=False)
    z = np.broadcast_to(np.cos(theta), (rings - 1, around))
    ring = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), z], axis=2)
    return _hull(np.concatenate([ring.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]]))


def _tube(
    start: NDArray[np.float64], end: NDArray[np.float64], radii: tuple[float, float]
) -> _Surface:
    """A closed cylinder or cone."""
    along = (end - start) / np.linalg.norm(end - start)
    side = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    side /= np.linalg.norm(side)
    phi = np.linspace(0, 2 * np.pi, 12, endpoint=False)[:, None]
    circle = np.cos(phi) * side + np.sin(phi) * np.cross(along, side)
    return _hull(np.concatenate([start + radii[0] * circle, end + radii[1] * circle]))


def _hull(points: NDArray[np.float64]) -> _Surface:
    """The surface of the convex hull of points."""
    hull = ConvexHull(points)
    faces = hull.simplices
    # Qhull does not orient the triangles, but the shading of plotly depends on the orientation.
    a, b, c = points[faces].transpose(1, 0, 2)
    inward = np.einsum("fx,fx->f", np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inward] = faces[inward, ::-1]
    return points, faces
