"""Readers with hostile input: whatever bytes come, a record is a structure or a named failure.

The inputs are mutations of valid files, drawn from seeds, so that a failure can be repeated: its
message has the seed. ``make fuzz`` runs more of them (``DIPOLEGNN_FUZZ``: number of inputs of each
kind).
"""

from __future__ import annotations

import gzip
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules import Failure, MoleculeError, from_smiles, text_of
from dipolegnn.molecules.embedding import structures
from dipolegnn.molecules.molecule import relabelled
from dipolegnn.molecules.records import Record, RecordFile, import_pyarrow

INPUTS = int(os.environ.get("DIPOLEGNN_FUZZ", "40"))
"""Number of mutated files of each kind."""

MAX_SECONDS = 20.0
"""Bound of the time for a file of 6 small molecules; on an idle core they take 0.05 s."""

LIMITS = ConformerConfig(max_atoms=40, embed_time_limit=1)
NAMES = ("water", "acetate", "ethanol", "ammonium", "benzene", "methane")
SMILES = ("O", "CC(=O)[O-]", "CCO", "[NH4+]", "c1ccccc1", "C")
TOKENS = (
    *(b"\n", b"\r\n", b"\r", b"\t", b" ", b"\x00", b"\xff\xfe", b"\xc3", "é".encode(), b'"', b"'"),
    *(
        b",",
        b";",
        b"$$$$\n",
        b"M  END\n",
        b">  <charge>\n1\n\n",
        b"999999999",
        b"-1",
        b"1e400",
        b"nan",
    ),
    *(b"inf", b"*^-6", b"charge=1", b"q=-3", b"Properties=", b"species:S:1:pos:R:3", b"H 0 0 0\n"),
    *(b"R:99999999", b"\n99999999999999999999\n", b"9" * 5000, b"C(" * 9000, b"[" * 9000),
    *(b"X", b"[", b"]", b"(", b")", b"%99", b"=", b"#", b"@", b".", b"*", b"D", b"Uue", b"<", b">"),
)


def _molecules() -> list[Data]:
    """The molecules, with made-up labels."""
    found = []
    for smiles, name in zip(SMILES, NAMES, strict=True):
        (data,) = from_smiles(smiles, name=name)
        charges = data.charge / data.z.numel() + torch.zeros(data.z.numel())
        found.append(relabelled(data, dipole=[0.1, 0.2, -1.5], atomic_charges=charges, energy=-1.5))
    return found


def _parquet() -> bytes:
    pyarrow, parquet = import_pyarrow()
    table = pyarrow.table({"smiles": list(SMILES), "name": list(NAMES), "charge": [0] * 6})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def valid() -> dict[str, bytes]:
    """A valid file of each format, with the same six molecules."""
    molecules = _molecules()
    lines = [f"{s}\t{name}\n" for s, name in zip(SMILES, NAMES, strict=True)]
    rows = ["smiles,name,charge\n", *(f'{s},"{n}",\n' for s, n in zip(SMILES, NAMES, strict=True))]
    files = {suffix: text_of(molecules, suffix).encode() for suffix in (".sdf", ".xyz", ".extxyz")}
    files |= {".smi": "".join(lines).encode(), ".csv": "".join(rows).encode()}
    files[".parquet"] = _parquet()
    files[".xyz.gz"] = gzip.compress(files[".xyz"], mtime=0)
    return files


def mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """The content with one to four random changes."""
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 5))):
        start = int(draw.integers(0, len(changed) + 1))
        end = min(len(changed), start + int(draw.geometric(0.1)))
        match int(draw.integers(0, 6)):
            case 0:
                del changed[start:end]
            case 1:
                changed[start:start] = TOKENS[int(draw.integers(0, len(TOKENS)))]
            case 2:
                changed[start:end] = TOKENS[int(draw.integers(0, len(TOKENS)))]
            case 3:
                changed[start:start] = draw.bytes(int(draw.integers(1, 9)))
            case 4:  # a part twice, as of a file that was pasted together
                there = int(draw.integers(0, len(changed) + 1))
                changed[there:there] = changed[start : start + int(draw.geometric(0.01))]
            case _:
                del changed[start:]
    return bytes(changed)


def outcomes(path: Path) -> list[tuple[Record, list[Data] | Failure]]:
    """The structures and failures of a file."""
    with RecordFile(path) as file:
        return [(record, structures(record, LIMITS)) for record in file]


def read(path: Path, seed: int) -> None:
    """Reads a file and checks what comes of it; ``seed`` is that of its content."""
    start = time.monotonic()
    try:
        found = outcomes(path)
    except MoleculeError as error:  # of a whole file: its header, a column, decompression
        whole = error
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    else:
        for record, outcome in found:
            check(record, outcome)
        assert time.monotonic() - start < MAX_SECONDS, seed
        return
    assert path.name.endswith((".csv", ".parquet", ".gz")), seed
    assert whole.problem
    assert whole.source == path.name


def check(record: Record, outcome: list[Data] | Failure) -> None:
    assert all(isinstance(remark, str) for remark in record.remarks)
    if isinstance(outcome, Failure):
        assert outcome.problem.strip()
        assert outcome.source
        assert outcome.row == record.row
        "".join(outcome[2:]).encode()  # it can be written
        return
    assert outcome
    for data in outcome:
        assert torch.isfinite(data.pos).all()
        assert data.z.numel() == len(data.pos) > 0
        assert (int(data.z.sum()) - round(data.charge.item())) % 2 == 0


SUFFIXES = (".smi", ".csv", ".sdf", ".xyz", ".extxyz", ".parquet", ".xyz.gz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mutated_files(suffix: str, valid: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    for seed in range(INPUTS):
        path.write_bytes(mutated(valid[suffix], np.random.default_rng(seed)))
        read(path, seed)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_bytes(suffix: str, tmp_path: Path) -> None:
    letters = np.frombuffer(b'CNOH0123456789.-+=#()[]@ \t\n\n\n,"$', dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    for seed in range(INPUTS):
        draw = np.random.default_rng(seed)
        size = int(draw.integers(0, 400))
        path.write_bytes(draw.bytes(size) if seed % 2 else draw.choice(letters, size).tobytes())
        read(path, seed)


@pytest.mark.parametrize("suffix", [".smi", ".csv", ".sdf", ".xyz", ".extxyz"])
def test_a_changed_line_costs_its_record_alone(
    suffix: str, valid: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(valid[suffix])
    expected = [found for _, found in outcomes(path)]
    tokens = [token for token in TOKENS if not set(token) & set(b"\r\n")]
    for seed in range(INPUTS):
        draw = np.random.default_rng(seed)
        lines = valid[suffix].splitlines()
        # Lines that are the separator, the header or the number of atoms make records.
        inner = [k for k, line in enumerate(lines) if k and line[:4] != b"$$$$" and len(line) > 4]
        place = int(draw.choice(inner))
        line = bytearray(lines[place])
        start = int(draw.integers(0, len(line) + 1))
        line[start : start + int(draw.integers(0, 4))] = tokens[int(draw.integers(0, len(tokens)))]
        lines[place] = bytes(line)
        path.write_bytes(b"\n".join([*lines, b""]))
        found = [outcome for _, outcome in outcomes(path)]
        assert len(found) == len(expected), seed
        changed = 0
        for new, old in zip(found, expected, strict=True):
            assert not isinstance(old, Failure)
            changed += isinstance(new, Failure) or not torch.equal(new[0].pos, old[0].pos)
        assert changed <= 1, seed


@pytest.mark.parametrize(
    ("suffix", "text", "problem"),
    [
        (".smi", "C(C)" * 100_000, "200,000 atoms without hydrogens, expected up to 5,000"),
        (".smi", "[C@H](F)" * 100_000, "200,000 atoms"),
        (".csv", "smiles\n" + "C1CC1" * 20_000, "60,000 atoms"),
        (".xyz", "9" * 5000 + "\nx\nH 0 0 0\n", "99999999999999999999... atoms announced"),
        (".xyz", "1000001\nx\nH 0 0 0\n", "1000001 atoms announced, expected up to 1,000,000"),
        (".xyz", "1\nx\n" + "9" * 5000 + " 0 0 0\n", "which is not an element"),
        (
            ".extxyz",
            "1\nProperties=species:S:1:pos:R:3999999999\nAr 0 0 0\n",
            "states 4000000000 columns, and the first atom has 4",
        ),
        (
            ".extxyz",
            f"1\nProperties=species:S:1:pos:R:{'9' * 5000}\nAr 0 0 0\n",
            "columns, and the first atom has 4",
        ),
        (".csv", "smiles,charge\n[OH-]," + "9" * 5000, ""),
    ],
)
def test_absurd_sizes_cost_no_time(suffix: str, text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(text)
    start = time.monotonic()
    ((_, failure),) = outcomes(path)
    assert time.monotonic() - start < MAX_SECONDS
    assert isinstance(failure, Failure) == bool(problem)
    assert not isinstance(failure, Failure) or problem in failure.problem
