"""A trained model as one file, which alone suffices to predict.

The file is in the safetensors format: the weights, and beside them as JSON the architecture, the
units and where the model comes from. Reading it runs no code that is stored in it (nothing is
unpickled).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dipolegnn import __version__
from dipolegnn.config import ModelConfig
from dipolegnn.files import replacing
from dipolegnn.nn import Calibration, DipoleModel, build_model

FORMAT_VERSION = 1
"""Version of the layout of the metadata; raised when an older dipolegnn could misread it."""

UNITS = {"pos": "angstrom", "charge": "e", "dipole": "debye", "charges": "e"}
"""Units of what goes into and comes out of a model."""

JSON = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None
"""What a JSON file can hold."""

_KEY = "dipolegnn"  # The one entry of the metadata: safetensors does not keep the order of more.


class ModelFileError(ValueError):
    """A file that no model can be read from."""


def save_model(path: str | Path, model: DipoleModel, provenance: Mapping[str, JSON]) -> None:
    """Writes a model to one ``.safetensors`` file, all of it or nothing.

    Args:
        path: The file; an earlier one is replaced.
        model: The model. Its precision is kept.
        provenance: Where it comes from: ``data`` (name and sha256 of the data set, split),
            ``train`` (the recipe), ``metrics`` and whatever else may be asked of it later. Date
            and versions are added.

    Raises:
        TypeError: If the model is made of other parts than this package's.
    """
    metadata = {
        "format_version": FORMAT_VERSION,
        "model": asdict(model.config),
        "units": UNITS,
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


def load_model(path: str | Path) -> tuple[DipoleModel, dict[str, JSON]]:
    """Reads a model that :func:`save_model` wrote.

    Args:
        path: The file.

    Returns:
        The model, on the CPU, in the precision that it was saved in, in evaluation mode; and its
        provenance.

    Raises:
        FileNotFoundError: If there is no such file.
        ModelFileError: If it is not a model file, or not of this version of dipolegnn.
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
    config, provenance = _read_metadata(path, stored[_KEY])
    # The fresh weights are replaced at once, so they must not use up the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        model = build_model(config)
    model.calibration = _read_calibration(path, weights)
    _check_weights(path, weights, model.state_dict())
    model.to(weights["representation.embedding.weight"].dtype)
    model.load_state_dict(weights)
    return model.eval(), provenance


def _read_metadata(path: Path, text: str) -> tuple[ModelConfig, dict[str, JSON]]:
    try:
        metadata = json.loads(text)
        written_as = metadata["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelFileError(f"The metadata of {path} are damaged ({error!r}).") from error
    if written_as != FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {written_as}, and dipolegnn {__version__} reads "
            f"version {FORMAT_VERSION}. Install the dipolegnn that wrote it or a newer one."
        )
    try:
        known = {field.name for field in fields(ModelConfig)}
        unknown = sorted(metadata["model"].keys() - known)
        if unknown:
            raise ModelFileError(
                f"The model in {path} has settings that dipolegnn {__version__} does "
                f"not know: {', '.join(unknown)}. Install the dipolegnn that wrote it or a newer "
                "one."
            )
        config = TypeAdapter(ModelConfig).validate_python(metadata["model"])
        units, provenance = metadata["units"], metadata["provenance"]
    except (KeyError, AttributeError, ValidationError) as error:
        raise ModelFileError(
            f"The description of the model in {path} cannot be used: {error}."
        ) from error
    if units != UNITS:
        raise ModelFileError(f"The model in {path} has units {units}, expected {UNITS}.")
    return config, provenance


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
