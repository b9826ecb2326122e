"""Metadata of a model, as stored in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipolegnn.config import JSON

MANY_SETS = 3
"""With more data sets, their number stands for their names in :attr:`ModelCard.accuracy`."""


@dataclass(frozen=True)
class ModelCard:
    """Name and provenance of a model.

    Attributes:
        name: Name of a pretrained model, else path of the model file; empty if the model was not
            loaded from a file.
        pretrained: True for a pretrained model of the package.
        provenance: Data set, training recipe, metrics and versions.
    """

    name: str = ""
    pretrained: bool = False
    provenance: Mapping[str, JSON] = field(default_factory=dict)

    def get(self, *keys: str) -> Any:
        """Returns an entry of the nested provenance, or None if there is none."""
        value: Any = self.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def origin(self) -> dict[str, JSON]:
        """Provenance to save with a model whose training starts from this one."""
        known = {name: self.provenance.get(name) for name in ("data", "train", "start")}
        return {
            "model": Path(self.name).name,
            **{name: value for name, value in known.items() if value is not None},
        }

    @property
    def elements(self) -> frozenset[str] | None:
        """Symbols of the elements of the training molecules; None if not known."""
        listed = self.get("data", "elements")
        return frozenset(map(str, listed)) if listed else None

    @property
    def accuracy(self) -> str:
        """Mean error and training data in one line; empty if not known."""
        tested = self.get("result", "test", "dipole_mae")
        error = self.get("result", "val", "dipole_mae") if tested is None else tested
        if error is None:
            return ""
        part = "validation" if tested is None else "test"
        data, level = self.get("data", "name"), self.get("data", "level_of_theory")
        joined = self.get("data", "joined") or []
        # Without remarks, such as the program.
        levels = {one["level_of_theory"].partition(" (")[0] for one in joined}
        names = dict.fromkeys(one["name"] for one in joined)
        if len(names) > MANY_SETS:
            data, level = f"{len(names)} data sets", f"{len(levels)} levels of theory"
        elif len(levels) > 1:
            data, level = " + ".join(names), f"levels of theory {level}"
        known = ", ".join(str(text) for text in (data, level) if text and text != "not stated")
        return f"mean error {error:.3f} D on {part} molecules" + (f" ({known})" if known else "")
