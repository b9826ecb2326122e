"""The notebooks run from top to bottom, as they are.

With DIPOLEGNN_REWRITE=1 (``make outputs``) their outputs are replaced by those found.
"""

from __future__ import annotations

import os
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("pandas", reason="pandas is not installed")

# One kernel, whose imports take seconds: all tests in one process.
pytestmark = pytest.mark.xdist_group("notebooks")

NAMES = ("chemists", "researchers")


def outputs(cell: Any) -> str:
    texts = [
        str(output.get("text") or output.get("data", {}).get("text/plain", ""))
        for output in cell.get("outputs", [])
    ]
    return "\n".join(texts)


NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]\d+)?")


def words(text: str) -> str:
    """The text with # for each number, without blanks: with the signs of its numbers and with the
    version of NumPy an array is spaced differently.
    """
    return "".join(NUMBER.sub("#", text).split())


@pytest.fixture(scope="module")
def executed(project_root: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """The cells of each notebook, as they are kept and after they were run."""
    import nbformat
    from nbclient import NotebookClient

    folder = project_root / "experiments" / "notebooks"
    kept = {name: nbformat.read(folder / f"{name}.ipynb", as_version=4).cells for name in NAMES}
    cells: list[Any] = []
    for name in NAMES:
        # Each begins without the names of the one before.
        cells += [nbformat.v4.new_code_cell("%reset -f"), *deepcopy(kept[name])]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.MonkeyPatch.context() as patch:
        # Other tests use the other cores.
        for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            patch.setenv(variable, "1")
        patch.setenv("PYTHONPATH", str(project_root))
        NotebookClient(
            notebook,
            timeout=240,
            allow_errors=True,  # of one notebook, for the test of that one
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    found, start = {}, 0
    for name in NAMES:
        end = start + 1 + len(kept[name])
        found[name] = (kept[name], notebook.cells[start + 1 : end])
        start = end
    return found


def rewrite(path: Path, cells: list[Any]) -> None:
    """Writes the outputs of the executed cells into a notebook."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for before, cell in zip(notebook.cells, cells, strict=True):
        if before.cell_type != "code":
            continue
        before.outputs = cell.outputs
        for output in before.outputs:
            if output.output_type == "execute_result":
                # Counted from the beginning of this notebook.
                output.execution_count = before.execution_count
    nbformat.write(notebook, path)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook(
    executed: dict[str, tuple[list[Any], list[Any]]], name: str, project_root: Path
) -> None:
    kept, cells = executed[name]
    if os.environ.get("DIPOLEGNN_REWRITE") == "1":
        rewrite(project_root / "experiments" / "notebooks" / f"{name}.ipynb", cells)
        return
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.source for cell in cells] == [cell.source for cell in kept]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert all("Warning" not in outputs(cell) for cell in code)
    # What people read on a page that runs nothing is what the code gives.
    for before, cell in zip(kept, cells, strict=True):
        assert words(outputs(cell)) == words(outputs(before))
    if name == "chemists":
        for before, cell in zip(kept, cells, strict=True):
            found, expected = (map(float, NUMBER.findall(outputs(x))) for x in (cell, before))
            assert list(found) == pytest.approx(list(expected), abs=0.02)
        assert outputs(code[0]) == "(7, 1)"
        assert "C1CC: Not a valid SMILES" in outputs(code[1])
        assert "acetonitrile" in outputs(code[2])
        assert any("<svg" in str(output.data) for output in code[4].outputs)
    else:
        *_, error, charges = (outputs(cell) for cell in code)
        assert 0 < float(error) < 1.5
        assert charges.startswith("[(6, ")
