"""Training, validation and test parts of a data set, by molecule.

All conformers of a molecule (same ``mol_id``) belong to the same part, so that no conformer of a
test molecule is used for training. Sizes are numbers of molecules, not of conformers.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dipolegnn._pyg import Data
from dipolegnn.files import replacing
from dipolegnn.molecules import murcko_scaffold

PARTS = ("train", "val", "test")

SplitKind = Literal["random", "size", "scaffold"]


@dataclass(frozen=True)
class SplitConfig:
    """Split of a data set."""

    kind: SplitKind = "random"
    """At random, by size (the largest molecules for testing) or by scaffold."""
    val: float | int = 0.1
    """Validation molecules: a fraction (float) or a count (int)."""
    test: float | int = 0.1
    """Test molecules: a fraction (float) or a count (int)."""
    seed: int = 0
    """Seed of the random order."""


@dataclass(frozen=True)
class Split:
    """Training, validation and test structures of a data set.

    Args:
        train: Positions of the training structures in the data set, ascending, int64.
        val: Positions of the validation structures.
        test: Positions of the test structures.

    Raises:
        ValueError: A structure is in two parts.
    """

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor

    def __post_init__(self) -> None:
        everything = torch.cat([self.train, self.val, self.test])
        if len(everything.unique()) != len(everything):
            raise ValueError(
                "A structure is in two parts of the split (or twice in one); the parts must be "
                "disjoint."
            )

    def __str__(self) -> str:
        return f"{len(self.train)} train, {len(self.val)} validation, {len(self.test)} test"


def random_split(
    mol_id: ArrayLike | torch.Tensor,
    *,
    val: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
) -> Split:
    """Split molecules at random.

    Args:
        mol_id: Number of the molecule of each structure ``[M]``.
        val: Validation molecules: a fraction (float) or a count (int).
        test: Test molecules: a fraction (float) or a count (int). The rest is for training.
        seed: Seed of the random order.

    Returns:
        The split; equal for equal arguments.

    Raises:
        ValueError: A part would be negative, or no molecule would be left to train on.
    """
    molecules = np.unique(_array(mol_id))
    num_val, num_test = _counts(len(molecules), val, test)
    order = np.random.default_rng(seed).permutation(molecules)
    return _assign(mol_id, order[:num_test], order[num_test : num_test + num_val])


def make_split(
    molecules: Sequence[Data],
    kind: SplitKind = "random",
    *,
    val: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
) -> Split:
    """Split molecules at random, by size or by scaffold.

    - ``"random"``: :func:`random_split`.
    - ``"size"``: the largest molecules for testing, the next in size for validation, so that models
      are selected by extrapolation as well. Molecules of equal size are in random order.
    - ``"scaffold"``: molecules with the same Bemis-Murcko scaffold (rings and linkers) belong to
      the same part. In random order, each group is assigned to the test part if it still fits, else
      to the validation part if it fits there, else to the training part. Therefore parts can be
      smaller than requested, and groups larger than a part are used for training. An acyclic
      molecule has no scaffold and is a separate group.

    Args:
        molecules: The structures of a data set.
        kind: Kind of split.
        val: Validation molecules: a fraction (float) or a count (int).
        test: Test molecules: a fraction (float) or a count (int). The rest is for training.
        seed: Seed of the random order.

    Returns:
        The split; equal for equal arguments.

    Raises:
        ValueError: A part would be negative, no molecule would be left to train on, or, by
            scaffold, a molecule has no SMILES or every scaffold is too common for a part.

    Source: Bemis and Murcko, J. Med. Chem. 39, 2887 (1996).
    """
    mol_id = np.array([int(data["mol_id"]) for data in molecules], dtype=np.int64)
    if kind == "random":
        return random_split(mol_id, val=val, test=test, seed=seed)
    ids, first = np.unique(mol_id, return_index=True)  # molecules, and the first structure of each
    num_val, num_test = _counts(len(ids), val, test)
    rng = np.random.default_rng(seed)
    if kind == "size":
        sizes = np.array([len(molecules[k]["z"]) for k in first.tolist()])
        shuffled = rng.permutation(len(ids))
        order = ids[shuffled[np.argsort(-sizes[shuffled], kind="stable")]]
        return _assign(mol_id, order[:num_test], order[num_test : num_test + num_val])
    if kind != "scaffold":
        raise ValueError(f"Unknown kind of split {kind!r}; expected random, size or scaffold.")
    groups: dict[str, list[int]] = {}
    for molecule, structure in zip(ids.tolist(), first.tolist(), strict=True):
        smiles = molecules[structure]["smiles"]
        if not smiles:
            raise ValueError(
                f"Molecule {molecule} (structure {structure}) has no SMILES, and the scaffold is "
                f"taken from it: give every molecule a SMILES, or split at random or by size."
            )
        scaffold = murcko_scaffold(smiles)
        groups.setdefault(scaffold or f"acyclic molecule {molecule}", []).append(molecule)
    limits = {"test": num_test, "val": num_val}
    parts: dict[str, list[int]] = {"test": [], "val": []}
    members = list(groups.values())
    for group in rng.permutation(len(members)).tolist():
        for part, chosen in parts.items():
            if len(chosen) + len(members[group]) <= limits[part]:
                chosen.extend(members[group])
                break
    for part, chosen in parts.items():
        if limits[part] and not chosen:
            raise ValueError(
                f"No scaffold fits into the {part} part of {limits[part]} of {len(ids)} "
                f"molecules: there are {len(groups)} scaffolds. Make the part larger, or split at "
                f"random."
            )
    return _assign(mol_id, np.array(parts["test"], int), np.array(parts["val"], int))


def write_split(path: str | Path, split: Split, mol_id: ArrayLike | torch.Tensor) -> None:
    """Write a split as CSV, one line ``mol_id,split`` per molecule, in ascending order.

    Args:
        path: The file to write.
        split: The split.
        mol_id: Number of the molecule of each structure ``[M]``.

    Raises:
        ValueError: A molecule is in two parts, or a structure in none.
    """
    ids = _array(mol_id)
    part_of: dict[int, str] = {}
    covered = 0
    for part in PARTS:
        structures = getattr(split, part).numpy()
        covered += len(structures)
        for molecule in np.unique(ids[structures]).tolist():
            if molecule in part_of:
                raise ValueError(
                    f"Molecule {molecule} has structures in {part_of[molecule]} and in {part}; all "
                    f"conformers of a molecule belong to one part."
                )
            part_of[molecule] = part
    if covered != len(ids):
        raise ValueError(f"The split covers {covered} of {len(ids)} structures; expected all.")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("mol_id", "split"))
        writer.writerows(sorted(part_of.items()))


def read_split(
    path: str | Path, mol_id: ArrayLike | torch.Tensor, *, thinned: bool = False
) -> Split:
    """Read a file of :func:`write_split`.

    Args:
        path: The CSV file.
        mol_id: Number of the molecule of each structure ``[M]`` of the data set.
        thinned: True if the data set may lack molecules of the split.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a split, or one of other molecules.
    """
    part_of: dict[int, str] = {}
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["mol_id", "split"]:
            raise ValueError(
                f"{path} is no split: expected the columns mol_id,split, got "
                f"{','.join(reader.fieldnames or []) or 'none'}."
            )
        for line in reader:
            molecule, part = line["mol_id"], line["split"]
            if part not in PARTS or not molecule.isdecimal() or int(molecule) in part_of:
                raise ValueError(
                    f"{path}, line {reader.line_num}: {molecule},{part}; expected the number of a "
                    f"molecule, each once, and one of {', '.join(PARTS)}."
                )
            part_of[int(molecule)] = part
    present = set(_array(mol_id).tolist())
    missing, unknown = sorted(present - set(part_of)), sorted(set(part_of) - present)
    if missing or (unknown and not thinned):
        raise ValueError(
            f"{path} does not belong to this data set: {len(missing)} molecules are not in it"
            f"{f' (the first is {missing[0]})' if missing else ''}, and it has {len(unknown)} that "
            f"the data set has not{f' (the first is {unknown[0]})' if unknown else ''}. Make the "
            f"split again."
        )
    chosen = {p: np.array([m for m, q in part_of.items() if q == p], int) for p in PARTS}
    return _assign(mol_id, chosen["test"], chosen["val"])


def _array(values: ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    return np.asarray(values, dtype=np.int64).reshape(-1)


def _counts(molecules: int, val: float | int, test: float | int) -> tuple[int, int]:
    counts = []
    for name, size in (("val", val), ("test", test)):
        fraction = isinstance(size, float)
        if size < 0 or (fraction and size >= 1):
            raise ValueError(f"{name} must be a fraction in [0, 1) or a count, got {size}.")
        # With a fraction above 0, the part has at least one molecule.
        counts.append(max(round(size * molecules), 1 if size else 0) if fraction else int(size))
    if sum(counts) >= molecules:
        raise ValueError(
            f"Nothing is left to train on: {counts[0]} validation and {counts[1]} test molecules "
            f"out of {molecules}. Make these parts smaller, or add molecules."
        )
    return counts[0], counts[1]


def _assign(
    mol_id: ArrayLike | torch.Tensor, test: NDArray[np.int64], val: NDArray[np.int64]
) -> Split:
    """The split with these test and validation molecules; all others are for training."""
    ids = _array(mol_id)
    in_test, in_val = np.isin(ids, test), np.isin(ids, val)
    parts = (~(in_test | in_val), in_val, in_test)
    return Split(*(torch.from_numpy(np.flatnonzero(part).astype(np.int64)) for part in parts))
