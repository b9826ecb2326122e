"""Errors by size, by element and by magnitude."""

from __future__ import annotations

import numpy as np
import pytest

from dipolegnn.metrics import breakdown

MOLECULES = [[1, 1], [8, 1, 1], [6] * 10 + [17, 8], [6] * 30, [7, 1, 1, 1]]
REFERENCE = [0.0, 1.85, 2.0, 12.0, np.nan]
PREDICTED = [0.1, 1.75, 2.4, 11.0, 1.5]


def test_each_molecule_is_counted_where_it_belongs() -> None:
    found = {(g.by, g.name): g for g in breakdown(MOLECULES, REFERENCE, PREDICTED)}
    counts = {key: group.molecules for key, group in found.items()}
    assert counts == {
        ("size", "1–3"): 2,
        ("size", "10–14"): 1,
        ("size", "25 or more"): 1,
        ("element", "C, H only"): 2,
        ("element", "O"): 2,
        ("element", "Cl"): 1,
        ("magnitude", "0–1 D"): 1,
        ("magnitude", "1–2 D"): 1,
        ("magnitude", "2–4 D"): 1,
        ("magnitude", "10 D or more"): 1,
    }
    oxygen = found["element", "O"]
    assert oxygen.mae == pytest.approx(0.25)
    assert oxygen.bias == pytest.approx(0.15)


def test_groups_by_size_and_by_magnitude_share_nothing_and_leave_nothing_out() -> None:
    rng = np.random.default_rng(0)
    numbers = [[6] * int(n) for n in rng.integers(1, 60, 200)]
    reference, predicted = rng.exponential(3, 200), rng.exponential(3, 200)
    groups = breakdown(numbers, reference, predicted)
    for by in ("size", "magnitude"):
        some = [group for group in groups if group.by == by]
        assert sum(group.molecules for group in some) == 200
        mae = sum(group.mae * group.molecules for group in some) / 200
        assert mae == pytest.approx(np.abs(predicted - reference).mean())


def test_nothing_known_and_lengths() -> None:
    assert breakdown([[6]], [np.nan], [1.0]) == []
    assert breakdown([], [], []) == []
    with pytest.raises(ValueError, match="got 1, 2 and 2"):
        breakdown([[6]], [1.0, 2.0], [1.0, 2.0])
