"""What the file of a model states about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipolegnn.config import JSON


@dataclass(frozen=True)
class ModelCard:
    """Name and provenance of a model.

    Attributes:
        name: Name of a pretrained model; of any other its file; empty if it is in no file.
        pretrained: True if the model comes with the package.
        provenance: Data set, training recipe, metrics and versions, as they were saved.
    """

    name: str = ""
    pretrained: bool = False
    provenance: Mapping[str, JSON] = field(default_factory=dict)

    def get(self, *keys: str) -> Any:
        """An entry of the provenance; None where there is none."""
        value: Any = self.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def origin(self) -> dict[str, JSON]:
        """What is saved with a model that is trained from this one."""
        known = {name: self.provenance.get(name) for name in ("data", "train", "start")}
        return {
            "model": Path(self.name).name,
            **{name: value for name, value in known.items() if value is not None},
        }

    @property
    def elements(self) -> frozenset[str] | None:
        """Symbols of the elements that the model was trained on; None if not known."""
        listed = self.get("data", "elements")
        return frozenset(listed) if listed else None

    @property
    def accuracy(self) -> str:
        """Its error and its training data on one line; empty if not known."""
        tested = self.get("result", "test", "dipole_mae")
        error = self.get("result", "val", "dipole_mae") if tested is None else tested
        if error is None:
            return ""
        part = "validation" if tested is None else "test"
        data, level = self.get("data", "name"), self.get("data", "level_of_theory")
        known = ", ".join(str(text) for text in (data, level) if text and text != "not stated")
        return f"mean error {error:.3f} D on {part} molecules" + (f" ({known})" if known else "")
