"""An output that grows part by part on disk, so that a run that is killed loses one part at most.

Beside the output ``OUT`` lies the folder ``OUT.parts`` while it grows: ``job.json`` says what it is
of, ``lock`` is locked by the run at work, and each part is a file of predictions and a file of
failures. A part appears under its name only when it is complete, and is not touched again. In the
end they are put together; the output, too, appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from filelock import FileLock, Timeout

from dipolegnn.inference.formats import format_of, join_csv
from dipolegnn.inference.table import Report
from dipolegnn.molecules import Failure, failures_text, read_failures, write_failures

LOCK = "lock"
"""File among the parts that the run at work has locked."""


class JobMismatch(ValueError):
    """The parts on disk are of another job."""


class OutputInUse(ValueError):
    """Another run is at work on the same output."""


class Counts(NamedTuple):
    """What an output came to."""

    molecules: int
    failures: int


class Parts:
    """The parts of an output; to be used in a ``with``.

    Args:
        output: The output.
        job: What it is of: everything that it depends on, as JSON.

    Raises:
        JobMismatch: On entering, there are parts of another job.
        OutputInUse: On entering, another run is at work on them.
        ImportError: A Parquet table without pyarrow.
        ValueError: Another suffix than one of ``STREAMED``.
    """

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        self.output = output
        self._job = job
        self._format = format_of(output)
        self.folder = _parts_folder(output)
        self._finished = output.with_name(f"{output.name}.parts.done")
        self._lock = FileLock(self.folder / LOCK, timeout=0)

    def __enter__(self) -> Parts:
        self.folder.mkdir(parents=True, exist_ok=True)
        _acquire(self._lock, self.output)
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def _begin(self) -> None:
        shutil.rmtree(self._finished, ignore_errors=True)  # of a run that was killed at its end
        described = self.folder / "job.json"
        if self.done():  # without any, nothing would be lost by another job
            _require_same(json.loads(described.read_text(encoding="utf-8")), self._job, self.folder)
            return
        with _complete(described) as file:
            file.write((json.dumps(self._job, indent=2) + "\n").encode())

    def done(self) -> dict[int, Counts]:
        """The parts that are complete, and what they came to."""
        found = {}
        for path in self.folder.glob("*.counts.json"):
            counts = json.loads(path.read_text(encoding="utf-8"))
            found[int(path.name.split(".")[0])] = Counts(*counts)
        return found

    def write(self, number: int, report: Report) -> Counts:
        """Writes a part; it is complete when the last of its files is there."""
        with _complete(self._part(number)) as file:
            unwritten = self._format.write_part(file, report)
        counts = Counts(
            len(report.molecules) - len(unwritten), len(report.failures) + len(unwritten)
        )
        with _complete(self._failures(number)) as file:
            file.write(failures_text(report.failures + unwritten).encode())
        with _complete(self.folder / f"{number:08}.counts.json") as file:
            file.write(json.dumps(counts).encode())
        return counts

    def assemble(self) -> Counts:
        """Puts the parts together: the output, and the failures beside it if there are any."""
        done = self.done()
        numbers = sorted(done)
        total = Counts(*map(sum, zip(Counts(0, 0), *done.values(), strict=True)))
        if not numbers:  # an empty table has its header, too
            self.write(0, Report([], [], 0.0, 0.0))
            numbers = [0]
        with _complete(self.output) as file:
            self._format.join(file, [self._part(number) for number in numbers])
        beside = failures_path(self.output)
        if total.failures:
            with _complete(beside) as file:
                join_csv(file, [self._failures(number) for number in numbers])
        else:
            beside.unlink(missing_ok=True)  # of an earlier run, perhaps
        # Under another name at once: a folder that is half removed would be taken for a run to go
        # on with. No system renames a folder in which a file is locked, so that comes first.
        self._lock.release()
        self.folder.replace(self._finished)
        shutil.rmtree(self._finished)
        return total

    def first_failures(self, count: int) -> list[Failure]:
        """So many of the failures of the parts."""
        found: list[Failure] = []
        for number, counts in sorted(self.done().items()):
            if counts.failures and len(found) < count:
                found += read_failures(self._failures(number))
        return found[:count]

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:08}{self._format.suffix}"

    def _failures(self, number: int) -> Path:
        return self.folder / f"{number:08}.failures.csv"


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
            f"{failures_path(output)} is one of the files of molecules, and failures would come to "
            "lie there; choose another output."
        )
    if output.is_dir():
        raise ValueError(f"{output} is a folder; choose a file as output.")


def write_report(output: Path, report: Report) -> list[Failure]:
    """Writes predictions in one piece, and the failures beside them if there are any.

    Returns:
        All failures: the report's, and the molecules that could not be written.

    Raises:
        ImportError: A Parquet table without pyarrow.
        OutputInUse: A run that writes it part by part is at work.
        ValueError: Another suffix than one of ``STREAMED``.
    """
    kind = format_of(output)
    folder = _parts_folder(output)
    if folder.exists():
        lock = FileLock(folder / LOCK, timeout=0)
        _acquire(lock, output)
        lock.release()
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / f"part{kind.suffix}"
        with part.open("wb") as file:
            failures = report.failures + kind.write_part(file, report)
        with _complete(output) as file:
            kind.join(file, [part])
    beside = failures_path(output)
    if failures:
        write_failures(beside, failures)
    else:
        beside.unlink(missing_ok=True)  # of an earlier run, perhaps
    return failures


def _parts_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _acquire(lock: FileLock, output: Path) -> None:
    try:
        lock.acquire()
    except Timeout:
        raise OutputInUse(
            f"Another run is writing {output}. Wait until it has ended, or choose another output."
        ) from None


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
