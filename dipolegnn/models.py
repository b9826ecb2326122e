"""Loading and saving models: pretrained models, model files, and folders of training runs.

A model file is a safetensors file. Its metadata contain the class and the arguments of each part,
the units and the provenance; loading executes no code from the file. The pretrained models are such
files in ``pretrained/``, each with a model card.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import torch
from ase.data import chemical_symbols
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dipolegnn import __version__
from dipolegnn._pyg import Data
from dipolegnn.config import JSON, ModelConfig
from dipolegnn.files import replacing
from dipolegnn.molecules import MoleculeError
from dipolegnn.nn import (
    Calibration,
    DipoleModel,
    EnergyOutput,
    Head,
    ModelCard,
    PropertyModel,
    build_model,
)
from dipolegnn.nn.model import ModelDescription, describe
from dipolegnn.nn.parts import Part

FOLDER = Path(__file__).resolve().parent / "pretrained"
"""Folder of the pretrained models: ``NAME.safetensors`` and the model card ``NAME.md``."""

FILE_NAME = "model.safetensors"
"""Name of the model file in the folder of a run."""

DEFAULT = "painn-organic"
"""Default model."""

ENERGIES = "conformer-energies"
"""Pretrained model of the energies of conformers; see :func:`energy_model`."""

FORMAT_VERSION = 2
"""Version of the metadata; incremented when an older dipolegnn could misread them.

Version 1 (dipolegnn 0.1) contains the options of the commands instead of the parts.
"""

UNITS_OF_INPUTS = {"pos": "angstrom", "charge": "e"}

_KEY = "dipolegnn"  # The one entry of the metadata: safetensors does not keep the order of more.


_PRECISIONS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_DAMAGED = "The file is damaged: get it again, or train the model again."


class ModelFileError(ValueError):
    """The file is not a valid model file."""


def save_model(path: str | Path, model: PropertyModel[Any], provenance: Mapping[str, JSON]) -> None:
    """Writes a model to a ``.safetensors`` file, atomically.

    Args:
        path: The file; an existing file is replaced.
        model: The model, saved in its own precision.
        provenance: JSON values about the origin of the model: ``data`` (name and sha256 of the data
            set, split), ``train`` (the recipe), ``metrics`` and others. Date and versions are
            added.

    Raises:
        TypeError: If a part of the model does not store an argument of its constructor.
    """
    metadata = {
        "format_version": FORMAT_VERSION,
        "model": model.config,
        "units": _units(model.head),
        "provenance": {
            **provenance,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {
                "dipolegnn": __version__,
                "torch": torch.__version__,
                "torch_geometric": version("torch_geometric"),
            },
        },
    }
    weights = {
        name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()
    }
    with replacing(path) as temporary:
        # save_file() would create files with read permission for the owner only.
        temporary.write_bytes(save(weights, {_KEY: json.dumps(metadata)}))


@overload
def load_model(model: str | Path) -> DipoleModel: ...


@overload
def load_model(model: str | Path, parts: Sequence[type[Part]]) -> Any: ...


def load_model(model: str | Path, parts: Sequence[type[Part]] = ()) -> Any:
    """Loads a model.

    Args:
        model: Name of a pretrained model (:func:`pretrained_names`), a model file, or the folder of
            a training run. A file or folder of that name takes precedence over a pretrained model.
        parts: Classes of the representation and the head, if they are not in ``dipolegnn.nn``.

    Returns:
        The model on the CPU, in the saved precision, in evaluation mode. ``card`` contains its name
        and provenance. The type is :class:`~dipolegnn.DipoleModel`, unless a head in ``parts``
        predicts another property.

    Raises:
        FileNotFoundError: If the model does not exist.
        ModelFileError: If the file is not a model file, was written by a newer dipolegnn, or has
            parts that are neither in ``dipolegnn.nn`` nor in ``parts``.

    Example:
        >>> from dipolegnn import from_smiles, load_model, predict
        >>> acetone = predict(load_model("painn-qm9"), from_smiles("CC(C)=O"))[0]
        >>> round(acetone.magnitude, 1)  # experiment: 2.88 D
        2.7
    """
    path = Path(model)
    if not path.exists() and str(model) in pretrained_names():
        return _pretrained(str(model))
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no model {model}. Give a model file, the folder of a run (with its "
            f"{FILE_NAME}), or one of {', '.join(pretrained_names())}."
        )
    return _read(path, parts)


def _pretrained(name: str) -> DipoleModel:
    model: DipoleModel = _read(FOLDER / f"{name}.safetensors", (), name)
    return model


def _read(path: Path, parts: Sequence[type[Part]], pretrained: str = "") -> Any:
    """Reads a model from a file, which is that of a pretrained model if its name is given."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.metadata() or {}
        weights = load_file(path)
    except (SafetensorError, KeyError, AttributeError) as error:  # KeyError: type unknown to torch
        raise ModelFileError(
            f"{path} is not a safetensors file, or is damaged or cut short ({error}). A model file "
            "is the model.safetensors of a training run; get it again."
        ) from error
    if _KEY not in stored:
        raise ModelFileError(
            f"{path} is a safetensors file, but not one of dipolegnn: its metadata lack the "
            "architecture. A model file is the model.safetensors of a training run."
        )
    try:
        metadata = _metadata(path, stored[_KEY])
        description = described(metadata["model"])
        stored_values = sum(weight.numel() for weight in weights.values())
        _check_sizes(description, stored_values, parts)
        # The initial weights are replaced, so drawing them must not change the caller's generator.
        with torch.random.fork_rng(devices=[]), _at_most(stored_values):
            loaded = build_model(description, parts)
    except ModelFileError:
        raise
    except (ValueError, RuntimeError, AttributeError) as error:
        raise ModelFileError(f"The model in {path} cannot be built. {error}") from error
    units, expected = metadata["units"], _units(loaded.head)
    # Version 1 contains the units of a dipole head for every head.
    if not units or any(expected.get(name, unit) != unit for name, unit in units.items()):
        raise ModelFileError(f"The model in {path} has units {units}, expected {expected}.")
    start = "calibration."
    state = {name.removeprefix(start): x for name, x in weights.items() if name.startswith(start)}
    if state and isinstance(loaded, DipoleModel):
        try:
            loaded.calibration = Calibration.of_state(state)
        except ValueError as error:
            raise ModelFileError(f"The error bars in {path} are damaged. {error}") from error
    _check_weights(path, weights, loaded.state_dict())
    loaded.to(_precision(path, weights, loaded))
    loaded.load_state_dict(weights)
    loaded.card = ModelCard(pretrained or str(path), bool(pretrained), metadata["provenance"])
    try:
        _ = loaded.card.elements, loaded.card.accuracy
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"The provenance in {path} is damaged ({error!r}): expected elements as a list of "
            "symbols, errors as numbers, and data sets with name and level_of_theory. Get the file "
            "again from where it was made."
        ) from error
    return loaded.eval()


def _check_sizes(
    description: ModelDescription, stored_values: int, parts: Sequence[type[Part]]
) -> None:
    """Checks the sizes of the parts of this package before they are built.

    Each integer among their arguments is the size of a layer or the number of layers, of which the
    file contains the weights. Arguments of a user's own parts can have another meaning.

    Raises:
        ValueError: If a size is larger than the number of values in the file.
    """
    own = {part.__name__.lower() for part in parts}
    for settings in description.values():
        if str(settings.get("class")).lower() in own:
            continue
        for name, value in settings.items():
            if isinstance(value, int) and value > stored_values:
                raise ValueError(
                    f"{name} is {value}, and the file has {stored_values} values in all. {_DAMAGED}"
                )


@contextmanager
def _at_most(stored_values: int) -> Iterator[None]:
    """Stops the construction of a model that has more weights than its file.

    The limit is four times the number of values in the file, because a constructor may replace
    layers that it has made. A parameter is counted before its initial values are drawn, so that its
    memory is reserved but not used.

    Raises:
        ValueError: If the limit is exceeded.
    """
    thread = threading.get_ident()
    made = 0

    def count(_: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        if parameter is None or threading.get_ident() != thread:
            return
        made += parameter.numel()
        if made > 4 * stored_values:
            raise ValueError(
                f"Its settings describe at least {made} weights, and the file has {stored_values} "
                f"values. {_DAMAGED}"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _precision(path: Path, weights: Mapping[str, Tensor], model: nn.Module) -> torch.dtype:
    """Precision of the weights, after a check of types and values."""
    names = [name for name, _ in model.named_parameters()]
    precision = weights[names[0]].dtype
    problems = [
        f"{name} is {weights[name].dtype} and {names[0]} is {precision}"
        for name in names
        if weights[name].dtype != precision
    ]
    if precision not in _PRECISIONS:
        problems = [f"{names[0]} is {precision}"]
    expected = f"expected one of {', '.join(map(str, _PRECISIONS))} for all"
    if not problems:
        # In the scores of the calibration, infinity fills up the rows of levels.
        problems = [
            f"{name} has values that are not finite"
            for name, values in weights.items()
            if values.isnan().any() or (name in names and values.isinf().any())
        ]
        expected = "expected finite numbers"
    if problems:
        raise ModelFileError(
            f"The weights in {path} cannot be used ({len(problems)} problems): "
            f"{'; '.join(sorted(problems)[:5])}; {expected}. {_DAMAGED}"
        )
    return precision


def _units(head: Head[Any]) -> dict[str, str]:
    """Units of the inputs and outputs of a model."""
    outputs = {name: field.unit for name, field in head.outputs.items()}
    return {**UNITS_OF_INPUTS, **outputs}


def _metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = json.loads(text)
        written_as = metadata["format_version"]
        complete = metadata.keys() >= {"model", "units", "provenance"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"The metadata of {path} are damaged ({error!r}); expected a JSON object with "
            "format_version, model, units and provenance. Get the file again, or train the model "
            "again."
        ) from error
    if written_as not in (1, FORMAT_VERSION):
        raise ModelFileError(
            f"{path} has format version {written_as}, and dipolegnn {__version__} reads "
            f"versions 1 and {FORMAT_VERSION}. Install the dipolegnn that wrote it or a newer one."
        )
    if not complete:
        raise ModelFileError(
            f"The metadata of {path} lack one of model, units, provenance. {_DAMAGED}"
        )
    for name in ("units", "provenance"):
        if not isinstance(metadata[name], dict):
            raise ModelFileError(
                f"The metadata of {path} are damaged: {name} must be a JSON object, got "
                f"{metadata[name]!r}. {_DAMAGED}"
            )
    return metadata


def described(stored: JSON) -> ModelDescription:
    """Returns the parts of a model from its stored description (of version 0.1: the options).

    Raises:
        ValueError: If the description is invalid.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"Its description must be a JSON object, got {stored!r}.")
    parts = {name: value for name, value in stored.items() if isinstance(value, dict)}
    if len(parts) == len(stored) > 0:
        return parts
    known = {field.name for field in fields(ModelConfig)}
    unknown = sorted(stored.keys() - known)
    if unknown:
        raise ValueError(
            f"It has settings unknown to dipolegnn {__version__}: {', '.join(unknown)}."
        )
    try:
        return describe(TypeAdapter(ModelConfig).validate_python(stored))
    except ValidationError as error:
        raise ValueError(f"Its description cannot be used: {error}.") from error


def _check_weights(
    path: Path, stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    problems += [f"{name} is unexpected" for name in stored.keys() - expected.keys()]
    problems += [
        f"{name} is {list(stored[name].shape)} instead of {list(expected[name].shape)}"
        for name in stored.keys() & expected.keys()
        if stored[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ModelFileError(
            f"The weights in {path} do not match its architecture ({len(problems)} problems): "
            f"{shown}. {_DAMAGED}"
        )


def pretrained_names() -> list[str]:
    """Names of the pretrained dipole models."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors") if path.stem != ENERGIES)


@functools.cache
def energy_model() -> PropertyModel[EnergyOutput]:
    """The pretrained model of the energies of conformers, relative to each other.

    Its levels of theory are DLPNO-CCSD(T) (the default) and GFN2-xTB.
    """
    model: PropertyModel[EnergyOutput] = _read(FOLDER / f"{ENERGIES}.safetensors", (), ENERGIES)
    return model


def unknown_elements(model: PropertyModel[Any], data: Data) -> MoleculeError | None:
    """Error if a pretrained model was not trained on the elements of a molecule, else None.

    Other models predict such molecules with a warning.
    """
    card = model.card
    if not card.pretrained or card.elements is None:
        return None
    symbols = {chemical_symbols[z] for z in data.z.tolist()}
    unknown = sorted(symbols - card.elements)
    if not unknown:
        return None
    others = names_for(symbols)
    return MoleculeError(
        f"It contains {', '.join(unknown)}, and {card.name} was trained on "
        f"{', '.join(sorted(card.elements))} only",
        remedy=f"Use the model {others[0]}" if others else "Train a model on such molecules",
        molecule=str(data.get("name") or data.get("smiles") or ""),
    )


def names_for(elements: Collection[str]) -> list[str]:
    """Names of the pretrained models that were trained on all of these elements."""
    return [name for name in pretrained_names() if set(elements) <= elements_of(name)]


@functools.cache  # called for every refused molecule
def elements_of(name: str) -> frozenset[str]:
    """Symbols of the elements that a pretrained model was trained on."""
    elements = _pretrained(name).card.elements
    assert elements is not None
    return elements


class ModelChoice:
    """The model chosen by the user, loaded when it is needed.

    Args:
        named: Name of a pretrained model, a model file, or the folder of a run; None: the value of
            the environment variable DIPOLEGNN_MODEL, or the default model.
    """

    def __init__(self, named: str | Path | None = None) -> None:
        self.named = named
        self._loaded: DipoleModel | None = None

    @property
    def model(self) -> DipoleModel:
        """The model.

        Raises:
            FileNotFoundError: The model does not exist.
            ValueError: The file is not a model file, or its head predicts another property.
        """
        named = self.named or os.environ.get("DIPOLEGNN_MODEL")
        if self._loaded is None:
            # The default is the pretrained model, even if a file of that name exists.
            try:
                self._loaded = load_model(named) if named else _pretrained(DEFAULT)
            except FileNotFoundError as error:
                if self.named is None:
                    raise FileNotFoundError(f"DIPOLEGNN_MODEL: {error}") from None
                raise
        return self._loaded
