"""Error from geometries that differ from those of the training data.

Takes molecules of QM9's validation part whose conformers all relax to the structure of QM9, so that
the conformer is unambiguous, and compares predictions at three geometries of each: QM9's own
(B3LYP), that of ``from_smiles`` (ETKDG, then MMFF94s), and that relaxed further with GFN2-xTB.
SMILES are made from QM9's geometries with RDKit's perception of bonds, with their stereochemistry.

It writes ``RUN/geometry.json`` and ``RUN/geometry.md``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from ase.data import chemical_symbols
from common import NOTHING, ROOT, data_folder, markdown_table, read_arrays, read_npz
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds, rdForceFieldHelpers, rdMolAlign
from rich.progress import track

from dipolegnn._pyg import Data
from dipolegnn.config import ConformerConfig, XTBConfig
from dipolegnn.inference.structures import predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import load_model
from dipolegnn.molecules import Failure, MoleculeError, SmilesRow, embed_smiles, from_smiles
from dipolegnn.molecules.workers import Lost, Pool, usable_cores

FILE = "qm9_dipole.npz"
VALIDATION = 1

CONFORMERS = 10
"""Embedded per molecule, to see whether there is more than one."""


LEFT_OUT = ("no SMILES", "no structure", "several conformers", "another conformer", "GFN2-xTB")
"""Reasons."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure models at other geometries."""

    output: Path = ROOT / "runs" / "geometry"
    """Folder for geometry.md and geometry.json."""
    models: tuple[str, ...] = ("painn-qm9", "painn-qm9-mmff94s")
    """Models that come along."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with qm9_dipole.npz; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    molecules: int = 500
    """Rigid molecules to look at."""


class Rigid(NamedTuple):
    """A molecule with one conformer, at three geometries."""

    reference: Data
    """QM9's geometry and magnitude."""
    force_field: Data
    xtb: Data
    force_field_seconds: float
    xtb_seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    path = data_folder(options.data, FILE) / FILE
    validation = np.flatnonzero(read_arrays(path)["split"] == VALIDATION)
    validation = np.random.default_rng(0).permutation(validation)
    candidates = read_npz(path, number="qm9_index", vectors=False, rows=validation).data
    found, looked_at, reasons = rigid(candidates, options.molecules)
    print(f"{len(found)} rigid molecules of {looked_at}; left out: {reasons}")
    if not found:
        raise SystemExit("No molecule is rigid; there is nothing to compare.")

    reference = np.array([float(molecule.reference.dipole_magnitude) for molecule in found])
    geometries = {
        "QM9 (B3LYP)": ([m.reference for m in found], None),
        "ETKDG, MMFF94s": ([m.force_field for m in found], [m.force_field_seconds for m in found]),
        "then GFN2-xTB": (
            [m.xtb for m in found],
            [m.force_field_seconds + m.xtb_seconds for m in found],
        ),
    }
    rows: list[dict[str, Any]] = []
    for model_name in options.models:
        model = load_model(model_name)
        for name, (molecules, seconds) in geometries.items():
            error = np.array([p.magnitude for p in predict(model, molecules)]) - reference
            rows.append({"model": model_name, "geometry": name, **numbers(error, seconds)})
    options.output.mkdir(parents=True, exist_ok=True)
    about = {"looked_at": looked_at, "left_out": reasons, "rows": rows}
    (options.output / "geometry.json").write_text(json.dumps(about, indent=1) + "\n")
    text = table(rows)
    (options.output / "geometry.md").write_text(text, encoding="utf-8")
    print(text)


def rigid(candidates: Sequence[Data], wanted: int) -> tuple[list[Rigid], int, dict[str, int]]:
    """Rigid molecules, the number that was examined, and why the others were left out."""
    calculator = xtb_calculator(XTBConfig())
    found: list[Rigid] = []
    reasons = dict.fromkeys(LEFT_OUT, 0)
    looked_at = 0
    for data in track(candidates, "Geometries", transient=True):
        if len(found) == wanted:
            break
        looked_at += 1
        try:
            smiles = smiles_of(data)
        except MoleculeError:
            reasons["no SMILES"] += 1
            continue
        try:
            start = time.perf_counter()
            (alone,) = from_smiles(smiles)
            middle = time.perf_counter()
            several = len(from_smiles(smiles, conformers=CONFORMERS)) > 1
        except MoleculeError:
            reasons["no structure"] += 1
            continue
        if several:
            reasons["several conformers"] += 1
            continue
        try:
            same = same_conformer(alone, data)
        except MoleculeError:  # no bonds, or those of another molecule
            same = False
        if not same:  # the conformer of the force field is not that of B3LYP
            reasons["another conformer"] += 1
            continue
        try:
            before = time.perf_counter()
            by_xtb = label(alone, calculator, optimize=True)
            after = time.perf_counter()
        except MoleculeError:
            reasons["GFN2-xTB"] += 1
            continue
        found.append(Rigid(data, alone, by_xtb, middle - start, after - before))
    return found, looked_at, reasons


def numbers(error: NDArray[np.float64], seconds: Sequence[float] | None) -> dict[str, float]:
    """Errors of the magnitude in debye; time per geometry, unknown for QM9's."""
    found = {
        "molecules": len(error),
        "mae_D": float(np.abs(error).mean()),
        "median_D": float(np.median(np.abs(error))),
        "rmse_D": float(np.sqrt(np.square(error).mean())),
        "bias_D": float(error.mean()),
    }
    if seconds is not None:
        found["median_ms"] = 1000 * float(np.median(seconds))
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The geometries as Markdown."""
    columns = {
        "mae_D": "MAE, D",
        "median_D": "median, D",
        "rmse_D": "RMSE, D",
        "bias_D": "bias, D",
    }
    text = markdown_table(
        ("model", "geometry", "molecules", *columns.values(), "time for it, ms"),
        [
            (
                *(row[name] for name in ("model", "geometry", "molecules")),
                *(f"{row[name]:.3f}" for name in columns),
                f"{row['median_ms']:.0f}" if "median_ms" in row else NOTHING,
            )
            for row in rows
        ],
    )
    return text + "\n"


SAME_CONFORMER = 0.5
"""A structure that has moved further than this (RMSD of all atoms, in angstrom) may have become
another conformer, whose dipole is not that of the label."""

ALIKE = 0.25
"""Embedded structures further from the given one than this (RMSD of heavy atoms and of hydrogens of
heteroatoms, in angstrom) are other conformers: a hydroxyl group that has turned is enough."""

STEPS = 5000
"""Steps of the minimizer at most; hundreds are usual."""

CHUNK = 200
"""Molecules that a worker process gets at a time ..."""

TIME_LIMIT_S = 5
"""... and seconds for each of them, of which it needs a few thousandths."""


def perceived(data: Data) -> Chem.Mol:
    """The neutral molecule at this geometry, with bonds perceived from it.

    Raises:
        MoleculeError: If no Lewis structure fits, or the molecule is in fragments.
    """
    lines = [
        f"{chemical_symbols[z]} {x:.6f} {y:.6f} {w:.6f}"
        for z, (x, y, w) in zip(data.z.tolist(), data.pos.tolist(), strict=True)
    ]
    mol = Chem.MolFromXYZBlock(f"{len(lines)}\n\n" + "\n".join(lines) + "\n")
    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineBonds(mol, charge=0, allowChargedFragments=True)
    except ValueError as error:
        raise MoleculeError("No Lewis structure fits the geometry", molecule=data.name) from error
    if len(Chem.GetMolFrags(mol)) > 1:
        raise MoleculeError("The geometry is that of several fragments", molecule=data.name)
    return mol


def smiles_of(data: Data) -> str:
    """A SMILES of the neutral molecule at this geometry, with its stereo.

    Raises:
        MoleculeError: If there is none.
    """
    mol = perceived(data)
    Chem.AssignStereochemistryFrom3D(mol)
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def relaxed(data: Data) -> Data:
    """The structure at the nearest minimum of MMFF94s, aligned with the given one.

    Returns:
        A copy with other ``pos``; labels, the dipole vector included, are kept.

    Raises:
        MoleculeError: If bonds or force field are missing, the minimizer does not converge, or the
            molecule may have become another conformer.
    """
    mol = perceived(data)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    if properties is None:
        raise MoleculeError("MMFF94s has no parameters for it", molecule=data.name)
    start = Chem.Mol(mol)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    field.Initialize()
    if field.Minimize(maxIts=STEPS) != 0:
        raise MoleculeError(f"No minimum of MMFF94s within {STEPS} steps", molecule=data.name)
    same = [(k, k) for k in range(mol.GetNumAtoms())]
    moved = rdMolAlign.AlignMol(mol, start, atomMap=same)
    if moved > SAME_CONFORMER:
        raise MoleculeError(
            f"MMFF94s moves the atoms by {moved:.2f} angstrom (RMSD): another conformer, maybe",
            molecule=data.name,
        )
    found = data.clone()
    found.pos = torch.from_numpy(np.array(mol.GetConformer().GetPositions())).float()
    return found


def from_their_smiles(molecules: Sequence[Data]) -> list[tuple[Data, Data]]:
    """One structure each, embedded as ``predict`` does it, with the label of the given one.

    It may be another conformer, to which the label does not apply (:func:`same_conformer`).

    Returns:
        Embedded and given structures, of those that can be embedded.
    """
    rows: list[SmilesRow] = []
    kept: list[Data] = []
    for data in molecules:
        with suppress(MoleculeError):  # no Lewis structure
            rows.append(SmilesRow(len(rows) + 1, smiles_of(data)))
            kept.append(data)
    found = embed_smiles(rows, ConformerConfig(), workers=usable_cores(), progress=True)
    print(f"{len(found.failures)} of {len(rows)} SMILES cannot be embedded")
    pairs = [(data, kept[int(data.mol_id)]) for data in found.data]
    for data, given in pairs:
        data.dipole_magnitude = given.dipole_magnitude
    return pairs


def same_conformer(one: Data, other: Data) -> bool:
    """Whether two structures are the same conformer; the order of the atoms does not matter.

    Hydrogens on carbon are ignored. Mirror images count as the same: their magnitudes are equal.

    Raises:
        MoleculeError: If bonds cannot be perceived, or they are not those of the same molecule.
    """
    first, second = (_skeleton(data) for data in (one, other))
    mirrored = Chem.Mol(first)
    conformer = mirrored.GetConformer()
    for atom, (x, y, z) in enumerate(conformer.GetPositions().tolist()):
        conformer.SetAtomPosition(atom, (x, y, -z))
    try:
        apart = [rdMolAlign.GetBestRMS(mol, second) for mol in (first, mirrored)]
    except RuntimeError as error:
        raise MoleculeError("The structures have other bonds", molecule=other.name) from error
    return bool(min(apart) < ALIKE)


def _skeleton(data: Data) -> Chem.Mol:
    """The molecule without the hydrogens on carbon, whose permutations would take long to match."""
    mol = Chem.RWMol(perceived(data))
    for atom in reversed(list(mol.GetAtoms())):
        bound = [neighbour.GetAtomicNum() for neighbour in atom.GetNeighbors()]
        if atom.GetAtomicNum() == 1 and bound == [6] and mol.GetNumAtoms() > 1:
            mol.RemoveAtom(atom.GetIdx())
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)
    Chem.SanitizeMol(mol)
    return mol.GetMol()


def relax_all(molecules: Sequence[Data]) -> tuple[list[Data | None], list[Failure]]:
    """The result of :func:`relaxed` for each structure, None for failures, and the failures."""
    found: list[Data | None] = [None] * len(molecules)
    failures: list[Failure] = []
    chunks = [molecules[k : k + CHUNK] for k in range(0, len(molecules), CHUNK)]
    with Pool(relax_chunk, workers=usable_cores(), time_limit=CHUNK * TIME_LIMIT_S) as pool:
        done = track(pool.run(chunks), "MMFF94s", total=len(chunks), transient=True)
        for number, results in done:
            if isinstance(results, Lost):
                raise SystemExit(f"Relaxing with MMFF94s failed: {results.reason}.")
            for row, result in enumerate(results, start=CHUNK * number):
                if isinstance(result, Failure):
                    failures.append(result._replace(row=row + 1))
                else:
                    found[row] = result
    return found, sorted(failures, key=lambda failure: failure.row or 0)


def relax_chunk(molecules: Sequence[Data]) -> list[Data | Failure]:
    """The task of a worker process."""
    found: list[Data | Failure] = []
    for data in molecules:
        try:
            found.append(relaxed(data))
        except MoleculeError as error:
            found.append(error.failure("relax"))
    return found


if __name__ == "__main__":
    main()
