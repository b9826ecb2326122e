from __future__ import annotations

import io
import math
import runpy
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dipolegnn.data import ConformerDataset, check_card, read_card
from dipolegnn.files import sha256_of
from dipolegnn.molecules import MoleculeError, read_failures

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "qm9" / "build.py"
qm9 = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

# Made-up numbers in QM9's own format, with a number of Mathematica's where there may be one.
WATER = """3
gdb {number}\t8\t4\t3\t{mu}\t6.3\t-0.3\t0.1\t0.4\t19.\t0.\t-76.4\t-76.4\t-76.4\t-76.4\t6.0\t
O\t-0.0343\t 0.9775\t 0.0076\t-0.58971
H\t 0.0647\t 2.1997*^-6\t 0.0015\t 0.294853
H\t 0.8717\t 1.3007\t 6.9*^-4\t 2.94857*^-1
1671.4\t3803.6\t3907.6
O\tO\t
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""


def archive(path: Path, contents: Iterable[tuple[str, str]]) -> Path:
    with tarfile.open(path, "w:bz2") as tar:
        for name, text in contents:
            content = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def small_archive(path: Path, numbers: Iterable[int] = range(1, 31)) -> Path:
    return archive(
        path,
        (
            (f"dsgdb9nsd_{n:06d}.xyz", WATER.format(number=n, mu=round(1.5 + 0.01 * n, 2)))
            for n in numbers
        ),
    )


def listing(path: Path, numbers: Iterable[int], footer: str = "-----\n") -> Path:
    entries = "".join(f"  {n:6d}   O   O   O\n" for n in numbers)
    path.write_text("heading\n" * 9 + entries + footer)
    return path


def test_every_column_goes_to_its_field() -> None:
    data = qm9.parse_molecule(WATER.format(number=3, mu="1.8511"))
    assert data.z.tolist() == [8, 1, 1]
    assert data.pos[0].tolist() == pytest.approx([-0.0343, 0.9775, 0.0076])
    assert data.pos[1].tolist() == pytest.approx([0.0647, 2.1997e-6, 0.0015])
    assert data.pos[2, 2].item() == pytest.approx(6.9e-4)
    assert data.dipole_magnitude.tolist() == pytest.approx([1.8511])
    assert data.dipole.isnan().all()
    assert data.atomic_charges.tolist() == pytest.approx([-0.58971, 0.294853, 0.294857])
    assert data.mol_id.tolist() == [3]
    assert data.charge.tolist() == [0]
    assert (data.smiles, data.name) == ("O", "gdb 3")
    assert math.isnan(data.energy.item())


def test_a_number_may_end_in_a_point() -> None:
    assert qm9.parse_molecule(WATER.format(number=1, mu="0.")).dipole_magnitude.item() == 0


def test_the_smiles_is_that_of_the_relaxed_structure() -> None:
    text = WATER.format(number=1, mu=1.0).replace("O\tO\t", "C(F)(Cl)Br\t[C@](F)(Cl)Br\t")
    assert qm9.parse_molecule(text).smiles == "[C@](F)(Cl)Br"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("3\n", "4\n", "format"),
        ("3\n", "three\n", "invalid literal"),
        ("gdb", "qm7", "15 properties of 'qm7'"),
        ("\t6.0\t", "\t", "14 properties"),
        ("-0.58971", "", "5 columns"),
        ("H\t", "Xx\t", "KeyError: 'Xx'"),
        ("2.1997*^-6", "2.1997*-6", "could not convert"),
        ("0.0647\t 2.1997*^-6\t 0.0015", "-0.0343\t 0.9775\t 0.0076", "0.000 angstrom apart"),
    ],
)
def test_a_broken_molecule_is_named(old: str, new: str, words: str) -> None:
    with pytest.raises(MoleculeError, match=words) as caught:
        qm9.parse_molecule(WATER.format(number=1, mu=1.85).replace(old, new, 1), "one.xyz")
    assert "one.xyz" in str(caught.value)


def test_the_archive_is_read_by_number(tmp_path: Path) -> None:
    path = small_archive(tmp_path / "a.tar.bz2", [5, 2, 9, 1])
    molecules = qm9.read_archive(path, expected=4)
    assert [int(data.mol_id) for data in molecules.data] == [1, 2, 5, 9]
    assert molecules.data[2].dipole_magnitude.item() == pytest.approx(1.55)
    assert molecules.failures == []


def test_excluded_and_broken_molecules_are_listed(tmp_path: Path) -> None:
    texts = [(f"dsgdb9nsd_{n:06d}.xyz", WATER.format(number=n, mu=1.0)) for n in (1, 2, 3)]
    texts[1] = (texts[1][0], "nonsense")
    path = archive(tmp_path / "a.tar.bz2", [*texts, ("readme.txt", "not a molecule")])
    molecules = qm9.read_archive(path, excluded={3}, expected=3)
    assert [int(data.mol_id) for data in molecules.data] == [1]
    assert [(f.source, f.stage) for f in molecules.failures] == [
        ("dsgdb9nsd_000002.xyz", "read"),
        ("uncharacterized.txt", "select"),
    ]
    assert molecules.failures[1].molecule == "gdb 3 O"


def test_another_number_of_molecules_is_an_error(tmp_path: Path) -> None:
    path = small_archive(tmp_path / "a.tar.bz2")
    with pytest.raises(ValueError, match=r"holds 30 molecules, expected 133885"):
        qm9.read_archive(path)
    assert len(qm9.read_archive(path, expected=None).data) == 30


def test_a_list_that_does_not_belong_to_the_archive(tmp_path: Path) -> None:
    path = small_archive(tmp_path / "a.tar.bz2")
    with pytest.raises(ValueError, match=r"1 of the molecules to be left out .* the first is 31"):
        qm9.read_archive(path, excluded={4, 31}, expected=30)
    assert len(qm9.read_archive(path, excluded={4, 31}, expected=None).data) == 29


def test_a_molecule_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="molecule 7 twice"):
        qm9.read_archive(small_archive(tmp_path / "a.tar.bz2", [7, 7]), expected=2)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_a_truncated_archive(tmp_path: Path, kept: float) -> None:
    path = small_archive(tmp_path / "a.tar.bz2")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"a\.tar\.bz2 (cannot be read|holds \d+ molecules)"):
        qm9.read_archive(path, expected=30)


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        qm9.read_archive(tmp_path / "a.tar.bz2")


def test_the_list_of_uncharacterized_molecules(tmp_path: Path) -> None:
    path = listing(tmp_path / "u.txt", [21, 58, 80])
    assert qm9.read_uncharacterized(path, expected=3) == {21, 58, 80}
    assert qm9.read_uncharacterized(path, expected=None) == {21, 58, 80}
    with pytest.raises(ValueError, match="lists 3 molecules, expected 3054"):
        qm9.read_uncharacterized(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heading\n" * 9 + "  21 O\n  58 O\n", "last line is missing"),
        ("heading\n" * 12 + "  21 O\n----\n", "line 10 has no number"),
        ("heading\n" * 3, "last line"),
        ("", "last line"),
    ],
)
def test_another_file_than_the_list(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "u.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        qm9.read_uncharacterized(tmp_path / "u.txt")


def run_build(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["build.py", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_build_makes_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_archive(tmp_path / "a.tar.bz2")
    excluded = listing(tmp_path / "u.txt", [4, 17, 99])
    files = ["--archive", str(source), "--uncharacterized", str(excluded)]
    output = tmp_path / "qm9"
    run_build(monkeypatch, *files, "--partial", "--output", str(output))
    card = check_card(output)
    assert (card.counts.molecules, card.counts.failures) == (28, 2)
    assert card.elements == ("H", "O")
    assert "dipole" not in card.units
    assert card.licence == "CC0-1.0"
    dataset = ConformerDataset(output)
    assert not {4, 17} & set(dataset.mol_ids().tolist())
    split = dataset.split()
    assert [len(part) for part in (split.train, split.val, split.test)] == [22, 3, 3]
    assert len(read_failures(output / "failures.csv")) == 2


def test_build_refuses_files_that_are_not_the_official_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_archive(tmp_path / "a.tar.bz2")
    files = ["--archive", str(source), "--uncharacterized", str(source)]
    with pytest.raises(SystemExit, match=r"^Error: .*a\.tar\.bz2 has the SHA-256 .* expected 3a"):
        run_build(monkeypatch, *files, "--output", str(tmp_path / "qm9"))
    assert not (tmp_path / "qm9").exists()


def test_build_refuses_another_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_archive(tmp_path / "a.tar.bz2")
    served = qm9.ARCHIVE._replace(url=source.as_uri())
    with pytest.raises(RuntimeError, match="invalid hash value"):
        qm9.file_of(None, served, tmp_path / "download", True)
    assert not any((tmp_path / "download").iterdir())
    served = served._replace(sha256=sha256_of(source))
    path = qm9.file_of(None, served, tmp_path / "download", True)
    assert path.read_bytes() == source.read_bytes()
    source.unlink()
    assert qm9.file_of(None, served, tmp_path / "download", True) == path


def test_the_committed_card_says_what_the_build_will_find(project_root: Path) -> None:
    card = read_card(project_root / "datasets" / "qm9" / "card.yaml")
    assert card.counts.molecules == qm9.NUM_MOLECULES - qm9.NUM_UNCHARACTERIZED == 130_831
    assert card.counts.failures == qm9.NUM_UNCHARACTERIZED
    assert card.sha256 is None
    assert card.elements == ("H", "C", "N", "O", "F")
    assert len(qm9.ARCHIVE.sha256) == 64
