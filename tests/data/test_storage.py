from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Data
from dipolegnn.data.storage import (
    FIELDS,
    TEXT_FIELDS,
    read_molecules,
    read_packed,
    write_molecules,
)
from dipolegnn.files import replacing, sha256_of
from dipolegnn.molecules import make_data
from dipolegnn.units import FIELD_UNITS
from tests.data.samples import equal, hydroxide, sample_molecules, water


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    molecules = sample_molecules()
    write_molecules(tmp_path / "m.npz", molecules)
    back = read_molecules(tmp_path / "m.npz")
    assert len(back) == len(molecules)
    assert all(equal(a, b) for a, b in zip(molecules, back, strict=True))


def test_every_field_has_a_unit_and_is_one_of_a_molecule() -> None:
    assert set(FIELDS) == set(FIELD_UNITS)
    assert water().to_dict().keys() == set(FIELDS)


def test_any_text_survives(tmp_path: Path) -> None:
    texts = ["", "line\nbreak", "µ-oxo", "trailing\0", "x" * 5000]
    molecules = [make_data([2], [[0, 0, 0]], name=text, smiles=text[::-1]) for text in texts]
    write_molecules(tmp_path / "m.npz", molecules)
    back = read_molecules(tmp_path / "m.npz")
    assert [data.smiles for data in back] == [text[::-1] for text in texts]
    assert [data.name for data in back] == texts


def test_the_same_molecules_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_molecules(tmp_path / name, sample_molecules())
    write_molecules(tmp_path / "c.npz", sample_molecules()[::-1])
    assert sha256_of(tmp_path / "a.npz") == sha256_of(tmp_path / "b.npz")
    assert sha256_of(tmp_path / "a.npz") != sha256_of(tmp_path / "c.npz")


def test_the_mol_block_is_left_out(tmp_path: Path) -> None:
    data = water()
    data.mol_block = "block"
    write_molecules(tmp_path / "m.npz", [data])
    assert "mol_block" not in read_molecules(tmp_path / "m.npz")[0]
    assert data.mol_block == "block"


def test_a_molecule_does_not_drag_the_whole_file_along(tmp_path: Path) -> None:
    write_molecules(tmp_path / "m.npz", [water()] * 2000)
    assert len(pickle.dumps(read_molecules(tmp_path / "m.npz")[7])) < 10_000


def test_nothing_is_pickled(tmp_path: Path) -> None:
    write_molecules(tmp_path / "m.npz", sample_molecules())
    with np.load(tmp_path / "m.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


def test_no_molecules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no molecules"):
        write_molecules(tmp_path / "m.npz", [])
    assert not (tmp_path / "m.npz").exists()


def broken(field: str, value: object) -> Data:
    data = hydroxide()
    data[field] = value
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Data(z=torch.ones(1, dtype=torch.int64)), "missing pos, charge"),
        (broken("colour", 1), "unknown colour"),
        (broken("pos", torch.zeros(2, 3, dtype=torch.float64)), r"'hydroxide'.*pos must be"),
        (broken("dipole", torch.zeros(3)), r"dipole must be .*\[1, 3\], got torch.float32 \[3\]"),
        (broken("smiles", 3), "smiles must be a str, got int"),
        (broken("energy", math.nan), "energy must be .* got float"),
    ],
)
def test_what_is_no_molecule_is_named(tmp_path: Path, data: Data, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        write_molecules(tmp_path / "m.npz", [water(), data])
    assert "Molecule 1" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_molecules(tmp_path / "m.npz")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.98])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "m.npz"
    write_molecules(path, sample_molecules())
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"m\.npz cannot be read"):
        read_molecules(path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    write_molecules(path, sample_molecules())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("pos.npy")
    damaged = bytearray(path.read_bytes())
    damaged[entry.header_offset + 60 + entry.compress_size // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="cannot be read as molecules"):
        read_molecules(path)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", z=np.ones(3))
    with pytest.raises(ValueError, match="no file of molecules: it has no format_version, n, pos"):
        read_molecules(tmp_path / "other.npz")
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(ValueError, match="a single array"):
        read_molecules(tmp_path / "single.npy")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", format_version=np.array(99))
    with pytest.raises(ValueError, match=r"format version 99.*update dipolegnn"):
        read_molecules(tmp_path / "new.npz")


def test_inconsistent_lengths_are_refused(tmp_path: Path) -> None:
    write_molecules(tmp_path / "m.npz", sample_molecules())
    with np.load(tmp_path / "m.npz") as archive:
        entries = dict(archive)
    entries["pos"] = entries["pos"][:-1]
    np.savez(tmp_path / "short.npz", **entries)
    with pytest.raises(ValueError, match=r"pos has .* rows, expected"):
        read_packed(tmp_path / "short.npz")


@pytest.mark.parametrize("field", [*FIELDS, "n", "format_version"])
def test_entries_of_wrong_types_and_shapes_are_refused(tmp_path: Path, field: str) -> None:
    write_molecules(tmp_path / "m.npz", sample_molecules())
    with np.load(tmp_path / "m.npz") as archive:
        entries = dict(archive)
    whole = read_packed(tmp_path / "m.npz").arrays
    entries |= {name: whole[name] for name in ("fragment", "fragment_charge")}
    texts = [b"\xff\xfe", b"5", b"[1]", b"[" * 100_000]
    for changed in (
        *(np.ones((2, 2, 2)), np.array(["a"] * 3), np.ones(3, complex), np.full(3, "NaT", "M8[s]")),
        *((np.frombuffer(text, np.uint8) for text in texts) if field in TEXT_FIELDS else ()),
    ):
        np.savez(tmp_path / "wrong.npz", **{**entries, field: changed})
        with pytest.raises(ValueError, match=rf"wrong\.npz is (damaged: {field} must|inconsist)"):
            read_packed(tmp_path / "wrong.npz")
    if field == "n":
        for n in (-entries["n"], np.full_like(entries["n"], 10**18)):
            np.savez(tmp_path / "wrong.npz", **{**entries, "n": n})
            with pytest.raises(ValueError, match="n must be the numbers of atoms"):
                read_packed(tmp_path / "wrong.npz")


@pytest.mark.parametrize("size", [2**36, 2**62, 2**70])
def test_absurd_sizes_are_refused(tmp_path: Path, size: int) -> None:
    header = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("pos.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"m\.npz cannot be read as molecules"):
        read_packed(tmp_path / "m.npz")


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text("half of the ne") / 0
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
