"""Shares the work of a CPU kernel between threads, as many as torch uses.

A share is a range of atoms that no edge leaves, times a range of channels. Shares write to
different places, or to buffers of their own that are added in a fixed order, so that the result
does not depend on which thread is faster: for a given number of threads it is the same to the
last bit from run to run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import torch

from dipolegnn.ops.cpu_interpolation import closed_boundaries

_LEAST_EDGES = 400
"""Edges per thread below which handing the work over costs more than doing it."""

_LEAST_CHANNELS = 32
"""Channels per thread below which the loops over channels get too short."""


class Share(NamedTuple):
    """What one thread does: atoms ``first:last``, channels ``low:high``, table buffer ``slot``."""

    first: int
    last: int
    low: int
    high: int
    slot: int


def plan(rowptr: np.ndarray, col: np.ndarray, channels: int) -> list[Share]:
    """Cuts the work into shares of about equal numbers of edges, at most one per thread.

    Args:
        rowptr: First edge of each target atom, and E: ``[N + 1]``.
        col: Source of each edge ``[E]``, sorted by target.
        channels: Number of channels F.
    """
    atoms, edges = len(rowptr) - 1, len(col)
    threads = max(1, min(torch.get_num_threads(), edges // _LEAST_EDGES))
    if threads == 1:
        return [Share(0, atoms, 0, channels, 0)]
    cuts = closed_boundaries(rowptr, col)
    wanted = edges * np.arange(1, threads) / threads
    inner = cuts[np.searchsorted(rowptr[cuts], wanted).clip(max=len(cuts) - 1)]
    bounds = np.unique(np.concatenate([[0], inner, [atoms]]))
    heaviest = np.diff(rowptr[bounds]).max()
    if heaviest <= 1.5 * edges / threads:
        return [
            Share(int(a), int(b), 0, channels, slot)
            for slot, (a, b) in enumerate(itertools.pairwise(bounds))
        ]
    # One molecule holds most of the edges: share the channels out instead.
    pieces = max(1, min(threads, channels // _LEAST_CHANNELS))
    edges_of = [channels * k // pieces for k in range(pieces + 1)]
    return [Share(0, atoms, low, high, 0) for low, high in itertools.pairwise(edges_of)]


def run(shares: list[Share], work: Callable[[Share], None]) -> None:
    """Does all shares, the first one in the calling thread, and waits for them."""
    others = [_pool(len(shares) - 1).submit(work, share) for share in shares[1:]]
    work(shares[0])
    wait(others)
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="dipolegnn-kernel")
