from __future__ import annotations

import pytest

from dipolegnn.files import is_molecule_file, molecule_format


@pytest.mark.parametrize(
    ("name", "suffix", "smiles"),
    [
        ("a.smi", ".smi", True),
        ("A.CSV.GZ", ".csv", True),
        ("folder.sdf/a.parquet", ".parquet", True),
        ("a.b.sdf", ".sdf", False),
        ("a.xyz.gz", ".xyz", False),
        ("a.extxyz", ".extxyz", False),
    ],
)
def test_the_format_of_a_file(name: str, suffix: str, smiles: bool) -> None:
    assert is_molecule_file(name)
    assert molecule_format(name)[:2] == (suffix, smiles)


def test_a_smiles_is_no_file() -> None:
    assert not is_molecule_file("CC(=O)O.N")
    with pytest.raises(ValueError, match=r"a\.pdb: unknown suffix '\.pdb', expected one of \.smi"):
        molecule_format("a.pdb")
    with pytest.raises(ValueError, match=r"a\.parquet\.gz: .*decompress it"):
        molecule_format("a.parquet.gz")
