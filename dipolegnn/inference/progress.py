"""How far a long prediction is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time

from rich import progress as rich
from rich.console import Console

from dipolegnn.units import duration

LINE_EVERY_S = 60.0


class Progress:
    """Shows molecules, rate and time left on standard error; to be used in a ``with``.

    Args:
        wanted: Show anything at all.
        earlier: Molecules that an earlier run has done; they do not count for the rate.
    """

    def __init__(self, wanted: bool, earlier: int) -> None:
        self.count = 0
        self.earlier = earlier
        self._console = Console(file=sys.stderr)
        self._wanted = wanted
        self._start = self._said = time.monotonic()
        self._first = self._position = 0.0
        self._read = self._done = 0
        self._bar = rich.Progress(
            rich.TextColumn("Predicting"),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[count]:,} molecules, {task.fields[rate]:.0f}/s"),
            rich.TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not (wanted and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=1.0, count=earlier, rate=0.0, left="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def skip(self, records: int, position: float) -> None:
        """Records of an earlier run, after which all files are read up to there (0 to 1)."""
        if not self._read:
            self._first = self._position = position
        else:
            self.read(records, position)
            self._done += records

    def read(self, records: int, position: float) -> None:
        """So many more records are read, and all files up to there (0 to 1)."""
        self._read += records
        self._position = position

    def advance(self, molecules: int, records: int) -> None:
        """So many more molecules and failures are written, which so many records came to."""
        self.count += molecules
        self._done += records
        now = time.monotonic()
        rate = self.count / (now - self._start)
        # Files are read ahead, at times to the end: the position alone would promise too much.
        share = (self._position - self._first) * self._done / self._read
        position = self._first + share
        shown = ""
        if share > 0:
            seconds = (1 - position) / share * (now - self._start)
            shown = f"{duration(max(1.0, seconds))} left"
        if position >= 1:
            shown = "finishing"
        self._bar.update(
            self._task, completed=position, count=self.earlier + self.count, rate=rate, left=shown
        )
        if self._wanted and not self._console.is_terminal and now - self._said >= LINE_EVERY_S:
            self._said = now
            print(
                f"{self.earlier + self.count:,} molecules ({100 * position:.0f} %), "
                f"{rate:.0f}/s, {shown}",
                file=sys.stderr,
                flush=True,
            )
