from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dipolegnn.molecules import (
    Failure,
    MoleculeError,
    from_smiles,
    read_failures,
    write_failures,
)


def test_error_reads_as_a_sentence_and_survives_pickling() -> None:
    error = MoleculeError("Too odd", remedy="Do this", molecule="CCO", row=3, source="a.smi")
    text = "a.smi, row 3, molecule 'CCO': Too odd. Do this."
    assert str(error) == text
    assert str(pickle.loads(pickle.dumps(error))) == text
    assert str(MoleculeError("Too odd")) == "Too odd."


def test_location_is_filled_in_and_not_overwritten() -> None:
    error = MoleculeError("Odd", molecule="CCO").located(molecule="x", row=0, source="a.smi")
    assert (error.molecule, error.row, error.source) == ("CCO", 0, "a.smi")
    assert error.located(row=5).row == 0


def test_failures_round_trip_through_csv(tmp_path: Path) -> None:
    with pytest.raises(MoleculeError) as caught:
        from_smiles("c1ccc", name='a "name", with comma', row=4)
    failures = [
        caught.value.failure("read", source="list.smi"),
        Failure("", None, "CCO", "label", "two\nlines; Å", ""),
    ]
    path = tmp_path / "failures.csv"
    write_failures(path, failures)
    assert read_failures(path) == failures
    assert failures[0].row == 4
    assert "unclosed ring" in failures[0].problem


def test_no_failures_still_write_a_header(tmp_path: Path) -> None:
    path = tmp_path / "failures.csv"
    write_failures(path, [])
    assert path.read_text().strip() == "source,row,molecule,stage,problem,remedy"
    assert read_failures(path) == []


def test_reading_another_table_as_failures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("smiles,name\nO,water\n")
    with pytest.raises(ValueError, match=r"not a failures table.*got smiles, name"):
        read_failures(path)
