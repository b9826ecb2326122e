"""Settings of a run from its ``config.json``, for ``dipolegnn train``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.nn.model import options as options_of

_Config = TypeVar("_Config", ModelConfig, TrainConfig)


def read_settings(path: Path) -> tuple[ModelConfig, TrainConfig]:
    """Reads ``{"model": {...}, "train": {...}}``; missing settings have their default.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not JSON, or a setting is unknown or out of range.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from None
    # The other keys describe the data set and the machine of the run.
    known = {"model", "train", "data", "devices", "threads"}
    if not isinstance(content, dict) or content.keys() - known:
        raise ValueError(f'{path}: expected {{"model": {{...}}, "train": {{...}}}}.')
    values = content.get("model", {})
    train = _read(path, "train", TrainConfig, content.get("train", {}))
    if not (isinstance(values, dict) and isinstance(values.get("representation"), dict)):
        return _read(path, "model", ModelConfig, values), train
    # The parts, as a run of version 0.2 states them; the options, as a run of version 0.1 does.
    settings = {name: value for name, value in values["representation"].items() if name != "class"}
    _read(path, "model", ModelConfig, settings)  # names what is unknown or of a wrong type
    try:
        return options_of(values), train
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path, part: str, kind: type[_Config], values: Any) -> _Config:
    known = [field.name for field in fields(kind)]
    unknown = sorted(values.keys() - set(known)) if isinstance(values, dict) else []
    if unknown:
        raise ValueError(
            f"{path}: {part} has the unknown settings {', '.join(unknown)}; expected some of "
            f"{', '.join(known)}."
        )
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or part}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ValueError(f"{path}: invalid settings in {part}: {problems}.") from None
