"""Molecules as PyG ``Data`` with a fixed set of fields, and the errors of single molecules.

Every ``Data`` is made by :func:`make_data`: its coordinates are finite, its elements known and its
number of electrons is even. A molecule that cannot be made is a :class:`MoleculeError` or, in a
batch, a :class:`Failure`, which is listed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from dipolegnn._pyg import Data
from dipolegnn.molecules.fragments import fragments_of

MIN_DISTANCE = 0.4
"""Smallest accepted distance in angstrom; the shortest bond, H-H, has 0.74."""

MAX_COORDINATE = 1e4
"""Largest coordinate in angstrom; beyond, the resolution of single precision is above 0.001."""

MAX_MOL_ID = 2**63 - 1
"""Largest number of a molecule, that of a 64-bit integer."""

MAGNITUDE_TOLERANCE = 0.05
"""Largest accepted difference between a magnitude and the norm of the vector, in debye."""


class Failure(NamedTuple):
    """One line of the failures table.

    Attributes:
        source: Name of the file, or ``""``.
        row: Row, record or frame in the source, from 1.
        molecule: Name or SMILES.
        stage: Stage of the failure: ``read``, ``embed``, ``label``, ...
        problem: The problem.
        remedy: How to solve the problem.
    """

    source: str
    row: int | None
    molecule: str
    stage: str
    problem: str
    remedy: str


class MoleculeError(ValueError):
    """A molecule that cannot be read, embedded or labelled.

    Args:
        problem: The problem: what was found and what was expected.
        remedy: How the user can solve the problem.
        molecule: Name or SMILES.
        row: Row, record or frame in the source, from 1; ``None`` if there is none.
        source: Name of the file, or ``""``.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "",
        molecule: str = "",
        row: int | None = None,
        source: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.molecule = molecule
        self.row = row
        self.source = source

    def located(
        self, *, molecule: str = "", row: int | None = None, source: str = ""
    ) -> MoleculeError:
        """Returns a copy of the error with missing molecule, row and source filled in."""
        return MoleculeError(
            self.problem,
            remedy=self.remedy,
            molecule=self.molecule or molecule,
            row=row if self.row is None else self.row,
            source=self.source or source,
        )

    def failure(
        self, stage: str, *, molecule: str = "", row: int | None = None, source: str = ""
    ) -> Failure:
        """Returns the line of the failures table, located as by :meth:`located`."""
        error = self.located(molecule=molecule, row=row, source=source)
        return Failure(error.source, error.row, error.molecule, stage, self.problem, self.remedy)

    def __str__(self) -> str:
        where = [self.source] if self.source else []
        if self.row is not None:
            where.append(f"row {self.row}")
        if self.molecule:
            where.append(f"molecule {self.molecule!r}")
        text = f"{', '.join(where)}: {self.problem}" if where else self.problem
        return f"{_sentence(text)} {_sentence(self.remedy)}".strip()


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def write_failures(path: str | Path, failures: Sequence[Failure]) -> None:
    """Writes the failures table as CSV; without failures it has only the header."""
    Path(path).write_text(failures_text(failures), encoding="utf-8", newline="")


def failures_text(failures: Sequence[Failure]) -> str:
    """Returns the failures table as CSV text."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([Failure._fields, *failures])
    return text.getvalue()


def read_failures(path: str | Path) -> list[Failure]:
    """Reads a table of :func:`write_failures`.

    Raises:
        ValueError: The columns are not those of a failures table.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        columns, *rows = list(csv.reader(file)) or [[]]
    if columns != list(Failure._fields):
        raise ValueError(
            f"{path} is not a failures table: expected the columns {', '.join(Failure._fields)}, "
            f"got {', '.join(columns) or 'none'}."
        )
    return [
        Failure(source, int(row) if row else None, *rest)
        for source, row, *rest in rows  # an empty cell: no row
    ]


class Molecules(NamedTuple):
    """Molecules, in order, and failures of a list or file."""

    data: list[Data]
    failures: list[Failure]
    rows: list[int] | None = None
    """Row of each structure in its file, from 1; None: ``mol_id + 1``."""


def make_data(
    z: ArrayLike | torch.Tensor,
    pos: ArrayLike | torch.Tensor,
    *,
    charge: float = 0.0,
    dipole: ArrayLike | torch.Tensor | None = None,
    dipole_magnitude: float | None = None,
    atomic_charges: ArrayLike | torch.Tensor | None = None,
    energy: float | None = None,
    fragments: tuple[ArrayLike | torch.Tensor, ArrayLike | torch.Tensor] | None = None,
    mol_id: int = 0,
    smiles: str = "",
    name: str = "",
) -> Data:
    """Creates the ``Data`` of a molecule and checks its fields.

    Args:
        z: Atomic numbers ``[N]``.
        pos: Coordinates ``[N, 3]`` in angstrom.
        charge: Total charge in e, a whole number.
        dipole: Dipole vector ``[3]`` or ``[1, 3]`` in debye, about the centre of mass for an ion;
            ``None`` or NaN where it is unknown.
        dipole_magnitude: Its length in debye, for when only that is known.
        atomic_charges: Partial charges ``[N]`` in e; ``None`` or NaN where they are unknown.
        energy: Energy in kcal/mol; only differences between conformers of a molecule count.
        fragments: Number of the fragment of each atom ``[N]``, from 0, and the total charge of the
            fragment of each atom ``[N]`` in e. A fragment is a part without bonds to the others;
            None: found from distances and the total charge.
        mol_id: Number of the molecule; its conformers share it.
        smiles: SMILES, ``""`` if unknown.
        name: Name; the SMILES stands in where it is ``""``.

    Returns:
        ``Data`` with ``z, pos, charge, dipole, dipole_magnitude, atomic_charges, energy, fragment,
        fragment_charge, mol_id, smiles, name``; labels that are not known are NaN.

    Raises:
        MoleculeError: Wrong shapes, numbers that are not finite, unknown elements, atoms on top of
            each other, an odd number of electrons, contradicting labels, or fragments whose charges
            are not determined.

    Example:
        >>> hydrogen_fluoride = make_data([9, 1], [[0, 0, 0], [0, 0, 0.917]], dipole=[0, 0, 1.82])
        >>> round(hydrogen_fluoride.dipole_magnitude.item(), 2)
        1.82
    """
    try:
        numbers = _atomic_numbers(z)
        positions = _positions(pos, numbers)
        _check_electrons(numbers, charge)
        vector, magnitude = _dipole_labels(dipole, dipole_magnitude)
        partial = _per_atom(atomic_charges, len(numbers))
        if not -MAX_MOL_ID <= mol_id <= MAX_MOL_ID:
            raise MoleculeError(
                f"mol_id is {mol_id:.3g}, expected a 64-bit integer", remedy="Number the molecules"
            )
        if energy is not None and math.isinf(energy):
            raise MoleculeError(f"The energy is {energy}", remedy="Leave it out if it is unknown")
        fragment, fragment_charge = _fragments(fragments, numbers, positions, round(charge))
    except MoleculeError as error:
        raise error.located(molecule=name or smiles) from None
    return Data(
        z=torch.from_numpy(numbers),  # [N]
        pos=torch.from_numpy(positions),  # [N, 3]
        charge=torch.tensor([float(round(charge))], dtype=torch.float32),
        dipole=torch.from_numpy(vector.astype(np.float32)).view(1, 3),
        dipole_magnitude=torch.tensor([magnitude], dtype=torch.float32),
        atomic_charges=torch.from_numpy(partial.astype(np.float32)),  # [N]
        energy=torch.tensor([math.nan if energy is None else energy], dtype=torch.float32),
        fragment=torch.from_numpy(fragment),  # [N]
        fragment_charge=torch.from_numpy(fragment_charge.astype(np.float32)),  # [N]
        mol_id=torch.tensor([mol_id], dtype=torch.int64),
        smiles=smiles,
        name=name or smiles,
    )


def relabelled(
    data: Data,
    *,
    pos: ArrayLike | torch.Tensor | None = None,
    dipole: ArrayLike | torch.Tensor | None = None,
    dipole_magnitude: float | None = None,
    atomic_charges: ArrayLike | torch.Tensor | None = None,
    energy: float | None = None,
) -> Data:
    """Returns a copy of a molecule with new labels and, if given, new coordinates.

    Args and Raises are those of :func:`make_data`.
    """
    copy = make_data(
        data.z,
        data.pos if pos is None else pos,
        charge=data.charge.item(),
        dipole=dipole,
        dipole_magnitude=dipole_magnitude,
        atomic_charges=atomic_charges,
        energy=energy,
        fragments=(data.fragment, data.fragment_charge) if "fragment" in data else None,
        mol_id=int(data.mol_id.item()),
        smiles=data.smiles,
        name=data.name,
    )
    for field in ("mol_block", "notes"):
        if field in data:
            copy[field] = data[field]
    return copy


def to_arrays(data: Data) -> dict[str, Any]:
    """Converts the tensors of a molecule to NumPy arrays, which are pickled ten times as fast."""
    return {
        key: value.numpy() if isinstance(value, torch.Tensor) else value
        for key, value in data.to_dict().items()
    }


def from_arrays(arrays: dict[str, Any]) -> Data:
    """Inverse of :func:`to_arrays`."""
    fields = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in arrays.items()
    }
    return Data.from_dict(fields)


def _array(
    values: ArrayLike | torch.Tensor, what: str, *shapes: tuple[int, ...]
) -> NDArray[np.float64]:
    """Returns numbers as an array of one of ``shapes``, or of any shape if there are none."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise MoleculeError(
            f"The {what} are not an array of numbers: got {str(values)[:80]}",
            remedy=f"Give the {what} as numbers",
        ) from None
    if shapes and array.shape not in shapes:
        raise MoleculeError(
            f"Expected {what} of shape {list(shapes[0])}, got {list(array.shape)}",
            remedy="Give x, y and z of each atom and of the dipole, and one charge per atom",
        )
    return array


def _atomic_numbers(z: ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    numbers = _array(z, "atomic numbers")
    if numbers.ndim != 1 or numbers.size == 0:
        raise MoleculeError(
            f"Expected the atomic numbers of at least one atom, shape [N], got shape "
            f"{list(numbers.shape)}",
            remedy="Give one atomic number per atom",
        )
    known = np.isfinite(numbers) & (numbers >= 1) & (numbers < len(chemical_symbols))
    known &= numbers == np.round(numbers)
    if not known.all():
        atom = int(np.argmin(known))
        raise MoleculeError(
            f"Atom {atom + 1} has the atomic number {numbers[atom]:g}, which is no element",
            remedy="Replace dummy and unknown atoms by elements (1 to 118)",
        )
    return numbers.astype(np.int64)


def _positions(pos: ArrayLike | torch.Tensor, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    positions = _array(pos, "coordinates", (len(numbers), 3))
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        atom = int(np.argmin(finite))
        raise MoleculeError(
            f"Atom {atom + 1} ({chemical_symbols[numbers[atom]]}) has coordinates that are not "
            f"finite: {positions[atom].tolist()}",
            remedy="Give finite coordinates in angstrom",
        )
    if np.abs(positions).max() > MAX_COORDINATE:
        raise MoleculeError(
            f"A coordinate of {np.abs(positions).max():.4g} angstrom is too large to be held in "
            f"single precision",
            remedy="Move the molecule to the origin, and give coordinates in angstrom",
        )
    pairs = cKDTree(positions).query_pairs(MIN_DISTANCE, output_type="ndarray")
    if len(pairs):
        i, j = min((int(a), int(b)) for a, b in pairs)
        distance = float(np.linalg.norm(positions[i] - positions[j]))
        raise MoleculeError(
            f"Atoms {i + 1} ({chemical_symbols[numbers[i]]}) and {j + 1} "
            f"({chemical_symbols[numbers[j]]}) are {distance:.3f} angstrom apart",
            remedy="Remove coincident atoms, and give coordinates in angstrom",
        )
    return positions.astype(np.float32)


def _check_electrons(numbers: NDArray[np.int64], charge: float) -> None:
    if not math.isfinite(charge) or abs(charge - round(charge)) > 1e-3:
        raise MoleculeError(
            f"The total charge must be a whole number of e, got {charge}",
            remedy="Give the charge of the whole molecule",
        )
    electrons = int(numbers.sum()) - round(charge)
    if electrons <= 0:
        raise MoleculeError(
            f"With the charge {charge:+g} no electron is left",
            remedy="Give the charge of the whole molecule in e",
        )
    if electrons % 2:
        raise MoleculeError(
            f"{electrons} electrons (charge {charge:+g}): an odd number, so a radical, and only "
            f"closed-shell molecules are supported",
            remedy="If it is an ion, give its charge (in an XYZ file charge=-1 on the comment "
            "line); else look for a hydrogen atom too many or too few",
        )


def _dipole_labels(
    dipole: ArrayLike | torch.Tensor | None, magnitude: float | None
) -> tuple[NDArray[np.float64], float]:
    length = math.nan if magnitude is None else float(magnitude)
    if math.isinf(length) or length < 0:
        raise MoleculeError(
            f"The dipole magnitude must be 0 D or more, got {length}",
            remedy="Leave it out where it is unknown",
        )
    if dipole is None:
        return np.full(3, math.nan), length
    vector = _array(dipole, "components of the dipole", (3,), (1, 3)).reshape(3)
    if np.isnan(vector).all():
        return vector, length
    if not np.isfinite(vector).all():
        raise MoleculeError(
            f"The dipole {vector.tolist()} is not finite",
            remedy="Leave the whole vector out where it is unknown",
        )
    norm = float(np.linalg.norm(vector))
    if abs(norm - length) > MAGNITUDE_TOLERANCE:
        raise MoleculeError(
            f"The dipole vector has the length {norm:.3f} D but the magnitude given is "
            f"{length:.3f} D",
            remedy="Check the units (1 e*angstrom = 4.8032 D), or give one of the two",
        )
    return vector, norm


def _fragments(
    given: tuple[ArrayLike | torch.Tensor, ArrayLike | torch.Tensor] | None,
    numbers: NDArray[np.int64],
    positions: NDArray[np.float32],
    charge: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Fragment of each atom ``[N]`` and its charge ``[N]``."""
    if given is not None:
        number, charges = (_array(values, "fragments") for values in given)
        fragment = number.astype(np.int64)
        if number.shape != numbers.shape or charges.shape != numbers.shape:
            raise MoleculeError(
                f"Expected the fragment and its charge for each of {len(numbers)} atoms, got "
                f"{list(number.shape)} and {list(charges.shape)}",
                remedy="Give one number and one charge per atom",
            )
        if (fragment != number).any() or fragment.min() < 0 or fragment.max() >= len(numbers):
            raise MoleculeError(
                f"The numbers of the fragments are {sorted(set(number.tolist()))[:9]}",
                remedy="Number the fragments from 0",
            )
        found, first = np.unique(fragment, return_index=True)
        if (charges != charges[first][np.searchsorted(found, fragment)]).any() or (
            charges[first].sum() != charge
        ):
            raise MoleculeError(
                f"The fragments have the charges {charges[first].tolist()} and the molecule "
                f"{charge:+d} e",
                remedy="Give all atoms of a fragment its charge; their sum is the total charge",
            )
        return fragment, charges
    fragment, of_fragment = fragments_of(numbers, positions.astype(np.float64), charge)
    if of_fragment is None:
        sizes = np.bincount(fragment)
        parts = ", ".join(
            f"{size} atom{'s'[: size > 1]} from {chemical_symbols[numbers[first]]}{first + 1}"
            for size, first in zip(
                sizes.tolist(), np.unique(fragment, return_index=True)[1].tolist(), strict=True
            )
        )
        raise MoleculeError(
            f"Its {len(sizes)} parts without bonds to each other ({parts}) share the total charge "
            f"{charge:+d} e in an unknown way",
            remedy="Give the structure with bonds and formal charges (.sdf), give the parts one by "
            "one, or check the geometry for stretched bonds",
        )
    return fragment, np.array(of_fragment, dtype=np.float64)[fragment]


def _per_atom(values: ArrayLike | torch.Tensor | None, atoms: int) -> NDArray[np.float64]:
    if values is None:
        return np.full(atoms, math.nan)
    charges = _array(values, "atomic charges", (atoms,))
    if not (np.isfinite(charges).all() or np.isnan(charges).all()):
        raise MoleculeError(
            "Some of the atomic charges are not finite",
            remedy="Give all of them, or none",
        )
    return charges
