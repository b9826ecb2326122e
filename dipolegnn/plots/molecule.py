"""A molecule with its dipole moment, as a drawing."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

GREY, ARROW = "#8a8a8a", "#b3123f"

BOND_TOLERANCE = 1.25
"""Atoms closer than this times the sum of their covalent radii are drawn with a bond."""

ANGSTROM_PER_DEBYE = 0.75
"""Length of the arrow per debye."""

LONGEST_ARROW = 6.0
"""Longest arrow, in angstrom: for a larger dipole the scale, stated in the figure, is smaller."""

_WIDTH_POINTS = 6.0 * 72  # width of the figure


def draw_molecule(
    z: ArrayLike,
    pos: ArrayLike,
    dipole: ArrayLike | None = None,
    *,
    magnitude: float | None = None,
    half_width: float | None = None,
    title: str = "",
) -> Figure:
    """A molecule as balls and sticks with its dipole moment, which points from - to +.

    The view is along the direction of the smallest extent, with the arrow approximately in the
    plane of the paper; distant atoms are paler. The arrow is centred on the molecule. Bonds are
    perceived from the distances.

    Args:
        z: Atomic numbers ``[N]``.
        pos: Positions ``[N, 3]`` in angstrom.
        dipole: Dipole moment ``[3]`` in debye; None or NaN: no arrow.
        magnitude: Magnitude in debye, stated if there is no vector.
        half_width: Error bar of the magnitude, in debye; None: no error bar.
        title: Name of the molecule.

    Returns:
        The figure.

    Raises:
        ValueError: If the shapes are inconsistent.
    """
    numbers, xyz, mu = checked(z, pos, dipole)
    turn = view(xyz, mu)
    xyz = (xyz - xyz.mean(axis=0)) @ turn.T
    figure = Figure(figsize=(6.0, 5.4), layout="constrained")
    axes = figure.subplots()
    reach = np.abs(xyz[:, :2]).max(axis=0) + 1.0
    bar = "" if half_width is None else f" ± {half_width:.2f}"
    caption = "" if magnitude is None else f"|μ| = {magnitude:.2f}{bar} D"
    if mu is not None:
        length = float(np.linalg.norm(mu))
        scale = arrow_scale(length)
        tip = scale * (turn @ mu)[:2] / 2
        reach = np.maximum(reach, np.abs(tip) + 0.7)
        if np.linalg.norm(tip) > 0.02:
            _draw_arrow(axes, tip)
        caption = f"|μ| = {length:.2f}{bar} D"
        note, at = f"arrow from – to +, {scale:.2f} Å per D", axes.transAxes
        axes.text(0.99, 0.01, note, transform=at, ha="right", fontsize=9, color=GREY)
    _draw_balls_and_sticks(axes, numbers, xyz, _WIDTH_POINTS / (2 * float(reach.max())))
    axes.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=14, parse_math=False)  # names may contain $
    axes.text(0.01, 0.01, caption, transform=axes.transAxes, fontsize=13, color=ARROW)
    for number in sorted(set(numbers.tolist()), key=lambda n: (n != 6, n != 1, n)):
        look = {"color": jmol_colors[number], "edgecolors": GREY, "linewidths": 0.6}
        axes.scatter([], [], s=70, label=chemical_symbols[number], **look)
    axes.legend(frameon=False, loc="upper right", handletextpad=0.1, borderaxespad=0)
    return figure


def checked(
    z: ArrayLike, pos: ArrayLike, dipole: ArrayLike | None
) -> tuple[NDArray[np.int_], NDArray[np.float64], NDArray[np.float64] | None]:
    """Atomic numbers ``[N]``, positions ``[N, 3]`` and dipole ``[3]`` as arrays.

    Raises:
        ValueError: If the shapes are inconsistent.
    """
    numbers = np.asarray(z, dtype=int).reshape(-1)
    xyz = np.asarray(pos, dtype=float)
    if xyz.shape != (len(numbers), 3) or len(numbers) == 0:
        raise ValueError(
            f"z must be [N] and pos [N, 3], got the shapes {np.shape(z)} and {xyz.shape}."
        )
    if dipole is None:
        return numbers, xyz, None
    mu = np.asarray(dipole, dtype=float).reshape(-1)
    if mu.shape != (3,):
        raise ValueError(f"The dipole must be one vector [3], got the shape {mu.shape}.")
    return numbers, xyz, mu if np.isfinite(mu).all() else None


def arrow_scale(length: float) -> float:
    """Scale of the arrow of a dipole moment of this magnitude, in angstrom per debye."""
    return min(ANGSTROM_PER_DEBYE, LONGEST_ARROW / max(length, 1e-9))


def ball_radii(numbers: NDArray[np.int_]) -> NDArray[np.float64]:
    """Radii of the drawn atoms, in angstrom."""
    radii: NDArray[np.float64] = 0.25 + 0.28 * (covalent_radii[numbers] - 0.31)
    return radii


def bonds(numbers: NDArray[np.int_], xyz: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of atoms that are close enough for a bond."""
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=2)
    radii = covalent_radii[numbers]
    bonded = distance < BOND_TOLERANCE * (radii[:, None] + radii[None])
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(bonded, k=1))]


def view(xyz: NDArray[np.float64], mu: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Rotation with the rows right, up and towards the viewer, in which few atoms are hidden."""
    centred = xyz - xyz.mean(axis=0)
    spread = centred.T @ centred
    if mu is not None and np.linalg.norm(mu) > 1e-3:
        # The ends of the arrow count as two atoms, so that the view is not along the arrow.
        tip = ANGSTROM_PER_DEBYE * mu
        spread = spread + np.outer(tip, tip)
    axes = np.linalg.eigh(spread)[1].T[::-1]  # longest first
    if np.linalg.det(axes) < 0:  # a left-handed view would show the mirror image
        axes[2] *= -1
    if mu is not None:
        right, up = np.sign(axes[:2] @ mu)
        flip = np.array([right or 1.0, up or 1.0, 0.0])
        flip[2] = flip[0] * flip[1]
        axes = axes * flip[:, None]
    # A small rotation separates atoms that are exactly behind each other.
    turn: NDArray[np.float64] = Rotation.from_euler("yx", [15.0, 12.0], degrees=True).as_matrix()
    return turn @ axes


def _draw_balls_and_sticks(
    axes: Axes, numbers: NDArray[np.int_], xyz: NDArray[np.float64], points: float
) -> None:
    """Draws the atoms and bonds; ``points`` is the length of an angstrom on paper."""
    depth = xyz[:, 2]
    haze = 0.45 * (depth.max() - depth) / max(float(np.ptp(depth)), 4.0)  # 0 in front
    radii = ball_radii(numbers)
    for i in range(len(numbers)):
        base = _paler(jmol_colors[numbers[i]], float(haze[i]))
        # Circles from a dark rim to a highlight at the upper left.
        for step in np.linspace(0, 1, 14):
            x, y = xyz[i, :2] + 0.32 * radii[i] * step * np.array([-0.7, 0.7])
            color = 0.62 * base + 0.38 * base * min(1.0, 2 * step)
            ball = Circle(
                (x, y),
                radii[i] * (1 - 0.93 * step),
                facecolor=_paler(color, 0.75 * max(0.0, 2 * step - 1) ** 2),
                edgecolor=0.35 * base if step == 0 else "none",
                linewidth=0.8,
                zorder=10 + depth[i],
            )
            axes.add_patch(ball)
    for i, j in bonds(numbers, xyz):
        along = xyz[j] - xyz[i]
        along /= np.linalg.norm(along)
        ends = xyz[i] + 0.85 * radii[i] * along, xyz[j] - 0.85 * radii[j] * along
        line = np.array(ends)[:, :2].T
        shade = 0.35 + 0.5 * float(haze[i] + haze[j]) / 2
        behind = 10 + min(depth[i], depth[j]) - 0.01
        for width, tone in ((0.2, shade), (0.14, shade + 0.22), (0.05, shade + 0.4)):
            stick = axes.plot(*line, color=str(min(tone, 0.97)), linewidth=width * points)[0]
            stick.set(solid_capstyle="round", zorder=behind)


def _draw_arrow(axes: Axes, tip: NDArray[np.float64]) -> None:
    for width, color, order in ((6.0, "white", 98), (3.0, ARROW, 99)):
        arrow = FancyArrowPatch(
            (-tip[0], -tip[1]),
            (tip[0], tip[1]),
            arrowstyle="-|>,head_length=7,head_width=4",
            mutation_scale=1.6,
            linewidth=width,
            color=color,
            shrinkA=0,
            shrinkB=0,
            alpha=0.9,
            zorder=order,
        )
        axes.add_patch(arrow)


def _paler(color: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    return np.clip(color + (1 - color) * by, 0, 1)
