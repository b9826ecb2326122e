"""Models that come with the package: ``NAME.safetensors`` and, beside it, its card ``NAME.md``."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

from ase.data import chemical_symbols

from dipolegnn._pyg import Data
from dipolegnn.checkpoint import load_model
from dipolegnn.config import JSON
from dipolegnn.molecules import MoleculeError
from dipolegnn.nn import DipoleModel

FOLDER = Path(__file__).resolve().parent


def pretrained_names() -> list[str]:
    """The names of the models that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def pretrained_path(name: str) -> Path:
    """The file of a model.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in pretrained_names():
        raise ValueError(
            f"There is no pretrained model {name!r}; there are {', '.join(pretrained_names())}. A "
            "model of your own is loaded with dipolegnn.load_model(path)."
        )
    return FOLDER / f"{name}.safetensors"


def load_pretrained(name: str) -> DipoleModel:
    """Loads a model that comes with the package, on the CPU, in evaluation mode.

    Args:
        name: Its name, as in :func:`pretrained_names`.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> from dipolegnn.molecules import from_smiles
        >>> from dipolegnn.inference.structures import predict
        >>> acetone = predict(load_pretrained("painn-qm9"), from_smiles("CC(C)=O"))[0]
        >>> round(acetone.magnitude, 1)  # experiment: 2.88 D
        2.7
    """
    return load_model(pretrained_path(name))[0]


def names_for(elements: Collection[str]) -> list[str]:
    """The names of the models that were trained on all of these elements."""
    return [name for name in pretrained_names() if set(elements) <= elements_of(name)]


def unknown_elements(name: str, data: Data) -> MoleculeError | None:
    """Why a model makes no prediction for the elements of a molecule; None if it does."""
    known = elements_of(name)
    symbols = {chemical_symbols[z] for z in data.z.tolist()}
    strange = sorted(symbols - known)
    if not strange:
        return None
    others = names_for(symbols)
    return MoleculeError(
        f"It has {', '.join(strange)}, and {name} knows {', '.join(sorted(known))}",
        remedy=f"Take the model {others[0]}" if others else "Train a model on such molecules",
        molecule=str(data.get("name") or data.get("smiles") or ""),
    )


@functools.cache  # asked for every molecule that a model refuses
def elements_of(name: str) -> frozenset[str]:
    """The elements that a model was trained on, as symbols."""
    provenance = load_model(pretrained_path(name))[1]
    data: JSON = provenance["data"]
    assert isinstance(data, dict)
    elements = data["elements"]
    assert isinstance(elements, list)
    return frozenset(str(element) for element in elements)
