"""SDF files, read record by record, so that an invalid record does not affect others.

The labels of a molecule are data fields of its record, with the unit in their names.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from rdkit import Chem

from dipolegnn._pyg import Data
from dipolegnn.molecules.chemistry import captured_log, from_rdkit, to_rdkit
from dipolegnn.molecules.molecule import MoleculeError, relabelled
from dipolegnn.molecules.total_charge import agreed_charge, is_charge_name, whole_number

LABEL_FIELDS = {
    "dipole": "dipole_debye",
    "dipole_magnitude": "dipole_magnitude_debye",
    "energy": "energy_kcal_per_mol",
    "atomic_charges": "atomic_charges_e",
}
"""Data field of each label."""


def sdf_records(lines: Iterable[str]) -> Iterator[str]:
    """Yields the records of an SDF file."""
    record: list[str] = []
    for line in lines:
        if line.startswith("$$$$"):
            yield "".join(record)
            record = []
        else:
            record.append(line if line.endswith("\n") else f"{line}\n")
    if "".join(record).strip():  # else it is what follows the last separator
        yield "".join(record)


def read_record(record: str, mol_id: int) -> Data:
    """The molecule of a record, V2000 or V3000, with the labels that :func:`sdf_text` writes.

    Args:
        record: The record, without its separator.
        mol_id: Number of the molecule, unless the record states one.

    Raises:
        MoleculeError: The record is no 3D structure with explicit hydrogens, or a data field states
            another total charge than the formal charges.
    """
    supplier = Chem.SDMolSupplier()
    with captured_log() as reason:
        supplier.SetData(record, removeHs=False)
        try:
            mol = supplier[0]
        except IndexError:
            mol = None
    if mol is None:
        raise MoleculeError(
            f"The record cannot be read: {reason('it is incomplete')}",
            remedy="Correct or remove the record",
        )
    labels = {name: mol.GetProp(name) for name in mol.GetPropNames()}
    stated = labels.get("mol_id", "")  # other programs may use the name for other identifiers
    number = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 19 else mol_id
    data = from_rdkit(mol, mol_id=number)[0]
    charges = [("the sum of the formal charges", data.charge.item())]
    for name, value in labels.items():
        charge = whole_number(value) if is_charge_name(name) else None
        if charge is not None:
            charges.append((f"the data field {name!r}", float(charge)))
    agreed_charge(charges)
    if not labels:
        return data
    found = {field: _numbers(labels, name) for field, name in LABEL_FIELDS.items()}
    magnitude, energy = found["dipole_magnitude"], found["energy"]
    data.smiles = labels.get("smiles", data.smiles)
    return relabelled(
        data,
        dipole=found["dipole"],
        dipole_magnitude=None if magnitude is None else magnitude[0],
        atomic_charges=found["atomic_charges"],
        energy=None if energy is None else energy[0],
    )


def _numbers(labels: dict[str, str], name: str) -> list[float] | None:
    if name not in labels:
        return None
    try:
        numbers = [float(word) for word in labels[name].split()]
    except ValueError:
        numbers = []
    if not numbers:
        raise MoleculeError(
            f"The data field {name} holds {labels[name]!r}, expected numbers",
            remedy="Correct or remove the field",
        )
    return numbers


def sdf_text(data: Sequence[Data], further: Sequence[Mapping[str, str | float]]) -> str:
    """Returns molecules as SDF (V3000) with their labels as data fields.

    Args:
        data: The molecules.
        further: Further data fields of each.

    Raises:
        MoleculeError: A molecule without ``mol_block`` whose bonds cannot be perceived.
    """
    text = io.StringIO()
    writer = Chem.SDWriter(text)
    writer.SetForceV3000(True)
    for molecule, more in zip(data, further, strict=True):
        mol = to_rdkit(molecule)
        mol.SetProp("_Name", " ".join(molecule.name.split()))  # it has to fit on one line
        for name, value in {**_fields(molecule), **more}.items():
            mol.SetProp(name, value if isinstance(value, str) else f"{value:.9g}")
        with captured_log():
            writer.write(mol)
    writer.close()
    return text.getvalue()


def _fields(data: Data) -> dict[str, str | float]:
    fields: dict[str, str | float] = {"smiles": data.smiles} if data.smiles else {}
    fields["mol_id"] = str(data.mol_id.item())
    for field, name in LABEL_FIELDS.items():
        numbers = data[field].flatten().tolist()
        if not any(map(math.isnan, numbers)):
            # The fewest digits that hold a single-precision number exactly.
            fields[name] = " ".join(str(np.float32(number)) for number in numbers)
    return fields
