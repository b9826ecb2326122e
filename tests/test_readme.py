"""What the README shows is run as it stands there, on a data set of few molecules."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dipolegnn.cli import main
from dipolegnn.data import About, random_split, save_dataset
from dipolegnn.molecules import Molecules, make_data

SMILES = ["C", "O", "N", "CO", "CN", "CF", "CCl", "CS", "C=O", "CC", "CCO", "C#N"]


def blocks(project_root: Path, language: str) -> list[str]:
    text = (project_root / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the examples run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_example(
    project_root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    molecules = [
        make_data(
            [9, 1],
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.9 + 0.01 * k]],
            dipole=[0.0, 0.0, 1.8 + 0.02 * k],
            mol_id=k,
        )
        for k in range(20)
    ]
    about = About(
        name="few",
        description="Stretched HF",
        licence="CC0-1.0",
        citation="none",
        level_of_theory="made up",
        geometry="made up",
        seed=0,
        created_by="a test",
    )
    save_dataset(
        folder / "datasets" / "small_molecules",
        Molecules(molecules, []),
        about,
        split=random_split(range(20)),
    )
    (code,) = blocks(project_root, "python")
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    error, water = capsys.readouterr().out.strip().splitlines()[-2:]
    assert re.fullmatch(r"\d+\.\d+ D", error)
    assert re.match(r"\d+\.\d+ D \[.*\] \[.*\]$", water)
    assert (folder / "runs" / "example" / "model.safetensors").is_file()


def test_commands(project_root: Path, folder: Path) -> None:
    (folder / "molecules.csv").write_text("smiles\n" + "\n".join(SMILES) + "\n")
    (block,) = (block for block in blocks(project_root, "sh") if "dipolegnn" in block)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [command[:2] for command in commands] == [
        ["dipolegnn", name] for name in ("build", "train", "evaluate", "predict")
    ]
    for command in commands:
        assert main(command[1:]) == 0, command
    assert (folder / "runs" / "mine" / "test" / "parity.png").is_file()


def test_large_files_and_other_programs(
    project_root: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for module in ("onnx", "onnxruntime", "onnxscript", "pyarrow"):
        pytest.importorskip(module)
    (folder / "molecules.smi.gz").write_bytes(gzip.compress("\n".join(SMILES[:4]).encode()))
    commands = [
        shlex.split(line)
        for block in blocks(project_root, "bash")
        for line in block.splitlines()
        if line.startswith(("dipolegnn predict", "dipolegnn export"))
    ]
    kinds = [".png", ".parquet", ".pt2", ".onnx"]
    assert [Path(command[-1]).suffix for command in commands] == kinds
    for command in commands:
        assert main(command[1:]) == 0, command
        assert Path(command[-1]).stat().st_size > 100
    assert "±" in capfd.readouterr().out
    for code in blocks(project_root, "py"):
        if "torch" in code or "onnxruntime" in code:
            run = [sys.executable, "-c", code]
            assert subprocess.run(run, check=False).returncode == 0, code
    in_torch, in_onnx = capfd.readouterr().out.split("tensor", maxsplit=1)[1].split("\n[")
    water = float(in_torch.strip("([").split(",")[0])
    assert water == pytest.approx(1.9, abs=0.3)
    assert float(in_onnx.split("]")[0]) == pytest.approx(water, abs=1e-4)


def test_in_ase(project_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in blocks(project_root, "py") if "from ase" in block)
    exec(compile(code, "README.md", "exec"), {})
    found = re.fullmatch(r"\[(.*)\] e·Å", capsys.readouterr().out.strip())
    assert found
    length = sum(float(word) ** 2 for word in found[1].split()) ** 0.5
    assert 4.803 * length == pytest.approx(2.75, abs=0.3)  # B3LYP, and experiment


def test_several_machines(
    project_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (code,) = (block for block in blocks(project_root, "py") if "import ray" in block)
    code = f"import ray\nray.init(num_cpus=2, include_dashboard=False)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Counts(molecules=2, failures=1)" in done.stdout
    assert list((folder / "predicted").glob("*.parquet"))


def test_named_files_and_targets_are_there(project_root: Path) -> None:
    text = (project_root / "README.md").read_text()
    for name in re.findall(r"`((?:dipolegnn|datasets|experiments)/[\w/.]*)`", text):
        assert (project_root / name).exists(), name
    makefile = (project_root / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)`", text)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
