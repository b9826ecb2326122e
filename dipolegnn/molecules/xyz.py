"""XYZ and extended XYZ files, read frame by frame, and ASE ``Atoms``.

The format has no separator: the first line of a frame is its number of atoms. If that number is
wrong, the frame is a failure and reading continues at the next possible start of a frame.

ASE has energies in eV and dipoles in e·angstrom about the origin of the coordinates. ``Data`` has
kcal/mol, and debye about the centre of mass, which makes a difference for ions.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.files import Lines
from dipolegnn.molecules.molecule import MAX_MOL_ID, MoleculeError, make_data
from dipolegnn.molecules.total_charge import (
    agreed_charge,
    charges_in,
    is_charge_name,
    unused,
    without_charges,
)
from dipolegnn.units import DEBYE_PER_E_ANGSTROM, KCAL_PER_MOL_PER_EV, centre_of_mass, move_origin

MAGNITUDE_KEY = "dipole_magnitude_debye"
"""Key in ``Atoms.info`` of a magnitude without a vector, for which ASE has no name."""

_KEY = re.compile(
    r"""(?<![^\s,;])([A-Za-z][\w.-]*)\s*[=:]\s*("(?:[^"\\]|\\.)*"|\{[^}]*\}|\[[^]]*\]|[^\s,;]+)"""
)
_ISOTOPES = {"D": "H", "T": "H"}
"""Symbols of isotopes. As for [2H] in SMILES, masses are those of the elements."""

_QM9 = re.compile(r"gdb\s+(\d+)((?:\s+\S+){15})")
_QM9_MU = 3  # of the properties A, B, C, mu, ...
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_BARE = re.compile(r"(?i)(?<![^\s,;])(charge|dipole)\s+[+-]?\d")
MOST_ATOMS = 1_000_000
"""Largest number of atoms of a frame, which bounds what is read at once."""

MAX_CHARGE_ERROR = 0.5
"""Difference in e from which on the sum of atomic charges contradicts a total charge; they are
rounded, and their sum therefore need not be a whole number."""

_USED_KEYS = frozenset({"Properties", "name", "smiles", "dipole", MAGNITUDE_KEY})
_USED_COLUMNS = frozenset({"charge", "charges", "initial_charges"})
"""Keys and columns of extended XYZ that ASE and :func:`from_ase` use, besides total charges."""


class Frame(NamedTuple):
    """A frame of the file, with atoms or a ``problem``; ``smiles`` of a file of QM9."""

    comment: str
    atoms: list[str]
    problem: str
    smiles: str = ""

    @property
    def title(self) -> str:
        """Name in the comment line, or ``""``."""
        if qm9 := _QM9.fullmatch(self.comment):
            return f"gdb {qm9[1]}"
        stated = _text_value(self.comment, "name")
        if stated is not None or "Properties=" in self.comment:
            return stated or _text_value(self.comment, "smiles") or ""
        return without_charges(self.comment)

    @property
    def remarks(self) -> list[str]:
        """Warnings about keys that look like a charge or a dipole and are not used."""
        if "Properties=" not in self.comment:
            text = without_charges(self.comment)
            return unused([*_values(text), *_BARE.findall(text)], "key")
        values = _values(self.comment)
        columns = _columns(values.get("Properties", ""))
        names = [name for name, _ in columns if name not in _USED_COLUMNS]
        for key, value in values.items():
            single = len(value.split()) == 1
            if key not in _USED_KEYS and not (single and is_charge_name(key)):
                names.append(key)
        return unused(names, "key")


def read_frame(frame: Frame, mol_id: int, *, extended: bool = False) -> Data:
    """The molecule of a frame.

    Plain frames: element (symbol or atomic number) and x, y, z in angstrom; further columns are
    left out. The comment line is the name and may state ``charge=-1``, also under another name of
    a total charge. A frame whose comment has ``Properties=`` is extended XYZ, in any file. A frame
    in the format of QM9 keeps its SMILES, the magnitude of its dipole and its Mulliken charges.
    ``D`` and ``T`` are hydrogen.

    Args:
        frame: The frame.
        mol_id: Number of the molecule, unless an extended frame states one.
        extended: It is extended XYZ in any case.

    Raises:
        MoleculeError: The frame is no molecule.
    """
    if frame.problem:
        raise MoleculeError(
            frame.problem,
            remedy="A frame is the number of atoms, a comment line, and a line per atom",
        )
    if extended or "Properties=" in frame.comment:
        return _read_extended(frame, mol_id)
    return _read_plain(frame, mol_id)


def frames(text: Iterable[str]) -> Iterator[Frame]:
    """Yields the frames of an XYZ file."""
    lines = Lines(text)
    while first := lines.skip_until(str.strip):
        count = first[0].strip()
        if not count.isdecimal():
            yield Frame(
                "", [], f"Expected the number of atoms on line {lines.number}, got {count!r}"
            )
            lines.skip(1)
            lines.skip_until(_is_count)
            continue
        if len(count) > len(str(MOST_ATOMS)) or int(count) > MOST_ATOMS:
            shown = count if len(count) < 20 else f"{count[:20]}..."
            yield Frame("", [], f"{shown} atoms announced, expected up to {MOST_ATOMS:,}")
            lines.skip(2)
            lines.skip_until(_is_count)
            continue
        _, comment, *atoms = [*lines.ahead(2 + int(count)), ""]
        atoms = [line.rstrip("\r\n") for line in atoms[: int(count)]]
        comment = comment.strip()
        is_atom = [len(line.split()) >= 4 for line in atoms]
        if len(atoms) < int(count) or not all(is_atom):
            complete = [*is_atom, False].index(False)
            problem = f"{count} atoms announced, but only {complete} line(s) of atoms follow"
            yield Frame(comment, [], problem)
            lines.skip(2)
            lines.skip_until(_is_count)
            continue
        lines.skip(2 + int(count))
        if _QM9.fullmatch(comment):  # frequencies, SMILES and InChI follow
            tail = lines.ahead(3)
            if len(tail) == 3 and tail[2].startswith("InChI="):
                lines.skip(3)
                # The second SMILES is that of the relaxed structure.
                yield Frame(comment, atoms, "", (tail[1].split() or [""])[-1])
                continue
            if tail and not _is_count(tail[0]):
                problem = (
                    f"{count} atoms announced, but the lines behind them are not those of QM9's "
                    "files: frequencies, SMILES, InChI"
                )
                yield Frame(comment, [], problem)
                lines.skip_until(_is_count)
                continue
        after = lines.skip_until(str.strip)
        if after and _is_atom(after[0]):
            yield Frame(comment, [], f"{count} atoms announced, but more lines follow")
            lines.skip_until(_is_count)
        else:
            yield Frame(comment, atoms, "")


def _is_count(line: str) -> bool:
    return line.strip().isdecimal()


def _is_atom(line: str) -> bool:
    try:
        return len([_coordinate(word) for word in line.split()[1:4]]) == 3
    except ValueError:
        return False


def _read_plain(frame: Frame, mol_id: int) -> Data:
    charge = agreed_charge(charges_in(frame.comment))
    numbers = []
    positions = []
    for row, line in enumerate(frame.atoms, start=1):
        symbol, *xyz = line.split()[:4]
        numbers.append(_atomic_number(symbol, row))
        try:
            positions.append([_coordinate(word) for word in xyz])
        except ValueError:
            raise MoleculeError(
                f"Atom {row} ({symbol}) has the coordinates {' '.join(xyz)!r}",
                remedy="Give x, y and z as numbers, in angstrom",
            ) from None
    labels = _qm9_labels(frame)
    return make_data(
        numbers,
        positions,
        charge=charge or 0,
        dipole_magnitude=labels[0] if labels else None,
        atomic_charges=labels[1] if labels else None,
        mol_id=mol_id,
        smiles=frame.smiles,
        name=frame.title,
    )


def _coordinate(word: str) -> float:
    """A number, which in QM9 may be Mathematica's: ``2.1*^-6``."""
    return float(word.replace("*^", "e"))


def _qm9_labels(frame: Frame) -> tuple[float, list[float]] | None:
    """Magnitude in debye and Mulliken charges of a frame of QM9; None for other frames."""
    qm9 = _QM9.fullmatch(frame.comment)
    if qm9 is None:
        return None
    try:
        magnitude = _coordinate(qm9[2].split()[_QM9_MU])
        return magnitude, [_coordinate(line.split()[4]) for line in frame.atoms]
    except (ValueError, IndexError):
        raise MoleculeError(
            "The frame starts with 'gdb', as the files of QM9, but does not have their columns",
            remedy="Give 15 numbers after 'gdb' and the number of the molecule, and the symbol, x, "
            "y, z and the charge of each atom; or replace the second line by a name",
        ) from None


def _atomic_number(symbol: str, row: int) -> int:
    if symbol.isdecimal() and len(symbol) < 9:
        return int(symbol)
    number = atomic_numbers.get(_ISOTOPES.get(symbol.upper(), symbol.capitalize()), 0)
    if number == 0:
        raise MoleculeError(
            f"Atom {row} is {symbol!r}, which is not an element",
            remedy="Give the symbol of an element, D or T, or its number",
        )
    return int(number)


def _read_extended(frame: Frame, mol_id: int) -> Data:
    columns = _columns(_values(frame.comment).get("Properties", ""))
    widths = sum(width for _, width in columns)
    if frame.atoms and widths > len(frame.atoms[0].split()):  # ASE would make each of them
        raise MoleculeError(
            f"Properties= states {widths} columns, and the first atom has "
            f"{len(frame.atoms[0].split())}",
            remedy="Correct Properties=, or complete the lines of the atoms",
        )
    atom_lines = _without_isotopes(frame)
    text = "\n".join([str(len(frame.atoms)), frame.comment, *atom_lines, ""])
    try:
        from ase.io import read  # slow to import, and of use for extended XYZ alone

        atoms = read(io.StringIO(text), index=0, format="extxyz")
    except KeyError as error:
        raise MoleculeError(
            f"Atom of the unknown element {error}",
            remedy="Give the symbols of elements, D or T",
        ) from None
    except Exception as error:  # ASE has no one exception for what it cannot parse
        raise MoleculeError(
            f"ASE cannot read the frame: {error}", remedy="Correct it, or its Properties="
        ) from None
    assert isinstance(atoms, Atoms), "an index asks for one frame"
    # ASE turns text that looks like a number or a truth value into one: F is the SMILES of HF.
    for key in ("name", "smiles"):
        value = _text_value(frame.comment, key)
        if value is not None:
            atoms.info[key] = value
    # "charge: -1" is no key for ASE, and of two equal keys it has the last.
    charges = charges_in(_QUOTED.sub("text", frame.comment))
    agreed_charge(charges)
    atoms.info = dict(charges) | atoms.info
    stated = atoms.info.get("mol_id")  # others use the key for identifiers of their own
    usable = isinstance(stated, (int, np.integer)) and 0 <= stated <= MAX_MOL_ID
    return from_ase(atoms, mol_id=None if usable else mol_id)


def _without_isotopes(frame: Frame) -> list[str]:
    """Lines of the atoms of an extended frame, with H for D and T."""
    places = 0
    for name, width in _columns(_values(frame.comment).get("Properties", "species:S:1")):
        if name == "species":
            break
        places += width
    lines = []
    for line in frame.atoms:
        words = line.split()
        if places < len(words) and words[places].upper() in _ISOTOPES:
            words[places] = "H"
            line = " ".join(words)
        lines.append(line)
    return lines


def _columns(properties: str) -> list[tuple[str, int]]:
    """Name and width of the columns in ``Properties=``; the width is 1 where it is no number."""
    words = properties.split(":")
    return [
        (name, int(width[:18]) if width.isdecimal() else 1)  # int() takes no thousands of digits
        for name, width in zip(words[::3], words[2::3], strict=False)
    ]


def _text_value(comment: str, key: str) -> str | None:
    """The value of ``key="..."`` or ``key=...`` in a comment line, as text."""
    match = re.search(rf'(?<!\S){key}=("(?:[^"\\]|\\.)*"|\S*)', comment)
    if match is None:
        return None
    value = match[1]
    # ASE escapes quotation marks, and not backslashes, which SMILES have.
    return value[1:-1].replace(r"\"", '"') if value.startswith('"') else value


def xyz_text(data: Sequence[Data]) -> str:
    """Plain XYZ; the name, and the charge where it is not 0, in the comment line."""
    from ase.io.xyz import write_xyz  # slow to import

    text = io.StringIO()
    for molecule in data:
        charge = round(molecule.charge.item())
        comment = " ".join(molecule.name.split()) + (f" charge={charge:+d}" if charge else "")
        write_xyz(text, [to_ase(molecule)], comment=comment, fmt="%15.8f")
    return text.getvalue()


def extxyz_text(data: Sequence[Data], further: Sequence[Mapping[str, str | float]]) -> str:
    """Extended XYZ in ASE's conventions: dipole in e·angstrom about the origin, energy in eV.

    Args:
        data: The molecules.
        further: Further keys and values for each comment line.
    """
    from ase.io.extxyz import write_extxyz

    text = io.StringIO()
    for molecule, more in zip(data, further, strict=True):
        atoms = to_ase(molecule)
        atoms.info |= more
        if "name" in atoms.info:
            atoms.info["name"] = " ".join(molecule.name.split())  # it has to fit on one line
        write_extxyz(text, [atoms])
    return text.getvalue()


def from_ase(
    atoms: Atoms, *, charge: float | None = None, name: str = "", mol_id: int | None = None
) -> Data:
    """Converts ASE ``Atoms`` to ``Data``, including labels.

    Labels are what its calculator holds for this geometry (nothing is calculated): ``dipole``,
    ``charges``, ``energy``; else a dipole in ``atoms.info["dipole"]``, in e·angstrom.

    Args:
        atoms: Molecule; not changed.
        charge: Total charge in e; by default that in ``atoms.info`` (``charge``, ``total_charge``,
            ``q``, ..., in any case), else the sum of the initial charges, else 0.
        name: Name; by default ``atoms.info["name"]``.
        mol_id: Number of the molecule; by default ``atoms.info["mol_id"]``, else 0.

    Raises:
        MoleculeError: A periodic structure, contradicting total charges, or anything that
            ``make_data`` refuses.
    """
    info = atoms.info
    name = name or str(info.get("name", ""))
    smiles = str(info.get("smiles", ""))
    try:
        if atoms.pbc.any():
            raise MoleculeError(
                "The structure is periodic, and only molecules are supported",
                remedy='If it is one molecule in a box: atoms.pbc = False (pbc="F F F")',
            )
        if charge is None:
            charge = _total_charge(atoms)
        if mol_id is None:
            mol_id = round(_number(info.get("mol_id", 0), "mol_id"))
        dipole = _result(atoms, "dipole")
        if dipole is None and "dipole" in info:
            dipole = _numbers(info["dipole"], "dipole")
        if dipole is not None:
            if dipole.shape != (3,):
                raise MoleculeError(
                    f"The dipole has the shape {list(dipole.shape)}, expected 3 numbers",
                    remedy="Give x, y and z in e*angstrom",
                )
            with np.errstate(invalid="ignore"):  # atoms that make_data refuses
                centre = centre_of_mass(atoms.numbers, atoms.positions)
                dipole = move_origin(dipole, charge, centre) * DEBYE_PER_E_ANGSTROM
        energy = _result(atoms, "energy")
        magnitude = info.get(MAGNITUDE_KEY)
        return make_data(
            atoms.numbers,
            atoms.positions,
            charge=charge,
            dipole=dipole,
            dipole_magnitude=None if magnitude is None else _number(magnitude, MAGNITUDE_KEY),
            atomic_charges=_result(atoms, "charges"),
            energy=None if energy is None else _number(energy, "energy") * KCAL_PER_MOL_PER_EV,
            mol_id=mol_id,
            smiles=smiles,
            name=name,
        )
    except MoleculeError as error:
        raise error.located(molecule=name or smiles or str(atoms.symbols)) from None


def to_ase(data: Data) -> Atoms:
    """Converts ``Data`` to ASE ``Atoms``, with known labels in a ``SinglePointCalculator``.

    ``info`` holds ``charge``, ``mol_id`` and, where there are any, ``name`` and ``smiles``.
    """
    charge = data.charge.item()
    info: dict[str, object] = {"charge": round(charge), "mol_id": int(data.mol_id.item())}
    info |= {key: data[key] for key in ("name", "smiles") if data[key]}
    numbers = data.z.cpu().numpy()
    atoms = Atoms(numbers, data.pos.detach().cpu().numpy().astype(np.float64), info=info)
    results: dict[str, object] = {}
    dipole = data.dipole.detach().cpu().numpy().reshape(3).astype(np.float64)
    if np.isfinite(dipole).all():
        dipole = dipole / DEBYE_PER_E_ANGSTROM
        centre = centre_of_mass(numbers, atoms.positions)
        results["dipole"] = move_origin(dipole, charge, -centre)
    elif math.isfinite(data.dipole_magnitude.item()):
        info[MAGNITUDE_KEY] = data.dipole_magnitude.item()
        atoms.info = info
    charges = data.atomic_charges.detach().cpu().numpy().astype(np.float64)
    if np.isfinite(charges).all():
        results["charges"] = charges
    if math.isfinite(data.energy.item()):
        results["energy"] = data.energy.item() / KCAL_PER_MOL_PER_EV
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _result(atoms: Atoms, name: str) -> NDArray[np.float64] | None:
    if atoms.calc is None:
        return None
    try:
        value = atoms.calc.get_property(name, atoms, allow_calculation=False)
    except PropertyNotImplementedError:
        return None
    return None if value is None else _numbers(value, name)


def _numbers(values: object, what: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise MoleculeError(
            f"The {what} is {str(values)[:80]!r}, expected numbers", remedy=f"Correct {what}=..."
        ) from None


def _total_charge(atoms: Atoms) -> float:
    """Total charge from ``info``, and from the initial and the atomic charges, which must agree."""
    charge = agreed_charge(
        [
            (str(key), _number(value, str(key)))
            for key, value in atoms.info.items()
            if is_charge_name(str(key)) and not np.size(value) == len(atoms) > 1
        ]
    )
    sums = []
    if atoms.has("initial_charges"):
        sums.append(("initial charges", float(atoms.get_initial_charges().sum())))
    atomic = _result(atoms, "charges")
    if atomic is not None and np.isfinite(atomic).all():
        sums.append(("atomic charges", float(round(atomic.sum()))))
    for name, total in sums:
        if charge is None:
            charge = total
        elif abs(total - charge) > MAX_CHARGE_ERROR:
            raise MoleculeError(
                f"The total charge is {charge:+g} e and the sum of the {name} {total:+g} e",
                remedy="Correct or remove one of the two",
            )
    return charge or 0.0


def _values(comment: str) -> dict[str, str]:
    """Keys and values in a comment line, without quotation marks and brackets."""
    return {match[1]: match[2].strip('"{}[]') for match in _KEY.finditer(comment)}


def _number(value: object, what: str) -> float:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return float(np.asarray(value, dtype=np.float64).item())
    except (TypeError, ValueError):
        raise MoleculeError(
            f"The {what} is {value!r}, expected a number", remedy=f"Correct {what}=..."
        ) from None
