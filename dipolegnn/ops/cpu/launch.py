"""Launching of CPU kernels: the work is divided between as many threads as torch uses.

A share is a range of atoms without edges to other atoms, and a range of channels. Shares write to
different elements, or to separate buffers that are added in a fixed order, so that results are
reproducible to the last bit for a given number of threads.

The threads are those of numba. (Two Python threads took as long as one, because they often ran one
after the other on the same core.)
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipolegnn.ops.cpu.interpolation import closed_boundaries
from dipolegnn.ops.table import rows_per_length

_LEAST_EDGES = 400
"""Smallest number of edges per thread; with fewer, a further thread saves no time."""

_LEAST_CHANNELS = 32
"""Smallest number of channels per thread; shorter loops are inefficient."""

_LEAST_ATOMS = 64
"""Smallest number of atoms per thread, for work per atom."""

Shares = NDArray[np.int64]
"""One row per share: atoms ``first:last``, channels ``low:high``, buffer ``slot``."""

_ONE_AT_A_TIME = threading.Lock()
"""Without OpenMP, the threads of numba do not support concurrent callers."""


def plan(rowptr: Tensor, col: Tensor, channels: int) -> Shares:
    """Divides the work into shares with about equal numbers of edges, at most one per thread.

    Args:
        rowptr: First edge of each target atom, and E: ``[N + 1]``.
        col: Source of each edge ``[E]``, sorted by target.
        channels: Number of channels F.
    """
    first = rowptr.numpy()
    atoms, edges = len(first) - 1, len(col)
    threads = max(1, min(_threads(), edges // _LEAST_EDGES))
    if threads == 1:
        return np.array([[0, atoms, 0, channels, 0]])
    cuts = closed_boundaries(first, col.numpy())
    wanted = edges * np.arange(1, threads) / threads
    inner = cuts[np.searchsorted(first[cuts], wanted).clip(max=len(cuts) - 1)]
    bounds = np.unique(np.concatenate([[0], inner, [atoms]]))
    heaviest = np.diff(first[bounds]).max()
    if heaviest <= 1.5 * edges / threads:
        return _by_atoms(bounds.tolist(), channels)
    # One molecule has most of the edges: divide the channels instead.
    pieces = max(1, min(threads, channels // _LEAST_CHANNELS))
    cuts_of = [channels * k // pieces for k in range(pieces + 1)]
    return np.array([[0, atoms, low, high, 0] for low, high in itertools.pairwise(cuts_of)])


def equal_shares(atoms: int, channels: int) -> Shares:
    """Divides work per atom, with all channels, into at most one share per thread."""
    pieces = max(1, min(_threads(), atoms // _LEAST_ATOMS))
    return _by_atoms([atoms * k // pieces for k in range(pieces + 1)], channels)


def _by_atoms(bounds: list[int], channels: int) -> Shares:
    return np.array(
        [[a, b, 0, channels, slot] for slot, (a, b) in enumerate(itertools.pairwise(bounds))]
    )


def run(kernel: Callable[..., None], shares: Shares, *arguments: Any) -> None:
    """Calls a kernel with a ``prange`` over the shares, with one thread per share."""
    arrays = [a.numpy() if isinstance(a, Tensor) else a for a in arguments]
    threads_of_torch = torch.get_num_threads()
    with _ONE_AT_A_TIME:
        before = numba.get_num_threads()
        numba.set_num_threads(len(shares))
        try:
            kernel(shares, *arrays)
        finally:
            numba.set_num_threads(before)
            # When numba starts its threads, it sets the number of OpenMP threads of the calling
            # thread, which is that of torch, to the number of cores.
            if torch.get_num_threads() != threads_of_torch:
                torch.set_num_threads(threads_of_torch)


def buffers(shares: Shares, table: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for the gradients of the table ``[slots, T, C]`` and the positions ``[shares, N, 3]``.

    Shares of different atoms add to the same rows of the table, shares of different channels to the
    same positions.
    """
    slots = int(shares[:, 4].max()) + 1
    return table.new_zeros(slots, *table.shape), pos.new_zeros(len(shares), *pos.shape)


def total(parts: Tensor) -> Tensor:
    """Sum of the buffers of all shares."""
    return parts[0] if parts.size(0) == 1 else parts.sum(dim=0)


def scalar(value: float, like: Tensor) -> np.floating:
    """A number in the precision of a tensor, for which the kernels are compiled."""
    number: np.floating = like.numpy().dtype.type(value)
    return number


def per_length(table: Tensor, cutoff: float) -> np.floating:
    """Rows of a table per angstrom."""
    return scalar(rows_per_length(table, cutoff), table)


def _threads() -> int:
    # numba has at most as many threads as there were cores at its import.
    return min(torch.get_num_threads(), int(vars(numba.config)["NUMBA_NUM_THREADS"]))
