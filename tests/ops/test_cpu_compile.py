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
    assert run(tmp_path, 2) == [2, 1]


def test_the_stamp_covers_every_file(tmp_path: Path) -> None:
    stamps = {source_stamp(tmp_path)}
    for name in ("a.py", "b.py", "cpu/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
        stamps.add(source_stamp(tmp_path))
    (tmp_path / "cpu" / "a.py").write_text("x = 2\n")
    stamps.add(source_stamp(tmp_path))
    assert len(stamps) == 5
