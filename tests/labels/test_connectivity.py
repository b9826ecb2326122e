"""When a relaxation has made another molecule."""

from __future__ import annotations

import numpy as np

from dipolegnn.labels.run import changed_bonds

# Water beside ammonia, O-H pointing at N.
Z = np.array([8, 1, 1, 7, 1, 1, 1])
POS = np.array(
    [
        [0.0, 0.0, 0.0],
        [0.97, 0.0, 0.0],
        [-0.24, 0.93, 0.0],
        [2.9, 0.0, 0.0],
        [3.27, 0.94, 0.0],
        [3.27, -0.47, 0.81],
        [3.27, -0.47, -0.81],
    ]
)


def test_nothing_changed() -> None:
    assert changed_bonds(Z, POS, POS) == []


def test_vibration_is_no_change() -> None:
    moved = POS + np.random.default_rng(0).normal(scale=0.05, size=POS.shape)
    assert changed_bonds(Z, POS, moved) == []


def test_proton_transfer_breaks_one_bond_and_forms_another() -> None:
    moved = POS.copy()
    moved[1] = [1.85, 0.0, 0.0]
    assert changed_bonds(Z, POS, moved) == [(0, 1), (1, 3)]


def test_molecules_that_separate_have_no_bond() -> None:
    moved = POS.copy()
    moved[3:] += [3.0, 0.0, 0.0]
    assert changed_bonds(Z, POS, moved) == []


def test_slight_stretch_across_the_threshold_is_no_change() -> None:
    # Cl-C 1.77 Å in chloromethane; from 2.20 Å (bonded) to 2.30 Å (neither).
    z, before = np.array([6, 17]), np.array([[0.0, 0, 0], [2.20, 0, 0]])
    assert changed_bonds(z, before, before * 2.30 / 2.20) == []
    assert changed_bonds(z, before, before * 2.80 / 2.20) == [(0, 1)]
