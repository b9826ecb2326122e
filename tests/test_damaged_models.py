"""Damaged model files: each is refused with a ModelFileError, whatever the damage."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipolegnn.cli.program import USAGE_ERROR, main
from dipolegnn.models import FOLDER, ModelFileError, load_model, save_model
from tests.training.toy import toy_model

FIRST = "representation.embedding.weight"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_model(file, toy_model(), {"data": {"name": "toy"}})
    return file


def content_of(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()["dipolegnn"])


def write(path: Path, weights: dict[str, Tensor], metadata: object) -> None:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(weights, path, {"dipolegnn": text})


def test_cut_anywhere(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chosen = random.Random(0).sample(range(len(whole)), 40)
    for size in [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1, *chosen]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match="not a safetensors file, or is damaged or cut"):
            load_model(path)
    assert main(["predict", "O", "--model", str(path)]) == USAGE_ERROR
    assert "cut short" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_changed_bytes(path: Path, seed: int) -> None:
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(seed)
    for place in (range(header), range(header, len(whole))):
        for _ in range(100):
            changed = bytearray(whole)
            for _ in range(generator.choice([1, 1, 2, 8])):
                changed[generator.choice(place)] = generator.randrange(256)
            path.write_bytes(changed)
            with suppress(ModelFileError):  # a changed digit of a weight is no visible damage
                load_model(path)


@pytest.mark.parametrize("length", [2**31, 2**60, 2**64 - 1])
def test_absurd_header(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        load_model(path)


@pytest.mark.parametrize("size", [10**9, 10**30, 1500])
@pytest.mark.parametrize("name", ["hidden_channels", "num_rbf", "num_interactions"])
def test_absurd_sizes_are_not_allocated(path: Path, name: str, size: int) -> None:
    weights, metadata = content_of(path)
    for part in metadata["model"].values():
        if name in part:
            part[name] = size
    write(path, weights, metadata)
    with pytest.raises(ModelFileError, match=r"cannot be built.*the file has \d+ values"):
        load_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": []}, "units must be a JSON object, got \\[\\]"),
        ({"provenance": None}, "provenance must be a JSON object, got None"),
        ({"provenance": {"data": {"elements": 5}}}, "provenance .* is damaged"),
        ({"provenance": {"result": {"val": {"dipole_mae": "x"}}}}, "provenance .* is damaged"),
        ({"format_version": [2]}, "format version"),
        ({"model": {"representation": {}, "head": {}}}, "no representation 'None'"),
    ],
)
def test_metadata_of_wrong_types(path: Path, changes: dict[str, object], message: str) -> None:
    weights, metadata = content_of(path)
    write(path, weights, {**metadata, **changes})
    with pytest.raises(ModelFileError, match=message):
        load_model(path)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "[" * 100_000, '{"a":' + "1" * 6000])
def test_metadata_that_are_no_object(path: Path, text: str) -> None:
    write(path, content_of(path)[0], text)
    with pytest.raises(ModelFileError, match=r"metadata of .* are damaged"):
        load_model(path)


def test_weights_of_wrong_types_or_values(path: Path) -> None:
    weights, metadata = content_of(path)
    one = weights[FIRST]
    for changed in (
        {name: values.long() for name, values in weights.items()},
        {name: values.to(torch.float8_e4m3fn) for name, values in weights.items()},
        {**weights, FIRST: one.double()},
        {**weights, FIRST: one * torch.nan},
        {**weights, FIRST: one * torch.inf},
        {**weights, FIRST: torch.tensor(1.0)},
        {**weights, FIRST: torch.empty(0, 10**12)},
        {**weights, "more": one.clone()},
        {},
    ):
        write(path, changed, metadata)
        with pytest.raises(ModelFileError, match=r"cannot be (used|built)|do not match"):
            load_model(path)


def test_damaged_error_bars(path: Path) -> None:
    weights, metadata = content_of(FOLDER / "painn-qm9.safetensors")
    for name in (name for name in weights if name.startswith("calibration.")):
        for values in (None, torch.ones(2, 3, 3), weights[name] > 0, weights[name] * torch.nan):
            if values is not None and name.endswith("elements") and values.dtype == torch.bool:
                continue  # the right type
            changed = {key: old for key, old in weights.items() if key != name}
            write(path, changed if values is None else {**changed, name: values}, metadata)
            with pytest.raises(ModelFileError, match=r"error bars .* are damaged|not finite"):
                load_model(path)
