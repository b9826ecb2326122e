"""``dipolegnn build``."""

from __future__ import annotations

import shlex
from dataclasses import fields

from dipolegnn.cli.program import FAILED_MOLECULES, Build, LabelOptions
from dipolegnn.config import DFTConfig, XTBConfig
from dipolegnn.data import About, SplitConfig
from dipolegnn.data.build import Recipe, build_dataset
from dipolegnn.data.card import CARD_FILE, FAILURES_FILE
from dipolegnn.molecules import TableColumns
from dipolegnn.molecules.workers import usable_cores


def run(options: Build) -> int:
    """Builds a data set and prints a summary."""
    method = label_method(options.label)
    if (options.output / CARD_FILE).exists() and not options.overwrite:
        raise FileExistsError(
            f"{options.output} already contains a data set. Add --overwrite, or choose another "
            "folder."
        )
    workers = options.workers if options.workers is not None else usable_cores()
    recipe = Recipe(
        source=options.input,
        columns=TableColumns(
            smiles=options.csv.smiles_column,
            name=options.csv.name_column,
            magnitude=options.magnitude_column,
        ),
        conformers=options.conformer,
        label=method,
        split=SplitConfig(
            options.split.split, options.split.val, options.split.test, options.split.split_seed
        ),
        about=About(name=options.output.resolve().name, created_by=_command(options)),
    )
    try:
        card, molecules = build_dataset(options.output, recipe, workers=workers, progress=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. Repeat the same command to resume.") from None
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
    """Returns the method selected by the options.

    Raises:
        ValueError: ``--optimize`` without a method.
    """
    if options.label != "none":
        kind = XTBConfig if options.label == "xtb" else DFTConfig
        settings = {**vars(options), "density_fit": not options.exact_integrals}
        return kind(**{field.name: settings[field.name] for field in fields(kind)})
    if options.optimize:
        raise ValueError("--optimize needs a method: --label xtb or --label dft.")
    return None


def _command(options: Build) -> str:
    """Returns the command that builds the same data set, with all options that are not default."""
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
