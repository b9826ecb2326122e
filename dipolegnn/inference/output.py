"""Outputs in files: formats, and an output that grows part by part on disk.

An unfinished output ``OUT`` has a folder ``OUT.parts``: ``job.json`` describes the job, ``lock`` is
locked by the running process, and each part consists of a file of predictions, a file of failures
and a file of numbers. Parts are written in order. A part gets its name when it is complete, and is
not changed later. At the end the parts are concatenated, and the output, too, gets its name when it
is complete. So a run that is killed loses one part at most.
"""

from __future__ import annotations

import gzip
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

from filelock import FileLock, Timeout
from rich import progress as rich
from rich.console import Console

from dipolegnn.config import PredictConfig
from dipolegnn.files import WRITABLE
from dipolegnn.inference.structures import MoleculePrediction, Predictions
from dipolegnn.inference.table import Line, arrow_schema, as_csv, as_json, structures_text
from dipolegnn.molecules import (
    Failure,
    MoleculeError,
    failures_text,
    read_failures,
    write_failures,
)
from dipolegnn.molecules.records import Records
from dipolegnn.molecules.tables import import_pyarrow
from dipolegnn.units import duration

STREAMED = (".csv", ".csv.gz", ".parquet", *WRITABLE, *(f"{suffix}.gz" for suffix in WRITABLE))
"""Suffixes of outputs that can be written part by part."""

LOCK = "lock"
"""File among the parts that the run at work has locked."""

PART_SECONDS = 20.0
"""A part is written after this time at the latest (but for what a batch takes) ..."""

PART_RECORDS = 1000
"""... or after so many records, which bounds the memory."""

LINE_EVERY_S = 60.0
"""Time between two lines of progress in a log."""


class JobMismatch(ValueError):
    """The parts on disk are of another job."""


class OutputInUse(ValueError):
    """Another run is at work on the same output."""


class Format:
    """The format of an output, by its suffix.

    Args:
        output: The output.
        coverage: Coverage of the error bars.

    Raises:
        ImportError: A Parquet table without pyarrow.
        ValueError: Another suffix than one of ``STREAMED``.
    """

    def __init__(self, output: Path, coverage: float) -> None:
        name = output.name.lower()
        if not name.endswith(STREAMED):
            raise ValueError(f"{output}: unknown suffix, expected one of {', '.join(STREAMED)}.")
        self.coverage = coverage
        self.packed = name.endswith(".gz")
        self.suffix = Path(name.removesuffix(".gz")).suffix
        if self.suffix == ".parquet":
            self._arrow, self._parquet = import_pyarrow()
            self._schema = arrow_schema(Line._fields)

    def write(self, file: IO[bytes], molecules: Sequence[MoleculePrediction]) -> list[Failure]:
        """Writes predictions as a part; returns those that cannot be written."""
        failures = []
        if self.suffix == ".csv":
            file.write(as_csv(molecules, self.coverage).encode())
        elif self.suffix == ".parquet":
            rows = [Line.of(molecule, self.coverage)._asdict() for molecule in molecules]
            table = self._arrow.Table.from_pylist(rows, schema=self._schema)
            self._parquet.write_table(table, file)
        else:
            for molecule in molecules:
                try:
                    file.write(structures_text(molecule, self.suffix, self.coverage).encode())
                except MoleculeError as error:  # no bonds for an SDF
                    located = error.located(row=molecule.row, source=molecule.source)
                    failures.append(Failure.from_error(located, "write"))
        return failures

    def join(self, file: IO[bytes], parts: Sequence[Path]) -> None:
        """Puts the parts together, which are not packed."""
        if self.suffix == ".parquet":
            with self._parquet.ParquetWriter(file, self._schema) as writer:
                for part in parts:
                    writer.write_table(self._parquet.read_table(part, schema=self._schema))
        elif self.packed:
            # Without a time: equal input, equal bytes.
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
                _join_text(cast("IO[bytes]", packed), parts, header=self.suffix == ".csv")
        else:
            _join_text(file, parts, header=self.suffix == ".csv")


def _join_text(file: IO[bytes], parts: Sequence[Path], *, header: bool) -> None:
    """Writes texts as one; of those with a header line, only the first one's is kept."""
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
    output: Path, job: dict[str, Any], coverage: float, part_records: int = PART_RECORDS
) -> Iterator[Parts]:
    """The parts of an output, locked, with those that a run before has left.

    Args:
        output: The output.
        job: What it is of: everything that it depends on, as JSON.
        coverage: Coverage of the error bars.
        part_records: Records per part, from which on it is written.

    Raises:
        JobMismatch: There are parts of another job.
        OutputInUse: Another run is at work on them.
        ImportError: A Parquet table without pyarrow.
        ValueError: Another suffix than one of ``STREAMED``.
    """
    kind = Format(output, coverage)
    _folder(output).mkdir(parents=True, exist_ok=True)
    lock = _locked(_folder(output), output)
    try:
        parts = Parts(output, kind, lock, part_records)
        parts.begin(job)
        try:
            yield parts
        except (MoleculeError, KeyboardInterrupt):
            parts.flush()  # what was done until then is kept
            raise
    finally:
        lock.release()


class Parts:
    """The parts of an output; see :func:`opened_parts`."""

    def __init__(self, output: Path, kind: Format, lock: FileLock, part_records: int) -> None:
        self.output = output
        self.folder = _folder(output)
        self.done: list[Counts] = []
        """The numbers of the parts on disk."""
        self._format = kind
        self._lock = lock
        self._most = part_records
        self._finished = output.with_name(f"{output.name}.parts.done")
        self._records = 0
        self._outcomes: list[MoleculePrediction | Failure] = []
        self._begun = time.monotonic()

    def begin(self, job: dict[str, Any]) -> None:
        """Finds the parts on disk, which must be of the same job."""
        shutil.rmtree(self._finished, ignore_errors=True)  # of a run that was killed at its end
        described = self.folder / "job.json"
        if not self._path(0, ".counts.json").exists():  # nothing would be lost by another job
            with _complete(described) as file:
                file.write((json.dumps(job, indent=2) + "\n").encode())
            return
        _require_same(json.loads(described.read_text(encoding="utf-8")), job, self.folder)
        while (path := self._path(len(self.done), ".counts.json")).exists():
            self.done.append(Counts(**json.loads(path.read_text(encoding="utf-8"))))

    def add(self, records: int, outcomes: Iterable[MoleculePrediction | Failure]) -> None:
        """Takes what neighbouring records came to, and writes a part when it is time to.

        A part ends where a batch ends: the next run goes on with the same batches.
        """
        self._records += records
        self._outcomes += outcomes
        if self._records >= self._most or time.monotonic() - self._begun >= PART_SECONDS:
            self.flush()

    def flush(self, *, empty: bool = False) -> None:
        """Writes what was added as a part; it is complete when the last of its files is there.

        Args:
            empty: Also if nothing was added.
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
        """Puts the parts together: the output, and the failures beside it if there are any."""
        self.flush(empty=not self.done)  # an empty table has its header, too
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
            beside.unlink(missing_ok=True)  # of an earlier run, perhaps
        # Under another name at once: a folder that is half removed would be taken for a run to go
        # on with. No system renames a folder in which a file is locked, so that comes first.
        self._lock.release()
        self.folder.replace(self._finished)
        shutil.rmtree(self._finished)
        return total

    def first_failures(self, count: int) -> list[Failure]:
        """So many of the failures."""
        found: list[Failure] = []
        for number, counts in enumerate(self.done):
            if counts.failures and len(found) < count:
                found += read_failures(self._path(number, ".failures.csv"))
        return found[:count]

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:08}{suffix}"


def failures_path(output: Path) -> Path:
    """Where the failures of an output are."""
    return output.with_name(f"{output.name}.failures.csv")


def require_apart(output: Path, inputs: Iterable[str | Path]) -> None:
    """Refuses an output that would be written over one of the inputs, or over a folder.

    Raises:
        ValueError: The output, or the file of failures beside it, is one of the inputs; or a
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
    """Writes predictions in one piece, and the failures beside them if there are any.

    Args:
        output: As for :func:`~dipolegnn.inference.predict_files`, or ``.json``, which lists the
            failures itself.
        found: Predictions and failures.
        config: With what they were predicted.

    Returns:
        All failures, also of molecules that cannot be written; and the files that were written.

    Raises:
        ImportError: A Parquet table without pyarrow.
        OutputInUse: A run that writes it part by part is at work.
        ValueError: An unknown suffix.
    """
    if output.name.lower().endswith(".json"):
        with _complete(output) as file:
            file.write(f"{as_json(found, config)}\n".encode())
        return found.failures, [output]
    kind, folder, beside = Format(output, config.coverage), _folder(output), failures_path(output)
    if folder.exists():
        with _locked(folder, output):
            pass
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / f"part{kind.suffix}"
        with part.open("wb") as file:
            failures = found.failures + kind.write(file, found.molecules)
        with _complete(output) as file:
            kind.join(file, [part])
    beside.unlink(missing_ok=True)  # of an earlier run, perhaps
    if failures:
        write_failures(beside, failures)
    return failures, [output, beside] if failures else [output]


class Progress:
    """Shows molecules, rate and time left on standard error; to be used in a ``with``.

    A bar on a terminal, a line a minute elsewhere.

    Args:
        wanted: Show anything at all.
        records: What is read.
        done: The parts of an earlier run, which do not count for the rate.
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
        """So many more records are predicted, which came to so many molecules and failures."""
        self._written += records
        self._count += outcomes
        now = time.monotonic()
        elapsed = now - self._start
        # Files are read ahead, at times to the end: the position alone would promise too much.
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


def _locked(folder: Path, output: Path) -> FileLock:
    """The lock of the folder of parts of an output, acquired."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OutputInUse(
            f"Another run is writing {output}. Wait until it has ended, or choose another output."
        ) from None
    return lock


@contextmanager
def _complete(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it has been written, and is on the disk.

    Unlike :func:`dipolegnn.files.replacing` it outlives a loss of power, and what a kill leaves of
    a file of gigabytes is written over by the next run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f"{path.name}.tmp")
    with growing.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
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
