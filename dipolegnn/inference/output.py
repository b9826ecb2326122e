"""Outputs: tables on a terminal, JSON, and files, also files that are written part by part.

An unfinished output ``OUT`` has a folder ``OUT.parts``: ``job.json`` describes the job, ``lock`` is
locked by the running process, and each part consists of a file of predictions, a file of failures
and a file of numbers. Parts are written in order. A part gets its name when it is complete, and is
not changed later. At the end the parts are concatenated, and the output also gets its name when it
is complete. So a run that is killed loses one part at most.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from filelock import FileLock, Timeout
from rich import progress as rich
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipolegnn.config import PredictConfig
from dipolegnn.files import WRITABLE
from dipolegnn.inference.structures import MoleculePrediction, Prediction, Predictions
from dipolegnn.molecules import (
    Failure,
    MoleculeError,
    failures_text,
    read_failures,
    text_of,
    write_failures,
)
from dipolegnn.molecules.records import Records, import_pyarrow
from dipolegnn.units import DECIMALS_D, DECIMALS_E_OR_ANGSTROM, duration

STREAMED = (".csv", ".csv.gz", ".parquet", *WRITABLE, *(f"{suffix}.gz" for suffix in WRITABLE))
"""Suffixes of outputs that can be written part by part."""

LOCK = "lock"
"""File in the folder of parts that is locked by the running process."""

PART_SECONDS = 20.0
"""A part is written after this time at the latest (plus the time of a batch) ..."""

PART_RECORDS = 1000
"""... or after this number of records, which limits the memory."""

LINE_EVERY_S = 60.0
"""Time between two lines of progress in a log."""

MAX_GEOMETRIES = 10
"""Largest number of molecules whose geometries are printed."""

NAMES_PER_NOTE = 5
"""Largest number of molecules that are named in a note; of more, the number is stated."""

UNITS = {
    "magnitude": "debye",
    "half_width": "debye",
    "smallest": "debye",
    "largest": "debye",
    "dipole": "debye",
    "positions": "angstrom",
    "charges": "e",
    "charge": "e",
    "energy": "kcal/mol, relative to the lowest conformer",
    "weight": "1",
    "temperature": "kelvin",
    "coverage": "1",
}


def as_json(found: Predictions, config: PredictConfig) -> str:
    """Predictions and failures as a JSON object."""
    content = {
        "models": {m.model: {"accuracy": m.accuracy} for m in found.molecules},
        "temperature": config.temperature,
        "coverage": config.coverage,
        "units": UNITS,
        "molecules": [_as_dict(molecule, config.coverage) for molecule in found.molecules],
        "failures": [failure._asdict() for failure in found.failures],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)


def _as_dict(molecule: MoleculePrediction, coverage: float) -> dict[str, Any]:
    lowest = molecule.lowest
    energy = float(lowest.data.energy)
    conformers = [
        {
            "energy": None if np.isnan(energy) else float(conformer.data.energy) - energy,
            "weight": weight,
            "magnitude": conformer.magnitude,
            "dipole": conformer.dipole.tolist() if conformer.has_vector else None,
            "positions": conformer.data.pos.tolist(),
            "charges": conformer.charges.tolist() if conformer.has_vector else None,
        }
        for conformer, weight in zip(molecule.conformers, molecule.weights.tolist(), strict=True)
    ]
    return {
        "name": lowest.data.name,
        "smiles": lowest.data.smiles,
        "charge": lowest.total_charge,
        "magnitude": molecule.magnitude,
        "half_width": _half_width(molecule, coverage),
        "smallest": molecule.smallest,
        "largest": molecule.largest,
        "symbols": lowest.symbols,
        "conformers": conformers,
        "model": molecule.model,
        **_level(molecule),
        **({"energies": molecule.energies} if molecule.energies else {}),
        "notes": molecule.notes,
    }


def _level(found: MoleculePrediction | Prediction) -> dict[str, str]:
    """The level of theory as a field, if the model distinguishes levels."""
    return {"level": found.level} if found.level else {}


class Line(NamedTuple):
    """A line of the table; vector, geometry and charges are those of the lowest conformer."""

    source: str
    row: int
    name: str
    smiles: str
    charge_e: int
    magnitude_D: float
    half_width_D: float | None
    smallest_D: float
    largest_D: float
    dipole_x_D: float | None
    dipole_y_D: float | None
    dipole_z_D: float | None
    conformers: int
    energies: str
    symbols: str
    positions_angstrom: list[float]
    atomic_charges_e: list[float] | None
    model: str
    level: str
    notes: str

    @classmethod
    def columns(cls, levels: bool) -> list[str]:
        """Names of the columns, including ``level`` if ``levels``."""
        return [name for name in cls._fields if levels or name != "level"]

    @classmethod
    def of(cls, molecule: MoleculePrediction, coverage: float) -> Line:
        """Returns the line of a molecule; ``coverage`` is that of the error bar."""
        lowest = molecule.lowest
        vector = lowest.dipole.tolist() if lowest.has_vector else [None] * 3
        return cls(
            source=molecule.source,
            row=molecule.row,
            name=lowest.data.name,
            smiles=lowest.data.smiles,
            charge_e=lowest.total_charge,
            magnitude_D=molecule.magnitude,
            half_width_D=_half_width(molecule, coverage),
            smallest_D=molecule.smallest,
            largest_D=molecule.largest,
            dipole_x_D=vector[0],
            dipole_y_D=vector[1],
            dipole_z_D=vector[2],
            conformers=len(molecule.conformers),
            energies=molecule.energies,
            symbols=" ".join(lowest.symbols),
            positions_angstrom=lowest.data.pos.flatten().tolist(),
            atomic_charges_e=lowest.charges.tolist() if lowest.has_vector else None,
            model=molecule.model,
            level=molecule.level,
            notes="; ".join(molecule.notes),
        )


def _cell(value: str | float | list[float] | None) -> str:
    """Text with as many decimals as do not depend on the batch or the machine."""
    match value:
        case None:
            return ""
        case float():
            return _fixed(value, DECIMALS_D)
        case list():
            return " ".join(_fixed(number, DECIMALS_E_OR_ANGSTROM) for number in value)
    return str(value)


def _fixed(value: float, decimals: int) -> str:
    # Adding 0.0 turns -0.0 into 0.0: the sign of a number that is printed as 0 is rounding error.
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def as_csv(
    molecules: Sequence[MoleculePrediction], coverage: float, *, levels: bool = False
) -> str:
    """Table with a header line and one line per molecule; see :class:`Line`.

    Args:
        molecules: The predictions.
        coverage: Coverage of the error bars.
        levels: True to add the column ``level``.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = Line.columns(levels)
    writer.writerow(columns)
    for molecule in molecules:
        line = Line.of(molecule, coverage)
        writer.writerow(_cell(getattr(line, name)) for name in columns)
    return text.getvalue()


def arrow_schema(names: Sequence[str]) -> Any:
    """Arrow schema of columns; their types follow from their names.

    Raises:
        ImportError: pyarrow is not installed.
    """
    arrow, _ = import_pyarrow()
    text, whole, number = arrow.string(), arrow.int64(), arrow.float64()
    kinds = dict.fromkeys(("row", "charge_e", "conformer", "conformers"), whole)
    kinds |= dict.fromkeys(("positions_angstrom", "atomic_charges_e"), arrow.list_(number))
    kinds |= {name: number for name in names if name.endswith(("_D", "_kcal_per_mol"))}
    return arrow.schema((name, kinds.get(name, text)) for name in names)


def structures_text(molecule: MoleculePrediction, suffix: str, coverage: float) -> str:
    """The conformers of a molecule as structures, each with its own prediction as its labels.

    SDF and extended XYZ also contain ``model``, ``notes``, if the model distinguishes levels of
    theory ``level``, and if it has error bars ``half_width_D`` and ``coverage``.

    Raises:
        MoleculeError: An SDF needs bonds, and they cannot be perceived.
        ValueError: Another suffix than those of :func:`~dipolegnn.molecules.text_of`.
    """
    decimals = {"dipole": DECIMALS_D, "dipole_magnitude": DECIMALS_D}
    decimals["atomic_charges"] = DECIMALS_E_OR_ANGSTROM
    further: list[dict[str, str | float]] = []
    structures = []
    for conformer in molecule.conformers:
        fields: dict[str, str | float] = {"model": molecule.model, **_level(conformer)}
        width = _half_width(conformer, coverage)
        if width is not None:
            fields |= {"half_width_D": round(width, DECIMALS_D), "coverage": coverage}
        if molecule.notes:
            fields["notes"] = "; ".join(molecule.notes)
        further.append(fields)
        labelled = conformer.as_labels()
        for name, count in decimals.items():
            labelled[name] = (labelled[name].double().round(decimals=count) + 0.0).float()
        structures.append(labelled)
    return text_of(structures, suffix, further)


def print_tables(molecules: Sequence[MoleculePrediction], config: PredictConfig) -> None:
    """Prints the dipoles and, for few molecules, the geometries to which the vectors refer."""
    if not molecules:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width
    console.print(_dipoles(molecules, config))
    names: dict[str, list[str]] = {}
    for molecule in molecules:
        for note in molecule.notes:
            names.setdefault(note, []).append(molecule.lowest.data.name)
    for note, about in names.items():
        more = len(about) - NAMES_PER_NOTE
        shown = [*about[:NAMES_PER_NOTE], *([f"{more} more"] if more > 0 else [])]
        console.print(Text(f"{', '.join(shown)}: {note}"))
    for source in dict.fromkeys(m.energies for m in molecules if m.energies):
        console.print(Text(f"Weights of conformers: energies of {source}"))
    if len(molecules) <= MAX_GEOMETRIES:
        for molecule in molecules:
            console.print(_geometry(molecule.lowest))
    else:
        console.print("Geometries and charges: --json, or --output FILE.", highlight=False)
    for (model, level), accuracy in {(m.model, m.level): m.accuracy for m in molecules}.items():
        used = f"{model} at {level}" if level else model
        console.print(Text(f"{used}: {accuracy}" if accuracy else used))


def _dipoles(molecules: Sequence[MoleculePrediction], config: PredictConfig) -> Table:
    table = Table(
        title=(
            f"Dipole moments, averages over conformers at {config.temperature:g} K; ± holds for "
            f"{100 * config.coverage:g} %"
        ),
        title_justify="left",
    )
    table.add_column("molecule", overflow="fold")
    for header in ("|μ| (D)", "± (D)", "range (D)", "conformers", "μx (D)", "μy (D)", "μz (D)"):
        table.add_column(header, justify="right", no_wrap=True)
    for molecule in molecules:
        lowest = molecule.lowest
        components = [f"{x:.3f}" for x in lowest.dipole] if lowest.has_vector else ["–"] * 3
        several = len(molecule.conformers) > 1
        width = _half_width(molecule, config.coverage)
        table.add_row(
            Text(lowest.data.name),  # not parsed as markup, such as "[O-]"
            f"{molecule.magnitude:.3f}",
            "–" if width is None else f"{width:.3f}",
            f"{molecule.smallest:.3f} – {molecule.largest:.3f}" if several else "",
            str(len(molecule.conformers)),
            *components,
        )
    return table


def _geometry(prediction: Prediction) -> Table:
    table = Table(title=Text(prediction.data.name), title_justify="left")
    table.add_column("atom")
    for header in ("x (Å)", "y (Å)", "z (Å)", "charge (e)"):
        table.add_column(header, justify="right", no_wrap=True)
    charges = ["–"] * prediction.data.z.numel()
    if prediction.has_vector:
        charges = [f"{charge:+.3f}" for charge in prediction.charges]
    for symbol, position, charge in zip(
        prediction.symbols, prediction.data.pos.tolist(), charges, strict=True
    ):
        table.add_row(symbol, *(f"{x:.4f}" for x in position), charge)
    return table


def _half_width(found: MoleculePrediction | Prediction, coverage: float) -> float | None:
    """Half the width of the interval, in debye; None if there is no finite one."""
    width = found.half_width(coverage)
    return width if width is not None and np.isfinite(width) else None


class JobMismatch(ValueError):
    """The parts on disk belong to another job."""


class OutputInUse(ValueError):
    """Another run is writing the same output."""


class Format:
    """Format of an output, determined by its suffix, one of ``STREAMED``.

    Args:
        output: Path of the output.
        coverage: Coverage of the error bars.
        levels: True if tables have the column ``level``.
    """

    def __init__(self, output: Path, coverage: float, levels: bool) -> None:
        name = output.name.lower()
        if not name.endswith(STREAMED):
            raise ValueError(f"{output}: unknown suffix, expected one of {', '.join(STREAMED)}.")
        self.coverage = coverage
        self.levels = levels
        self.packed = name.endswith(".gz")
        self.suffix = Path(name.removesuffix(".gz")).suffix
        if self.suffix == ".parquet":
            self._arrow, self._parquet = import_pyarrow()
            self._schema = arrow_schema(Line.columns(levels))

    def write(self, file: IO[bytes], molecules: Sequence[MoleculePrediction]) -> list[Failure]:
        """Writes predictions as a part; returns those that cannot be written."""
        failures = []
        if self.suffix == ".csv":
            file.write(as_csv(molecules, self.coverage, levels=self.levels).encode())
        elif self.suffix == ".parquet":
            rows = [Line.of(molecule, self.coverage)._asdict() for molecule in molecules]
            table = self._arrow.Table.from_pylist(rows, schema=self._schema)
            self._parquet.write_table(table, file)
        else:
            for molecule in molecules:
                try:
                    file.write(structures_text(molecule, self.suffix, self.coverage).encode())
                except MoleculeError as error:  # no bonds for an SDF
                    row, source = molecule.row, molecule.source
                    failures.append(error.failure("write", row=row, source=source))
        return failures

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        """Concatenates the parts, which are not compressed."""
        if self.suffix == ".parquet":
            with self._parquet.ParquetWriter(file, self._schema) as writer:
                for part in parts:
                    writer.write_table(self._parquet.read_table(part, schema=self._schema))
        elif self.packed:
            # Without a time, so that equal input gives equal bytes.
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
                _join_text(cast("IO[bytes]", packed), parts, header=self.suffix == ".csv")
        else:
            _join_text(file, parts, header=self.suffix == ".csv")


def _join_text(file: IO[bytes], parts: Iterable[Path], *, header: bool) -> None:
    """Concatenates texts; of header lines, only the first is kept."""
    for number, part in enumerate(parts):
        with part.open("rb") as text:
            if header and number:
                text.readline()
            shutil.copyfileobj(text, file)


class Counts(NamedTuple):
    """Numbers of a part, or of all parts."""

    records: int
    molecules: int
    failures: int


@contextmanager
def opened_parts(
    output: Path,
    job: dict[str, Any],
    coverage: float,
    part_records: int = PART_RECORDS,
    *,
    levels: bool = False,
) -> Iterator[Parts]:
    """Locks and yields the parts of an output, including those of an interrupted run.

    Args:
        output: The output.
        job: Everything that the predictions depend on, as JSON.
        coverage: Coverage of the error bars.
        part_records: Number of records from which on a part is written.
        levels: True if tables have the column ``level``.

    Raises:
        JobMismatch: There are parts of another job.
        OutputInUse: Another run is writing the output.
        ImportError: A Parquet table without pyarrow.
        ValueError: Another suffix than one of ``STREAMED``.
    """
    kind = Format(output, coverage, levels)
    _folder(output).mkdir(parents=True, exist_ok=True)
    with _locked(output) as lock:
        parts = Parts(output, job, kind, lock, part_records)
        try:
            yield parts
        except (MoleculeError, KeyboardInterrupt):
            parts.flush()  # keeps the work that is done
            raise


class Parts:
    """The parts of an output; see :func:`opened_parts`."""

    def __init__(
        self, output: Path, job: dict[str, Any], kind: Format, lock: FileLock, part_records: int
    ) -> None:
        self.output = output
        self.folder = _folder(output)
        self.done: list[Counts] = []
        """The numbers of the parts on disk."""
        self._format = kind
        self._lock = lock
        self._part_records = part_records
        self._finished = output.with_name(f"{output.name}.parts.done")
        self._records = 0
        self._outcomes: list[MoleculePrediction | Failure] = []
        self._begun = time.monotonic()
        shutil.rmtree(self._finished, ignore_errors=True)  # left by a run that was killed
        described = self.folder / "job.json"
        if not self._path(0, ".counts.json").exists():  # nothing is lost if the job is another
            with _complete(described) as file:
                file.write((json.dumps(job, indent=2) + "\n").encode())
            return
        _require_same(json.loads(described.read_text(encoding="utf-8")), job, self.folder)
        while (path := self._path(len(self.done), ".counts.json")).exists():
            self.done.append(Counts(**json.loads(path.read_text(encoding="utf-8"))))

    def add(self, records: int, outcomes: Iterable[MoleculePrediction | Failure]) -> None:
        """Adds the outcomes of a batch of consecutive records; writes a part if it is large enough.

        A part ends where a batch ends, so that a resumed run has the same batches.
        """
        self._records += records
        self._outcomes += outcomes
        if self._records >= self._part_records or time.monotonic() - self._begun >= PART_SECONDS:
            self.flush()

    def flush(self, *, empty: bool = False) -> None:
        """Writes the added outcomes as a part, also without outcomes if ``empty``.

        The part is complete when the last of its files exists.
        """
        if not (self._records or empty):
            return
        number = len(self.done)
        found = Predictions.of(self._outcomes)
        with _complete(self._path(number, self._format.suffix)) as file:
            unwritten = self._format.write(file, found.molecules)
        failures = found.failures + unwritten
        with _complete(self._path(number, ".failures.csv")) as file:
            file.write(failures_text(failures).encode())
        counts = Counts(self._records, len(found.molecules) - len(unwritten), len(failures))
        with _complete(self._path(number, ".counts.json")) as file:
            file.write(json.dumps(counts._asdict()).encode())
        self.done.append(counts)
        self._records, self._outcomes, self._begun = 0, [], time.monotonic()

    def assemble(self) -> Counts:
        """Concatenates the parts to the output and, if there are any, the table of failures."""
        self.flush(empty=not self.done)  # an empty table also has a header
        numbers = range(len(self.done))
        total = Counts(*map(sum, zip(*self.done, strict=True)))
        with _complete(self.output) as file:
            parts = [self._path(number, self._format.suffix) for number in numbers]
            self._format.join(file, parts)
        beside = failures_path(self.output)
        if total.failures:
            with _complete(beside) as file:
                _join_text(file, [self._path(n, ".failures.csv") for n in numbers], header=True)
        else:
            beside.unlink(missing_ok=True)  # left by an earlier run
        # Renamed before it is removed: a folder that is partly removed would be resumed. Windows
        # does not rename a folder in which a file is locked, so the lock is released first.
        self._lock.release()
        self.folder.replace(self._finished)
        shutil.rmtree(self._finished)
        return total

    def first_failures(self, count: int) -> list[Failure]:
        """The first failures, at most ``count``."""
        found: list[Failure] = []
        for number, counts in enumerate(self.done):
            if counts.failures and len(found) < count:
                found += read_failures(self._path(number, ".failures.csv"))
        return found[:count]

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:08}{suffix}"


def failures_path(output: Path) -> Path:
    """Path of the table of failures of an output."""
    return output.with_name(f"{output.name}.failures.csv")


def require_apart(output: Path, inputs: Iterable[str | Path]) -> None:
    """Checks that an output would not replace an input.

    Raises:
        ValueError: The output, or its table of failures, is one of the inputs; or the output is a
            folder.
    """
    read = {Path(path).resolve() for path in inputs}
    if output.resolve() in read:
        raise ValueError(f"{output} is one of the files of molecules; choose another output.")
    if failures_path(output).resolve() in read:
        raise ValueError(
            f"{failures_path(output)} is one of the files of molecules, and failures would be "
            "written to it; choose another output."
        )
    if output.is_dir():
        raise ValueError(f"{output} is a folder; choose a file as output.")


def write_predictions(
    output: Path, found: Predictions, config: PredictConfig
) -> tuple[list[Failure], list[Path]]:
    """Writes predictions in memory to a file, and failures to a separate file beside it.

    Args:
        output: As for :func:`~dipolegnn.inference.predict_files`, or ``.json``, which contains the
            failures.
        found: Predictions and failures.
        config: Configuration of the prediction.

    Returns:
        All failures, including molecules that cannot be written; and the written files.

    Raises:
        ImportError: A Parquet table without pyarrow.
        OutputInUse: Another run is writing the output part by part.
        ValueError: An unknown suffix.
    """
    if output.name.lower().endswith(".json"):
        with _complete(output) as file:
            file.write(f"{as_json(found, config)}\n".encode())
        return found.failures, [output]
    kind = Format(output, config.coverage, bool(found.levels))
    beside = failures_path(output)
    if _folder(output).exists():
        with _locked(output):
            pass
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / f"part{kind.suffix}"
        with part.open("wb") as file:
            failures = found.failures + kind.write(file, found.molecules)
        with _complete(output) as file:
            kind.join(file, [part])
    beside.unlink(missing_ok=True)  # left by an earlier run
    if failures:
        write_failures(beside, failures)
    return failures, [output, beside] if failures else [output]


class Progress:
    """Shows molecules, rate and remaining time on standard error; a context manager.

    The progress is a bar on a terminal, and a line per minute elsewhere.

    Args:
        wanted: False to show nothing.
        records: The records that are read.
        done: The parts of an earlier run, which do not affect the rate.
    """

    def __init__(self, wanted: bool, records: Records, done: Sequence[Counts] = ()) -> None:
        self._records = records
        self._skipped = self._written = sum(counts.records for counts in done)
        self._earlier = sum(counts.molecules + counts.failures for counts in done)
        self._count = 0
        self._start = self._printed = time.monotonic()
        console = Console(file=sys.stderr)
        self._lines = wanted and not console.is_terminal
        self._bar = rich.Progress(
            rich.TextColumn("Predicting"),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[count]:,} molecules, {task.fields[rate]:.0f}/s"),
            rich.TextColumn("{task.fields[left]}"),
            console=console,
            disable=not wanted or self._lines,
        )
        self._task = self._bar.add_task("", total=1.0, count=self._earlier, rate=0.0, left="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, records: int, outcomes: int) -> None:
        """Adds records that are done, and the number of their molecules and failures."""
        self._written += records
        self._count += outcomes
        now = time.monotonic()
        elapsed = now - self._start
        # Files are read ahead, so their position is ahead of the predictions.
        per_record = self._records.position / max(self._records.read, 1)
        position = min(per_record * self._written, 1.0)
        share = per_record * (self._written - self._skipped)
        left = "finishing" if position == 1 else ""
        if share and not left:
            left = f"{duration(max(1.0, (1 - position) / share * elapsed))} left"
        count, rate = self._earlier + self._count, self._count / elapsed
        self._bar.update(self._task, completed=position, count=count, rate=rate, left=left)
        if self._lines and now - self._printed >= LINE_EVERY_S:
            self._printed = now
            print(
                f"{count:,} molecules ({100 * position:.0f} %), {rate:.0f}/s, {left}",
                file=sys.stderr,
                flush=True,
            )


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


@contextmanager
def _locked(output: Path) -> Iterator[FileLock]:
    """Locks the folder of parts of an output."""
    lock = FileLock(_folder(output) / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OutputInUse(
            f"Another run is writing {output}. Wait until it has ended, or choose another output."
        ) from None
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def _complete(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when it is complete and on the disk.

    Unlike :func:`dipolegnn.files.replacing`, this also holds after a loss of power, and the next
    run overwrites the incomplete file of a killed one, which may be large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f"{path.name}.tmp")
    try:
        with growing.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # such as a full disk, on which the incomplete file would take the space
        growing.unlink(missing_ok=True)
        raise
    growing.replace(path)


def _require_same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    differ = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if differ:
        details = "; ".join(
            f"{key}: {json.dumps(found.get(key))} there, {json.dumps(wanted.get(key))} now"
            for key in differ
        )
        raise JobMismatch(
            f"{folder} holds parts of another job ({details}). Finish that with the command that "
            "it was begun with, choose another output, or remove the folder to begin again."
        )
