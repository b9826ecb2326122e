"""Launching of CPU kernels: the work is shared between threads, as many as torch uses.

A share is a range of atoms that no edge leaves, times a range of channels. Shares write to
different places, or to buffers of their own that are added in a fixed order, so that the result
does not depend on which thread is faster: for a given number of threads it is the same to the
last bit from run to run.

The threads are numba's. (Python's own, woken for each kernel, often ran one after the other on one
core while the next one idled: two took as long as one.)
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
"""Edges per thread below which handing the work over costs more than doing it."""

_LEAST_CHANNELS = 32
"""Channels per thread below which the loops over channels get too short."""

_LEAST_ATOMS = 64
"""As _LEAST_EDGES, for work that goes atom by atom."""

Shares = NDArray[np.int64]
"""One row per share: atoms ``first:last``, channels ``low:high``, buffer ``slot``."""

_ONE_AT_A_TIME = threading.Lock()
"""Where numba has no OpenMP, its threads cannot be shared by two callers at once."""


def plan(rowptr: Tensor, col: Tensor, channels: int) -> Shares:
    """Cuts the work into shares of about equal numbers of edges, at most one per thread.

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
        return np.array(
            [[a, b, 0, channels, slot] for slot, (a, b) in enumerate(itertools.pairwise(bounds))]
        )
    # One molecule holds most of the edges: share the channels out instead.
    pieces = max(1, min(threads, channels // _LEAST_CHANNELS))
    edges_of = [channels * k // pieces for k in range(pieces + 1)]
    return np.array([[0, atoms, low, high, 0] for low, high in itertools.pairwise(edges_of)])


def equal_shares(atoms: int, channels: int) -> Shares:
    """Cuts work that goes atom by atom, all channels at once, into at most one share per thread."""
    pieces = max(1, min(_threads(), atoms // _LEAST_ATOMS))
    bounds = [atoms * k // pieces for k in range(pieces + 1)]
    return np.array(
        [[a, b, 0, channels, slot] for slot, (a, b) in enumerate(itertools.pairwise(bounds))]
    )


def run(kernel: Callable[..., None], shares: Shares, *arguments: Any) -> None:
    """Calls a kernel that goes through all shares by ``prange``, with a thread for each.

    Tensors are passed on as arrays.
    """
    arrays = [a.numpy() if isinstance(a, Tensor) else a for a in arguments]
    with _ONE_AT_A_TIME:
        before = numba.get_num_threads()
        numba.set_num_threads(len(shares))
        try:
            kernel(shares, *arrays)
        finally:
            numba.set_num_threads(before)


def buffers(shares: Shares, table: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros to add the gradients of table and positions to, where shares meet.

    Shares of atoms meet in the table ``[slots, T, C]``, shares of channels in the positions
    ``[shares, N, 3]``.
    """
    slots = int(shares[:, 4].max()) + 1
    return table.new_zeros(slots, *table.shape), pos.new_zeros(len(shares), *pos.shape)


def total(parts: Tensor) -> Tensor:
    """Sum of the buffers of all shares."""
    return parts[0] if parts.size(0) == 1 else parts.sum(dim=0)


def scalar(value: float, like: Tensor) -> np.floating:
    """A number of the precision of a tensor, for which the kernels are compiled."""
    number: np.floating = like.numpy().dtype.type(value)
    return number


def per_length(table: Tensor, cutoff: float) -> np.floating:
    """Rows of a table per angstrom."""
    return scalar(rows_per_length(table, cutoff), table)


def _threads() -> int:
    # numba has at most as many as it found cores when it was loaded.
    return min(torch.get_num_threads(), int(vars(numba.config)["NUMBA_NUM_THREADS"]))
