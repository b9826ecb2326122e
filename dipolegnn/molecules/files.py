"""Files of molecules, by their suffix: read into ``Molecules``, written from ``Data``.

A file that cannot be read at all is an error. One row, record or frame of it that cannot be read
is a line in ``Molecules.failures``, and the others survive.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.molecules.batch import embed_smiles
from dipolegnn.molecules.errors import MoleculeError
from dipolegnn.molecules.molecule import Molecules
from dipolegnn.molecules.sdf import parse_sdf, sdf_text
from dipolegnn.molecules.tables import Table, TableColumns, parse_csv, parse_smi
from dipolegnn.molecules.xyz import extxyz_text, parse_xyz, xyz_text

TABLES = (".smi", ".csv")
"""Suffixes of files of SMILES, which are embedded in 3D; the others hold structures."""

READABLE = (*TABLES, ".sdf", ".xyz", ".extxyz")
"""Suffixes that :func:`read_file` knows, each also with ``.gz`` behind it."""

WRITABLE = (".sdf", ".xyz", ".extxyz")
"""Suffixes that :func:`write_file` knows, each also with ``.gz`` behind it."""


def read_file(
    path: str | Path,
    *,
    columns: TableColumns | None = None,
    conformers: ConformerConfig | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Molecules:
    """Read the molecules of a file.

    - ``.smi``: a SMILES and, after white space, its name, on each line; ``#`` starts a comment.
    - ``.csv``: a header line, then one SMILES a row; separated by comma, semicolon or tab.
    - ``.sdf``: 3D structures with explicit hydrogens, V2000 or V3000.
    - ``.xyz``: frames; the comment line is the name, and may state ``charge=-1``.
    - ``.extxyz``: frames in ASE's conventions, labels included (see ``from_ase``).

    SMILES are embedded. ``mol_id`` counts rows, records or frames from 0; where frames or records
    are conformers of one molecule, an extended XYZ file or an SDF says so by ``mol_id``.

    Args:
        path: File; UTF-8, with or without ``.gz``.
        columns: Columns of a ``.csv``.
        conformers: How SMILES are embedded; structures are taken as they are.
        workers: Processes that embed.
        progress: Show a progress bar while embedding.

    Raises:
        MoleculeError: The file holds no molecules, lacks a column, is no text or a broken ``.gz``.
        ValueError: An unknown suffix.
    """
    path = Path(path)
    _suffix(path, READABLE)
    return read_text(
        _read_text(path),
        path.name,
        columns=columns,
        conformers=conformers,
        workers=workers,
        progress=progress,
    )


def read_text(
    text: str,
    name: str,
    *,
    columns: TableColumns | None = None,
    conformers: ConformerConfig | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Molecules:
    """Read molecules from the content of a file; see :func:`read_file`.

    Args:
        text: The content, unpacked.
        name: Name of the file, whose suffix says what it is.
        columns: Columns of a ``.csv``.
        conformers: How SMILES are embedded; structures are taken as they are.
        workers: Processes that embed.
        progress: Show a progress bar while embedding.

    Raises:
        MoleculeError: There are no molecules, or a column is missing.
        ValueError: An unknown suffix.
    """
    suffix = _suffix(Path(name), READABLE)
    table: Table | None = None
    try:
        if suffix == ".csv":
            table = parse_csv(text, columns or TableColumns(), source=name)
        elif suffix == ".smi":
            table = parse_smi(text)
    except MoleculeError as error:
        raise error.located(source=name) from None
    if table is not None:
        found = embed_smiles(
            table.rows,
            conformers or ConformerConfig(),
            workers=workers,
            progress=progress,
            source=name,
        )
        failures = sorted(table.failures + found.failures, key=lambda failure: failure.row or 0)
        molecules = Molecules(found.data, failures)
    elif suffix == ".sdf":
        molecules = parse_sdf(text, source=name)
    else:
        molecules = parse_xyz(text, source=name, extended=suffix == ".extxyz")
    if not molecules.data and not molecules.failures:
        raise MoleculeError(
            "The file holds no molecules", remedy="Check that it is complete", source=name
        )
    return molecules


def text_of(data: Sequence[Data], suffix: str) -> str:
    """Molecules as the content of a ``.sdf``, ``.xyz`` or ``.extxyz`` file; see :func:`write_file`.

    Raises:
        MoleculeError: An SDF needs bonds, and they cannot be perceived.
        ValueError: An unknown suffix.
    """
    match suffix:
        case ".sdf":
            return sdf_text(data)
        case ".xyz":
            return xyz_text(data)
        case ".extxyz":
            return extxyz_text(data)
    raise ValueError(f"Unknown suffix {suffix!r}, expected one of {', '.join(WRITABLE)}.")


def write_file(path: str | Path, data: Sequence[Data]) -> None:
    """Write molecules as ``.sdf``, ``.xyz`` or ``.extxyz`` (also ``.gz``).

    SDF (V3000) and extended XYZ keep the labels, and :func:`read_file` reads them back; SDF also
    keeps bonds, stereo and isotopes. Nothing is written unless everything can be.

    Raises:
        MoleculeError: An SDF needs bonds, and they cannot be perceived.
        ValueError: An unknown suffix.
    """
    path = Path(path)
    content = text_of(data, _suffix(path, WRITABLE)).encode("utf-8")
    if path.suffix.lower() == ".gz":
        content = gzip.compress(content, mtime=0)  # equal input, equal bytes
    path.write_bytes(content)


def _suffix(path: Path, known: Sequence[str]) -> str:
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix not in known:
        raise ValueError(
            f"{path.name}: unknown suffix {suffix or path.suffix!r}, expected one of "
            f"{', '.join(known)} (or with .gz behind it)."
        )
    return suffix


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MoleculeError(
            f"The file is not UTF-8 text (byte {error.start})",
            remedy="Save it as UTF-8",
            source=path.name,
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MoleculeError(
            f"The file cannot be decompressed: {error}",
            remedy="Copy or compress it again",
            source=path.name,
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
