"""Compiled kernels are reused from disk until a source file changes, be it that of a callee."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dipolegnn.ops.cpu.compile import source_stamp

KERNEL = """
from pathlib import Path
from dipolegnn.ops.cpu.compile import compiler, source_stamp
compiled = compiler(source_stamp(Path(__file__).parent))
"""
CALLER = """
import json
from callee import compiled, value

@compiled
def caller():
    return value()

print(json.dumps([caller(), sum(caller.stats.cache_hits.values())]))
"""


def run(folder: Path, returned: int) -> list[int]:
    """Value of a kernel whose callee returns that, and how often it came from the cache."""
    callee = f"{KERNEL}\n@compiled\ndef value():\n    return {returned}\n"
    if not (folder / "callee.py").exists() or (folder / "callee.py").read_text() != callee:
        (folder / "callee.py").write_text(callee)
    (folder / "caller.py").write_text(CALLER)
    done = subprocess.run(
        [sys.executable, "-B", "caller.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    found: list[int] = json.loads(done.stdout)
    return found


def test_an_edited_callee_is_compiled_again(tmp_path: Path) -> None:
    assert run(tmp_path, 1) == [1, 0]
    assert run(tmp_path, 1) == [1, 1]
    assert run(tmp_path, 2) == [2, 0]


def test_the_stamp_covers_every_file(tmp_path: Path) -> None:
    stamps = {source_stamp(tmp_path)}
    for name in ("a.py", "b.py", "cpu/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
        stamps.add(source_stamp(tmp_path))
    (tmp_path / "cpu" / "a.py").write_text("x = 2\n")
    stamps.add(source_stamp(tmp_path))
    assert len(stamps) == 5


PARALLEL = """
import numba, numpy, torch
from dipolegnn.ops.cpu.launch import run

@numba.njit(parallel=True)
def fill(shares, out):
    for k in numba.prange(len(shares)):
        out[k] = k + 1

out = numpy.zeros(2)
torch.set_num_threads(1)
assert torch.get_num_threads() == 1  # the first call initializes torch's threads
run(fill, numpy.zeros((2, 5), dtype=numpy.int64), out)
print(out.tolist(), torch.get_num_threads())
"""


def test_the_first_kernel_leaves_torch_its_number_of_threads() -> None:
    # Numba starts its threads at the first kernel, and changes the number of OpenMP threads.
    done = subprocess.run(
        [sys.executable, "-c", PARALLEL], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[1.0,", "2.0]", "1"]
