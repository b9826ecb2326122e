"""The model that a command is to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from ase.data import chemical_symbols

from dipolegnn._pyg import Data
from dipolegnn.checkpoint import JSON, load_model
from dipolegnn.molecules import MoleculeError
from dipolegnn.nn import DipoleModel
from dipolegnn.pretrained import names_for, pretrained_names, pretrained_path

FILE_NAME = "model.safetensors"

DEFAULT = "painn-qm9"
"""The pretrained model that is used when none is named."""


class LoadedModel(NamedTuple):
    """A model, and what its file says about it."""

    name: str
    """Of a pretrained model its name, of any other its path."""
    pretrained: bool
    model: DipoleModel
    provenance: dict[str, JSON]

    def says(self, *keys: str) -> Any:
        """An entry of the provenance; None where it says nothing of the kind."""
        value: Any = self.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def elements(self) -> frozenset[str] | None:
        """Elements that it was trained on; None if that is not known."""
        listed = self.says("data", "elements")
        return frozenset(listed) if listed else None

    @property
    def accuracy(self) -> str:
        """How good it is and what it was trained on, in a line; empty if that is not known."""
        tested = self.says("result", "test", "dipole_mae")
        error = self.says("result", "val", "dipole_mae") if tested is None else tested
        if error is None:
            return ""
        part = "validation" if tested is None else "test"
        data, level = self.says("data", "name"), self.says("data", "level_of_theory")
        known = ", ".join(str(text) for text in (data, level) if text and text != "not stated")
        return f"mean error {error:.3f} D on {part} molecules" + (f" ({known})" if known else "")


def open_model(path: Path | None) -> LoadedModel:
    """Loads a pretrained model, a model file, the model of a run, or the default model.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no model file.
    """
    named = os.environ.get("DIPOLEGNN_MODEL")
    if path is None and not named:  # whatever else is called like that
        return LoadedModel(DEFAULT, True, *load_model(pretrained_path(DEFAULT)))
    given = path or Path(str(named))
    if str(given) in pretrained_names() and not given.exists():
        return LoadedModel(str(given), True, *load_model(pretrained_path(str(given))))
    if not given.exists():
        source = "--model" if path is not None else "DIPOLEGNN_MODEL"
        raise FileNotFoundError(
            f"No model: {source} names {given}, which is not there. Give a model file, the folder "
            f"of a run, or one of {', '.join(pretrained_names())}."
        )
    if given.is_dir():
        given = given / FILE_NAME
    return LoadedModel(str(given), False, *load_model(given))


def unknown_elements(loaded: LoadedModel, data: Data) -> MoleculeError | None:
    """Why a pretrained model makes no prediction for the elements of a molecule; None if it does.

    A model of the user's own predicts, with a note: it is the user who knows what it is for.
    """
    known = loaded.elements
    symbols = {chemical_symbols[z] for z in data.z.tolist()}
    strange = [] if known is None else sorted(symbols - known)
    if not strange or not loaded.pretrained:
        return None
    others = names_for(symbols)
    return MoleculeError(
        f"It has {', '.join(strange)}, and {loaded.name} knows {', '.join(sorted(known or ()))}",
        remedy=f"Take --model {others[0]}" if others else "Train a model on such molecules",
        molecule=str(data.get("name") or data.get("smiles") or ""),
    )
