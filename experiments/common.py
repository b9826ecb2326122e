"""What the experiments share: reference data, which are not part of the project, and tables.

``--data``, ``$DIPOLEGNN_DATA`` or ``../shared/data`` is a folder with files like
``qm9_dipole.npz``, in which molecules lie end to end: ``n`` atoms each, ``z``, ``pos`` (angstrom)
and, with labels, ``mu`` (debye), ``dipole`` (debye) and ``dipole_ok``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from dipolegnn.molecules import MoleculeError, Molecules, make_data

ROOT = Path(__file__).resolve().parent.parent


def data_folder(given: Path | None, file: str) -> Path:
    """The folder of the reference data.

    Raises:
        SystemExit: If ``file`` is not in it.
    """
    folder = given or Path(os.environ.get("DIPOLEGNN_DATA", ROOT.parent / "shared/data"))
    if not (folder / file).is_file():
        raise SystemExit(
            f"There is no {file} in {folder}; name its folder with --data or DIPOLEGNN_DATA."
        )
    return folder


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file, each decompressed once."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def read_npz(
    path: Path, *, number: str, vectors: bool, rows: slice | NDArray[np.int64] = slice(None)
) -> Molecules:
    """Reads molecules that lie end to end.

    Args:
        path: The file.
        number: The array that numbers the molecules.
        vectors: Whether to take the vectors where they are sure.
        rows: Which molecules, in this order.
    """
    arrays = read_arrays(path)
    first = np.concatenate([[0], np.cumsum(arrays["n"], dtype=np.int64)])
    molecules = Molecules([], [])
    chosen = np.arange(len(arrays["n"]))[rows].tolist()
    for row in track(chosen, f"Reading {path.name}", transient=True, disable=len(chosen) < 1000):
        atoms = slice(first[row], first[row + 1])
        sure = vectors and bool(arrays["dipole_ok"][row])
        try:
            data = make_data(
                arrays["z"][atoms],
                arrays["pos"][atoms],
                dipole=arrays["dipole"][row] if sure else None,
                dipole_magnitude=float(arrays["mu"][row]) if "mu" in arrays else None,
                mol_id=int(arrays[number][row]),
                name=str(arrays[number][row]),
            )
        except MoleculeError as error:
            molecules.failures.append(error.failure("read", row=row + 1, source=path.name))
        else:
            molecules.data.append(data)
    return molecules


NOTHING = "–"
"""What stands where there is no number."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown, without a line break at its end.

    Args:
        header: Names of the columns, with units.
        rows: As many cells each as there are columns; numbers are formatted already.

    Raises:
        ValueError: A row with more or fewer cells.
    """
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells {tuple(row)} for {len(header)} columns.")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
