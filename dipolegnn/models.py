"""The model that is to be used: one that is named, or the one for the geometry at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from dipolegnn import pretrained
from dipolegnn._pyg import Data
from dipolegnn.checkpoint import load_model
from dipolegnn.config import JSON
from dipolegnn.molecules import MoleculeError
from dipolegnn.nn import DipoleModel
from dipolegnn.pretrained import pretrained_names, pretrained_path

FILE_NAME = "model.safetensors"

DEFAULT = "painn-qm9"
"""The pretrained model for structures, when none is named ..."""

DEFAULT_FOR_SMILES = "painn-qm9-mmff94s"
"""... and the one for the geometries that SMILES are given."""


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
    def origin(self) -> dict[str, JSON]:
        """What to write down where training starts from it: what it learnt, and where from."""
        known = {name: self.provenance.get(name) for name in ("data", "train", "start")}
        return {
            "model": Path(self.name).name,
            **{name: value for name, value in known.items() if value is not None},
        }

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


def open_model(path: str | Path | None, *, default: str = DEFAULT) -> LoadedModel:
    """Loads a pretrained model, a model file, the model of a run, or the default model.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no model file.
    """
    named = os.environ.get("DIPOLEGNN_MODEL")
    if path is None and not named:  # whatever else is called like that
        return LoadedModel(default, True, *load_model(pretrained_path(default)))
    given = Path(str(named) if path is None else path)
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
    if not loaded.pretrained:
        return None
    return pretrained.unknown_elements(loaded.name, data)


class ModelChoice:
    """The model that the user named, or else the default for each kind of geometry.

    Args:
        named: A pretrained model's name, a model file, the folder of a run; None: the defaults.
    """

    def __init__(self, named: str | Path | None = None) -> None:
        self.named = named
        self._loaded: dict[str, LoadedModel] = {}

    def for_geometry(self, embedded: bool) -> LoadedModel:
        """The model for structures that were embedded from SMILES, or that came as they are.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is no model file.
        """
        default = DEFAULT_FOR_SMILES if embedded else DEFAULT
        if default not in self._loaded:
            model = open_model(self.named, default=default)
            # One that is named is the same for both.
            same = [other for other in self._loaded.values() if other.name == model.name]
            self._loaded[default] = same[0] if same else model
        return self._loaded[default]
