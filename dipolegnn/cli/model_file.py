"""The model that a command is to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from dipolegnn.checkpoint import JSON, load_model
from dipolegnn.nn import DipoleModel

FILE_NAME = "model.safetensors"

DEMO_MODEL = Path("runs") / "quickstart" / FILE_NAME
"""Where `make demo` leaves its model, seen from the folder of the project."""


class LoadedModel(NamedTuple):
    """A model, and what its file says about it."""

    path: Path
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
    """Loads a model file, or the model of a run, or the default model.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no model file.
    """
    if path is None:
        named = os.environ.get("DIPOLEGNN_MODEL")
        path = Path(named) if named else DEMO_MODEL
        if not path.exists():
            source = "DIPOLEGNN_MODEL names" if named else "By default it is"
            raise FileNotFoundError(
                f"No model: give one with --model FILE. {source} {path}, which is not there; "
                "`make demo` makes one, and so does `dipolegnn train`."
            )
    if path.is_dir():
        path = path / FILE_NAME
    return LoadedModel(path, *load_model(path))
