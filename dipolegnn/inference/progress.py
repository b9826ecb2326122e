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
        self._first: float | None = None
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

    def advance(self, molecules: int, position: float) -> None:
        """So many more molecules are done, and all files are read up to there (0 to 1)."""
        if self._first is None:  # what was done before this run, at least
            self._first = position if self.earlier else 0.0
        self.count += molecules
        now = time.monotonic()
        rate = self.count / (now - self._start)
        share = position - self._first
        shown = ""
        if share > 0:
            shown = f"{duration((1 - position) / share * (now - self._start))} left"
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
