from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import (
    MoleculeError,
    SmilesRow,
    TableColumns,
    from_smiles,
    make_data,
    read_file,
    text_of,
    write_file,
)
from dipolegnn.molecules.molecule import Failure
from dipolegnn.molecules.records import MOST_LINES, RecordFile

SMI = """\
# solvents
O\twater
CCO   ethyl alcohol, absolute

c1ccc broken ring
CC(=O)C
F/C=C\\F trans
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_smi(tmp_path: Path) -> None:
    found = read_file(write(tmp_path, "list.smi", SMI))
    assert [data.name for data in found.data] == [
        "water",
        "ethyl alcohol, absolute",
        "CC(=O)C",
        "trans",
    ]
    (failure,) = found.failures
    assert (failure.source, failure.row, failure.molecule) == ("list.smi", 5, "broken ring")
    assert failure.stage == "read"
    assert found.rows == [2, 3, 6, 7]  # lines of the file
    assert [data.mol_id.item() for data in found.data] == [0, 1, 3, 4]


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_line_ends_byte_order_mark_and_compression_do_not_matter(tmp_path: Path, ends: str) -> None:
    plain = read_file(write(tmp_path, "plain.smi", SMI))
    path = tmp_path / "LIST.SMI.GZ"
    path.write_bytes(gzip.compress(("\ufeffSMILES Name\n" + SMI).replace("\n", ends).encode()))
    other = read_file(path)
    assert [d.name for d in other.data] == [d.name for d in plain.data]
    assert all(torch.equal(a.pos, b.pos) for a, b in zip(other.data, plain.data, strict=True))
    assert other.failures[0].row == 6  # below the header line


def test_smi_with_a_cxsmiles_extension(tmp_path: Path) -> None:
    found = read_file(write(tmp_path, "a.smi", "C[C@H](F)O |&1:1| either hand\n"))
    assert not found.failures
    assert found.data[0].name == "either hand"


def test_csv(tmp_path: Path) -> None:
    text = (
        "id,Smiles,Name,mu\n"
        '1,O,"water, liquid",1.85\n'
        "\n"
        "2,CCO,ethanol,\n"
        "3,N,ammonia,about 1.5\n"
        "4,,nothing,\n"
        "5,C=O,formaldehyde,2.33\n"
        "6\n"
    )
    found = read_file(
        write(tmp_path, "a.csv", text),
        columns=TableColumns(magnitude="mu"),
        conformers=ConformerConfig(conformers=2),
    )
    names = [data.name for data in found.data]
    assert names[0] == "water, liquid"
    assert set(names) == {"water, liquid", "ethanol", "formaldehyde"}
    magnitudes = {data.name: data.dipole_magnitude.item() for data in found.data}
    assert magnitudes["water, liquid"] == pytest.approx(1.85)
    assert magnitudes["ethanol"] != magnitudes["ethanol"]  # NaN: no label
    assert [(f.row, f.molecule) for f in found.failures] == [
        (3, "ammonia"),
        (4, "nothing"),
        (6, ""),
    ]
    assert "'about 1.5'" in found.failures[0].problem
    assert "SMILES is empty" in found.failures[1].problem


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_columns_can_be_named(tmp_path: Path, separator: str) -> None:
    text = f"structure{separator}label\nO{separator}water\n"
    path = write(tmp_path, "a.csv", text)
    found = read_file(path, columns=TableColumns(smiles="structure", name="label"))
    assert found.data[0].name == "water"
    with pytest.raises(
        MoleculeError, match=r"a\.csv: No column 'smiles'; the columns are 'structure', 'label'"
    ):
        read_file(path)


@pytest.mark.parametrize("broken", ['"CCO,ethanol', '"CC"O,ethanol', '"'])
@pytest.mark.parametrize(
    "after", ["N,ammonia", 'N,"ammonia, a gas"', '"N",ammonia', 'N,"ammonia,\na gas"']
)
def test_a_stray_quotation_mark_costs_its_line(tmp_path: Path, broken: str, after: str) -> None:
    path = write(tmp_path, "a.csv", f"smiles,name\nO,water\n{broken}\n{after}\nC,methane\n")
    found = read_file(path)
    assert [data.smiles for data in found.data] == ["O", "N", "C"]
    (failure,) = found.failures
    assert (failure.row, failure.molecule, failure.source) == (2, broken, "a.csv")
    assert failure.problem.startswith("The line is not CSV: ")
    assert "quotation marks" in failure.remedy


def test_quotation_marks_that_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'smiles,name\nO,5" of water\nN,"""ammonia"""\n')
    found = read_file(path)
    assert [data.name for data in found.data] == ['5" of water', '"ammonia"']


def test_a_forgotten_quotation_mark_does_not_take_the_file(tmp_path: Path) -> None:
    rows = [f"{'C' * (1 + i % 3)},molecule {i}" for i in range(MOST_LINES + 20)]
    rows[5] = '"CCO,\xe9thanol'
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join(["smiles,name", *rows, '"N",ammonia']).encode("latin-1"))
    with RecordFile(path) as records:
        contents = [record.content for record in records]
    failure = contents.pop(5)
    assert isinstance(failure, Failure)
    assert failure.molecule == '"CCO,?thanol'
    others = [content.name for content in contents if isinstance(content, SmilesRow)]
    assert others == [row.split(",")[1] for row in rows[:5] + rows[6:]] + ["ammonia"]


def test_a_header_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '"smiles\nO\n')
    with pytest.raises(MoleculeError, match=r"a\.csv: The header line is not that of a CSV"):
        read_file(path)


@pytest.mark.parametrize("name", ["a.smi", "a.csv", "a.sdf", "a.xyz", "a.extxyz"])
@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_empty_files(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(MoleculeError, match=f"{name}: The file holds no molecules"):
        read_file(write(tmp_path, name, text))


def test_unknown_suffix_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.pdb: unknown suffix '\.pdb'.*\.parquet, \.sdf"):
        read_file(write(tmp_path, "a.pdb", "x"))
    with pytest.raises(ValueError, match=r"unknown suffix '\.smi', expected one of \.sdf, \.xyz"):
        write_file(tmp_path / "a.smi", [])
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing.smi")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.smi", "C methane\nO \xe9thanol\nN ammonia\n"),
        ("a.csv", "smiles,name\nC,methane\nO,\xe9thanol\nN,ammonia\n"),
        ("a.xyz", "1\nmethane\nC 0 0 0\n1\n\xe9thanol\nO 0 0 0\n1\nammonia\nO 0 0 0\n"),
    ],
)
def test_bytes_that_are_no_text_cost_their_molecule(tmp_path: Path, name: str, text: str) -> None:
    latin = tmp_path / name
    latin.write_bytes(text.encode("latin-1"))
    found = read_file(latin)
    assert [data.name for data in found.data] == ["methane", "ammonia"]
    (failure,) = found.failures
    assert (failure.row, failure.stage, failure.source) == (2, "read", name)
    assert "not UTF-8 text" in failure.problem
    assert "as UTF-8" in failure.remedy
    failure.problem.encode()
    failure.molecule.encode()


@pytest.mark.parametrize("name", ["a.smi", "a.csv", "a.sdf", "a.xyz", "a.extxyz"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes("\ufeffsmiles\nCCO\n".encode(encoding))
    with pytest.raises(MoleculeError, match=f"{name}: The file is UTF-16 text.*as UTF-8"):
        read_file(path)


@pytest.mark.parametrize("identifier", ["TOX3021", "-4", "1.5", "", "9" * 20, "9" * 5000])
def test_identifiers_of_others_are_no_numbers(tmp_path: Path, identifier: str) -> None:
    (water,) = from_smiles("O", name="water")
    for suffix, old, new in (
        (".sdf", "<mol_id>  (1) \n0\n", f"<mol_id>  (1) \n{identifier}\n"),
        (".extxyz", "mol_id=0", f'mol_id="{identifier}"'),
    ):
        text = text_of([water], suffix)
        assert old in text
        found = read_file(write(tmp_path, f"a{suffix}", text.replace(old, new)))
        assert found.failures == []
        assert [data.mol_id.item() for data in found.data] == [0]


def test_files_that_cannot_be_decompressed(tmp_path: Path) -> None:
    whole = gzip.compress(b"O water\n")
    for content in (b"not gzip", whole[:-4], whole[:12] + b"\x00\x01" + whole[14:]):
        broken = tmp_path / "a.smi.gz"
        broken.write_bytes(content)
        with pytest.raises(MoleculeError, match="cannot be decompressed"):
            read_file(broken)


def test_sdf_keeps_labels_stereo_isotopes_and_names(tmp_path: Path) -> None:
    (alanine,) = from_smiles("C[C@H](N)C(=O)O", name="L-alanine, (S)", mol_id=4)
    (acetate,) = from_smiles("[2H]C([2H])([2H])C(=O)[O-]", name="acetate-d3")
    alanine.dipole = torch.tensor([[0.1, -0.2, 1.3]])
    alanine.dipole_magnitude = alanine.dipole.norm(dim=1)
    alanine.atomic_charges = torch.linspace(-1, 1, len(alanine.z))
    path = tmp_path / "a.sdf"
    write_file(path, [alanine, acetate])
    found = read_file(path)
    assert not found.failures
    first, second = found.data
    for field in ("z", "pos", "charge", "dipole", "atomic_charges", "energy", "mol_id"):
        torch.testing.assert_close(first[field], alanine[field], atol=1e-4, rtol=0)
    assert (first.name, first.smiles) == ("L-alanine, (S)", "C[C@H](N)C(=O)O")
    mol = Chem.MolFromMolBlock(first.mol_block)
    assert Chem.MolToSmiles(mol) == Chem.CanonSmiles("C[C@H](N)C(=O)O")
    assert second.charge.item() == -1.0
    assert second.dipole.isnan().all()
    isotopes = [a.GetIsotope() for a in Chem.MolFromMolBlock(second.mol_block).GetAtoms()]
    assert sorted(isotopes)[-3:] == [2, 2, 2]


V2000 = """\
{title}
  any program     {dimension}

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 {first}   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    0.0000    0.9170 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0  0  0  0
M  END
"""


def test_broken_records_of_an_sdf_do_not_take_the_others_along(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = V2000.format(title="HF", dimension="3D", first="F")
    records = [
        good,
        V2000.format(title="unknown", dimension="3D", first="Xx"),
        V2000.format(title="drawing", dimension="2D", first="F").replace("0.9170", "0.0000"),
        V2000.format(title="no hydrogens", dimension="3D", first="O"),
        good.replace("HF", "cut").split("M  END")[0][:-30] + "\n",
        good.replace("HF", "numbers").replace("0.9170", "   nan"),
        good.replace("HF", "field") + ">  <dipole_debye>\n1 2 x\n\n",
        "",
        good.replace("HF", "last one") + ">  <mol_id>\n12\n\n>  <IC50>\n3 nM\n\n",
    ]
    found = read_file(write(tmp_path, "a.sdf", "".join(f"{record}$$$$\n" for record in records)))
    assert [(data.name, data.mol_id.item()) for data in found.data] == [("HF", 0), ("last one", 12)]
    assert [(f.row, f.molecule) for f in found.failures] == [
        (2, "unknown"),
        (3, "drawing"),
        (4, "no hydrogens"),
        (5, "cut"),
        (6, "numbers"),
        (7, "field"),
        (8, ""),
    ]
    words = ["'Xx' not found", "2D", "1 hydrogen", "", "", "'1 2 x', expected numbers", ""]
    for failure, word in zip(found.failures, words, strict=True):
        assert word in failure.problem
        assert failure.remedy
    assert capfd.readouterr() == ("", "")


def test_xyz(tmp_path: Path) -> None:
    text = (
        "2\nhydrogen fluoride, gas\nF 0 0 0 -0.4\nh 0 0 0.917 0.4\n"
        "2\nhydroxide charge=-1\n8 0 0 0\n1 0 0 0.97\n\n"
        "2\n\nCl 0 0 0\nH 0 0 1.27\n"
    )
    found = read_file(write(tmp_path, "a.xyz", text))
    assert not found.failures
    assert [data.name for data in found.data] == ["hydrogen fluoride, gas", "hydroxide", ""]
    assert [data.z.tolist() for data in found.data] == [[9, 1], [8, 1], [17, 1]]
    assert [data.charge.item() for data in found.data] == [0.0, -1.0, 0.0]
    assert [data.mol_id.item() for data in found.data] == [0, 1, 2]


def test_broken_frames_of_an_xyz_do_not_take_the_others_along(tmp_path: Path) -> None:
    frames = [
        "2\nfirst\nF 0 0 0\nH 0 0 0.917\n",
        "3\ntoo few\nO 0 0 0\nH 0 0 0.97\n",
        "1\ntoo many\nF 0 0 0\nH 0 0 0.917\n",
        "2\nunknown\nXx 0 0 0\nH 0 0 0.917\n",
        "2\nradical\nO 0 0 0\nH 0 0 0.97\n",
        "2\nnan\nF 0 0 nan\nH 0 0 0.97\n",
        "2\ntext\nF 0 0 zero\nH 0 0 0.97\n",
        "2\ncoincident\nF 0 0 0\nH 0 0 0\n",
        "0\nnothing\n",
        "two\nword\nF 0 0 0\nH 0 0 0.97\n",
        "2\nsecond\nF 0 0 0\nH 0 0 0.917\n",
        "2\nend of file\nF 0 0 0\n",
    ]
    found = read_file(write(tmp_path, "a.xyz", "".join(frames)))
    assert [data.name for data in found.data] == ["first", "second"]
    problems = {failure.row: failure.problem for failure in found.failures}
    assert list(problems) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 12]
    words = {
        2: "3 atoms announced, but only 2",
        3: "1 atoms announced, but more",
        4: "'Xx', which is not an element",
        5: "radical",
        6: "not finite",
        7: "'0 0 zero'",
        8: "0.000 angstrom apart",
        9: "at least one atom",
        10: "got 'two'",
        12: "2 atoms announced, but only 1",
    }
    for row, word in words.items():
        assert word in problems[row]
    radical = found.failures[3]
    assert radical.molecule == "radical"
    assert "charge=-1" in radical.remedy


def test_extended_xyz_with_labels(tmp_path: Path) -> None:
    text = (
        '2\nProperties=species:S:1:pos:R:3:charges:R:1 dipole="0 0 0.38" name="HF gas" mol_id=7\n'
        "F 0 0 0 -0.4\nH 0 0 0.917 0.4\n"
        "2\nProperties=species:S:1:pos:R:3 charge=-1 smiles=[OH-]\nO 0 0 0\nH 0 0 0.97\n"
        "2\nProperties=species:S:1:pos:R:3\nXx 0 0 0\nH 0 0 0.97\n"
        '2\nProperties=species:S:1:pos:R:3 pbc="T T T" Lattice="9 0 0 0 9 0 0 0 9" name=box\n'
        "F 0 0 0\nH 0 0 0.917\n"
        "2\nProperties=species:S:1:pos:R:3:more:R:2\nF 0 0 0\nH 0 0 0.917\n"
    )
    for name in ("a.extxyz", "a.xyz"):
        found = read_file(write(tmp_path, name, text))
        gas, ion = found.data
        assert (gas.name, gas.mol_id.item(), ion.mol_id.item()) == ("HF gas", 7, 1)
        assert gas.dipole[0].tolist() == pytest.approx([0, 0, 1.82522], abs=1e-4)
        assert gas.atomic_charges.tolist() == pytest.approx([-0.4, 0.4])
        assert (ion.charge.item(), ion.smiles, ion.name) == (-1.0, "[OH-]", "[OH-]")
        assert [failure.row for failure in found.failures] == [3, 4, 5]
        assert "unknown element 'Xx'" in found.failures[0].problem
        assert "periodic" in found.failures[1].problem
        assert found.failures[1].molecule == "box"
        assert "states 6 columns, and the first atom has 4" in found.failures[2].problem


@pytest.mark.parametrize(
    ("smiles", "name"),
    [
        ("F", "T"),
        (r"F/C=C\F", 'a "quoted" name'),
        ("[H][H]", "1 2 3"),
        ("[OH-]", r"back \ slash"),
        ("C", "{curly} Å"),
    ],
)
def test_extended_xyz_round_trip(tmp_path: Path, smiles: str, name: str) -> None:
    conformers = from_smiles(smiles, name=name, mol_id=3)
    for data in conformers:
        data.dipole = torch.tensor([[0.5, -0.25, 1.0]])
        data.dipole_magnitude = data.dipole.norm(dim=1)
        data.pos = data.pos + 2.0
    path = tmp_path / "a.extxyz.gz"
    write_file(path, conformers * 2)
    found = read_file(path)
    assert not found.failures
    assert len(found.data) == 2 * len(conformers)
    for back in found.data:
        for field in ("z", "pos", "charge", "dipole", "dipole_magnitude", "energy", "mol_id"):
            torch.testing.assert_close(back[field], conformers[0][field], atol=1e-5, rtol=1e-5)
        assert (back.smiles, back.name) == (smiles, name)


def test_xyz_round_trip(tmp_path: Path) -> None:
    (ion,) = from_smiles("C[NH3+]", name="methyl\nammonium")
    path = tmp_path / "a.xyz"
    write_file(path, [ion, *from_smiles("O")])
    found = read_file(path)
    assert [data.name for data in found.data] == ["methyl ammonium", "O"]
    assert found.data[0].charge.item() == 1.0
    torch.testing.assert_close(found.data[0].pos, ion.pos, atol=1e-6, rtol=0)
    for suffix in (".sdf", ".extxyz"):
        write_file(tmp_path / f"a{suffix}", [ion])
        assert read_file(tmp_path / f"a{suffix}").data[0].name == "methyl ammonium"


def test_equal_molecules_give_equal_bytes_and_a_failed_write_writes_nothing(tmp_path: Path) -> None:
    water = from_smiles("O")
    for name in ("a.xyz.gz", "b.xyz.gz"):
        write_file(tmp_path / name, water)
    assert (tmp_path / "a.xyz.gz").read_bytes() == (tmp_path / "b.xyz.gz").read_bytes()
    apart = make_data(
        [9, 9, 9, 9],
        [[i * 5.0, 0.0, 0.0] for i in range(4)],
        charge=-2,
        fragments=([0, 1, 2, 3], [-1, -1, -1, 1]),
        name="F4",
    )
    with pytest.raises(MoleculeError, match="molecule 'F4': No bonds fit"):
        write_file(tmp_path / "c.sdf", [*water, apart])
    assert not (tmp_path / "c.sdf").exists()


QM9 = """\
5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t\
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 2.1504159*^-3\t-0.0060313176\t 1.9761204*^-3\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def test_files_of_qm9(tmp_path: Path) -> None:
    water = "3\nwater\nO 0 0 0\nH 0 0.76 0.59\nH 0 -0.76 0.59\n"
    polar = QM9.replace("gdb 1\t", "gdb 2\t").replace("\t0.\t", "\t1.2*^-1\t")
    found = read_file(write(tmp_path, "a.xyz", QM9 + polar + water + QM9))
    assert found.failures == []
    assert [data.name for data in found.data] == ["gdb 1", "gdb 2", "water", "gdb 1"]
    methane, other, _, last = found.data
    assert methane.smiles == "C"
    assert methane.dipole_magnitude.item() == 0
    assert other.dipole_magnitude.item() == pytest.approx(0.12)
    assert methane.atomic_charges[:2].tolist() == pytest.approx([-0.535689, 0.133921])
    assert methane.pos[1].tolist() == pytest.approx([2.1504159e-3, -0.0060313176, 1.9761204e-3])
    assert torch.equal(last.pos, methane.pos)


@pytest.mark.parametrize(
    ("old", "new"),
    [("\t-0.535689", ""), ("\t0.\t", "\tnone\t"), ("C\t-0.0126", "C\t-0.0126*"), ("5\n", "6\n")],
)
def test_a_broken_file_of_qm9_is_one_failure(tmp_path: Path, old: str, new: str) -> None:
    text = QM9.replace(old, new, 1)
    found = read_file(write(tmp_path, "a.xyz", text + QM9))
    assert len(found.data) == 1
    (failure,) = found.failures
    assert (failure.row, failure.molecule) == (1, "gdb 1")


def test_heavy_hydrogen(tmp_path: Path) -> None:
    water = "3\n{comment}\nO 0 0 0\nD 0 0.76 0.59\nt 0 -0.76 0.59\n"
    columns = "3\nProperties=pos:R:3:species:S:1\n0 0 0 O\n0 0.76 0.59 D\n0 -0.76 0.59 T\n"
    for suffix, text in (
        (".xyz", water.format(comment="water")),
        (".extxyz", water.format(comment="Properties=species:S:1:pos:R:3")),
        (".extxyz", columns),
        (".sdf", V2000.format(title="", dimension="3D", first="D")),
    ):
        found = read_file(write(tmp_path, f"a{suffix}", text))
        assert found.failures == []
        assert sorted(found.data[0].z.tolist()) == ([1, 1] if suffix == ".sdf" else [1, 1, 8])
    # Masses are those of the elements, as for [2H] in SMILES.
    (heavy,) = from_smiles("[2H][O-]")
    (light,) = from_smiles("[H][O-]")
    assert torch.equal(heavy.z.sort().values, light.z.sort().values)
