"""A data set of molecules as a folder, and as a PyG ``InMemoryDataset``.

folder/
  raw/molecules.npz   the molecules (see storage.py)
  card.yaml           content, origin and checksum (see card.py)
  split.csv           training, validation and test molecules
  failures.csv        molecules that could not be read, embedded or labelled, with reason
  inputs.json         inputs of from_smiles or from_file; if they change, the data set is made again
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dipolegnn._pyg import Data, InMemoryDataset
from dipolegnn.config import ConformerConfig
from dipolegnn.data.build import Recipe, build_dataset
from dipolegnn.data.card import (
    CARD_FILE,
    FAILURES_FILE,
    INPUTS_FILE,
    MOLECULES_FILE,
    SPLIT_FILE,
    About,
    Card,
    read_card,
)
from dipolegnn.data.splits import Split, SplitConfig, read_split
from dipolegnn.data.storage import (
    ATOM_FIELDS,
    FIELDS,
    TEXT_FIELDS,
    PackedMolecules,
    read_packed,
    unpack,
)
from dipolegnn.files import sha256_of
from dipolegnn.labels import LabelMethod
from dipolegnn.molecules import Failure, TableColumns, read_failures


class ConformerDataset(InMemoryDataset):
    """Molecules with coordinates and dipoles, from a folder.

    The folder is made by :meth:`from_smiles`, :meth:`from_file`, ``dipolegnn build`` or
    ``save_dataset``. There is no ``processed/`` folder: reading the molecules takes 0.5 s for QM9,
    less than a processed file of PyG.

    Args:
        root: The folder.
        transform: Applied to a molecule at each access.
        pre_transform: Applied to each molecule once, when the data set is opened.
        pre_filter: True for the molecules to keep; applied before ``pre_transform``.

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
        self.card: Card | None = None
        if (self.folder / CARD_FILE).is_file():
            self.card = read_card(self.folder / CARD_FILE)
            if self.card.sha256 != sha256:
                raise ValueError(
                    f"The card of {self.folder} is that of other molecules: their SHA-256 is "
                    f"{sha256}, and the card has {self.card.sha256}. The folder was changed or its "
                    f"writing was interrupted; build it again."
                )
        super().__init__(str(self.folder), transform, pre_transform, pre_filter)
        packed = read_packed(source)
        if pre_transform is None and pre_filter is None:
            self._data, self.slices = to_pyg(packed)
            return
        molecules = [data for data in unpack(packed) if pre_filter is None or pre_filter(data)]
        if not molecules:
            raise ValueError(
                f"pre_filter leaves none of the {len(packed.n)} structures of {self.folder}."
            )
        if pre_transform is not None:
            molecules = [pre_transform(data) for data in molecules]
        self._data, self.slices = self.collate(molecules)

    @classmethod
    def from_smiles(
        cls,
        smiles: Sequence[str],
        root: str | Path,
        *,
        label: LabelMethod | None = None,
        conformers: ConformerConfig | None = None,
        split: SplitConfig | None = None,
        about: About | None = None,
        workers: int = 1,
        progress: bool = False,
    ) -> ConformerDataset:
        """Make a data set from SMILES, or open it if it was made from the same inputs before.

        Molecules that cannot be embedded or labelled are left out with a warning and listed in
        ``failures``.

        Args:
            smiles: The molecules; ``mol_id`` is the position in this list.
            root: Folder of the data set. It is made again when the inputs have changed.
            label: Method of the reference dipoles: ``XTBConfig()``, ``DFTConfig()`` or an
                ``ASEConfig`` of any ASE calculator (all in ``dipolegnn``); None: no labels.
            conformers: Number of conformers and seed of the embedding.
            split: Split; None: at random with 10 % each for validation and test, or no split if
                there are fewer than 3 molecules.
            about: Statements for the card; those left at their default are filled in.
            workers: Processes that embed and label; the result does not depend on it.
            progress: Show progress bars on standard error.

        Raises:
            FileExistsError: The folder holds a data set that was made in another way.
            ImportError: The program that computes the labels is not installed.
            ValueError: Every molecule failed, or the split leaves no training molecules.

        Example:
            >>> import tempfile
            >>> folder = tempfile.TemporaryDirectory()
            >>> dataset = ConformerDataset.from_smiles(["CCO", "O", "N"], root=folder.name)
            >>> dataset[1].z.tolist()
            [8, 1, 1]
            >>> folder.cleanup()
        """
        if isinstance(smiles, str):
            raise TypeError(f"smiles must be a list of SMILES, got the text {smiles!r}.")
        recipe = Recipe(
            source=tuple(smiles),
            label=label,
            conformers=conformers or ConformerConfig(),
            split=split,
            about=about,
        )
        return cls._made(root, recipe, workers, progress)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        root: str | Path,
        *,
        columns: TableColumns | None = None,
        label: LabelMethod | None = None,
        conformers: ConformerConfig | None = None,
        split: SplitConfig | None = None,
        about: About | None = None,
        workers: int = 1,
        progress: bool = False,
    ) -> ConformerDataset:
        """Make a data set from a file, or open it if it was made from the same inputs before.

        Args:
            path: Table of SMILES (.smi, .csv, .parquet) or structures (.sdf, .xyz, .extxyz).
            root: Folder of the data set. It is made again when the inputs have changed.
            columns: Columns of a table; ``TableColumns(magnitude="mu")`` for reference dipoles.
            label: As in :meth:`from_smiles`; None: the labels of the file, if any.
            conformers: As in :meth:`from_smiles`; structures keep their coordinates.
            split: As in :meth:`from_smiles`.
            about: As in :meth:`from_smiles`.
            workers: As in :meth:`from_smiles`.
            progress: As in :meth:`from_smiles`.

        Raises:
            FileExistsError: The folder holds a data set that was made in another way.
            FileNotFoundError: There is no such file.
            ImportError: The program that computes the labels, or pyarrow, is not installed.
            ValueError: An unknown suffix, a missing column, labels both in a column and to be
                computed, every molecule failed, or the split leaves no training molecules.
        """
        recipe = Recipe(
            source=Path(path),
            columns=columns or TableColumns(),
            label=label,
            conformers=conformers or ConformerConfig(),
            split=split,
            about=about,
        )
        return cls._made(root, recipe, workers, progress)

    @classmethod
    def _made(
        cls, root: str | Path, recipe: Recipe, workers: int, progress: bool
    ) -> ConformerDataset:
        folder = Path(root).expanduser()
        inputs = json.dumps(recipe.inputs(), indent=2) + "\n"
        made_from = folder / INPUTS_FILE
        if (folder / CARD_FILE).exists():
            if not made_from.exists():
                raise FileExistsError(
                    f"{folder} already holds a data set, which was made in another way and will "
                    "not be replaced. Open it with "
                    f"ConformerDataset({str(folder)!r}), or give another root."
                )
            if made_from.read_text(encoding="utf-8") == inputs:
                return cls(folder)
        _, made = build_dataset(folder, recipe, workers=workers, progress=progress, inputs=inputs)
        if made.failures:
            warnings.warn(
                f"{len(made.failures)} molecules failed and are not in the data set, the first "
                f"with: {made.failures[0].problem}. See dataset.failures or "
                f"{folder / FAILURES_FILE}.",
                stacklevel=3,
            )
        return cls(folder)

    @property
    def failures(self) -> list[Failure]:
        """The molecules that could not be read, embedded or labelled, with reason and remedy."""
        path = self.folder / FAILURES_FILE
        return read_failures(path) if path.is_file() else []

    def split(self) -> Split:
        """The split that comes with the data set.

        For a subset, or after ``pre_filter``, the molecules that are left keep their parts.

        Raises:
            FileNotFoundError: The data set has no split.
            ValueError: The split contains other molecules.
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
    """The result of ``InMemoryDataset.collate``, without a ``Data`` per molecule."""
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
