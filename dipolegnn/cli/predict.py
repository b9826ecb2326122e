"""``dipolegnn predict``."""

from __future__ import annotations

import sys
from pathlib import Path

from dipolegnn.cli.program import FAILED_MOLECULES, Predict
from dipolegnn.config import PredictConfig
from dipolegnn.files import READABLE, is_molecule_file
from dipolegnn.inference.output import (
    STREAMED,
    as_json,
    failures_path,
    print_tables,
    require_apart,
    write_predictions,
)
from dipolegnn.inference.pipeline import predict_files, predict_list
from dipolegnn.inference.structures import Predictions
from dipolegnn.models import ModelChoice
from dipolegnn.molecules import Failure, SmilesRow, TableColumns
from dipolegnn.molecules.records import Record, chained, file_records, read_records
from dipolegnn.units import duration

OUTPUTS = (*STREAMED, ".json")
"""Suffixes of output files."""

PICTURES = (".png", ".svg", ".html")
"""Suffixes of pictures."""

MOST_PICTURES = 100

PROGRESS_FROM_RECORDS = 50
"""Smallest number of records with a progress bar."""

STDIN = "-"
"""Argument that stands for SMILES from standard input."""

STDIN_NAME = "stdin.smi"
"""Name of standard input as the source of molecules and failures; the format is that of .smi."""


def run(options: Predict) -> int:
    """Predicts, prints and writes; with failures the exit status is 1."""
    if not options.molecules:
        raise ValueError("No molecules: give SMILES or files (see dipolegnn predict --help).")
    if options.output is not None and not options.output.name.lower().endswith(OUTPUTS):
        raise ValueError(
            f"--output {options.output}: unknown suffix, expected one of {', '.join(OUTPUTS)}."
        )
    if options.picture is not None and options.picture.suffix.lower() not in PICTURES:
        raise ValueError(
            f"--picture {options.picture}: unknown suffix, expected one of {', '.join(PICTURES)}."
        )
    if options.molecules.count(STDIN) > 1:
        raise ValueError(f"{STDIN} stands for standard input, which can be read once only.")
    for argument in options.molecules:
        _require_readable(argument)
    for target in (options.output, options.picture):
        if target is not None:
            require_apart(target, [text for text in options.molecules if is_molecule_file(text)])
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}.")
    models = ModelChoice(options.model)
    if _can_be_streamed(options):
        return _stream(options, models)
    if options.model is not None:  # a missing model is an error, whatever the molecules
        models.model.level_named(options.prediction.level)
    config, records = options.prediction, _records(options)
    progress = len(records) >= PROGRESS_FROM_RECORDS and sys.stderr.isatty()
    workers = options.workers or 1
    found = predict_list(records, models, config, workers=workers, progress=progress)
    if options.json:
        print(as_json(found, config))
    else:
        print_tables(found.molecules, config)
    failures, written = found.failures, list[Path]()
    if options.output is not None:
        failures, written = write_predictions(options.output, found, config)
    for failure in failures:
        print(f"failed: {_describe(failure)}", file=sys.stderr)
    if options.picture is not None and found.molecules:
        written += _draw(options.picture, found, config)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return FAILED_MOLECULES if failures else 0


def _require_readable(argument: str) -> None:
    """Raises an error for a file of unknown format, which would be parsed as a SMILES."""
    if not is_molecule_file(argument) and Path(argument).suffix and Path(argument).is_file():
        raise ValueError(
            f"{argument}: this file format is not supported; supported are "
            f"{', '.join(READABLE)} (all but .parquet also as .gz)."
        )


def _can_be_streamed(options: Predict) -> bool:
    """True if only files are read and only one file is written, which can be streamed."""
    return (
        options.output is not None
        and options.output.name.lower().endswith(STREAMED)
        and not options.json
        and options.picture is None
        and all(map(is_molecule_file, options.molecules))
    )


def _stream(options: Predict, models: ModelChoice) -> int:
    """Predicts files of any size; resumes an interrupted run."""
    assert options.output is not None
    result = predict_files(
        options.molecules,
        options.output,
        models,
        columns=_columns(options),
        conformers=options.prediction.embedding,
        temperature=options.prediction.temperature,
        coverage=options.prediction.coverage,
        level=options.prediction.level,
        energies=options.prediction.energies,
        workers=options.workers,
        progress=True,
    )
    for failure in result.first_failures:
        print(f"failed: {_describe(failure)}", file=sys.stderr)
    if result.failures > len(result.first_failures):
        print(f"failed: {result.failures:,} in total", file=sys.stderr)
    done = result.molecules + result.failures - result.earlier
    at_level = f" at {', '.join(result.levels)}" if result.levels else ""
    went_on = f"; {result.earlier:,} were done before" if result.earlier else ""
    print(
        f"wrote {options.output}: {result.molecules:,} molecules{at_level}, {done:,} read in "
        f"{duration(result.seconds)} ({done / result.seconds:.0f}/s){went_on}",
        file=sys.stderr,
    )
    if result.failures:
        print(f"wrote {failures_path(options.output)}: {result.failures:,}", file=sys.stderr)
    return FAILED_MOLECULES if result.failures else 0


def _columns(options: Predict) -> TableColumns:
    return TableColumns(smiles=options.csv.smiles_column, name=options.csv.name_column)


def _records(options: Predict) -> list[Record]:
    """Returns the records of all arguments."""
    sources = []
    for number, argument in enumerate(options.molecules, start=1):
        if argument == STDIN:
            # As for files: a byte order mark is ignored, and invalid bytes affect only their line.
            text = sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape")
            sources.append(read_records(text, STDIN_NAME))
        elif is_molecule_file(argument):
            sources.append(file_records(argument, _columns(options)))
        else:
            sources.append([Record(number, SmilesRow(number, argument))])
    return list(chained(sources))


def _draw(path: Path, found: Predictions, config: PredictConfig) -> list[Path]:
    """Draws the lowest conformer of each molecule; returns the paths."""
    lowest = [molecule.lowest for molecule in found.molecules]
    if len(lowest) > MOST_PICTURES:
        raise ValueError(
            f"--picture draws at most {MOST_PICTURES} molecules, got {len(lowest)}; select some."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Imported here: importing matplotlib and plotly is slow.
    if path.suffix.lower() == ".html":
        from dipolegnn.plots.scene import scene, write_page

        pages = []
        for p in lowest:
            width, name = p.half_width(config.coverage), p.data.name
            pages.append(scene(p.data.z, p.data.pos, p.dipole, half_width=width, title=name))
        write_page(path, pages, "Dipole moments")
        return [path]
    from dipolegnn.plots import draw_molecule

    paths = [path]
    if len(lowest) > 1:
        paths = [path.with_stem(f"{path.stem}-{k}") for k in range(1, len(lowest) + 1)]
    for target, p in zip(paths, lowest, strict=True):
        width, name = p.half_width(config.coverage), p.data.name
        given = p.data.z, p.data.pos, p.dipole
        figure = draw_molecule(*given, magnitude=p.magnitude, half_width=width, title=name)
        figure.savefig(target, dpi=150)
    return paths


def _describe(failure: Failure) -> str:
    if failure.source:
        where = [failure.source, f"row {failure.row}"]
    else:  # without a file, the row is the position on the command line
        where = [f"argument {failure.row}"]
    name = failure.molecule.strip()
    where += [name if len(name) <= 80 else f"{name[:77]}..."] if name else []
    return f"{', '.join(where)}: {failure.problem}. {failure.remedy}."
