"""The card of a data set, ``card.yaml``: content, origin and checksum."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from ase.data import chemical_symbols
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dipolegnn.data.storage import FIELDS, TEXT_FIELDS, PackedMolecules, read_packed
from dipolegnn.files import replacing, sha256_of
from dipolegnn.molecules import read_failures
from dipolegnn.units import FIELD_UNITS

MOLECULES_FILE = Path("raw") / "molecules.npz"
"""The molecules; path relative to the folder of the data set."""
CARD_FILE = "card.yaml"
SPLIT_FILE = "split.csv"
FAILURES_FILE = "failures.csv"
INPUTS_FILE = "inputs.json"
"""Inputs that a data set was made from by ``ConformerDataset.from_smiles`` or ``from_file``."""

_PACKAGES = ("dipolegnn", "numpy", "rdkit", "torch", "torch-geometric")


@dataclass(frozen=True, kw_only=True)
class About:
    """Statements about a data set that cannot be computed from its molecules."""

    name: str
    """Short name."""
    description: str = ""
    """Description of the content in one or two sentences."""
    licence: str = "not stated"
    """Licence of the data."""
    citation: str = ""
    """Reference to cite."""
    level_of_theory: str = "not stated"
    """Method of the reference dipoles."""
    geometry: str = "not stated"
    """Method or file of the coordinates."""
    seed: int | None = None
    """Seed of the random numbers that were used."""
    created_by: str = ""
    """Command that makes the data set again."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of molecules, structures and failures."""

    molecules: Annotated[int, Field(ge=0)]
    """Distinct molecules (values of ``mol_id``)."""
    structures: Annotated[int, Field(ge=0)]
    """Structures; each conformer counts."""
    failures: Annotated[int, Field(ge=0)]
    """Molecules that could not be read, embedded or labelled (lines of ``failures.csv``)."""


@dataclass(frozen=True, kw_only=True)
class Card(About):
    """The complete card: the statements, and what is computed from the molecules."""

    # An unknown key is a typing mistake, not something to be passed over.
    __pydantic_config__ = ConfigDict(extra="forbid")

    units: dict[str, str]
    """Unit of each field that at least one structure has."""
    counts: Counts
    """Numbers of molecules, structures and failures."""
    elements: tuple[str, ...]
    """Symbols of the elements, by atomic number."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the programs that made the data set."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of ``raw/molecules.npz``; none on the card of a data set that is yet to be built."""


def make_card(
    about: About,
    packed: PackedMolecules,
    *,
    failures: int,
    sha256: str,
    packages: Sequence[str] = (),
) -> Card:
    """Complete a card with the values that are computed, and versions of further packages."""
    stated = {f.name: getattr(about, f.name) for f in dataclasses.fields(About)}
    return Card(**stated, **_computed(packed, failures, sha256), versions=_versions(packages))


def read_card(path: str | Path) -> Card:
    """Read and validate a card.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no card, or a field is missing, unknown or of a wrong type or unit.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        card = TypeAdapter(Card).validate_python(content)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'the card'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ValueError(f"{path} is no valid card: {problems}.") from None
    wrong = {name: unit for name, unit in card.units.items() if FIELD_UNITS.get(name, None) != unit}
    if wrong:
        raise ValueError(
            f"{path}: the units {wrong} are not those of dipolegnn; expected "
            f"{ {name: FIELD_UNITS.get(name, 'no such field') for name in wrong} }."
        )
    return card


def write_card(path: str | Path, card: Card) -> None:
    """Write a card as YAML, in the order of its fields."""
    text = yaml.safe_dump(dataclasses.asdict(card), sort_keys=False, allow_unicode=True, width=100)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_card(folder: str | Path) -> Card:
    """Compare the card of a data set with its data.

    Args:
        folder: Folder of the data set.

    Returns:
        The card, if all of it is true.

    Raises:
        FileNotFoundError: The card or the data is missing.
        ValueError: The card is not valid, or does not agree with the data.
    """
    root = Path(folder)
    card = read_card(root / CARD_FILE)
    packed = read_packed(root / MOLECULES_FILE)
    failures = root / FAILURES_FILE
    failed = len(read_failures(failures)) if failures.exists() else 0
    true = _computed(packed, failed, sha256_of(root / MOLECULES_FILE))
    wrong = [
        f"{name} is {getattr(card, name)} on the card and {value} in the data"
        for name, value in true.items()
        if getattr(card, name) != value
    ]
    if wrong:
        raise ValueError(
            f"The card of {root} does not describe its data: {'; '.join(wrong)}. "
            f"Build the data set again."
        )
    return card


def _computed(packed: PackedMolecules, failures: int, sha256: str) -> dict[str, Any]:
    """The values of the card that follow from the data."""
    units = {}
    several = bool(packed.arrays["fragment"].any())
    for name in FIELDS:
        if name.startswith("fragment"):
            present = several
        elif name in TEXT_FIELDS:
            present = any(packed.texts[name])
        else:
            present = not np.isnan(packed.arrays[name]).all()
        if present:
            units[name] = FIELD_UNITS[name]
    molecules = len(np.unique(packed.arrays["mol_id"]))
    return {
        "units": units,
        "counts": Counts(molecules=molecules, structures=len(packed.n), failures=failures),
        "elements": tuple(chemical_symbols[z] for z in np.unique(packed.arrays["z"]).tolist()),
        "sha256": sha256,
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in sorted({*_PACKAGES, *packages}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
