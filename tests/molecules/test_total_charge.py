"""Total charges under the names of the field, and warnings about what is not used."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from dipolegnn.molecules import MoleculeError, from_ase
from dipolegnn.molecules.files import read_file, read_text
from dipolegnn.molecules.records import import_pyarrow, read_records
from dipolegnn.molecules.total_charge import is_charge_name, is_like_a_label

ATOMS = "O 0 0 0\nH 0 0 0.97\n"
EXTENDED = "Properties=species:S:1:pos:R:3"
SDF = """\
hydroxide
  any program     3D

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    0.0000    0.9700 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0  0  0  0
M  CHG  1   1  -1
M  END
>  <{name}>
{value}

"""


def remarks(text: str, name: str) -> list[str]:
    return [remark for record in read_records(text, name) for remark in record.remarks]


@pytest.mark.parametrize(
    "name",
    ["charge", "Charge", "CHARGE", "total_charge", "totalCharge", "net_charge", "q", "Q", "qtot"],
)
@pytest.mark.parametrize("value", ["-1", '"-1"', "-1.0"])
def test_names_of_a_total_charge_in_xyz(name: str, value: str) -> None:
    for file, comment in (
        ("a.xyz", f"hydroxide {name}={value}"),
        ("a.xyz", f"hydroxide, {name}: {value}"),
        ("a.extxyz", f"{EXTENDED} {name}={value} name=hydroxide"),
    ):
        text = f"2\n{comment}\n{ATOMS}"
        (data,) = read_text(text, file).data
        assert (data.charge.item(), data.name.strip(",")) == (-1.0, "hydroxide")
        assert remarks(text, file) == []


def test_names() -> None:
    names = ["Total charge", "PUBCHEM_TOTAL_CHARGE", "charge (e)", "charge_e", "formal-charge"]
    assert all(map(is_charge_name, names))
    others = [
        "charges",
        "initial_charges",
        "partial_charge",
        "charge_method",
        "surcharge",
        "quality",
    ]
    assert not any(map(is_charge_name, others))
    assert all(map(is_like_a_label, [*names, "mu_x", "DFT_dipole", "MULLIKEN_CHARGES"]))
    assert not any(map(is_like_a_label, ["multiplicity", "mutagenic", "emu2", "energy", "smiles"]))


@pytest.mark.parametrize(
    ("file", "comment"),
    [
        ("a.xyz", "charge=-1 q=+1"),
        ("a.xyz", "Total charge: -1; charge=0"),
        ("a.extxyz", f"{EXTENDED} charge=-1 total_charge=1"),
        ("a.extxyz", f"{EXTENDED} charge=-1 charge=1"),
        ("a.extxyz", f"{EXTENDED} charge: -1 q=1"),
    ],
)
def test_total_charges_that_differ_are_an_error(file: str, comment: str) -> None:
    found = read_text(f"2\nname {comment}\n{ATOMS}2\n{comment.replace('+', '-')}\n{ATOMS}", file)
    failure = found.failures[0]
    assert (failure.source, failure.row) == (file, 1)
    assert failure.problem.startswith("Two total charges are stated: ")
    assert "= -1 e" in failure.problem
    assert "= +1 e" in failure.problem or "= +0 e" in failure.problem


def test_total_and_atomic_charges() -> None:
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.97]])
    atoms.calc = SinglePointCalculator(atoms, charges=[-1.23, 0.22])
    assert from_ase(atoms).charge.item() == -1.0  # rounded: -1.01
    atoms.info["q"] = 1
    with pytest.raises(MoleculeError, match=r"\+1 e and the sum of the atomic charges -1"):
        from_ase(atoms)
    assert from_ase(atoms, charge=-1).charge.item() == -1.0
    atoms.info = {"q": [-1.2, 0.2]}  # of the atoms
    assert from_ase(atoms).charge.item() == -1.0
    atoms.info = {"charge": True}  # what ASE reads from "charge -1"
    with pytest.raises(MoleculeError, match="The charge is True, expected a number"):
        from_ase(atoms)


def test_values_that_are_not_used_give_a_warning() -> None:
    comment = f'{EXTENDED}:mulliken:R:1 Dipole="0 0 1" q="-1.2 0.2" charge=-1 name="charge: 7"'
    text = f"2\n{comment}\nO 0 0 0 -1.2\nH 0 0 0.97 0.2\n"
    names = ("mulliken", "Dipole", "q")
    expected = [f"the key {n!r} looks like a charge or a dipole and is not used" for n in names]
    assert remarks(text, "a.extxyz") == expected
    with pytest.warns(UserWarning, match=r"a\.extxyz, 2 records: the key ") as seen:
        assert len(read_text(text + text, "a.extxyz").data) == 2
    assert [str(w.message).split(": ", 1)[1] for w in seen] == expected
    for comment, name in (("charge -1", "charge"), ("charge=0.5", "charge"), ("a, mu = 1.8", "mu")):
        (remark,) = remarks(f"3\n{comment}\nO 0 0 0\nH 0 0 1\nH 0 1 0\n", "a.xyz")
        assert repr(name) in remark
    assert remarks(f"2\ndipole of hydroxide\n{ATOMS}", "a.xyz") == []


def test_total_charge_in_a_data_field_of_an_sdf() -> None:
    for name in ("charge", "PUBCHEM_TOTAL_CHARGE"):
        text = SDF.format(name=name, value="-1")
        assert read_text(text, "a.sdf").data[0].charge.item() == -1.0
        assert remarks(text, "a.sdf") == []
    (failure,) = read_text(SDF.format(name="Total charge", value="0"), "a.sdf").failures
    assert failure.problem == (
        "Two total charges are stated: the sum of the formal charges = -1 e and the data field "
        "'Total charge' = +0 e"
    )
    assert (failure.source, failure.row, failure.molecule) == ("a.sdf", 1, "hydroxide")
    for name, value in (("charge", "Gasteiger"), ("PUBCHEM_MMFF94_PARTIAL_CHARGES", "2")):
        assert repr(name) in remarks(SDF.format(name=name, value=value), "a.sdf")[0]


def test_total_charge_in_a_column(tmp_path: Path) -> None:
    text = "smiles,name,Charge,mu\n[OH-],hydroxide,-1,2\nCC(=O)[O-],acetate,0,\nO,water,,1.85\n"
    with pytest.warns(UserWarning, match=r"a\.csv, 2 records: the column 'mu' looks like"):
        found = read_text(text, "a.csv")
    assert [data.name for data in found.data] == ["hydroxide", "water"]
    (failure,) = found.failures
    assert failure.problem == (
        "Two total charges are stated: the SMILES = -1 e and the column 'Charge' = +0 e"
    )
    assert (failure.source, failure.row, failure.molecule) == ("a.csv", 2, "acetate")
    pyarrow, parquet = import_pyarrow()
    columns = {"smiles": ["[OH-]", "O", "N"], "TotalCharge": [-1, 1, None], "dipole": [2.0, 1.8, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match=r"a\.parquet, 3 records: the column 'dipole' looks like"):
        found = read_file(tmp_path / "a.parquet")
    assert [data.smiles for data in found.data] == ["[OH-]", "N"]
    assert "the column 'TotalCharge' = +1 e" in found.failures[0].problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_text("smiles,q\nO,\nO,0.0\n", "a.csv").failures == []
