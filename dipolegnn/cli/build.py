"""``dipolegnn build``."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from dipolegnn.cli.options import Build, LabelOptions
from dipolegnn.cli.program import FAILED_MOLECULES
from dipolegnn.config import DFTConfig, XTBConfig
from dipolegnn.data import About, Split, make_split, save_dataset
from dipolegnn.data.card import CARD_FILE, FAILURES_FILE
from dipolegnn.files import molecule_format
from dipolegnn.labels import label_many
from dipolegnn.molecules import Molecules, TableColumns, read_file, write_failures
from dipolegnn.molecules.workers import usable_cores

JOURNAL_FILE = "labels.jsonl"
"""Labels that are done, for resuming; seen from the folder of the data set."""


def run(options: Build) -> int:
    """Builds a data set, and says what is in it and what is not."""
    method = label_method(options.label)
    if method is not None and options.magnitude_column is not None:
        raise ValueError(
            "--magnitude-column gives reference dipoles, and --label would replace them; add "
            "--label none, or leave the column out."
        )
    if (options.output / CARD_FILE).exists() and not options.overwrite:
        raise FileExistsError(
            f"{options.output} already holds a data set. Add --overwrite, or choose another folder."
        )
    workers = options.workers if options.workers is not None else usable_cores()
    try:
        molecules = _molecules(options, method, workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. The same command goes on where it was.") from None
    card = save_dataset(
        options.output,
        molecules,
        _about(options, method),
        split=_split(molecules, options),
        packages={XTBConfig: ("tblite",), DFTConfig: ("pyscf",)}.get(type(method), ()),
    )
    labelled = sum(1 for data in molecules.data if bool(data.dipole_magnitude.isfinite()))
    print(
        f"{options.output}: {card.counts.molecules} molecules, {card.counts.structures} "
        f"structures, {labelled} of them with a reference dipole; elements "
        f"{' '.join(card.elements)}."
    )
    if not molecules.failures:
        return 0
    print(f"{len(molecules.failures)} failed; see {options.output / FAILURES_FILE}.")
    return FAILED_MOLECULES


def label_method(options: LabelOptions) -> XTBConfig | DFTConfig | None:
    """The method that the options ask for.

    Raises:
        ValueError: Relaxation without a method.
    """
    if options.label == "xtb":
        return XTBConfig(
            optimize=options.optimize,
            fmax=options.fmax,
            max_steps=options.max_steps,
            electronic_temperature=options.electronic_temperature,
        )
    if options.label == "dft":
        return DFTConfig(
            xc=options.xc,
            basis=options.basis,
            density_fit=not options.exact_integrals,
            grid_level=options.grid_level,
            scf_tolerance=options.scf_tolerance,
            optimize=options.optimize,
            fmax=options.fmax,
            max_steps=options.max_steps,
        )
    if options.optimize:
        raise ValueError("--optimize needs a method: --label xtb or --label dft.")
    return None


def _molecules(options: Build, method: XTBConfig | DFTConfig | None, workers: int) -> Molecules:
    """Reads, embeds and labels, and keeps every failure."""
    columns = TableColumns(
        smiles=options.csv.smiles_column,
        name=options.csv.name_column,
        magnitude=options.magnitude_column,
    )
    found = read_file(
        options.input,
        columns=columns,
        conformers=options.conformer,
        workers=workers,
        progress=True,
    )
    _require_some(found, options.output)
    if method is None:
        return found
    _split(found, options)  # What is wrong with it should be known now, not after the labels.
    options.output.mkdir(parents=True, exist_ok=True)
    labelled = label_many(
        found.data,
        method,
        workers=workers,
        progress=True,
        journal=options.output / JOURNAL_FILE,
        source=options.input.name,
    )
    molecules = Molecules(labelled.data, found.failures + labelled.failures)
    _require_some(molecules, options.output)
    return molecules


def _require_some(molecules: Molecules, output: Path) -> None:
    if molecules.data:
        return
    output.mkdir(parents=True, exist_ok=True)
    write_failures(output / FAILURES_FILE, molecules.failures)
    raise ValueError(
        f"Nothing was built: all {len(molecules.failures)} molecules failed, the first with: "
        f"{molecules.failures[0].problem}. See {output / FAILURES_FILE}."
    )


def _split(molecules: Molecules, options: Build) -> Split:
    split = options.split
    try:
        return make_split(
            molecules.data, split.split, val=split.val, test=split.test, seed=split.split_seed
        )
    except ValueError as error:
        raise ValueError(f"{error} The options are --split, --val and --test.") from None


def _about(options: Build, method: XTBConfig | DFTConfig | None) -> About:
    level = f"as stated in {options.input.name}"
    if isinstance(method, XTBConfig):
        level = "GFN2-xTB (tblite)"
    elif isinstance(method, DFTConfig):
        fitted = ", density fitting" if method.density_fit else ""
        level = f"{method.xc}/{method.basis} (PySCF{fitted})"
    from_smiles = molecule_format(options.input).smiles
    geometry = "ETKDGv3, MMFF94s or UFF (RDKit)" if from_smiles else f"{options.input.name}"
    if method is not None and method.optimize:
        geometry += f"; relaxed with {level}"
    return About(
        name=options.output.resolve().name,
        description=f"Molecules of {options.input.name}.",
        level_of_theory=level,
        geometry=geometry,
        seed=options.conformer.conformer_seed if from_smiles else None,
        created_by=_command(options),
    )


def _command(options: Build) -> str:
    """The command that builds the same data set, with every setting that is not the default."""
    words = ["dipolegnn", "build", str(options.input), "--output", str(options.output)]
    if options.magnitude_column is not None:
        words += ["--magnitude-column", options.magnitude_column]
    for group in (options.csv, options.conformer, options.label, options.split):
        for field in fields(group):
            value = getattr(group, field.name)
            if value != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)
