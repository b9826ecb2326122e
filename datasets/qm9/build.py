"""Make a data set out of the official QM9 archive.

    python datasets/qm9/build.py --output FOLDER

The archive (86 MB) and the list of uncharacterized molecules are fetched from figshare into
FOLDER/download, or taken from --archive and --uncharacterized. The split is random: 110,000
molecules train, 10,000 validate, 10,831 test.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from dipolegnn.data import About, make_split, qm9, read_card, save_dataset
from dipolegnn.data.download import download, verify

NUM_VAL, NUM_TEST = 10_000, 10_831


@dataclass(frozen=True)
class Arguments:
    """Make a data set out of the official QM9 archive."""

    output: Path
    """Folder of the data set."""
    archive: Path | None = None
    """dsgdb9nsd.xyz.tar.bz2, if you have it; else it is fetched."""
    uncharacterized: Path | None = None
    """uncharacterized.txt, if you have it; else it is fetched."""
    partial: bool = False
    """Accept files with fewer molecules than QM9 has, and split off a tenth each."""


def build(arguments: Arguments) -> None:
    """Fetch, read, split and write."""

    def whole(local: Path | None, remote: qm9.RemoteFile) -> Path:
        if local is None:
            target = arguments.output / "download" / remote.name
            return download(
                remote.url, target, size=remote.size, sha256=remote.sha256, progress=True
            )
        if not arguments.partial:
            verify(local, remote.size, remote.sha256, f"Take {remote.name} from {remote.url}.")
        return local

    archive = whole(arguments.archive, qm9.ARCHIVE)
    excluded = qm9.read_uncharacterized(
        whole(arguments.uncharacterized, qm9.UNCHARACTERIZED),
        expected=None if arguments.partial else qm9.NUM_UNCHARACTERIZED,
    )
    molecules = qm9.read_archive(
        archive,
        excluded=excluded,
        expected=None if arguments.partial else qm9.NUM_MOLECULES,
        progress=True,
    )
    stated = read_card(Path(__file__).parent / "card.yaml")
    about = About(
        **{field.name: getattr(stated, field.name) for field in dataclasses.fields(About)}
    )
    val, test = (0.1, 0.1) if arguments.partial else (NUM_VAL, NUM_TEST)
    split = make_split(molecules.data, val=val, test=test, seed=about.seed or 0)
    card = save_dataset(arguments.output, molecules, about, split=split)
    if not arguments.partial and card.counts != stated.counts:
        raise ValueError(
            f"Expected {stated.counts}, got {card.counts}; see failures.csv in {arguments.output}."
        )
    Console().print(
        f"{card.counts.molecules:,} molecules ({split}) in {arguments.output}; "
        f"{card.counts.failures:,} left out, listed in failures.csv."
    )


def main() -> None:
    """Read the command line, and put errors in words."""
    try:
        build(tyro.cli(Arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
