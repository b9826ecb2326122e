from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn.molecules import (
    Failure,
    MoleculeError,
    from_smiles,
    make_data,
    read_failures,
    write_failures,
)
from dipolegnn.units import FIELD_UNITS

WATER_Z = [8, 1, 1]
WATER_POS = [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]


def test_every_field_is_there_with_its_shape_and_type() -> None:
    data = make_data(WATER_Z, WATER_POS)
    assert set(data.keys()) == set(FIELD_UNITS)
    shapes = {
        "z": (torch.int64, (3,)),
        "pos": (torch.float32, (3, 3)),
        "charge": (torch.float32, (1,)),
        "dipole": (torch.float32, (1, 3)),
        "dipole_magnitude": (torch.float32, (1,)),
        "atomic_charges": (torch.float32, (3,)),
        "energy": (torch.float32, (1,)),
        "mol_id": (torch.int64, (1,)),
    }
    for field, (dtype, shape) in shapes.items():
        assert data[field].dtype == dtype
        assert tuple(data[field].shape) == shape
    for label in ("dipole", "dipole_magnitude", "atomic_charges", "energy"):
        assert data[label].isnan().all()


def test_lists_arrays_and_tensors_give_the_same_and_share_no_memory() -> None:
    pos = torch.tensor(WATER_POS)
    from_tensors = make_data(torch.tensor(WATER_Z), pos)
    from_arrays = make_data(np.array(WATER_Z), np.array(WATER_POS))
    assert torch.equal(from_tensors.pos, make_data(WATER_Z, WATER_POS).pos)
    assert torch.equal(from_tensors.pos, from_arrays.pos)
    pos.zero_()
    assert from_tensors.pos[1, 0].item() == pytest.approx(0.96)


def test_magnitude_is_the_length_of_the_vector() -> None:
    data = make_data(WATER_Z, WATER_POS, dipole=[[3.0, 0.0, 4.0]])
    assert data.dipole_magnitude.item() == 5.0
    only_magnitude = make_data(WATER_Z, WATER_POS, dipole=[math.nan] * 3, dipole_magnitude=1.85)
    assert only_magnitude.dipole_magnitude.item() == pytest.approx(1.85)
    assert only_magnitude.dipole.isnan().all()


def test_name_falls_back_to_smiles() -> None:
    assert make_data(WATER_Z, WATER_POS, smiles="O").name == "O"
    assert make_data(WATER_Z, WATER_POS, smiles="O", name="water").name == "water"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"z": []}, "at least one atom"),
        ({"z": [0, 1, 1]}, "atomic number 0"),
        ({"z": [119, 1, 1]}, "atomic number 119"),
        ({"z": [8, 1]}, r"coordinates of shape \[2, 3\], got \[3, 3\]"),
        ({"z": [8, 1.5, 1]}, "no element"),
        ({"pos": [[0, 0, 0], [0.96, 0, 0], [math.nan, 0.93, 0]]}, r"Atom 3 \(H\).*not finite"),
        ({"pos": [[0, 0, 0], [0.96, 0, 0], [math.inf, 0.93, 0]]}, "not finite"),
        ({"pos": [[0, 0, 0], [0.96, 0, 0], [0.96, 0, 0.01]]}, "2 .H. and 3 .H. are 0.010 ang"),
        ({"pos": [[0, 0, 0], [0.96, 0, 0], [1e7, 0, 0]]}, "too large"),
        ({"pos": "abc"}, "not an array of numbers"),
        ({"charge": 1}, "9 electrons.*radical.*give its charge"),
        ({"charge": 10}, "no electron is left"),
        ({"charge": 0.5}, "whole number"),
        ({"charge": math.nan}, "whole number"),
        ({"dipole": [1.0, 2.0]}, r"shape \[3\], got \[2\]"),
        ({"dipole": [1.0, 2.0, math.nan]}, "not finite"),
        ({"dipole": [1.0, 0.0, 0.0], "dipole_magnitude": 4.8}, "length 1.000 D.*4.800 D.*units"),
        ({"dipole_magnitude": -1.0}, "0 D or more"),
        ({"atomic_charges": [0.1]}, r"atomic charges of shape \[3\], got \[1\]"),
        ({"atomic_charges": [0.1, math.nan, 0.1]}, "not finite"),
        ({"energy": math.inf}, "energy is inf"),
    ],
)
def test_refused(changes: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"z": WATER_Z, "pos": WATER_POS, "name": "odd water"}
    arguments.update(changes)
    with pytest.raises(MoleculeError, match=words) as caught:
        make_data(**arguments)  # type: ignore[arg-type]
    assert caught.value.molecule == "odd water"
    assert caught.value.remedy


def test_one_atom_and_an_ion() -> None:
    assert make_data([2], [[0, 0, 0]]).pos.shape == (1, 3)
    hydroxide = make_data([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], charge=-1)
    assert hydroxide.charge.item() == -1.0


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
