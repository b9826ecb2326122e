"""File formats of molecules by suffix, lines with a look-ahead, atomic writing, and checksums."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class MoleculeFormat(NamedTuple):
    """A format of files of molecules."""

    suffix: str
    """Suffix in lower case, with its dot."""
    smiles: bool
    """True for SMILES, which are embedded in 3D; False for 3D structures."""
    text: bool = True
    """True if the file is text, which can be pasted and compressed with gzip (``.gz``)."""
    writable: bool = False
    """True if structures can be written in it."""


MOLECULE_FORMATS = (
    MoleculeFormat(".smi", smiles=True),
    MoleculeFormat(".csv", smiles=True),
    MoleculeFormat(".parquet", smiles=True, text=False),
    MoleculeFormat(".sdf", smiles=False, writable=True),
    MoleculeFormat(".xyz", smiles=False, writable=True),
    MoleculeFormat(".extxyz", smiles=False, writable=True),
)
"""Every format that can be read."""

READABLE = tuple(kind.suffix for kind in MOLECULE_FORMATS)
"""Suffixes that can be read; text also with ``.gz`` appended."""

READABLE_TEXT = tuple(kind.suffix for kind in MOLECULE_FORMATS if kind.text)
"""Suffixes of text that can be read."""

WRITABLE = tuple(kind.suffix for kind in MOLECULE_FORMATS if kind.writable)
"""Suffixes that structures can be written to, each also with ``.gz`` appended."""


def is_molecule_file(name: str | Path) -> bool:
    """True if a file name ends in a suffix of ``READABLE``, with or without ``.gz``."""
    return str(name).lower().removesuffix(".gz").endswith(READABLE)


def molecule_format(path: str | Path, accepted: Sequence[str] = READABLE) -> MoleculeFormat:
    """Returns the format of a file of molecules by its suffix.

    Args:
        path: File, which need not exist.
        accepted: Suffixes to choose from.

    Raises:
        ValueError: The suffix is not accepted, or ``.gz`` follows one that is not text.
    """
    name = Path(path).name.lower()
    unpacked = name.removesuffix(".gz")
    for kind in MOLECULE_FORMATS:
        if unpacked.endswith(kind.suffix) and kind.suffix in accepted:
            if kind.text or name == unpacked:
                return kind
            raise ValueError(
                f"{Path(path).name}: {kind.suffix} files cannot be read with .gz; decompress it."
            )
    raise ValueError(
        f"{Path(path).name}: unknown suffix {Path(unpacked).suffix or Path(name).suffix!r}, "
        f"expected one of {', '.join(accepted)} (text files also with .gz)."
    )


class Lines(Iterator[str]):
    """Iterator over lines with a look-ahead."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rest = iter(lines)
        self._ahead: deque[str] = deque()
        self.number = 1
        """Number of the next line, from 1."""

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._rest)
        self.number += 1
        return line

    def put_back(self, lines: Sequence[str]) -> None:
        """Makes the last lines the next ones again."""
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)

    def ahead(self, count: int) -> list[str]:
        """Returns up to ``count`` of the next lines without consuming them."""
        self._ahead.extend(itertools.islice(self._rest, max(0, count - len(self._ahead))))
        return list(itertools.islice(self._ahead, count))

    def skip(self, count: int) -> None:
        """Skips ``count`` lines."""
        for _ in itertools.islice(self, count):
            pass

    def skip_until(self, wanted: Callable[[str], object]) -> list[str]:
        """Skips to the next wanted line and returns it without consuming it; empty at the end."""
        while (line := self.ahead(1)) and not wanted(line[0]):
            self.skip(1)
        return line


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Context manager for writing a file atomically.

    Yields a temporary file in the same folder, which is renamed to ``path`` if the block ends
    without an exception. An interrupted process leaves the previous file unchanged.

    Args:
        path: The file to write; its folder is created if it is missing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The process id distinguishes processes that write the same file.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
