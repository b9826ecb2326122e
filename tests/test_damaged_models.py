"""Damaged models and checkpoints: each is refused in words; nothing is unpickled."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipolegnn.cli.program import USAGE_ERROR, main
from dipolegnn.config import TrainConfig
from dipolegnn.data.storage import read_molecules
from dipolegnn.models import FOLDER, ModelFileError, load_model, save_model
from dipolegnn.training import RunFolder, fit
from dipolegnn.training.run_folder import AtomicCheckpointIO, read_checkpoint
from tests.training.toy import toy_model, toy_parts

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


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickled_object_is_never_made(tmp_path: Path) -> None:
    folder, file = tmp_path / "made", tmp_path / "checkpoints" / "last.ckpt"
    bomb = Bomb(folder)
    file.parent.mkdir()
    for write_bomb in (
        lambda: file.write_bytes(pickle.dumps(bomb, protocol=2)),
        lambda: torch.save({"epoch": bomb}, file),
        lambda: torch.save({"epoch": bomb}, file, _use_new_zipfile_serialization=False),
        lambda: file.write_bytes(saved(np.save, bomb)),
        lambda: file.write_bytes(saved(np.savez, bomb)),
    ):
        write_bomb()
        with pytest.raises(ModelFileError):
            load_model(file)
        with pytest.raises(ValueError, match=r"last\.ckpt cannot be read"):
            read_checkpoint(file)
        # Lightning's own argument does not change it.
        with pytest.raises(ValueError, match=r"last\.ckpt cannot be read"):
            AtomicCheckpointIO().load_checkpoint(file, weights_only=False)
        with pytest.raises(ValueError, match=r"last\.ckpt cannot be read as molecules"):
            read_molecules(file)
    assert not folder.exists()
    pickle.loads(pickle.dumps(bomb))
    assert folder.exists()  # it would have been made


def saved(save: Callable[..., None], content: object) -> bytes:
    file = io.BytesIO()
    save(file, np.array([content], dtype=object), allow_pickle=True)
    return file.getvalue()


UNPICKLING = {
    "dipolegnn/molecules/workers.py": {"pickle.loads"},  # from its own processes, by a pipe
    "dipolegnn/inference/ray.py": {"pickle.loads"},  # of its own tasks; users cannot add the column
}
LIBRARIES = {"pickle", "cPickle", "_pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}


def test_the_source_unpickles_no_file(project_root: Path) -> None:
    found: dict[str, set[str]] = {}
    for folder in ("dipolegnn", "datasets", "experiments"):
        for file in (project_root / folder).rglob("*.py"):
            names = unpickling(ast.parse(file.read_text(encoding="utf-8")))
            if names:
                found[file.relative_to(project_root).as_posix()] = names
    assert found == UNPICKLING


def unpickling(tree: ast.AST) -> set[str]:
    """Calls and imports in a program that can unpickle objects."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in LIBRARIES:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names if one.name in LIBRARIES - {"pickle"}}
        if not isinstance(node, ast.Call):
            continue
        call, options = ast.unparse(node.func), {x.arg: ast.unparse(x.value) for x in node.keywords}
        if (
            call in ("pickle.load", "pickle.loads", "pickle.Unpickler")
            or call.endswith(("read_pickle", "load_from_checkpoint"))
            or (call == "torch.load" and options.get("weights_only") != "True")
            or (call.endswith(".load") and options.get("allow_pickle", "False") != "False")
            or (call.endswith(".fit") and "ckpt_path" in options and "weights_only" not in options)
        ):
            found.add(call)
    return found


def test_the_search_for_unpickling_finds_it() -> None:
    for line in (
        *("pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "import dill"),
        *("np.load(f, allow_pickle=True)", "from pickle import loads", "import joblib"),
    ):
        assert unpickling(ast.parse(line)), line
    for line in ("torch.load(f, weights_only=True)", "np.load(f)", "import pickle", "json.load(f)"):
        assert not unpickling(ast.parse(line)), line


def test_damaged_checkpoints(tmp_path: Path) -> None:
    run, data = tmp_path / "run", toy_parts()
    config = TrainConfig(max_epochs=1, batch_size=16, accelerator="cpu")
    fit(toy_model(), *data, config, run, progress=False)
    folder = RunFolder(run)
    folder.metrics.unlink()
    whole, good = folder.last.read_bytes(), read_checkpoint(folder.last)
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        folder.last.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"last\.ckpt cannot be read .*another folder"):
            read_checkpoint(folder.last)
    generator = random.Random(0)
    for _ in range(60):
        changed = bytearray(whole)
        for _ in range(8):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        folder.last.write_bytes(changed)
        with suppress(ValueError):
            read_checkpoint(folder.last)
    weights = good["state_dict"]
    first = next(iter(weights))
    for content, message in (
        ([1], "not a checkpoint of a training run"),
        ({**good, "optimizer_states": []}, "optimizer_states are missing or of another type"),
        ({**good, "state_dict": {**weights, first: torch.ones(3)}}, "does not fit the model"),
        ({**good, "state_dict": {}}, "does not fit the model"),
    ):
        torch.save(content, folder.last)
        with pytest.raises(ValueError, match=message):
            fit(toy_model(), *data, config, run, resume=True, progress=False)
