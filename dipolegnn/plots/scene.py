"""A molecule with its dipole moment in three dimensions, to be turned with the mouse.

Needs plotly (extra ``app``), which draws with WebGL and brings its JavaScript along: a page that is
written with it shows without a network.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull

from dipolegnn.plots.molecule import ANGSTROM_PER_DEBYE, LONGEST_ARROW, bonds, checked, view

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

ARROW = "#b3123f"
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
) -> PlotlyFigure:
    """A molecule as balls and sticks with its dipole moment, which points from - to +.

    Args:
        z: Atomic numbers ``[N]``.
        pos: Positions ``[N, 3]`` in angstrom.
        dipole: Dipole moment ``[3]`` in debye; None or NaN: no arrow. The arrow is centred on the
            molecule, and its scale is stated.
        charges: Atomic charges ``[N]`` in e, to colour the atoms by; None or NaN: by element.
        half_width: Error bar of the magnitude, in debye; None: none is stated.
        title: Name of the molecule.

    Returns:
        The figure; ``figure.write_html(path)`` makes a page of it.

    Raises:
        ImportError: If plotly is not installed.
        ValueError: If the shapes do not fit together.
    """
    go = _plotly()
    numbers, xyz, mu = checked(z, pos, dipole)
    q = None if charges is None else np.asarray(charges, dtype=float).reshape(-1)
    if q is not None and q.shape != numbers.shape:
        raise ValueError(f"charges must be one number per atom [{len(numbers)}], got {q.shape}.")
    q = None if q is None or np.isnan(q).any() else q
    middle = xyz.mean(axis=0)
    parts = [_atoms(go, numbers, xyz, q), _sticks(go, numbers, xyz)]
    caption = ""
    if mu is not None:
        length = float(np.linalg.norm(mu))
        scale = min(ANGSTROM_PER_DEBYE, LONGEST_ARROW / max(length, 1e-9))
        bar = "" if half_width is None else f" ± {half_width:.2f}"
        caption = f"|μ| = {length:.2f}{bar} D; arrow from – to +, {scale:.2f} Å per D"
        if scale * length > 0.04:
            parts.append(_arrow(go, middle, scale * mu, f"μ, {length:.3f} D"))
    hidden = {"visible": False, "showspikes": False}
    figure = go.Figure([part for part in parts if part is not None])
    figure.update_layout(
        title={"text": html.escape(title), "x": 0.5},
        scene={
            **{f"{axis}axis": hidden for axis in "xyz"},
            "aspectmode": "data",
            "camera": _camera(xyz, mu),
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


def _camera(
    xyz: NDArray[np.float64], mu: NDArray[np.float64] | None
) -> dict[str, dict[str, float]]:
    """Where most of the molecule can be seen, and the arrow from the side."""
    _, up, towards = view(xyz, mu)
    eye = 1.9 * towards
    return {
        name: dict(zip("xyz", vector.tolist(), strict=True))
        for name, vector in (("eye", eye), ("up", up))
    }


def write_page(path: str | Path, figures: Sequence[PlotlyFigure], title: str) -> None:
    """Writes figures below each other as one .html, which needs nothing else.

    Args:
        path: The file.
        figures: What :func:`scene` returns.
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


def _atoms(
    go: Any,
    numbers: NDArray[np.int_],
    xyz: NDArray[np.float64],
    charges: NDArray[np.float64] | None,
) -> Any:
    """One mesh of all balls."""
    corners, faces = _ball()
    radii = 0.25 + 0.28 * (covalent_radii[numbers] - 0.31)
    points = (xyz[:, None] + radii[:, None, None] * corners).reshape(-1, 3)
    triangles = (faces + len(corners) * np.arange(len(numbers))[:, None, None]).reshape(-1, 3)
    labels = [f"{chemical_symbols[n]} {k}" for k, n in enumerate(numbers, start=1)]
    look: dict[str, Any] = {}
    if charges is None:
        # Not quite white, or hydrogen would be lost on a white page.
        colors = np.round(255 * np.minimum(jmol_colors[numbers], 0.93)).astype(int)
        look["vertexcolor"] = np.repeat(
            [f"rgb({r},{g},{b})" for r, g, b in colors.tolist()], len(corners)
        )
    else:
        labels = [f"{name}: {q:+.3f} e" for name, q in zip(labels, charges, strict=True)]
        widest = max(float(np.abs(charges).max()), 1e-3)
        look |= {
            "intensity": np.repeat(charges, len(corners)),
            "colorscale": "RdBu_r",
            "cmin": -widest,
            "cmax": widest,
            "colorbar": {"title": {"text": "charge (e)"}, "thickness": 12, "len": 0.6},
        }
    return _mesh(go, points, triangles, look, text=np.repeat(labels, len(corners)))


def _sticks(go: Any, numbers: NDArray[np.int_], xyz: NDArray[np.float64]) -> Any:
    """One mesh of all bonds; None if there are none."""
    pairs = bonds(numbers, xyz)
    if not pairs:
        return None
    tubes = [_tube(xyz[i], xyz[j], (STICK_RADIUS, STICK_RADIUS)) for i, j in pairs]
    return _mesh(go, *_joined(tubes), {"color": STICK})


def _arrow(go: Any, middle: NDArray[np.float64], along: NDArray[np.float64], text: str) -> Any:
    start, end = middle - along / 2, middle + along / 2
    neck = end - along * min(0.35, 0.45 / float(np.linalg.norm(along)))
    shaft = _tube(start, neck, (ARROW_RADIUS, ARROW_RADIUS))
    head = _tube(neck, end, (2.6 * ARROW_RADIUS, 0.0))
    points, triangles = _joined([shaft, head])
    return _mesh(go, points, triangles, {"color": ARROW}, text=[text] * len(points))


_Mesh = tuple[NDArray[np.float64], NDArray[np.int_]]


def _mesh(
    go: Any,
    points: NDArray[np.float64],
    triangles: NDArray[np.int_],
    look: Mapping[str, Any],
    *,
    text: Sequence[str] | NDArray[np.str_] | None = None,
) -> Any:
    x, y, z = np.round(points, 4).T
    i, j, k = triangles.T
    return go.Mesh3d(
        x=x,
        y=y,
        z=z,
        i=i,
        j=j,
        k=k,
        text=text,
        hoverinfo="skip" if text is None else "text",
        lighting=LIGHTING,
        lightposition={"x": 1e4, "y": 1e4, "z": 2e4},
        **look,
    )


def _joined(meshes: Sequence[_Mesh]) -> _Mesh:
    first = np.cumsum([0, *(len(points) for points, _ in meshes)])
    triangles = [faces + start for (_, faces), start in zip(meshes, first[:-1], strict=True)]
    return np.concatenate([points for points, _ in meshes]), np.concatenate(triangles)


def _ball(rings: int = 10, around: int = 16) -> _Mesh:
    """A unit sphere: the poles, and rings between them."""
    theta = np.linspace(0, np.pi, rings + 1)[1:-1, None]
    phi = np.linspace(0, 2 * np.pi, around, endpoint=False)
    z = np.broadcast_to(np.cos(theta), (rings - 1, around))
    ring = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), z], axis=2)
    return _hull(np.concatenate([ring.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]]))


def _tube(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    radii: tuple[float, float],
    around: int = 12,
) -> _Mesh:
    """A cylinder, or a cone, with its ends closed."""
    along = (end - start) / np.linalg.norm(end - start)
    side = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    side /= np.linalg.norm(side)
    phi = np.linspace(0, 2 * np.pi, around, endpoint=False)[:, None]
    circle = np.cos(phi) * side + np.sin(phi) * np.cross(along, side)
    return _hull(np.concatenate([start + radii[0] * circle, end + radii[1] * circle]))


def _hull(points: NDArray[np.float64]) -> _Mesh:
    """The surface of a convex body, given its corners."""
    hull = ConvexHull(points)
    faces = hull.simplices
    # Qhull orders the corners of a face either way; plotly shades by the order.
    a, b, c = points[faces].transpose(1, 0, 2)
    inward = np.einsum("fx,fx->f", np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inward] = faces[inward, ::-1]
    return points, faces


def _plotly() -> Any:
    try:
        return importlib.import_module("plotly.graph_objects")
    except ImportError as error:
        raise ImportError(
            f"Pictures in three dimensions need plotly, which cannot be imported ({error}). "
            "Install it with: pip install 'dipolegnn[app]'"
        ) from error
