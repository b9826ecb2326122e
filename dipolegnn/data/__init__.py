"""Data sets on disk, splits by molecule, and the LightningDataModule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dipolegnn.data.build import save_dataset
from dipolegnn.data.card import About, Card, Counts, check_card, read_card, write_card
from dipolegnn.data.dataset import ConformerDataset
from dipolegnn.data.joined import JoinedDataset
from dipolegnn.data.splits import (
    Split,
    SplitConfig,
    make_split,
    random_split,
    read_split,
    write_split,
)
from dipolegnn.data.storage import read_molecules, write_molecules

if TYPE_CHECKING:
    from dipolegnn.data.datamodule import DipoleDataModule

__all__ = [
    "About",
    "Card",
    "ConformerDataset",
    "Counts",
    "DipoleDataModule",
    "JoinedDataset",
    "Split",
    "SplitConfig",
    "check_card",
    "make_split",
    "random_split",
    "read_card",
    "read_molecules",
    "read_split",
    "save_dataset",
    "write_card",
    "write_molecules",
    "write_split",
]


def __getattr__(name: str) -> object:
    # Importing Lightning takes seconds, and only those who train need it.
    if name == "DipoleDataModule":
        from dipolegnn.data.datamodule import DipoleDataModule

        return DipoleDataModule
    raise AttributeError(f"module 'dipolegnn.data' has no attribute {name!r}")
