"""The notebooks run from top to bottom, as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("pandas", reason="pandas is not installed")


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


@pytest.mark.parametrize("name", ["chemists", "researchers"])
def test_a_notebook(project_root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    # Other tests use the other cores.
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    folder = project_root / "experiments" / "notebooks"
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    before = [cell.source for cell in notebook.cells]
    kept = [outputs(cell) for cell in notebook.cells]
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in notebook.cells] == before
    assert all("Warning" not in outputs(cell) for cell in code)
    # What people read on a page that runs nothing is what the code gives.
    for text, cell in zip(kept, notebook.cells, strict=True):
        assert words(outputs(cell)) == words(text)
    if name == "chemists":
        for text, cell in zip(kept, notebook.cells, strict=True):
            found, expected = (map(float, NUMBER.findall(x)) for x in (outputs(cell), text))
            assert list(found) == pytest.approx(list(expected), abs=0.02)
        assert outputs(code[0]) == "(7, 1)"
        assert "C1CC: Not a valid SMILES" in outputs(code[1])
        assert "acetonitrile" in outputs(code[2])
        assert any("<svg" in str(output.data) for output in code[4].outputs)
    else:
        *_, error, charges = (outputs(cell) for cell in code)
        assert 0 < float(error) < 1.5
        assert charges.startswith("[(6, ")
