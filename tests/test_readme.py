"""The examples of the README and of docs/ are run as they stand there, on a few molecules.

``<!-- run -->`` before a block marks it as runnable. The blocks of a page run in order, in one
folder and, where they are Python, in one namespace. ``<!-- output -->`` marks what the block before
prints: these words in this order, and the numbers to the accuracy that is stated here.

With DIPOLEGNN_REWRITE=1 (``make outputs``) the numbers on the pages are replaced by those printed:
for new weights. The words still have to agree.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dipolegnn.cli import main
from dipolegnn.data import About, random_split, save_dataset
from dipolegnn.molecules import Molecules, make_data

SMILES = ["O", "CO", "C", "C=O", "C#N", "CF"]
ROOT = Path(__file__).resolve().parent.parent
REWRITE = os.environ.get("DIPOLEGNN_REWRITE") == "1"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] + [
    page
    for folder in ("howto", "explanation")
    for page in sorted((ROOT / "docs" / folder).glob("*"))
]
NEEDS = {
    "onnx": ["onnx", "onnxruntime", "onnxscript"],
    "parquet": ["pyarrow"],
    "tblite": ["tblite"],
    "XTBConfig": ["tblite"],
    "--label xtb": ["tblite"],
}
"""What a page needs, by a word that occurs in its runnable blocks."""

ATOL = 0.02
"""Debye. Geometries of a force field differ between versions of RDKit: 0.01 D was seen."""

BLOCK = re.compile(
    r"^<!-- (run|output|ray) -->\n```(bash|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?![\w.])")


class Block(NamedTuple):
    """One marked block of a page."""

    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


RUNNABLE = [page for page in PAGES if any(block.mark == "run" for block in blocks(page))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the examples run, with the files that they read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "molecules.csv").write_text("smiles\n" + "\n".join(SMILES) + "\n")
    (tmp_path / "molecules.smi.gz").write_bytes(gzip.compress("\n".join(SMILES[:4]).encode()))
    stretched = [
        make_data(
            [9, 1],
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.9 + 0.01 * k]],
            dipole=[0.0, 0.0, 1.8 + 0.02 * k],
            mol_id=k,
        )
        for k in range(20)
    ]
    about = About(name="few", description="Stretched HF", level_of_theory="made up")
    save_dataset(
        tmp_path / "datasets" / "small_molecules",
        Molecules(stretched, []),
        about,
        split=random_split(range(20)),
    )
    return tmp_path


def words(text: str) -> list[str]:
    """The words of a text without the frames of tables and with # for each decimal number."""
    return NUMBER.sub("#", re.sub(r"[│┃━─┏┳┓┡╇┩└┴┘]", " ", text)).split()


def with_numbers(line: str, numbers: list[str]) -> str:
    """The line with these decimal numbers, right-aligned where the ones before were longer."""
    rest = iter(numbers)
    return NUMBER.sub(lambda match: next(rest).rjust(len(match[0])), line)


def check_output(expected: str, printed: str) -> str:
    """Every line of ``expected`` begins a line of ``printed``, in this order.

    Returns ``expected`` with the printed numbers.
    """
    lines = [line for line in printed.splitlines() if words(line)]
    renewed = []
    for line in expected.splitlines():
        wanted = words(line)
        if not wanted:
            renewed.append(line)
            continue
        while lines and words(lines[0])[: len(wanted)] != wanted:
            lines.pop(0)
        assert lines, f"not printed: {line}\nprinted:\n{printed}"
        numbers = NUMBER.findall(line)
        found = NUMBER.findall(lines.pop(0))[: len(numbers)]
        if not REWRITE:
            assert [float(n) for n in found] == pytest.approx(
                [float(n) for n in numbers], abs=ATOL
            ), line
        renewed.append(with_numbers(line, found))
    return "\n".join([*renewed, ""])


@pytest.mark.parametrize("page", RUNNABLE, ids=named)
def test_examples(page: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marked = blocks(page)
    text = "\n".join(block.text for block in marked if block.mark == "run")
    for word, modules in NEEDS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if word in text and missing:
            pytest.skip(f"{', '.join(missing)} is not installed")
    namespace: dict[str, Any] = {}
    printed = ""
    for block in marked:
        if block.mark == "output":
            renewed = check_output(block.text, printed)
            if REWRITE:
                content = page.read_text(encoding="utf-8")
                page.write_text(content.replace(block.text, renewed, 1), encoding="utf-8")
        elif block.language == "bash":
            for line in block.text.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "dipolegnn", line
                assert main(arguments) == 0, line
            printed = capfd.readouterr().out
        elif block.mark == "run":
            exec(compile(block.text, str(page), "exec"), namespace)
            printed = capfd.readouterr().out


def test_the_readme_has_an_example_and_the_commands() -> None:
    readme = blocks(ROOT / "README.md")
    (example,) = (block.text for block in readme if block.language == "python")
    assert len([line for line in example.splitlines() if line]) <= 10
    (commands,) = (block.text for block in readme if "dipolegnn build" in block.text)
    # Run once, shown twice.
    assert commands in (ROOT / "docs" / "howto" / "own_data.md").read_text(encoding="utf-8")
    assert {"tutorial_chemists", "tutorial_pyg"} <= {page.stem for page in RUNNABLE}


@pytest.mark.xdist_group("ray")  # one cluster
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning:ray.data.context")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ray(ray_cluster: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (b for b in blocks(ROOT / "docs" / "howto" / "clusters.md") if b.mark == "ray")
    # Other processes write it, from a folder of their own.
    text = block.text.replace('"predicted"', repr(str(folder / "predicted")))
    exec(compile(text, "clusters.md", "exec"), {})
    assert "Counts(molecules=2, failures=1)" in capsys.readouterr().out
    assert list((folder / "predicted").glob("*.parquet"))


def test_a_third_representation_is_one_file(folder: Path) -> None:
    """The class of the page, as if it were a module of dipolegnn.nn: all commands have it."""
    page = ROOT / "docs" / "howto" / "own_representation.md"
    code = next(block.text for block in blocks(page) if "class Minimal" in block.text)
    words = ["train", "--data", "datasets/small_molecules", "--output", "run", "--quiet"]
    words += ["--representation", "minimal", "--hidden-channels", "16", "--max-epochs", "1"]
    commands = [
        words,
        ["predict", "CCO", "--model", "run"],
        ["evaluate", "run", "--data", "datasets/small_molecules", "--output", "measured"],
        ["export", "run", "--output", "run.pt2"],
    ]
    script = f"""
import sys, types
import dipolegnn.nn
from dipolegnn.cli import main
module = sys.modules["dipolegnn.nn.minimal"] = types.ModuleType("dipolegnn.nn.minimal")
exec({code!r}, module.__dict__)
for words in {commands!r}:
    assert main(words) == 0, words
print(dipolegnn.load_model("run").config["representation"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        "{'class': 'Minimal', 'hidden_channels': 16, 'num_rbf': 20, 'cutoff': 5.0}" in done.stdout
    )
    assert (folder / "run.pt2").exists()


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_named_files_targets_and_links_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:dipolegnn|datasets|experiments)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)`", text)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        target = page.parent / link
        # The pages of the reference are made from the docstrings when the site is built.
        assert target.exists() or target.parent.name == "reference", link


def test_the_site_builds(project_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "class=" in (tmp_path / "reference" / "nn.html").read_text()
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    loaded = [
        re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://[^"]*"', p) for p in pages
    ]
    assert not any(loaded), loaded
