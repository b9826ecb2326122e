"""What DESIGN promises about the shape of the project: who imports what, and what is tracked."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

LEVELS = [
    {"units", "files"},
    {"config", "_pyg"},
    {"metrics", "molecules", "ops"},
    {"labels", "plots"},
    {"nn"},
    {"data"},
    {"models", "calibrate"},
    {"training"},
    {"inference"},
    {"evaluation", "export"},
    {"app"},
    {"cli"},
    {"__main__"},
]
"""The parts of the package from the bottom up: each imports from those below it alone."""

ONLY_IN = {
    "rdkit": "molecules/",
    "torch_cluster": "nn/graph.py",
    "torch_geometric": "_pyg.py",
    "tblite": "labels/",
    "pyscf": "labels/",
    "pyarrow": "molecules/records.py",
    "ray": "inference/ray.py",
}
"""Where in the package a library may be imported."""

DISTRIBUTIONS = {"yaml": "pyyaml", "lightning_fabric": "pytorch-lightning"}
"""Distributions that are not named as what is imported from them."""

NOT_IMPORTED = {
    "torch-scatter": "PyG's segment uses it",
    "tensorboard": "Lightning's TensorBoardLogger writes with it",
}
"""Dependencies that others import, and who."""

PACKAGE = Path(__file__).resolve().parent.parent / "dipolegnn"
SOURCES = sorted(PACKAGE.rglob("*.py"))


class Import(NamedTuple):
    """One imported module, with the place of the import for the message."""

    module: str
    path: Path
    line: int

    @property
    def part(self) -> str:
        """The part of the package that imports: ``nn`` for ``dipolegnn/nn/painn.py``."""
        return self.path.relative_to(PACKAGE).parts[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE.parent)}:{self.line} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    """All that a file imports, in functions too, and by name (``import_module("...")``)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            # "from dipolegnn import nn" imports dipolegnn.nn.
            names = (
                [f"dipolegnn.{alias.name}" for alias in node.names]
                if node.module == "dipolegnn"
                else [node.module]
            )
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names = [
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        for name in names:
            yield Import(name, path, getattr(node, "lineno", 0))


ALL_IMPORTS = [found for path in SOURCES for found in imports_of(path)]


def rank(part: str) -> int:
    """Height of a part in LEVELS."""
    for height, level in enumerate(LEVELS):
        if part in level:
            return height
    raise AssertionError(f"dipolegnn/{part} has no place in LEVELS: where does it belong?")


def within_package() -> Iterator[tuple[Import, str]]:
    """Imports from one part of the package to another, each with the part that is imported."""
    for found in ALL_IMPORTS:
        # __init__ offers names of all parts, and fetches them when they are asked for.
        if found.part == "__init__" or not found.module.startswith("dipolegnn."):
            continue
        target = found.module.split(".")[1]
        if target not in (found.part, "__version__"):
            yield found, target


def test_every_part_has_its_level() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert len([rank(part) for part in parts - {"__init__"}]) >= 10


def test_no_module_reaches_all_others() -> None:
    """``import dipolegnn`` gives access to every part, whatever its level."""
    everything = [
        str(found)
        for found in ALL_IMPORTS
        if found.module == "dipolegnn" and found.part not in ("__init__", "__main__")
    ]
    assert not everything, "\n".join(everything)


def test_imports_point_downward() -> None:
    upward = [str(found) for found, target in within_package() if rank(target) >= rank(found.part)]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_each_library_is_imported_in_one_module(library: str) -> None:
    users = [found for found in ALL_IMPORTS if found.module.split(".")[0] == library]
    assert users, f"{library} is imported nowhere"
    strays = [
        str(found)
        for found in users
        if not found.path.relative_to(PACKAGE).as_posix().startswith(ONLY_IN[library])
    ]
    assert not strays, "\n".join(strays)


@pytest.mark.parametrize(
    ("pattern", "module"),
    [
        # PyG's segment, which calls torch-scatter.
        (r"_pyg\.segment\b|_pyg import [^\n]*\bsegment\b|\btorch_scatter\b", "nn/scatter.py"),
        (r"\btorch_cluster\.|[\"']torch_cluster[\"']", "nn/graph.py"),
    ],
)
def test_each_extension_is_used_in_one_module(pattern: str, module: str) -> None:
    users = [path for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8"))]
    assert [path.relative_to(PACKAGE).as_posix() for path in users] == [module]


def test_models_need_neither_lightning_nor_rdkit() -> None:
    below = {"nn"}
    while True:
        reached = {target for found, target in within_package() if found.part in below}
        if reached <= below:
            break
        below |= reached
    assert "ops" in below
    assert not below & {"data", "molecules"}
    roots = {found.module.split(".")[0] for found in ALL_IMPORTS if found.part in below}
    assert not roots & {"rdkit", "pytorch_lightning", "lightning", "lightning_fabric"}


def test_dependencies_are_those_imported(project_root: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}

    extras = project["optional-dependencies"]
    # Triton comes with torch where there is a GPU; the tests run its interpreter elsewhere.
    optional = {"triton"}.union(
        *(names(extras[extra]) for extra in ("xtb", "dft", "app", "parquet", "ray", "onnx"))
    )
    declared = names(project["dependencies"])
    imported = {
        DISTRIBUTIONS.get(root, root.replace("_", "-"))
        for root in (found.module.split(".")[0] for found in ALL_IMPORTS)
        if root != "dipolegnn" and root not in sys.stdlib_module_names
    }
    assert imported <= declared | optional
    assert declared - imported == set(NOT_IMPORTED)


def test_data_folder_is_no_package(project_root: Path) -> None:
    # It would shadow Hugging Face's "datasets" for whoever starts Python here.
    assert not (project_root / "datasets" / "__init__.py").exists()
    assert not (project_root / "experiments" / "__init__.py").exists()


def test_import_is_silent_and_light() -> None:
    code = (
        "import dipolegnn, sys\n"
        "loaded = {'torch', 'rdkit', 'torch_geometric', 'pytorch_lightning', 'numpy'}\n"
        "assert not loaded & set(sys.modules), loaded & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_public_names_are_silent_and_do_without_ray() -> None:
    """Warnings are printed as for any user; ``-W error`` would also turn up those inside others."""
    code = (
        "import sys, dipolegnn, dipolegnn.inference\n"
        "for name in dipolegnn.__all__: getattr(dipolegnn, name)\n"
        "assert 'ray' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def tracked(project_root: Path) -> list[Path]:
    """The files of the repository, and those that could be added to it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=project_root,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git repository")
    paths = [project_root / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_place_on_one_machine(tracked: list[Path]) -> None:
    # Assembled, so that this file does not find itself.
    folders = "|".join(["/wo" + "rk", "/ro" + "ot", "/ho" + r"me/\w+", "/Use" + r"rs/\w+"])
    pattern = re.compile(rf"(?<![\w.~)}}-])({folders})/".encode())
    found = [
        f"{path}: {match.group().decode()}"
        for path in tracked
        if (match := pattern.search(path.read_bytes()))
    ]
    assert not found, "\n".join(found)


def test_no_file_is_large(tracked: list[Path]) -> None:
    large = [
        f"{path}: {path.stat().st_size} bytes"
        for path in tracked
        if path.stat().st_size > 6 * 2**20
    ]
    assert not large, "\n".join(large)
