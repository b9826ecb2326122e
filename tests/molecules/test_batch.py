from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import Molecules, SmilesRow, batch, conformers, embed_smiles
from dipolegnn.molecules.workers import Lost

ROWS = [
    SmilesRow(1, "O", "water", 1.85),
    SmilesRow(2, "c1ccc", "broken"),
    SmilesRow(4, "CCO"),
    SmilesRow(5, "C1#CC1", "strained"),
    SmilesRow(6, "N"),
]


def test_a_batch_loses_no_row_and_does_not_depend_on_the_number_of_workers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = ConformerConfig(conformers=3)
    one = embed_smiles(ROWS, config, source="list.smi")
    assert capfd.readouterr() == ("", "")
    two = embed_smiles(ROWS, config, source="list.smi", workers=2, progress=True)
    assert "Conformers" in capfd.readouterr().err
    assert [(f.row, f.molecule, f.stage) for f in one.failures] == [
        (2, "broken", "read"),
        (5, "strained", "embed"),
    ]
    assert all(failure.source == "list.smi" for failure in one.failures)
    ids = [data.mol_id.item() for data in one.data]
    assert ids == sorted(ids)
    assert set(ids) == {0, 2, 4}
    assert one.data[0].dipole_magnitude.item() == pytest.approx(1.85)
    assert one.data[1].dipole_magnitude.isnan().all()
    assert two.failures == one.failures
    for a, b in zip(one.data, two.data, strict=True):
        assert torch.equal(a.pos, b.pos)
        assert (a.name, a.mol_id, a.energy, a.mol_block) == (
            b.name,
            b.mol_id,
            b.energy,
            b.mol_block,
        )


def test_an_empty_batch() -> None:
    assert embed_smiles([], ConformerConfig(), workers=2) == Molecules([], [], [])


def test_no_workers() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        embed_smiles([], ConformerConfig(), workers=0)


def test_a_molecule_that_takes_its_worker_along_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out_of_order(function: Any, tasks: Any, **_: object) -> Iterator[tuple[int, object]]:
        yield 1, Lost("not finished after 360 s")
        yield 2, function(tasks[2])
        yield 0, function(tasks[0])

    monkeypatch.setattr(batch, "run_tasks", out_of_order)
    rows = [SmilesRow(1, "O"), SmilesRow(2, "CC", "hanging"), SmilesRow(3, "N")]
    found = embed_smiles(rows, ConformerConfig(), workers=2)
    assert [data.name for data in found.data] == ["O", "N"]
    (failure,) = found.failures
    assert (failure.row, failure.molecule, failure.stage) == (2, "hanging", "embed")
    assert "not finished after 360 s" in failure.problem


def test_an_error_of_rdkits_own_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(mol: object) -> None:
        raise RuntimeError("Invariant Violation")

    monkeypatch.setattr(conformers, "_minimize", break_down)
    found = embed_smiles([SmilesRow(1, "O"), SmilesRow(2, "N")], ConformerConfig())
    assert [failure.row for failure in found.failures] == [1, 2]
    assert "Invariant Violation" in found.failures[0].problem
