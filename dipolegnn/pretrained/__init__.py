"""Models that come with the package: ``NAME.safetensors`` and, beside it, its card ``NAME.md``."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

from dipolegnn.checkpoint import JSON, load_model
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
        >>> from dipolegnn.predict import predict
        >>> acetone = predict(load_pretrained("painn-qm9"), from_smiles("CC(C)=O"))[0]
        >>> round(acetone.magnitude, 1)  # experiment: 2.88 D
        2.7
    """
    return load_model(pretrained_path(name))[0]


def names_for(elements: Collection[str]) -> list[str]:
    """The names of the models that were trained on all of these elements."""
    return [name for name in pretrained_names() if set(elements) <= elements_of(name)]


@functools.cache  # asked for every molecule that a model refuses
def elements_of(name: str) -> frozenset[str]:
    """The elements that a model was trained on, as symbols."""
    provenance = load_model(pretrained_path(name))[1]
    data: JSON = provenance["data"]
    assert isinstance(data, dict)
    elements = data["elements"]
    assert isinstance(elements, list)
    return frozenset(str(element) for element in elements)
