from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import (
    Failure,
    Molecules,
    SmilesRow,
    chemistry,
    embed_smiles,
    embedding,
    from_smiles,
    text_of,
)
from dipolegnn.molecules.records import Record, RecordFile
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


class CrashingPool:
    """Does the work of one worker in this process, the last task first; ``Lost`` for some rows."""

    lost_rows: ClassVar[set[int]]

    def __init__(self, function: partial[Any], **_: object) -> None:
        self.function = function
        self.given: list[tuple[int, list[Record]]] = []

    def __enter__(self) -> CrashingPool:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def full(self) -> bool:
        return len(self.given) >= 3

    def give(self, index: int, records: list[Record]) -> None:
        self.given.append((index, records))

    def results(self) -> Iterator[tuple[int, object]]:
        if not self.given:
            return
        index, records = self.given.pop()
        if self.lost_rows & {record.row for record in records}:
            yield index, Lost("not finished after 360 s")
        else:
            yield index, self.function(records)


@pytest.fixture
def last_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrashingPool, "lost_rows", set(), raising=False)
    monkeypatch.setattr(embedding, "Pool", CrashingPool)


@pytest.fixture
def second_is_lost(last_comes_first: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrashingPool, "lost_rows", {2})


@pytest.mark.usefixtures("second_is_lost")
def test_a_molecule_that_takes_its_worker_along_is_a_failure() -> None:
    rows = [SmilesRow(1, "O"), SmilesRow(2, "CC", "hanging"), SmilesRow(3, "N")]
    found = embed_smiles(rows, ConformerConfig(), workers=2)
    assert [data.name for data in found.data] == ["O", "N"]
    (failure,) = found.failures
    assert (failure.row, failure.molecule, failure.stage) == (2, "hanging", "embed")
    assert "not finished after 360 s" in failure.problem


@pytest.mark.usefixtures("second_is_lost")
def test_a_structure_that_takes_its_worker_along_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "three.sdf"
    path.write_text(text_of([from_smiles(smiles)[0] for smiles in ("CCO", "CC=O", "O")], ".sdf"))
    with RecordFile(path) as file:
        outcomes = embedding.embed_records(file, ConformerConfig(), workers=2)
        first, second, third = (found for _, found in outcomes)
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert isinstance(second, Failure)
    assert (second.row, second.source, second.stage) == (2, "three.sdf", "read")
    assert "not finished after 360 s" in second.problem


@pytest.mark.usefixtures("last_comes_first")
def test_records_are_read_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "WINDOW", 5)
    read = 0

    def records() -> Iterator[Record]:
        nonlocal read
        for read in range(1, 101):
            yield Record(read, SmilesRow(read, "[He]"))

    rows = []
    for record, outcome in embedding.embed_records(records(), ConformerConfig(), workers=2):
        assert isinstance(outcome, list)
        assert read - record.row < 5
        rows.append(record.row)
    assert rows == list(range(1, 101))


def test_an_error_of_rdkits_own_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(mol: object, limit: int) -> None:
        raise RuntimeError("Invariant Violation")

    monkeypatch.setattr(chemistry, "_minimize", break_down)
    found = embed_smiles([SmilesRow(1, "O"), SmilesRow(2, "N")], ConformerConfig())
    assert [failure.row for failure in found.failures] == [1, 2]
    assert "Invariant Violation" in found.failures[0].problem


def test_a_molecule_beyond_the_limit_of_size_costs_no_time() -> None:
    rows = [SmilesRow(1, "C" * 3000, "polyethylene"), SmilesRow(2, "O"), SmilesRow(3, "CCO")]
    start = time.monotonic()
    found = embed_smiles(rows, ConformerConfig(max_atoms=8))
    assert time.monotonic() - start < 10  # embedded, it would be minutes
    assert [data.name for data in found.data] == ["O"]
    assert [failure.problem for failure in found.failures] == [
        "It has 9,002 atoms, and SMILES are embedded with up to 8",
        "It has 9 atoms, and SMILES are embedded with up to 8",
    ]
    assert all("--max-atoms" in failure.remedy for failure in found.failures)
    assert from_smiles("CCO")[0].z.numel() == 9


def test_a_molecule_beyond_the_limit_of_time_is_a_failure() -> None:
    rows = [SmilesRow(1, "O"), SmilesRow(2, "C" * 120, "long"), SmilesRow(3, "N")]
    start = time.monotonic()
    found = embed_smiles(rows, ConformerConfig(embed_time_limit=1), workers=2)
    assert time.monotonic() - start < 60
    assert [data.name for data in found.data] == ["O", "N"]
    (failure,) = found.failures
    assert (failure.row, failure.molecule, failure.stage) == (2, "long", "embed")
    assert " 1 s" in failure.problem or "not finished after 6 s" in failure.problem


def test_too_little_memory_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(mol: object, limit: int) -> None:
        raise MemoryError

    monkeypatch.setattr(chemistry, "_minimize", too_much)
    (failure,) = embed_smiles([SmilesRow(1, "O")], ConformerConfig()).failures
    assert failure.problem == "There is not enough memory for it"
    assert "--embed-memory-limit" in failure.remedy


@pytest.mark.parametrize("name", ["max_atoms", "embed_time_limit", "embed_memory_limit"])
def test_limits_are_positive(name: str) -> None:
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        ConformerConfig(**limits)
