"""Make a data set out of the official QM9 archive.

    python datasets/qm9/build.py --output FOLDER

The archive (86 MB) and the list of uncharacterized molecules are downloaded from figshare into
FOLDER/download, or taken from --archive and --uncharacterized. The split is random: 110,000
molecules train, 10,000 validate, 10,831 test.

The archive holds one file per molecule in a dialect of XYZ. Line 1 is the number of atoms, line 2
the number of the molecule and 15 properties, of which the dipole magnitude (debye) is the fourth;
then come the atoms (element, x, y, z in angstrom, Mulliken charge in e), the frequencies, two
SMILES (from GDB-17, and of the relaxed structure) and two InChI. Small numbers may be written as
in Mathematica: ``2.1997*^-6``.

Source: Ramakrishnan, Dral, Rupp, von Lilienfeld, Sci. Data 1, 140022 (2014),
doi:10.6084/m9.figshare.c.978904.
"""

from __future__ import annotations

import dataclasses
import sys
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro
from ase.data import atomic_numbers
from rich.console import Console
from rich.progress import Progress
from torch.hub import download_url_to_file

from dipolegnn._pyg import Data
from dipolegnn.data import About, make_split, read_card, save_dataset
from dipolegnn.files import sha256_of
from dipolegnn.molecules import Failure, MoleculeError, Molecules, make_data

NUM_VAL, NUM_TEST = 10_000, 10_831


class RemoteFile(NamedTuple):
    """A file of the publication on figshare."""

    name: str
    url: str
    sha256: str


# SHA-256 as in TensorFlow Datasets, tensorflow_datasets/datasets/qm9/checksums.tsv.
ARCHIVE = RemoteFile(
    "dsgdb9nsd.xyz.tar.bz2",
    "https://ndownloader.figshare.com/files/3195389",
    "3a63848ac80691bdb8d41834b575afad345b9300d7a2db0c38adb7f6eaa8360c",
)
UNCHARACTERIZED = RemoteFile(
    "uncharacterized.txt",
    "https://ndownloader.figshare.com/files/3195404",
    "3aa5115d540b356de94791d4a74c3bf1ed91c469ecf52a4f5d7cc0506fe02e24",
)

NUM_MOLECULES = 133_885
NUM_UNCHARACTERIZED = 3_054

_HEADER_LINES = 9
_PROPERTIES = 15
_MU = 3  # of the properties A, B, C, mu, ...


def parse_molecule(text: str, source: str = "") -> Data:
    """Read one molecule in QM9's own format.

    The SMILES is that of the relaxed structure, ``mol_id`` is QM9's number. QM9 has no dipole
    vectors: ``dipole`` is NaN. The Mulliken charges become ``atomic_charges``; they are no charges
    that the dipole could be computed from.

    Args:
        text: Content of the file.
        source: Its name, for errors.

    Returns:
        The molecule.

    Raises:
        MoleculeError: The text is not in this format.
    """
    lines = text.splitlines()
    try:
        atoms = int(lines[0])
        tag, number, *properties = lines[1].split()
        if tag != "gdb" or len(properties) != _PROPERTIES:
            raise ValueError(f"line 2 has {len(properties)} properties of {tag!r}")
        rows = [line.split() for line in lines[2 : 2 + atoms]]
        z = [atomic_numbers[symbol] for symbol, *_ in rows]
        table = [[_number(value) for value in row] for _, *row in rows]
        if len(table) != atoms or any(len(row) != 4 for row in table):
            raise ValueError(f"{len(table)} lines of atoms instead of {atoms} with 5 columns each")
        smiles = lines[3 + atoms].split()[1]
        mol_id, magnitude = int(number), _number(properties[_MU])
    except (ValueError, IndexError, KeyError) as error:
        raise MoleculeError(
            f"This is not in QM9's own format ({type(error).__name__}: {error})",
            remedy="Take the files of the official archive as they are",
            source=source,
        ) from None
    try:
        return make_data(
            z,
            [row[:3] for row in table],
            dipole_magnitude=magnitude,
            atomic_charges=[row[3] for row in table],
            mol_id=mol_id,
            smiles=smiles,
            name=f"gdb {mol_id}",
        )
    except MoleculeError as error:
        raise error.located(source=source) from None


def read_uncharacterized(
    path: str | Path, *, expected: int | None = NUM_UNCHARACTERIZED
) -> frozenset[int]:
    """Read the published list of molecules whose relaxed structure is not that of their SMILES.

    Args:
        path: ``uncharacterized.txt``.
        expected: How many there must be; ``None`` for any number.

    Returns:
        Their numbers.

    Raises:
        ValueError: It is another file, or a part of it.
    """
    lines = Path(path).read_text(encoding="utf-8").rstrip().splitlines()
    # Nine lines of heading, and a last line that is no entry.
    entries = [line.split() for line in lines[_HEADER_LINES:-1]]
    wrong = [
        row
        for row, entry in enumerate(entries, _HEADER_LINES + 1)
        if not entry or not entry[0].isdecimal()
    ]
    if wrong or not entries or lines[-1].split()[0].isdecimal():
        where = f"line {wrong[0]} has no number" if wrong else "its last line is missing"
        raise ValueError(
            f"{path} is not QM9's list of uncharacterized molecules, or not all of it: {where}. "
            f"Expected {UNCHARACTERIZED.name} from {UNCHARACTERIZED.url}."
        )
    numbers = frozenset(int(entry[0]) for entry in entries)
    if expected is not None and len(numbers) != expected:
        raise ValueError(f"{path} lists {len(numbers)} molecules, expected {expected}.")
    return numbers


def read_archive(
    path: str | Path,
    *,
    excluded: Collection[int] = (),
    expected: int | None = NUM_MOLECULES,
    progress: bool = False,
) -> Molecules:
    """Read QM9's archive without unpacking it.

    Args:
        path: ``dsgdb9nsd.xyz.tar.bz2``, or a ``.tar`` of such files compressed otherwise.
        excluded: Numbers of molecules to leave out; each is listed among the failures.
        expected: How many molecules the archive must hold; ``None`` for any number.
        progress: Show a progress bar.

    Returns:
        The molecules by number, and a line for each one that is left out or cannot be read.

    Raises:
        ValueError: The archive is damaged, or does not hold as many molecules as expected, each
            once, or lacks one to be left out.
    """
    data: dict[int, Data] = {}
    failures: list[Failure] = []
    total = 0
    try:
        with (
            Progress(disable=not progress) as bar,
            bar.open(Path(path), "rb", description=f"Reading {Path(path).name}") as file,
            # "|": from the beginning to the end, without going back.
            tarfile.open(fileobj=file, mode="r|*") as archive,
        ):
            for member in archive:
                content = archive.extractfile(member)
                if content is None or not member.name.endswith(".xyz"):
                    continue
                total += 1
                source = Path(member.name).name
                try:
                    molecule = parse_molecule(content.read().decode(errors="replace"), source)
                except MoleculeError as error:
                    failures.append(error.failure("read"))
                    continue
                number = int(molecule["mol_id"])
                if number in data:
                    raise ValueError(f"{path} holds molecule {number} twice.")
                data[number] = molecule
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} cannot be read as an archive ({error}). Expected {ARCHIVE.name} from "
            f"{ARCHIVE.url}; fetch it again."
        ) from error
    if expected is not None and total != expected:
        raise ValueError(
            f"{path} holds {total} molecules, expected {expected}. If it is meant to be a part of "
            f"QM9, say so (--partial); else fetch it again."
        )
    missing = set(excluded) - data.keys()
    if expected is not None and missing:
        raise ValueError(
            f"{len(missing)} of the molecules to be left out are not in {path}, the first is "
            f"{min(missing)}: the list and the archive do not belong together."
        )
    for number in sorted(set(excluded) & data.keys()):
        failures.append(_left_out(data.pop(number)))
    return Molecules([data[number] for number in sorted(data)], failures)


def _left_out(molecule: Data) -> Failure:
    return Failure(
        source=UNCHARACTERIZED.name,
        row=None,
        molecule=f"{molecule['name']} {molecule['smiles']}",
        stage="select",
        problem="On the published list of uncharacterized molecules: the relaxed structure is not "
        "that of the SMILES that it was made from",
        remedy="None needed; it is left out on purpose",
    )


def _number(text: str) -> float:
    return float(text.replace("*^", "e"))


def file_of(local: Path | None, remote: RemoteFile, downloads: Path, check: bool) -> Path:
    """A file of the publication: the given one, or a download.

    Args:
        local: The file, if the user has it.
        remote: The published file.
        downloads: Folder of downloads.
        check: Whether a given file must be the published one.

    Raises:
        OSError: It cannot be downloaded.
        RuntimeError: Another file was downloaded.
        ValueError: It is another file.
    """
    path = local or downloads / remote.name
    if local is None and not path.exists():
        downloads.mkdir(parents=True, exist_ok=True)
        download_url_to_file(remote.url, str(path), hash_prefix=remote.sha256)
    elif check and (digest := sha256_of(path)) != remote.sha256:
        raise ValueError(
            f"{path} has the SHA-256 {digest}, expected {remote.sha256}. Take {remote.name} from "
            f"{remote.url}."
        )
    return path


@dataclass(frozen=True)
class Arguments:
    """Make a data set out of the official QM9 archive."""

    output: Path
    """Folder of the data set."""
    archive: Path | None = None
    """dsgdb9nsd.xyz.tar.bz2, if you have it; else it is downloaded."""
    uncharacterized: Path | None = None
    """uncharacterized.txt, if you have it; else it is downloaded."""
    partial: bool = False
    """Accept files with fewer molecules than QM9 has, and split off a tenth each."""


def build(arguments: Arguments) -> None:
    """Download, read, split and write."""
    downloads, check = arguments.output / "download", not arguments.partial
    archive = file_of(arguments.archive, ARCHIVE, downloads, check)
    excluded = read_uncharacterized(
        file_of(arguments.uncharacterized, UNCHARACTERIZED, downloads, check),
        expected=None if arguments.partial else NUM_UNCHARACTERIZED,
    )
    molecules = read_archive(
        archive,
        excluded=excluded,
        expected=None if arguments.partial else NUM_MOLECULES,
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
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
