"""How numba compiles the CPU kernels, and a cache on disk that edited kernels do not reuse.

Numba's own cache compares the file of a kernel with the time stamp of the compiled version, but not
the files of the functions that the kernel calls, which are compiled into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

Compile = Callable[[Callable[..., None]], Any]


def source_stamp(folder: Path) -> str:
    """Hash of all Python files in a folder and its subfolders."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def compiler(stamp: str, parallel: bool = False) -> Compile:
    """A decorator that compiles a function, or loads it from the cache if the stamp is the same.

    Args:
        stamp: What the compiled code depends on, as :func:`source_stamp` returns it.
        parallel: Run loops over ``numba.prange`` in threads.
    """

    def decorate(function: Callable[..., None]) -> Any:
        # nogil: threads run side by side; fastmath: vectorizing needs to reorder sums.
        kernel: Any = numba.njit(nogil=True, fastmath=True, error_model="numpy", parallel=parallel)(
            function
        )
        kernel._cache = _Cache(function, stamp)
        return kernel

    return decorate


class _Cache(FunctionCache):
    """Numba's cache on disk with a stamp of our own in place of the file's time and size."""

    def __init__(self, function: Callable[..., None], stamp: str) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)


_STAMP = source_stamp(Path(__file__).parents[1])  # with the constants of table.py

compiled = compiler(_STAMP)
"""For functions that handle one share of the work, or less."""

shared_out = compiler(_STAMP, parallel=True)
"""For a loop over shares by ``prange``, one thread each; see launch.py."""
