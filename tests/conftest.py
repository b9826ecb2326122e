"""Fixtures that tests of every part share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Tests run in several processes, so each has one thread. The programs that they start have the same
# number, because the last bits of a result depend on it.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
# Without a GPU the kernels run in Triton's interpreter. The variable must be set before Triton is
# imported, which PyG does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Matplotlib's list of fonts is made by the tests. The one in the user's home may name fonts of an
# environment that is gone, and each warning about them is output that a test does not expect.
os.environ["MPLCONFIGDIR"] = str(Path(__file__).resolve().parent.parent / ".pytest_cache/fonts")

# Must be set before Ray is imported: no usage statistics.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs groups of tests that share a process first: at the end, other processes would idle."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


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


@pytest.fixture(scope="session")
def ray_cluster(project_root: Path) -> Iterator[str]:
    """The address of a Ray cluster on this machine, which this process is connected to.

    Its tests share a process (``xdist_group("ray")``), and so one cluster, whose start takes long.
    """
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        # Workers import the package under test.
        patch.setenv("PYTHONPATH", str(project_root), prepend=os.pathsep)
        context = ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            logging_level="ERROR",
            log_to_driver=False,
        )
        with warnings.catch_warnings():
            # Ray (2.x) warns of its own default settings when it makes the context.
            warnings.simplefilter("ignore", DeprecationWarning)
            data_context = ray.data.DataContext.get_current()
        data_context.enable_progress_bars = False
        yield context.address_info["gcs_address"]
        ray.shutdown()
