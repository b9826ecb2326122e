"""A trained model as one file, which alone suffices to predict.

The file is in the safetensors format: the weights, and beside them as JSON the architecture, the
units and where the model comes from. Reading it runs no code that is stored in it (nothing is
unpickled).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dipolegnn import __version__
from dipolegnn.config import JSON, ModelConfig
from dipolegnn.files import replacing
from dipolegnn.nn import Calibration, DipoleModel, Head, PropertyModel, build_model
from dipolegnn.nn.model import ModelDescription, describe
from dipolegnn.nn.parts import Part

FORMAT_VERSION = 2
"""Version of the layout of the metadata; raised when an older dipolegnn could misread it.

Version 1 (dipolegnn 0.1) has the options of the commands in place of the parts.
"""

UNITS_OF_INPUTS = {"pos": "angstrom", "charge": "e"}

_KEY = "dipolegnn"  # The one entry of the metadata: safetensors does not keep the order of more.


class ModelFileError(ValueError):
    """A file that no model can be read from."""


def save_model(path: str | Path, model: PropertyModel[Any], provenance: Mapping[str, JSON]) -> None:
    """Writes a model to one ``.safetensors`` file, all of it or nothing.

    Args:
        path: The file; an earlier one is replaced.
        model: The model. Its precision is kept.
        provenance: Where it comes from: ``data`` (name and sha256 of the data set, split),
            ``train`` (the recipe), ``metrics`` and whatever else may be asked of it later. Date
            and versions are added.

    Raises:
        TypeError: If a part of the model does not keep an argument of its constructor.
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
        # Not save_file(), whose files only their owner may read.
        temporary.write_bytes(save(weights, {_KEY: json.dumps(metadata)}))


@overload
def load_model(path: str | Path) -> tuple[DipoleModel, dict[str, JSON]]: ...


@overload
def load_model(path: str | Path, parts: Sequence[type[Part]]) -> tuple[Any, dict[str, JSON]]: ...


def load_model(path: str | Path, parts: Sequence[type[Part]] = ()) -> tuple[Any, dict[str, JSON]]:
    """Reads a model that :func:`save_model` wrote.

    Args:
        path: The file.
        parts: Classes of its representation and head, where they are not in ``dipolegnn.nn``.

    Returns:
        The model, on the CPU, in the precision that it was saved in, in evaluation mode; and its
        provenance.

    Raises:
        FileNotFoundError: If there is no such file.
        ModelFileError: If it is not a model file, or not of this version of dipolegnn, or has parts
            that are neither in ``dipolegnn.nn`` nor among those given.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no model file {path}. 'dipolegnn train' writes model.safetensors into the "
            "folder of its run."
        )
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelFileError(
            f"{path} is not a safetensors file ({error}). A model file is the model.safetensors "
            "of a training run."
        ) from error
    if _KEY not in stored:
        raise ModelFileError(
            f"{path} is a safetensors file, but not one of dipolegnn: it says nothing about the "
            "architecture. A model file is the model.safetensors of a training run."
        )
    try:
        metadata = _read_metadata(path, stored[_KEY])
        # The new weights are replaced at once, so they must not use up the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            model = build_model(described(metadata["model"]), parts)
    except ValueError as error:
        raise ModelFileError(f"The model in {path} cannot be made. {error}") from error
    units, expected = metadata["units"], _units(model.head)
    # Version 1 stated those of a dipole head for every head.
    if not units or any(expected.get(name, unit) != unit for name, unit in units.items()):
        raise ModelFileError(f"The model in {path} has units {units}, expected {expected}.")
    if isinstance(model, DipoleModel):
        model.calibration = _read_calibration(path, weights)
    first = next(name for name, _ in model.named_parameters())
    _check_weights(path, weights, model.state_dict())
    model.to(weights[first].dtype)
    model.load_state_dict(weights)
    return model.eval(), metadata["provenance"]


def _units(head: Head[Any]) -> dict[str, str]:
    """Units of what goes into and comes out of a model."""
    outputs = {name: field.unit for name, field in head.outputs.items()}
    return {**UNITS_OF_INPUTS, **outputs}


def _read_metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
        written_as = metadata["format_version"]
        complete = metadata.keys() >= {"model", "units", "provenance"}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"The metadata of {path} are damaged ({error!r}).") from error
    if written_as not in (1, FORMAT_VERSION):
        raise ModelFileError(
            f"{path} has format version {written_as}, and dipolegnn {__version__} reads "
            f"versions 1 and {FORMAT_VERSION}. Install the dipolegnn that wrote it or a newer one."
        )
    if not complete:
        raise ModelFileError(f"The metadata of {path} lack one of model, units, provenance.")
    return {**metadata}


def described(stored: JSON) -> ModelDescription:
    """The parts of a model as a file states them; version 0.1 stated the options of the commands.

    Raises:
        ValueError: If it is neither.
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
            f"It has settings that dipolegnn {__version__} does not know: {', '.join(unknown)}."
        )
    try:
        return describe(TypeAdapter(ModelConfig).validate_python(stored))
    except ValidationError as error:
        raise ValueError(f"Its description cannot be used: {error}.") from error


def _read_calibration(path: Path, weights: Mapping[str, Tensor]) -> Calibration | None:
    start = "calibration."
    state = {name.removeprefix(start): x for name, x in weights.items() if name.startswith(start)}
    if not state:
        return None
    try:
        return Calibration.of_state(state)
    except ValueError as error:
        raise ModelFileError(f"The error bars in {path} are damaged. {error}") from error


def _check_weights(
    path: Path, stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    problems += [f"{name} has no place in it" for name in stored.keys() - expected.keys()]
    problems += [
        f"{name} is {list(stored[name].shape)} instead of {list(expected[name].shape)}"
        for name in stored.keys() & expected.keys()
        if stored[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ModelFileError(
            f"The weights in {path} do not fit the architecture that it names "
            f"({len(problems)} of them): {shown}."
        )
