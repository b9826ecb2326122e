"""Molecules in one compact file: ``molecules.npz``.

The arrays of all molecules are concatenated, in order; ``n`` is the number of atoms of each. Texts
are JSON lists in UTF-8. Nothing is pickled, and the same molecules give the same bytes (on the same
build of zlib), so that the SHA-256 of the file names its content.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.files import replacing

FORMAT_VERSION = 1
"""Version of the layout of ``molecules.npz``."""

ATOM_FIELDS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "z": (torch.int64, ()),
    "pos": (torch.float32, (3,)),
    "atomic_charges": (torch.float32, ()),
    "fragment": (torch.int64, ()),
    "fragment_charge": (torch.float32, ()),
}
"""Fields with one row per atom: type, and shape of a row."""

MOLECULE_FIELDS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "charge": (torch.float32, ()),
    "dipole": (torch.float32, (3,)),
    "dipole_magnitude": (torch.float32, ()),
    "energy": (torch.float32, ()),
    "mol_id": (torch.int64, ()),
}
"""Fields with one row per structure: type, and shape of a row."""

TEXT_FIELDS = ("smiles", "name")
"""Fields with one text per structure."""

FIELDS: tuple[str, ...] = (
    *("z", "pos", "charge", "dipole", "dipole_magnitude"),
    *("atomic_charges", "energy", "fragment", "fragment_charge", "mol_id", "smiles", "name"),
)

# A mol block can be made again from the SMILES or the file, and is ten times as large as the rest.
_LEFT_OUT = {"mol_block", "notes"}


class PackedMolecules(NamedTuple):
    """All molecules of a file, concatenated."""

    n: NDArray[np.int64]
    """Atoms per structure ``[M]``."""
    arrays: dict[str, NDArray[Any]]
    """Fields per atom ``[sum(n), ...]`` and per structure ``[M, ...]``; units in FIELD_UNITS."""
    texts: dict[str, list[str]]
    """Texts, one per structure."""


def write_molecules(path: str | Path, molecules: Sequence[Data]) -> None:
    """Write molecules to a compressed ``.npz``.

    ``mol_block`` and ``notes`` are left out. The file is written atomically.

    Args:
        path: The file to write.
        molecules: The molecules, at least one, with the fields that ``make_data`` gives them.

    Raises:
        ValueError: There is no molecule, or one has other fields, types or shapes.
    """
    packed = pack(molecules)
    entries: dict[str, NDArray[Any]] = {"format_version": np.array(FORMAT_VERSION), "n": packed.n}
    entries |= packed.arrays
    # Smaller before compression, so faster to read; atomic numbers fit in a byte.
    entries["z"] = entries["z"].astype(np.uint8)
    if not entries["fragment"].any():  # as in the files of version 0.1, which had no fragments
        del entries["fragment"], entries["fragment_charge"]
    for field, texts in packed.texts.items():
        entries[field] = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in entries.items():
            # A fixed date instead of today's: the same molecules, the same bytes.
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def read_molecules(path: str | Path) -> list[Data]:
    """Read the molecules that :func:`write_molecules` wrote, in the same order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of a newer format or no file of molecules.
    """
    return unpack(read_packed(path))


def pack(molecules: Sequence[Data]) -> PackedMolecules:
    """Concatenates molecules; errors as in :func:`write_molecules`."""
    if not molecules:
        raise ValueError("There are no molecules to write; expected at least one.")
    for row, data in enumerate(molecules):
        _check(data, row)
    arrays = {
        field: torch.cat([data[field] for data in molecules]).cpu().numpy()
        for field in FIELDS
        if field not in TEXT_FIELDS
    }
    return PackedMolecules(
        n=np.array([len(data["z"]) for data in molecules], dtype=np.int64),
        arrays=arrays,
        texts={field: [data[field] for data in molecules] for field in TEXT_FIELDS},
    )


def unpack(packed: PackedMolecules) -> list[Data]:
    """One ``Data`` per structure; no two tensors share memory."""
    ends = np.cumsum(packed.n)
    columns: list[list[Any]] = []
    for field in FIELDS:
        if field in TEXT_FIELDS:
            columns.append(packed.texts[field])
            continue
        whole = torch.from_numpy(packed.arrays[field])
        rows = packed.n.tolist() if field in ATOM_FIELDS else [1] * len(ends)
        # Copies: with a view, the arrays of the whole file would be pickled.
        columns.append([part.clone() for part in whole.split(rows)])
    return [Data(**dict(zip(FIELDS, row, strict=True))) for row in zip(*columns, strict=True)]


def read_packed(path: str | Path) -> PackedMolecules:
    """Read a file of molecules as arrays; errors as in :func:`read_molecules`."""
    try:
        # Opened here, so that a damaged file is closed too; np.load would leave it open.
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it holds a single array")
            entries = dict(archive)
            if not all(isinstance(values, np.ndarray) for values in entries.values()):
                raise ValueError("it holds other entries than arrays")
    except FileNotFoundError:
        raise
    # Of a damaged archive: KeyError and RuntimeError (unknown compression, encryption) are of
    # zipfile, the others of the header of an array, such as one that is larger than the memory.
    except (
        *(OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, OverflowError),
        *(MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise ValueError(
            f"{path} cannot be read as molecules ({error}). Expected the .npz file that "
            f"write_molecules or `dipolegnn build` makes; it may be damaged: make it again."
        ) from error
    stored_version = entries.get("format_version", np.array(0))
    version = int(_checked(path, "format_version", stored_version, (), whole=True))
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, and this dipolegnn reads up to "
            f"{FORMAT_VERSION}: update dipolegnn."
        )
    added = () if "fragment" in entries else ("fragment", "fragment_charge")  # below
    missing = [
        name
        for name in ("format_version", "n", *FIELDS)
        if name not in entries and name not in added
    ]
    if missing:
        raise ValueError(
            f"{path} is no file of molecules: it has no {', '.join(missing)}. Expected what "
            f"write_molecules or `dipolegnn build` makes."
        )
    molecules = entries["n"].shape[:1]
    n = _checked(path, "n", entries["n"], molecules or (1,), whole=True).astype(np.int64)
    # As a float, in which the sum of damaged numbers does not overflow.
    if (n < 0).any() or n.sum(dtype=float) > sum(map(np.size, entries.values())):
        raise ValueError(
            f"{path} is inconsistent: n must be the numbers of atoms of its structures, got "
            f"{n.min()} to {n.max()} for {len(n)}. Make the file again."
        )
    if added:
        charge = entries["charge"]
        entries["fragment"] = np.zeros(int(n.sum()))
        entries["fragment_charge"] = charge.repeat(n) if charge.shape == n.shape else charge
    texts = {field: _texts(path, field, entries[field]) for field in TEXT_FIELDS}
    arrays = {
        field: _checked(
            path,
            field,
            entries[field],
            (*(entries[field].shape[:1] or (1,)), *row_shape),
            whole=dtype == torch.int64,
        ).astype(_numpy_type(dtype), copy=False)
        for field, (dtype, row_shape) in {**ATOM_FIELDS, **MOLECULE_FIELDS}.items()
    }
    lengths = {field: len(values) for field, values in arrays.items()}
    lengths |= {field: len(values) for field, values in texts.items()}
    for field, length in lengths.items():
        expected = int(n.sum()) if field in ATOM_FIELDS else len(n)
        if length != expected:
            raise ValueError(
                f"{path} is inconsistent: {field} has {length} rows, expected {expected}. "
                f"Make the file again."
            )
    return PackedMolecules(n, arrays, texts)


def _checked(
    path: str | Path, name: str, values: NDArray[Any], shape: tuple[int, ...], *, whole: bool
) -> NDArray[Any]:
    """Returns an entry of the file if it has this shape and contains real (or whole) numbers."""
    numbers = values.dtype.kind in "biuf"
    if whole and values.dtype.kind == "f":
        numbers = bool((np.isfinite(values) & (np.abs(values) < 2**53)).all())
    if not numbers or values.shape != shape:
        raise ValueError(
            f"{path} is damaged: {name} must be {'whole' if whole else 'real'} numbers "
            f"{list(shape)}, got {values.dtype} {list(values.shape)}. Make the file again."
        )
    return values


def _texts(path: str | Path, name: str, stored: NDArray[Any]) -> list[str]:
    try:
        texts = json.loads(stored.tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: {name} must be a JSON list of texts ({error}). Make the file "
            "again."
        ) from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{path} is damaged: {name} must be a JSON list of texts, got another value. Make the "
            "file again."
        )
    return texts


def _numpy_type(dtype: torch.dtype) -> type[np.generic]:
    return np.int64 if dtype == torch.int64 else np.float32


def _check(data: Data, row: int) -> None:
    """Checks the fields of a molecule, their types and shapes."""
    which = f"Molecule {row} ({data['name']!r})" if "name" in data else f"Molecule {row}"
    missing = [field for field in FIELDS if field not in data]
    extra = sorted({*data.keys()} - {*FIELDS} - _LEFT_OUT)
    if missing or extra:
        raise ValueError(
            f"{which} does not have the fields of a molecule: missing "
            f"{', '.join(missing) or 'none'}, unknown {', '.join(extra) or 'none'}. "
            f"Make it with dipolegnn.molecules.make_data."
        )
    atoms = len(data["z"])
    for rows, specs in ((atoms, ATOM_FIELDS), (1, MOLECULE_FIELDS)):
        for field, (dtype, row_shape) in specs.items():
            value, shape = data[field], (rows, *row_shape)
            good = isinstance(value, torch.Tensor)
            if not good or value.dtype != dtype or tuple(value.shape) != shape:
                got = f"{value.dtype} {list(value.shape)}" if good else type(value).__name__
                raise ValueError(
                    f"{which}: {field} must be {dtype} {list(shape)}, got {got}. "
                    f"Make it with dipolegnn.molecules.make_data."
                )
    for field in TEXT_FIELDS:
        if not isinstance(data[field], str):
            raise ValueError(f"{which}: {field} must be a str, got {type(data[field]).__name__}.")
