"""Compilation of the CPU kernels by numba, with a cache on disk that depends on all source files.

The cache of numba is invalidated if the file of a kernel changes, but not if a file of a function
that the kernel calls changes, which is compiled into the kernel.
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
        stamp: Hash of the source files, from :func:`source_stamp`.
        parallel: Run loops over ``numba.prange`` in threads.
    """

    def decorate(function: Callable[..., None]) -> Any:
        # nogil: threads run concurrently; fastmath: vectorization reorders sums.
        kernel: Any = numba.njit(nogil=True, fastmath=True, error_model="numpy", parallel=parallel)(
            function
        )
        kernel._cache = _Cache(function, stamp)
        return kernel

    return decorate


class _Cache(FunctionCache):
    """Cache of numba with another stamp than the time and size of the file."""

    def __init__(self, function: Callable[..., None], stamp: str) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)


_STAMP = source_stamp(Path(__file__).parents[1])  # includes the constants in table.py

compiled = compiler(_STAMP)
"""Decorator of functions for one share of the work, or less."""

shared_out = compiler(_STAMP, parallel=True)
"""Decorator of functions with a ``prange`` over shares, one thread each; see launch.py."""
