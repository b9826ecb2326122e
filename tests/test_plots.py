from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from dipolegnn.metrics import breakdown
from dipolegnn.plots import draw_molecule, error_bars, learning_curve, parity_plot
from dipolegnn.plots.molecule import ANGSTROM_PER_DEBYE, LONGEST_ARROW, view

HISTORY = [
    {"epoch": 1.0, "lr": 1e-3, "train/loss": 2.0, "val/loss": 1.5, "val/dipole_mae": 0.9},
    {"epoch": 2.0, "lr": 5e-4, "train/loss": 1.0, "val/loss": 0.7, "val/dipole_mae": 0.4},
    {"epoch": 3.0, "lr": 0.0, "train/loss": 0.5, "val/loss": 0.8, "val/dipole_mae": 0.5},
]


def words(figure: Figure) -> str:
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    return "\n".join([*texts, *(axes.get_title() for axes in figure.axes)])


def arrow(figure: Figure) -> FancyArrowPatch:
    arrows = [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]
    return arrows[-1]


@pytest.mark.parametrize("count", [1, 30, 3000])
def test_parity_states_number_and_errors(tmp_path: Path, count: int) -> None:
    reference = np.random.default_rng(0).uniform(0, 5, count)
    figure = parity_plot(np.append(reference, np.nan), np.append(reference + 0.5, 1.0), "title")
    assert f"{count:,} molecules\nMAE 0.500 D\nRMSE 0.500 D" in words(figure)
    assert "title" in words(figure)
    figure.savefig(tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 5000


def test_parity_counts_points_outside_the_axes() -> None:
    error = np.zeros(500)
    error[7] = 3.0
    assert "drawn at the edges: 1 larger" in words(parity_plot(np.ones(500), np.ones(500) + error))


@pytest.mark.parametrize(
    ("reference", "predicted", "message"),
    [([1.0, 2.0], [1.0], r"shapes \(2,\) and \(1,\)"), ([np.nan], [1.0], "None of the 1")],
)
def test_parity_refuses(reference: list[float], predicted: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parity_plot(reference, predicted)


def test_error_bars_show_each_group(tmp_path: Path) -> None:
    groups = breakdown([[8, 1, 1], [6, 1, 1, 1, 1], [7, 1, 1, 1]], [1.8, 0.0, 1.5], [1.9, 0.2, 1.1])
    figure = error_bars(groups, "title")
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert [label.get_text() for label in panels["molecules with"].get_yticklabels()] == [
        *("C, H only", "N", "O")
    ]
    bars = [
        bar.get_width() for bar in panels["molecules with"].patches if isinstance(bar, Rectangle)
    ]
    assert bars == pytest.approx([0.2, 0.4, 0.1])
    biases = np.asarray(panels["molecules with"].collections[0].get_offsets())[:, 0]
    assert biases == pytest.approx([0.2, -0.4, 0.1])
    assert "0.400 D, 1 molecule\n" in words(figure)
    figure.savefig(tmp_path / "errors.png")
    with pytest.raises(ValueError, match="no molecule has a reference"):
        error_bars([])


def test_a_small_group_does_not_hide_the_others() -> None:
    many = breakdown([[6]] * 20 + [[7]], [1.0] * 21, [1.1] * 20 + [5.0])
    figure = error_bars(many)
    assert "4.000 D, bias +4.000 D,\n1 molecule, drawn at the edge" in words(figure)
    panel = next(axes for axes in figure.axes if axes.get_ylabel() == "molecules with")
    assert panel.get_xlim()[1] < 1


def test_learning_curve_marks_the_best_epoch(tmp_path: Path) -> None:
    figure = learning_curve(HISTORY, "a run")
    assert "a run\nbest epoch 2: validation MAE 0.400 D" in words(figure)
    validation = figure.axes[0].lines[1]
    assert list(np.asarray(validation.get_ydata())) == [1.5, 0.7, 0.8]
    figure.savefig(tmp_path / "curve.png")  # The rate of 0 has no place on a log axis.


def test_learning_curve_of_one_epoch_and_of_none(tmp_path: Path) -> None:
    learning_curve(HISTORY[:1]).savefig(tmp_path / "curve.png")
    with pytest.raises(ValueError, match="0 epochs"):
        learning_curve([])


def test_learning_curve_with_a_rate_of_zero(tmp_path: Path) -> None:
    row = {"epoch": 1.0, "lr": 0.0, "train/loss": 0.5, "val/loss": 0.4}
    learning_curve([row]).savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_water_with_its_arrow(tmp_path: Path) -> None:
    water = molecule("H2O")
    hydrogens = water.positions[1:].mean(axis=0)
    mu = 1.85 * (hydrogens - water.positions[0]) / np.linalg.norm(hydrogens - water.positions[0])
    figure = draw_molecule(water.numbers, water.positions, mu, title="water")
    assert "|μ| = 1.85 D" in words(figure)
    assert "from – to +, 0.75 Å per D" in words(figure)
    figure.savefig(tmp_path / "water.png")

    # In the picture as in space: the arrow runs from oxygen (the largest ball) to the hydrogens.
    balls = [p for p in figure.axes[0].patches if isinstance(p, Circle) and p.get_linewidth() > 0.5]
    centres = np.array([ball.get_center() for ball in balls])
    towards_hydrogen = centres[1:].mean(axis=0) - centres[0]
    start, end = np.array(arrow(figure)._posA_posB)  # type: ignore[attr-defined]
    assert (end - start) @ towards_hydrogen > 0
    assert np.linalg.norm(end - start) == pytest.approx(0.75 * 1.85, rel=0.05)
    assert len(figure.axes[0].lines) == 2 * 3  # Two bonds, three strokes each.


def test_a_chiral_molecule_is_not_shown_as_its_mirror_image() -> None:
    # Seen from the front, with the first ball behind, the other three turn one way or the other.
    tetrahedron = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * [1.0, 1.2, 1.5]
    for mu in ([0.1, 0.2, 0.3], [-1.0, 0.5, -2.0], None):
        turn = view(tetrahedron, None if mu is None else np.array(mu))
        assert np.linalg.det(turn) == pytest.approx(1.0)
        assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-12)


def test_a_long_dipole_gets_a_smaller_scale_and_none_no_arrow() -> None:
    argon = draw_molecule([18], [[0.0, 0.0, 0.0]], [0.0, 0.0, 0.0])
    assert "|μ| = 0.00 D" in words(argon)
    assert not any(isinstance(p, FancyArrowPatch) for p in argon.axes[0].patches)
    far = draw_molecule([11, 17], [[0.0, 0, 0], [0, 0, 6.0]], [0.0, 0.0, -28.8])
    assert "0.21 Å per D" in words(far)
    assert len(far.axes[0].lines) == 0  # Too far apart for a bond.
    plain = draw_molecule([18], [[0.0, 0.0, 0.0]], magnitude=0.5, half_width=0.12)
    assert "|μ| = 0.50 ± 0.12 D" in words(plain)


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    figure = draw_molecule([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]], title=r"$5 and \frac{$ $6")
    figure.savefig(tmp_path / "h2.svg")
    assert "frac" in words(figure)


def test_draw_molecule_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"z must be \[N\] and pos \[N, 3\]"):
        draw_molecule([1, 1], [[0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=r"one vector \[3\]"):
        draw_molecule([1], [[0.0, 0.0, 0.0]], [1.0, 2.0])


@pytest.mark.parametrize("length", [0.5, 1.85, 12.0])
def test_the_arrow_in_space_is_to_scale(length: float) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed (extra app)")
    from dipolegnn.plots.scene import scene

    water = molecule("H2O")
    direction = np.array([0.0, 0.6, 0.8])
    figure = scene(water.numbers, water.positions, length * direction)
    arrow = figure.data[-1]
    points = np.stack([arrow.x, arrow.y, arrow.z], axis=1) @ direction
    assert np.ptp(points) == pytest.approx(
        min(ANGSTROM_PER_DEBYE * length, LONGEST_ARROW), rel=0.02
    )
    scale = re.search(r"([\d.]+) Å per D", str(figure.layout.annotations))
    assert scale
    assert np.ptp(points) == pytest.approx(float(scale[1]) * length, rel=0.02)


class TestConformers:
    def test_area_is_weight_and_the_band_is_the_interval(self) -> None:
        weights = pytest.importorskip(
            "dipolegnn.plots.conformers", reason="plotly is not installed"
        )
        figure = weights.conformer_plot(
            [0.0, 0.5, 1.0],
            [1.0, 2.0, 4.0],
            [0.64, 0.32, 0.04],
            average=1.44,
            half_width=0.5,
            selected=1,
        )
        (points,) = figure.data
        assert list(points.x) == [0.0, 0.5, 1.0]
        assert list(points.y) == [1.0, 2.0, 4.0]
        size = np.array(points.marker.size)
        np.testing.assert_allclose((size / size[0]) ** 2, [1.0, 0.5, 0.0625], rtol=1e-6)
        assert [color == weights.RED for color in points.marker.line.color] == [False, True, False]
        line, band = figure.layout.shapes
        assert line.y0 == line.y1 == 1.44
        assert (band.y0, band.y1) == (pytest.approx(0.94), pytest.approx(1.94))
        low, high = figure.layout.yaxis.range
        assert low < 0
        assert high > 4.0
        assert "1.440 ± 0.500 D" in figure.layout.title.text

    def test_without_an_interval(self) -> None:
        weights = pytest.importorskip(
            "dipolegnn.plots.conformers", reason="plotly is not installed"
        )
        for width in (None, np.inf):
            figure = weights.conformer_plot([0.0], [0.0], [1.0], average=0.0, half_width=width)
            assert len(figure.layout.shapes) == 1
            assert "nan" not in str(figure.layout).lower()

    def test_wrong_sizes(self) -> None:
        weights = pytest.importorskip(
            "dipolegnn.plots.conformers", reason="plotly is not installed"
        )
        with pytest.raises(ValueError, match=r"as many energies as magnitudes and weights"):
            weights.conformer_plot([0.0, 1.0], [0.0], [1.0], average=0.0)
