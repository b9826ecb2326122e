"""A data set of molecules as a folder, and as a PyG ``InMemoryDataset``.

folder/
  raw/molecules.npz   the molecules (see storage.py)
  card.yaml           what they are (see card.py)
  split.csv           training, validation and test molecules
  failures.csv        what was meant to be in it, and is not, and why
  processed/          made out of raw/ by PyG; may be deleted at any time
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dipolegnn._pyg import Data, InMemoryDataset
from dipolegnn.data.card import (
    CARD_FILE,
    FAILURES_FILE,
    MOLECULES_FILE,
    SPLIT_FILE,
    About,
    Card,
    make_card,
    read_card,
    write_card,
)
from dipolegnn.data.fingerprint import describe
from dipolegnn.data.splits import Split, read_split, write_split
from dipolegnn.data.storage import (
    ATOM_FIELDS,
    FIELDS,
    FORMAT_VERSION,
    TEXT_FIELDS,
    PackedMolecules,
    read_packed,
    unpack,
    write_molecules,
)
from dipolegnn.files import replacing, sha256_of
from dipolegnn.molecules import Molecules, write_failures


class ConformerDataset(InMemoryDataset):
    """Molecules with coordinates and dipoles, out of a folder made by ``dipolegnn build``.

    The processed file is made at first use and again by itself whenever ``raw/molecules.npz``,
    ``pre_transform`` or ``pre_filter`` have changed; its name holds a fingerprint of the three.

    Args:
        root: The folder.
        transform: Applied to a molecule at each access.
        pre_transform: Applied to each molecule once.
        pre_filter: Says which molecules stay.

    Raises:
        FileNotFoundError: There are no molecules in the folder.
        ValueError: They are damaged, are not those of the card beside them, or none is left by
            ``pre_filter``.

    Example:
        >>> dataset = ConformerDataset("datasets/small_molecules")
        >>> dataset[0].dipole.shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Data], Data] | None = None,
        pre_transform: Callable[[Data], Data] | None = None,
        pre_filter: Callable[[Data], bool] | None = None,
    ) -> None:
        self.folder = Path(root).expanduser()
        source = self.folder / MOLECULES_FILE
        if not source.is_file():
            raise FileNotFoundError(
                f"{self.folder} is no data set: there is no {MOLECULES_FILE} in it. Make one with "
                f"`dipolegnn build INPUT --output {self.folder}`, or give the folder of another."
            )
        sha256 = sha256_of(source)
        self.card = _card_of(self.folder, sha256)
        made_from = (sha256, FORMAT_VERSION, describe(pre_transform), describe(pre_filter))
        self._fingerprint = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
        super().__init__(str(self.folder), transform, pre_transform, pre_filter, log=False)
        self.load(self.processed_paths[0])

    @property
    def raw_file_names(self) -> str:
        """The file of the molecules in ``raw/``."""
        return MOLECULES_FILE.name

    @property
    def processed_file_names(self) -> str:
        """The file in ``processed/`` that belongs to these molecules and transforms."""
        return f"molecules_{self._fingerprint}.pt"

    def _process(self) -> None:
        # PyG's own goes by the repr of the transforms, and only warns where they have changed.
        # Here the name of the processed file says what it was made from.
        if not Path(self.processed_paths[0]).is_file():
            self.process()

    def process(self) -> None:
        """Make the processed file out of the raw one."""
        packed = read_packed(self.folder / MOLECULES_FILE)
        if self.pre_transform is None and self.pre_filter is None:
            data, slices = to_pyg(packed)
        else:
            molecules = unpack(packed)
            if self.pre_filter is not None:
                molecules = [data for data in molecules if self.pre_filter(data)]
            if self.pre_transform is not None:
                molecules = [self.pre_transform(data) for data in molecules]
            if not molecules:
                raise ValueError(
                    f"pre_filter leaves none of the {len(packed.n)} structures of {self.folder}."
                )
            data, slices = self.collate(molecules)
        target = Path(self.processed_paths[0])
        with replacing(target) as temporary:
            torch.save((data.to_dict(), slices, type(data)), temporary)
        for other in target.parent.glob("molecules_*.pt"):
            if other != target:  # made from raw data or by transforms that are no more
                other.unlink(missing_ok=True)

    def split(self) -> Split:
        """The split that comes with the data set.

        Of a subset, or of what ``pre_filter`` left, it is the same split of what is there.

        Raises:
            FileNotFoundError: None comes with it.
            ValueError: It is not one of these molecules.
        """
        path = self.folder / SPLIT_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no {SPLIT_FILE}. Make a split with "
                f"dipolegnn.data.make_split(dataset)."
            )
        thinned = self.pre_filter is not None or self._indices is not None
        return read_split(path, self.mol_ids(), thinned=thinned)

    def mol_ids(self) -> torch.Tensor:
        """Number of the molecule of each structure ``[M]``."""
        every: torch.Tensor = self._data["mol_id"]  # [M] of the whole data set
        return every if self._indices is None else every[torch.as_tensor(list(self._indices))]


def to_pyg(packed: PackedMolecules) -> tuple[Data, dict[str, torch.Tensor] | None]:
    """PyG's storage of a whole data set, straight from the arrays.

    What ``InMemoryDataset.collate`` makes of the single molecules, without making these: for QM9
    that saves making 130,000 objects.
    """
    if len(packed.n) == 1:  # PyG keeps a single molecule as it is, without slices
        return unpack(packed)[0], None
    per_atom = torch.from_numpy(np.concatenate([[0], np.cumsum(packed.n)]))
    per_molecule = torch.arange(len(packed.n) + 1)
    data, slices = Data(), {}
    for field in FIELDS:
        is_text = field in TEXT_FIELDS
        data[field] = packed.texts[field] if is_text else torch.from_numpy(packed.arrays[field])
        slices[field] = per_atom if field in ATOM_FIELDS else per_molecule
    return data, slices


def save_dataset(
    root: str | Path,
    molecules: Molecules,
    about: About,
    *,
    split: Split | None = None,
    packages: Sequence[str] = (),
) -> Card:
    """Write the folder of a data set.

    The card is written last: it holds the SHA-256 of the molecules, so a folder whose writing was
    cut short is not taken for whole.

    Args:
        root: The folder; what is in it already is replaced.
        molecules: The molecules, and what failed.
        about: What to say on the card.
        split: Training, validation and test structures.
        packages: Installed packages whose version belongs on the card, beside the usual ones.

    Returns:
        The card.

    Raises:
        ValueError: There are no molecules, or the split is not one of them.
    """
    folder = Path(root)
    for stale in (CARD_FILE, SPLIT_FILE, FAILURES_FILE):
        (folder / stale).unlink(missing_ok=True)
    write_molecules(folder / MOLECULES_FILE, molecules.data)
    packed = read_packed(folder / MOLECULES_FILE)
    write_failures(folder / FAILURES_FILE, molecules.failures)
    if split is not None:
        write_split(folder / SPLIT_FILE, split, packed.arrays["mol_id"])
    card = make_card(
        about,
        packed,
        failures=len(molecules.failures),
        sha256=sha256_of(folder / MOLECULES_FILE),
        packages=packages,
    )
    write_card(folder / CARD_FILE, card)
    return card


def _card_of(folder: Path, sha256: str) -> Card | None:
    """The card, if there is one and it is that of these molecules."""
    if not (folder / CARD_FILE).is_file():
        return None
    card = read_card(folder / CARD_FILE)
    if card.sha256 != sha256:
        raise ValueError(
            f"The card of {folder} is that of other molecules: their SHA-256 is {sha256}, and the "
            f"card has {card.sha256}. The folder was changed or its writing cut short; build it "
            f"again."
        )
    return card
