"""Tables of results, as text that people read and pages show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOTHING = "–"
"""What stands where there is no number."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown, without a line break at its end.

    Args:
        header: Names of the columns, with units.
        rows: As many cells each as there are columns; numbers are formatted already.

    Raises:
        ValueError: A row with more or fewer cells.
    """
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells {tuple(row)} for {len(header)} columns.")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
