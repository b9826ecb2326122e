"""Fixtures that tests of every part share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Tests run in several processes at once; more threads than one each only get in each other's way.
# Tests and the programs that they start have the same number, on which the last bits depend.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
# Without a GPU its kernels run in Triton's interpreter, which has to be said before anything
# imports Triton, as PyG does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder with pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def reference_data(project_root: Path) -> Path:
    """The folder of reference data, which the repository does not carry: skips without it.

    It is ``$DIPOLEGNN_DATA``, or ``../shared/data`` as seen from the project.
    """
    named = os.environ.get("DIPOLEGNN_DATA")
    folder = Path(named) if named else project_root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder} (set DIPOLEGNN_DATA to their folder)")
    return folder
