"""Several data sets as one, for training a model on several levels of theory."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from dipolegnn._pyg import Data, InMemoryDataset
from dipolegnn.data.dataset import ConformerDataset
from dipolegnn.data.splits import PARTS, Split
from dipolegnn.data.storage import ATOM_FIELDS, FIELDS, TEXT_FIELDS


class JoinedDataset(InMemoryDataset):
    """The structures of several data sets, one data set after the other.

    Each ``Data`` has the additional field ``level``: the level of theory on the card of its data
    set (:func:`level_of`), which a model with ``levels`` uses. ``mol_id`` is renumbered so that
    molecules of different data sets have different numbers.

    Args:
        datasets: The data sets, without transform; subsets are not supported.
        levels: Level of theory of each data set; None: that on its card. For labels of another
            level than the dipole moments, such as energies.

    Raises:
        ValueError: If there is no data set, or one is a subset, has a transform, a single
            structure or no card.

    Example:
        >>> dataset = JoinedDataset([ConformerDataset("datasets/organic")])
        >>> dataset.levels
        ['B3LYP/def2-TZVPD']
    """

    def __init__(
        self, datasets: Sequence[ConformerDataset], levels: Sequence[str] | None = None
    ) -> None:
        if not datasets:
            raise ValueError("There are no data sets to join; expected at least one.")
        for dataset in datasets:
            reason = _why_not(dataset)
            if reason is not None:
                raise ValueError(f"{dataset.folder} cannot be joined with others: {reason}.")
        super().__init__(None)
        self.datasets = list(datasets)
        self._levels = list(map(level_of, datasets) if levels is None else levels)
        if len(self._levels) != len(datasets):
            raise ValueError(
                f"Expected one level of theory for each of {len(datasets)} data sets, got "
                f"{len(self._levels)}."
            )
        whole, slices = Data(), {}
        for field in FIELDS:
            parts = [dataset._data[field] for dataset in datasets]
            if field in TEXT_FIELDS:
                whole[field] = [text for part in parts for text in part]
            else:
                whole[field] = torch.cat(_distinct(parts) if field == "mol_id" else parts)
        sizes = torch.cat([(dataset.slices or {})["pos"].diff() for dataset in datasets])
        per_atom = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        per_molecule = torch.arange(len(sizes) + 1)
        for field in FIELDS:
            slices[field] = per_atom if field in ATOM_FIELDS else per_molecule
        pairs = zip(self._levels, datasets, strict=True)
        whole.level = [level for level, dataset in pairs for _ in range(len(dataset))]
        slices["level"] = per_molecule
        self._data, self.slices = whole, slices

    @property
    def levels(self) -> list[str]:
        """Levels of theory, in the order of the data sets."""
        return list(dict.fromkeys(self._levels))

    def split(self) -> Split:
        """The splits of the data sets, joined; errors as for :meth:`ConformerDataset.split`."""
        starts = [0]
        for dataset in self.datasets:
            starts.append(starts[-1] + len(dataset))
        splits = [dataset.split() for dataset in self.datasets]
        return Split(
            *(
                torch.cat(
                    [getattr(s, part) + start for s, start in zip(splits, starts[:-1], strict=True)]
                )
                for part in PARTS
            )
        )


def level_of(dataset: ConformerDataset) -> str:
    """Level of theory on the card of a data set, without remarks in parentheses at its end.

    The remarks state the program and its settings, in which data sets of one level may differ:
    ``GFN2-xTB (tblite)`` is the level ``GFN2-xTB``.
    """
    assert dataset.card is not None
    return re.sub(r"\s+\(.*\)$", "", dataset.card.level_of_theory)


def _why_not(dataset: ConformerDataset) -> str | None:
    if dataset.card is None:
        return "it has no card, which states the level of theory"
    if dataset.transform is not None or dataset._indices is not None:
        return "it is a subset or has a transform; make a data set of it with save_dataset"
    if dataset.slices is None:
        return "it has a single structure"
    return None


def _distinct(mol_ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Renumbers molecules so that no two data sets share a number."""
    renumbered, start = [], 0
    for ids in mol_ids:
        renumbered.append(ids - int(ids.min()) + start)
        start = int(renumbered[-1].max()) + 1
    return renumbered
