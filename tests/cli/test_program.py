from __future__ import annotations

import json
from pathlib import Path

import pytest

import dipolegnn
from dipolegnn.cli import main
from tests.cli.helpers import assert_message, run_python


@pytest.mark.parametrize(
    ("command", "units"),
    [
        ("build", ["eV/angstrom", "kelvin", "0.001 D", "in debye"]),
        ("train", ["in angstrom", "in debye", "MINUTES"]),
        ("evaluate", ["in debye"]),
        ("predict", ["in debye", "in kelvin"]),
        ("export", ["in angstrom", "in debye", "in e"]),
    ],
)
def test_help_fits_a_terminal_and_states_units(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    units: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "88")

    assert main([command, "--help"]) == 0

    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) < 100
    text = " ".join(out.replace("│", " ").split())
    for unit in units:
        assert unit in text
    assert "Exit status: 0" in text


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("build", "train", "evaluate", "predict", "export"):
        assert f"  {command} " in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dipolegnn {dipolegnn.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing"),
        (["predit"], "there is no command 'predit'"),
        (["train"], "--data"),
        (["train", "--data", "x", "--output", "y", "--lr", "fast"], "--lr"),
        (["train", "--data", "x", "--output", "y", "--outpt", "z"], "--outpt"),
        (["train", "--data", "x", "--output", "y", "--cutoff", "-1"], "cutoff must be a positive"),
        (["train", "--data", "nowhere", "--output", "y"], "dipolegnn build INPUT --output nowhere"),
        (["evaluate", "no.safetensors", "--data", "x", "--output", "y"], "no.safetensors"),
    ],
)
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert_message(capsys, message)
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_it_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluate", "no.safetensors", "--data", "x", "--output", "y"]
    with pytest.raises(FileNotFoundError):
        main([*words, "--debug"])
    monkeypatch.setenv("DIPOLEGNN_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(words)


def test_a_bug_keeps_its_traceback(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise AssertionError("cannot happen")

    monkeypatch.setattr("dipolegnn.inference.pipeline.predict", bug)
    with pytest.raises(AssertionError, match="cannot happen"):
        main(["predict", "O", "--model", str(trained)])


def test_help_comes_up_without_the_heavy_libraries(project_root: Path) -> None:
    run_python(
        "import sys\n"
        "from dipolegnn.cli import main\n"
        "assert main(['train', '--help']) == 0\n"
        "heavy = {'torch', 'rdkit', 'pytorch_lightning', 'matplotlib', 'numba', 'ase'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n",
        project_root,
    )


def test_predict_writes_nothing_but_json_and_loads_no_training_code(
    project_root: Path, trained: Path
) -> None:
    done = run_python(
        "import sys\n"
        "from dipolegnn.cli import main\n"
        f"status = main(['predict', 'O', '--json', '--model', {str(trained)!r}])\n"
        "heavy = {'pytorch_lightning', 'tensorboard', 'matplotlib', 'tblite', 'pyscf'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sys.exit(status)\n",
        project_root,
    )

    assert json.loads(done.stdout)["molecules"][0]["smiles"] == "O"
    assert done.stderr == ""
