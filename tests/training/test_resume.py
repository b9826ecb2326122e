from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from os import getpid, kill
from pathlib import Path
from typing import Any

import pytest
import torch

from dipolegnn._pyg import Data
from dipolegnn.config import TrainConfig
from dipolegnn.nn import DipoleModel
from dipolegnn.training import FitResult, RunFolder, TrainingInterrupted, fit
from dipolegnn.training.run_folder import read_json, write_json
from tests.training.toy import toy_model, toy_parts

MOLECULES_PER_EPOCH = 26 + 7  # training and validation molecules of the toy data
EPOCHS = 5
PLATEAU = TrainConfig(
    max_epochs=EPOCHS,
    batch_size=8,
    lr=0.1,
    scheduler="plateau",
    plateau_patience=0,
    plateau_cooldown=0,
    early_stopping_patience=3,
    accelerator="cpu",
)
ONECYCLE = TrainConfig(max_epochs=EPOCHS, batch_size=8, accelerator="cpu")
COSINE = TrainConfig(
    max_epochs=EPOCHS, batch_size=26, scheduler="cosine", ema_decay=None, accelerator="cpu"
)


class Interrupt:
    """A transform that does something when the given number of molecules has been loaded."""

    def __init__(self, after: int, action: Callable[[], None]) -> None:
        self.left = after
        self.action = action

    def __call__(self, data: Data) -> Data:
        self.left -= 1
        if self.left == 0:
            self.action()
        return data


def fail() -> None:
    raise RuntimeError("the power went out")


def run(
    path: Path, config: TrainConfig, interrupt: Interrupt | None = None, resume: bool = False
) -> FitResult[DipoleModel]:
    dataset, split = toy_parts()
    dataset.transform = interrupt
    return fit(toy_model(), dataset, split, config, path, resume=resume, progress=False)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, wherever the test runs."""
    # By its module's name dipolegnn.training has the function.
    monkeypatch.setattr(import_module("dipolegnn.training.fit"), "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def state(path: Path) -> dict[str, object]:
    """A checkpoint, as flat names and values, less what depends on where and how fast it ran.

    Lightning writes down ``current_score`` and never uses or restores it.
    """
    flat: dict[str, object] = {}

    def flatten(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                flatten(f"{name}/{key}", inner)
        elif isinstance(value, (list, tuple)):
            for i, inner in enumerate(value):
                flatten(f"{name}/{i}", inner)
        elif not name.endswith(("/seconds", "/dirpath", "_model_path", "/current_score")):
            flat[re.sub(r"(best_k_models)/.*", r"\1", name)] = value  # its keys are paths

    flatten("", torch.load(path, weights_only=True))
    return flat


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a == b


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        a, b = (state(getattr(RunFolder(run), name)) for run in (one, other))
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert equal(value, b[key]), f"{name}.ckpt differs in {key}: {value} and {b[key]}"
    histories = []
    for folder in (one, other):
        with RunFolder(folder).history.open() as file:
            histories.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert histories[0] == histories[1]
    assert RunFolder(one).metrics.read_bytes() == RunFolder(other).metrics.read_bytes()


@pytest.mark.parametrize("config", [PLATEAU, ONECYCLE, COSINE], ids=lambda c: c.scheduler)
@pytest.mark.parametrize(
    "where", [10, 2 * MOLECULES_PER_EPOCH - 3, 3 * MOLECULES_PER_EPOCH + 5], ids=str
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    tmp_path: Path, config: TrainConfig, where: int
) -> None:
    # In the first epoch, during validation, and in the middle of training.
    whole = run(tmp_path / "whole", config)
    with pytest.raises(RuntimeError, match="the power went out"):
        run(tmp_path / "cut", config, Interrupt(where, fail))
    assert not RunFolder(tmp_path / "cut").metrics.exists()
    resumed = run(tmp_path / "cut", config, resume=True)

    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    assert whole.best_epoch == resumed.best_epoch


def test_the_plateau_schedule_acts_in_the_run_above(tmp_path: Path) -> None:
    # Otherwise that test could not tell a lost step of the schedule.
    run(tmp_path, PLATEAU)
    with RunFolder(tmp_path).history.open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert min(rates) < PLATEAU.lr
    assert len(rates) > 3


@pytest.mark.usefixtures("two_threads")
def test_a_run_killed_by_sigkill_can_be_resumed(tmp_path: Path, project_root: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.training.test_resume import ONECYCLE, Interrupt, run\n"
        "import time\n"
        f"run(Path(sys.argv[1]), ONECYCLE, Interrupt({2 * MOLECULES_PER_EPOCH + 5},"
        " lambda: time.sleep(300)))\n"
    )
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(cut)],
        cwd=project_root,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    try:
        deadline = time.monotonic() + 120
        while not history_has(cut, rows=2):
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "the run did not get to its third epoch"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    run(tmp_path / "whole", ONECYCLE)
    torch.set_num_threads(1)
    run(cut, ONECYCLE, resume=True)
    assert_same_run(tmp_path / "whole", cut)


@pytest.mark.usefixtures("two_threads")
def test_a_resumed_run_takes_up_the_threads_that_it_was_started_with(tmp_path: Path) -> None:
    used: list[int] = []

    def note_and_fail() -> None:
        used.append(torch.get_num_threads())
        fail()

    with pytest.raises(RuntimeError, match="the power went out"):
        run(tmp_path, ONECYCLE, Interrupt(MOLECULES_PER_EPOCH + 5, note_and_fail))
    torch.set_num_threads(1)
    with pytest.raises(RuntimeError, match="the power went out"):
        run(tmp_path, ONECYCLE, Interrupt(5, note_and_fail), resume=True)
    assert used == [2, 2]
    assert torch.get_num_threads() == 1
    assert read_json(RunFolder(tmp_path).config)["threads"] == 2


@pytest.mark.usefixtures("two_threads")
def test_a_run_with_more_threads_than_cores_here_is_resumed_with_a_warning(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the power went out"):
        run(tmp_path, ONECYCLE, Interrupt(MOLECULES_PER_EPOCH + 5, fail))
    config = RunFolder(tmp_path).config
    write_json(config, {**read_json(config), "threads": 64})
    with pytest.warns(UserWarning, match="started with 64 threads, and this machine has 2 cores"):
        run(tmp_path, ONECYCLE, resume=True)


def history_has(path: Path, rows: int) -> bool:
    history = RunFolder(path).history
    # The checkpoint is written after the row.
    return history.exists() and len(history.read_text().splitlines()) > rows


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_keeps_the_last_epoch_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    handler = signal.getsignal(number)
    interrupt = Interrupt(2 * MOLECULES_PER_EPOCH + 5, lambda: kill(getpid(), number))
    with pytest.raises(TrainingInterrupted, match=r"2 complete epochs.*last\.ckpt.*--resume"):
        run(tmp_path / "cut", ONECYCLE, interrupt)
    assert signal.getsignal(number) is handler
    run(tmp_path / "cut", ONECYCLE, resume=True)
    run(tmp_path / "whole", ONECYCLE)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("interruptible")
def test_a_signal_in_the_first_epoch_says_that_nothing_is_saved(tmp_path: Path) -> None:
    interrupt = Interrupt(5, lambda: kill(getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match="before the first epoch"):
        run(tmp_path, ONECYCLE, interrupt)


def test_a_moved_run_keeps_its_best_epoch(tmp_path: Path) -> None:
    # At this rate the loss goes up and down, so the best epoch is not the last.
    with pytest.raises(RuntimeError, match="the power went out"):
        run(tmp_path / "here", PLATEAU, Interrupt(3 * MOLECULES_PER_EPOCH + 5, fail))
    shutil.move(tmp_path / "here", tmp_path / "there")
    run(tmp_path / "there", PLATEAU, resume=True)
    run(tmp_path / "whole", PLATEAU)
    assert_same_run(tmp_path / "whole", tmp_path / "there")


def test_a_run_that_had_stopped_early_stops_again_when_resumed(tmp_path: Path) -> None:
    # Killed after its last epoch and before the model was saved.
    config = TrainConfig(
        max_epochs=50,
        batch_size=8,
        lr=0.1,
        scheduler="plateau",
        plateau_patience=50,
        early_stopping_patience=1,
        accelerator="cpu",
    )
    first = run(tmp_path, config)
    assert first.stopped_by == "early_stopping"
    folder = RunFolder(tmp_path)
    rows = folder.history.read_text()
    assert 2 < len(rows.splitlines()) < 50
    folder.metrics.unlink()
    folder.model.unlink()
    second = run(tmp_path, config, resume=True)
    assert folder.history.read_text() == rows
    assert second.stopped_by == "early_stopping"
    assert second.best_epoch == first.best_epoch


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(tmp_path, ONECYCLE)
    before = RunFolder(tmp_path).last.stat().st_mtime_ns
    second = run(tmp_path, ONECYCLE, resume=True)
    assert RunFolder(tmp_path).last.stat().st_mtime_ns == before
    assert second.metrics == first.metrics


def test_resume_starts_a_run_where_there_is_none(tmp_path: Path) -> None:
    assert run(tmp_path / "new", ONECYCLE, resume=True).stopped_by == "max_epochs"


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, COSINE)
    model = RunFolder(tmp_path).model.read_bytes()
    with pytest.raises(FileExistsError, match=r"finished.*--resume.*another folder"):
        run(tmp_path, COSINE)
    assert RunFolder(tmp_path).model.read_bytes() == model


def test_another_configuration_cannot_be_resumed(tmp_path: Path) -> None:
    run(tmp_path, ONECYCLE)
    other = TrainConfig(max_epochs=EPOCHS + 1, batch_size=8, lr=0.01, accelerator="cpu")
    with pytest.raises(ValueError, match=r"train.lr was 0.001 and is 0.01; train.max_epochs was 5"):
        run(tmp_path, other, resume=True)


def test_other_data_cannot_be_resumed_with(tmp_path: Path) -> None:
    run(tmp_path, ONECYCLE)
    with pytest.raises(ValueError, match=r"data.split_sha256 was"):
        fit(toy_model(), *toy_parts(60), ONECYCLE, tmp_path, resume=True, progress=False)


def test_a_plateau_run_can_be_made_longer(tmp_path: Path) -> None:
    short = TrainConfig(max_epochs=2, batch_size=8, scheduler="plateau", accelerator="cpu")
    longer = TrainConfig(max_epochs=4, batch_size=8, scheduler="plateau", accelerator="cpu")
    run(tmp_path / "a", short)
    run(tmp_path / "a", longer, resume=True)
    run(tmp_path / "b", longer)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_from_before_an_option_existed_can_be_resumed(tmp_path: Path) -> None:
    first = run(tmp_path, ONECYCLE)
    folder = RunFolder(tmp_path)
    config: Any = read_json(folder.config)
    for part, option in (
        ("train", "charge_loss"),
        ("representation", "levels"),
        ("head", "charge_weights"),
    ):
        assert not (config[part] if part == "train" else config["model"][part]).pop(option)
    write_json(folder.config, config)
    assert run(tmp_path, ONECYCLE, resume=True).metrics == first.metrics
    with pytest.raises(ValueError, match=r"train.charge_loss was 0.0 and is 1.0"):
        run(tmp_path, replace(ONECYCLE, charge_loss=1.0), resume=True)
