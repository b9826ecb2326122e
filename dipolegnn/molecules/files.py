"""Reading and writing files of molecules, by suffix.

A file that cannot be read at all is an error. One row, record or frame of it that cannot be read
is a line in ``Molecules.failures``, and the others survive.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig
from dipolegnn.files import WRITABLE, molecule_format
from dipolegnn.molecules.embedding import molecules_of
from dipolegnn.molecules.molecule import Molecules
from dipolegnn.molecules.records import TableColumns, file_records, read_records
from dipolegnn.molecules.sdf import sdf_text
from dipolegnn.molecules.xyz import extxyz_text, xyz_text


def read_file(
    path: str | Path,
    *,
    columns: TableColumns | None = None,
    conformers: ConformerConfig | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Molecules:
    """Reads the molecules of a file.

    - ``.smi``: a SMILES and, after white space, its name, on each line; ``#`` starts a comment.
    - ``.csv``: a header line, then one SMILES a row; separated by comma, semicolon or tab.
    - ``.parquet``: one SMILES a row (needs the extra parquet).
    - ``.sdf``: 3D structures with explicit hydrogens, V2000 or V3000.
    - ``.xyz``: frames; the comment line is the name, and may state ``charge=-1``. Also the
      files of QM9 as published.
    - ``.extxyz``: frames in ASE's conventions, labels included (see ``from_ase``).

    A total charge (``charge``, ``total_charge``, ``q``, ..., in any case) may be a key of an XYZ
    comment line, a data field or a column; it must agree with formal charges. Other values that
    look like a charge or a dipole give a warning.

    SMILES are embedded. ``mol_id`` counts rows, records or frames from 0. Frames of an extended XYZ
    file or records of an SDF with the same ``mol_id`` are conformers of one molecule.

    Args:
        path: File; UTF-8, with or without ``.gz``.
        columns: Columns of a table.
        conformers: How SMILES are embedded; structures are taken as they are.
        workers: Processes that embed.
        progress: Show a progress bar while embedding.

    Raises:
        ImportError: Parquet without pyarrow.
        MoleculeError: The file holds no molecules, lacks a column or is a broken ``.gz``.
        ValueError: An unknown suffix.
    """
    records = file_records(path, columns)
    config = conformers or ConformerConfig()
    return molecules_of(records, config, workers=workers, progress=progress)


def read_text(
    text: str,
    name: str,
    *,
    columns: TableColumns | None = None,
    conformers: ConformerConfig | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Molecules:
    """Reads molecules from the content of a file; see :func:`read_file`.

    Args:
        text: The content, decompressed.
        name: Name of the file; its suffix determines the format.
        columns: Columns of a ``.csv``.
        conformers: How SMILES are embedded; structures are taken as they are.
        workers: Processes that embed.
        progress: Show a progress bar while embedding.

    Raises:
        MoleculeError: There are no molecules, or a column is missing.
        ValueError: An unknown suffix.
    """
    records = read_records(text, name, columns)
    config = conformers or ConformerConfig()
    return molecules_of(records, config, workers=workers, progress=progress)


def text_of(
    data: Sequence[Data],
    suffix: str,
    further: Sequence[Mapping[str, str | float]] | None = None,
) -> str:
    """Returns the text of a ``.sdf``, ``.xyz`` or ``.extxyz`` file (:func:`write_file`).

    Args:
        data: The molecules.
        suffix: The suffix.
        further: Further values of each molecule, by name: data fields in an SDF, keys of the
            comment line in extended XYZ; left out in plain XYZ.

    Raises:
        MoleculeError: An SDF needs bonds, and they cannot be perceived.
        ValueError: An unknown suffix, or another number of molecules in ``further``.
    """
    each = [{} for _ in data] if further is None else further
    match suffix:
        case ".sdf":
            return sdf_text(data, each)
        case ".xyz":
            return xyz_text(data)
        case ".extxyz":
            return extxyz_text(data, each)
    raise ValueError(f"Unknown suffix {suffix!r}, expected one of {', '.join(WRITABLE)}.")


def write_file(path: str | Path, data: Sequence[Data]) -> None:
    """Writes molecules as ``.sdf``, ``.xyz`` or ``.extxyz`` (also ``.gz``).

    SDF (V3000) and extended XYZ keep the labels, and :func:`read_file` reads them back; SDF also
    keeps bonds, stereo and isotopes. Nothing is written unless everything can be.

    Raises:
        MoleculeError: An SDF needs bonds, and they cannot be perceived.
        ValueError: An unknown suffix.
    """
    path = Path(path)
    content = text_of(data, molecule_format(path, WRITABLE).suffix).encode("utf-8")
    if path.suffix.lower() == ".gz":
        content = gzip.compress(content, mtime=0)  # equal input, equal bytes
    path.write_bytes(content)
