"""``dipolegnn predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from dipolegnn._pyg import Data
from dipolegnn.cli.model_file import LoadedModel, open_model, unknown_elements
from dipolegnn.cli.options import Predict
from dipolegnn.cli.program import FAILED_MOLECULES
from dipolegnn.cli.report import Report, as_json, print_tables, write_csv
from dipolegnn.molecules import (
    Failure,
    Molecules,
    SmilesRow,
    TableColumns,
    embed_smiles,
    read_file,
    write_failures,
    write_file,
)
from dipolegnn.molecules.files import READABLE, WRITABLE
from dipolegnn.predict import average, predict, unsupported

OUTPUTS = (".csv", ".json", *WRITABLE)
"""Suffixes of what can be written."""


KERNELS_FROM_ATOMS = 2000
"""Atoms from which on the fused kernels save more time than the half second that loading takes."""


def run(options: Predict) -> int:
    """Predicts, prints and writes; what failed is listed and makes the exit status 1."""
    if not options.molecules:
        raise ValueError("No molecules: give SMILES or files (see dipolegnn predict --help).")
    if options.output is not None and not options.output.name.lower().endswith(OUTPUTS):
        raise ValueError(
            f"--output {options.output}: unknown suffix, expected one of {', '.join(OUTPUTS)}."
        )
    if not options.temperature > 0:
        raise ValueError(f"--temperature must be positive, in kelvin, got {options.temperature}.")
    loaded = open_model(options.model)
    molecules = _read(options, loaded)
    progress = len(molecules.data) > 1000 and not options.json
    if sum(data.num_nodes or 0 for data in molecules.data) < KERNELS_FROM_ATOMS:
        loaded.model.kernels = "plain"
    predictions = predict(loaded.model, molecules.data, progress=progress)
    report = Report(
        loaded, average(predictions, options.temperature), molecules.failures, options.temperature
    )
    if options.json:
        print(as_json(report))
    else:
        print_tables(report)
    for failure in report.failures:
        print(f"failed: {_describe(failure)}", file=sys.stderr)
    if options.output is not None:
        for path in _write(options.output, report):
            print(f"wrote {path}", file=sys.stderr)
    return FAILED_MOLECULES if report.failures else 0


def _read(options: Predict, loaded: LoadedModel) -> Molecules:
    """All molecules of all arguments, in order, each with a number of its own."""
    data: list[Data] = []
    failures: list[Failure] = []
    first = 0
    for source, found in _sources(options):
        for structure in found.data:
            problem = unsupported(structure)
            problem = problem or unknown_elements(loaded, structure)
            if problem is None:
                numbered = structure.clone()
                numbered.mol_id = structure.mol_id + first
                data.append(numbered)
            else:
                located = problem.located(row=int(structure.mol_id) + 1, source=source)
                failures.append(Failure.from_error(located, "predict"))
        failures += found.failures
        first += 1 + max((int(structure.mol_id) for structure in found.data), default=0)
    return Molecules(data, failures)


def _sources(options: Predict) -> Iterator[tuple[str, Molecules]]:
    """What the arguments hold, with the name of the file: SMILES together, file by file."""
    columns = TableColumns(smiles=options.csv.smiles_column, name=options.csv.name_column)
    numbered = enumerate(options.molecules, start=1)
    for is_file, group in groupby(numbered, lambda argument: _is_file(argument[1])):
        arguments = list(group)
        if not is_file:
            rows = [SmilesRow(number, smiles) for number, smiles in arguments]
            yield "", embed_smiles(rows, options.conformer, workers=options.workers)
            continue
        for _, path in arguments:
            found = read_file(
                path,
                columns=columns,
                conformers=options.conformer,
                workers=options.workers,
                progress=not options.json,
            )
            yield Path(path).name, found


def _is_file(argument: str) -> bool:
    return argument.lower().removesuffix(".gz").endswith(READABLE)


def _write(path: Path, report: Report) -> list[Path]:
    """Writes predictions and, beside them, the failures, if any; returns what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if name.endswith(".json"):  # which lists the failures itself
        path.write_text(as_json(report) + "\n", encoding="utf-8")
        return [path]
    if name.endswith(".csv"):
        write_csv(path, report)
    else:
        conformers = [c.as_labels() for m in report.molecules for c in m.conformers]
        write_file(path, conformers)
    failures = path.with_name(f"{path.name}.failures.csv")
    if not report.failures:
        failures.unlink(missing_ok=True)  # of an earlier run, perhaps
        return [path]
    write_failures(failures, report.failures)
    return [path, failures]


def _describe(failure: Failure) -> str:
    if failure.source:
        where = [failure.source, f"row {failure.row}"]
    else:  # rows of no file are counted on the command line
        where = [f"argument {failure.row}"]
    where += [failure.molecule] if failure.molecule.strip() else []
    return f"{', '.join(where)}: {failure.problem}. {failure.remedy}."
