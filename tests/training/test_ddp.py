"""Training on two devices is training on one with twice the batch size."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dipolegnn._pyg import Batch
from dipolegnn.cli.program import INTERRUPTED
from dipolegnn.config import ModelConfig
from dipolegnn.data import About, random_split, save_dataset
from dipolegnn.models import load_model
from dipolegnn.molecules import Molecules, make_data
from dipolegnn.nn import DipoleModel
from dipolegnn.training import FitResult, RunFolder, fit, read_history
from tests.training.toy import ToyDataset, dipole_loss, toy_model, toy_parts
from tests.training.two_processes import IMPATIENT, ONE, TEST, TRAIN_WORDS, TWO, VALIDATION, data

SECONDS = 240
"""Longer than two processes take on a busy machine; one that waits for ever fails by then."""


class Both(NamedTuple):
    """What two processes have come to."""

    folder: Path
    reports: list[dict[str, Any]]
    output: str


# All tests use the same two processes, so they run in one.
pytestmark = pytest.mark.xdist_group("ddp")


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def wait_for_epochs(run: RunFolder, epochs: int, processes: list[subprocess.Popen[str]]) -> None:
    """Waits until the processes have trained this many epochs."""
    deadline = time.monotonic() + SECONDS
    while not (run.last.exists() and len(read_history(run.history)) >= epochs):
        assert [process.poll() for process in processes] == [None] * len(processes)
        assert time.monotonic() < deadline, f"the run did not get to epoch {epochs + 1}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Both:
    """Two processes of ``torchrun``, which at last train until torchrun gets SIGTERM."""
    folder = tmp_path_factory.mktemp("both")
    stretched = [
        make_data(
            [9, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.9 + 0.01 * k]], dipole_magnitude=1.8, mol_id=k
        )
        for k in range(20)
    ]
    about, split = About(name="stretched HF"), random_split(range(20))
    save_dataset(folder / "data", Molecules(stretched, []), about, split=split)
    worker = project_root / "tests" / "training" / "two_processes.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (folder / "output").open("w") as output, (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *torchrun, str(worker), str(folder)],
            env=environment(project_root),
            cwd=project_root,
            stdout=output,
            stderr=errors,
            text=True,
        )
        try:
            wait_for_epochs(RunFolder(folder / "endless"), 1, [process])
            process.terminate()
            process.wait(timeout=SECONDS / 4)
        finally:
            process.kill()
            process.wait()
            print((folder / "errors").read_text())  # shown if this fails
    reports = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return Both(folder, reports, (folder / "output").read_text())


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult[DipoleModel]]:
    """One process that sees as many molecules per step."""
    folder = tmp_path_factory.mktemp("one")
    return folder, fit(toy_model(), *data(), ONE, folder, test=True, progress=False)


@pytest.mark.parametrize("run", ["usual", "loader"])
def test_two_devices_train_as_one_with_the_batch_of_both(
    both: Both, one: tuple[Path, FitResult[DipoleModel]], run: str
) -> None:
    # Weights, their average, the gradient's norm, the schedule; labels that are not as many on
    # both; batches cut out of arrays, and made by PyG.
    folder = RunFolder(both.folder / run)
    model = load_model(folder.model)
    provenance = model.card.provenance
    assert provenance["devices"] == 2
    for name, weight in one[1].model.state_dict().items():
        # The gradient of the last bias is 0 but for rounding, because charges are made to add up;
        # Adam divides that by its own size and 1e-8.
        atol = 1e-8 if name == "head.blocks.1.scalars.2.bias" else 1e-11
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-9, atol=atol)
    rows, expected = read_history(folder.history), read_history(RunFolder(one[0]).history)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row, like in zip(rows, expected, strict=True):
        assert row.keys() == like.keys()
        for name in row.keys() - {"seconds"}:
            assert row[name] == pytest.approx(like[name], rel=1e-9), name


def test_every_molecule_is_validated_once(both: Both) -> None:
    shares = [report["seen"] for report in both.reports]
    assert len(shares[0]) == len(shares[1]) == TWO.max_epochs
    for first, second in zip(*shares, strict=True):
        assert sorted(first + second) == list(VALIDATION)
        assert abs(len(first) - len(second)) == 1


def test_both_return_the_metrics_of_all_molecules(
    both: Both, one: tuple[Path, FitResult[DipoleModel]]
) -> None:
    assert len(TEST) % 2 == 1
    first, second = both.reports
    assert first["metrics"] == second["metrics"]
    for part in ("val", "test"):
        assert first["metrics"][part] == pytest.approx(dict(one[1].metrics[part]), rel=1e-9)
    assert first["best_epoch"] == second["best_epoch"] == one[1].best_epoch


def test_one_writes_and_prints(both: Both) -> None:
    folder = RunFolder(both.folder / "usual")
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "checkpoints",
        "config.json",
        "history.csv",
        "metrics.json",
        "model.safetensors",
        "tensorboard",
    ]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(list(folder.tensorboard.glob("events.*"))) == 1
    assert json.loads(folder.config.read_text())["devices"] == 2
    begins = ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert [line[:9] for line in printed(both)[:3]] == begins


def printed(both: Both) -> list[str]:
    """The lines of all runs but the one that ends by a signal."""
    lines = [line for line in both.output.splitlines() if not line.startswith("[Gloo]")]
    return [line for line in lines if "Interrupted after" not in line]


def test_the_command(both: Both) -> None:
    assert [report["status"] for report in both.reports] == [0, 0]
    begins = [f"{both.folder / 'data'}: ", "epoch 1/2", "epoch 2/2"]
    begins += ["val: ", "test: ", "model: ", "history: "]
    lines = printed(both)[3:]
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins
    run = RunFolder(both.folder / "command")
    assert len(read_history(run.history)) == 2
    assert load_model(run.model).card.provenance["devices"] == 2


def test_a_signal_to_torchrun_stops_both(both: Both) -> None:
    for rank, report in enumerate(both.reports):
        assert f"process {rank}: Interrupted after" in both.output
        with pytest.raises(ProcessLookupError):
            os.kill(report["pid"], 0)


def test_both_stop_at_the_same_epoch(both: Both) -> None:
    expected = ["max_epochs", "max_epochs", "time_limit", "max_epochs", "early_stopping"]
    assert [report["stopped_by"][:5] for report in both.reports] == [expected, expected]
    epochs = len(read_history(RunFolder(both.folder / "early").history))
    assert epochs < IMPATIENT.max_epochs


def test_a_resumed_run_is_the_uninterrupted_one(both: Both) -> None:
    runs = [RunFolder(both.folder / run) for run in ("usual", "cut")]
    whole, resumed = (load_model(run.model).state_dict() for run in runs)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    assert len(read_history(runs[1].history)) == TWO.max_epochs


def test_an_existing_run_stops_both(both: Both) -> None:
    first, second = (report["refused"] for report in both.reports)
    assert first.startswith(f"FileExistsError: {both.folder / 'usual'} already contains a run")
    assert second.startswith("FirstProcessFailed: The first process failed with FileExistsError")


def test_two_processes_do_not_train_one_device_each_in_one_folder(both: Both) -> None:
    for report in both.reports:
        assert "one process per device, got 2 process(es)" in report["alone"]


def test_resuming_needs_as_many_devices(both: Both) -> None:
    with pytest.raises(ValueError, match=r"another configuration: devices was 2 and is 1\. Resume"):
        fit(toy_model(), *data(), TWO, both.folder / "usual", resume=True)


def test_a_run_of_an_earlier_version_had_one_device(tmp_path: Path) -> None:
    config = replace(TWO, max_epochs=1)
    fit(toy_model(), *data(), config, tmp_path, progress=False)
    folder = RunFolder(tmp_path)
    content = json.loads(folder.config.read_text())
    del content["devices"]
    folder.config.write_text(json.dumps(content))
    result = fit(toy_model(), *data(), config, tmp_path, progress=False, resume=True)
    assert result.stopped_by == "max_epochs"


@pytest.mark.usefixtures("interruptible")
def test_two_nodes_of_slurm(both: Both, tmp_path: Path, project_root: Path) -> None:
    """The command on two nodes trains as on two devices of one, until Ctrl-C of srun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_LOCALID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    run = RunFolder(tmp_path / "nodes")
    words = ["--data", str(both.folder / "data"), "--output", str(run.path), *TRAIN_WORDS]
    words += ["--num-nodes", "2", "--max-epochs", "100000"]
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "dipolegnn", "train", *words],
            env=environment(project_root) | job | {"SLURM_PROCID": rank, "SLURM_NODEID": rank},
            cwd=project_root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        wait_for_epochs(run, 2, tasks)
        for task in tasks:
            task.send_signal(signal.SIGINT)
        errors = [task.communicate(timeout=SECONDS / 4)[1] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    assert [task.returncode for task in tasks] == [INTERRUPTED, INTERRUPTED], errors
    # The first reports.
    assert ["Interrupted after" in text for text in errors] == [True, False], errors
    one_node = read_history(RunFolder(both.folder / "command").history)
    for row, like in zip(one_node, read_history(run.history)[:2], strict=True):
        assert row | {"seconds": 0} == like | {"seconds": 0}


@pytest.mark.parametrize(
    ("devices", "num_nodes", "message"),
    [(0, 1, "devices must be at least 1, got 0"), (1, -1, "num_nodes must be at least 1, got -1")],
)
def test_numbers_of_devices_that_cannot_be(
    tmp_path: Path, devices: int, num_nodes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(toy_model(), *data(), ONE, tmp_path, devices=devices, num_nodes=num_nodes)


def test_more_gpus_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = replace(ONE, accelerator="gpu"), toy_model()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="devices is 3, and PyTorch finds 2 CUDA devices"):
        fit(model, *data(), config, tmp_path, devices=3)


def test_another_number_of_processes_than_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"Training on 1 device.* got 2 process"):
        fit(toy_model(), *data(), ONE, tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setattr("shutil.which", lambda *_: None)  # no srun, nor Lightning's advice on it
    with pytest.raises(ValueError, match=r"Training on 2 device.* got 4 process"):
        fit(toy_model(), *data(), ONE, tmp_path, devices=2)


def test_without_torchrun_the_error_states_the_command(tmp_path: Path) -> None:
    for num_nodes, words in ((1, "torchrun"), (2, "torchrun --nnodes 2")):
        with pytest.raises(ValueError, match=f"{words} --nproc-per-node 2 -m dipolegnn train"):
            fit(toy_model(), *data(), TWO, tmp_path, devices=2, num_nodes=num_nodes)


@pytest.mark.parametrize("head", ["dipole", "charges", "atomwise"])
@pytest.mark.parametrize("representation", ["painn", "schnet"])
def test_every_weight_gets_a_gradient_from_every_batch(representation: Any, head: Any) -> None:
    # Otherwise DDP would need find_unused_parameters.
    model = toy_model(config=ModelConfig(representation, 8, 2, 5, head=head))
    only_magnitudes, lone_atoms = list(ToyDataset(3, vectors=False)), list(ToyDataset(2))
    for molecule in lone_atoms:
        molecule.pos = 100 * molecule.pos
    for kernels, molecules in product(("auto", "plain"), (only_magnitudes, lone_atoms)):
        model.zero_grad()
        model.kernels = kernels
        batch = Batch.from_data_list(molecules)
        dipole_loss(model(batch), batch, ONE).backward()
        without = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert without == []


def test_fewer_test_molecules_than_devices_are_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    few, split = toy_parts(10)
    split = replace(split, test=split.test[:1])
    with pytest.raises(ValueError, match="The test part has 1 structures for 2 devices"):
        fit(toy_model(), few, split, TWO, tmp_path, devices=2, test=True)
    assert list(tmp_path.iterdir()) == []
