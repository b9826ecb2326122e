"""Radius graphs that never drop an edge, on the device of the positions.

torch-cluster finds the neighbours. Its ``max_num_neighbors`` (32 unless told otherwise) drops
edges without a word, and not the same ones on CPU and GPU; here the cap is raised until no atom
reaches it. Where torch-cluster cannot be used, the same edges come from plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from dipolegnn.segments import segment_index

_SLACK = 1.0 + 1e-5
"""torch-cluster searches this much further than the cutoff. The edges kept are decided here,
by one comparison for all back ends, so that rounding inside a back end cannot decide."""

_FIRST_CAP = 64
"""Neighbours that the search makes room for at first; a 5 Å sphere in a dense molecular crystal
holds about 60 atoms."""

_CHUNK_PAIRS = 4_000_000
"""Pairs of atoms whose distances the plain search holds in memory at once."""


class KeptGraph(NamedTuple):
    """A radius graph that was built before, of a batch whose atoms have not moved since.

    Attributes:
        edge_index: What :func:`radius_graph` returns for the batch ``[2, E]``.
        cutoff: The cutoff that it was built with, in angstrom.
    """

    edge_index: Tensor
    cutoff: float


def radius_graph(pos: Tensor, cutoff: float, batch: Tensor | None = None) -> Tensor:
    r"""All pairs of atoms of one molecule that are closer than the cutoff.

    .. math:: \{(j, i) : j \ne i,\ \lVert r_j - r_i \rVert < r_c\}

    Both directions of a pair are there. Edges are sorted by target ``i``.

    Args:
        pos: Positions ``[N, 3]`` in angstrom.
        cutoff: Cutoff radius :math:`r_c` in angstrom.
        batch: Molecule of each atom ``[N]``, ascending; None for one molecule.

    Returns:
        ``edge_index`` ``[2, E]`` on the device of ``pos``: row 0 the source (neighbour j), row 1
        the target (centre i), ascending.

    Raises:
        ValueError: If the cutoff is not a positive number, the shapes do not fit, or ``batch`` is
            not ascending.

    Example:
        >>> pos = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [9.0, 0.0, 0.0]])
        >>> radius_graph(pos, cutoff=5.0)
        tensor([[1, 0],
                [0, 1]])
    """
    if torch.compiler.is_compiling():
        found: Tensor = _opaque_radius_graph(pos, cutoff, batch)
        return found
    return _radius_graph(pos, cutoff, batch)


@torch.library.custom_op("dipolegnn::radius_graph", mutates_args=())
def _opaque_radius_graph(pos: Tensor, cutoff: float, batch: Tensor | None) -> Tensor:
    """The search as an operator that torch.compile and torch.export do not look into."""
    return _radius_graph(pos, cutoff, batch)


@_opaque_radius_graph.register_fake
def _(pos: Tensor, cutoff: float, batch: Tensor | None) -> Tensor:
    edges = torch.library.get_ctx().new_dynamic_size()
    return pos.new_empty((2, edges), dtype=torch.long)


def _radius_graph(pos: Tensor, cutoff: float, batch: Tensor | None) -> Tensor:
    if not 0 < cutoff < math.inf:
        raise ValueError(f"cutoff must be a positive distance in angstrom, got {cutoff}.")
    if pos.dim() != 2 or pos.size(1) != 3:
        raise ValueError(f"pos must have the shape [N, 3], got {list(pos.shape)}.")
    if batch is not None and batch.shape != pos.shape[:1]:
        raise ValueError(
            f"batch must have one entry per atom [{pos.size(0)}], got {list(batch.shape)}."
        )
    if batch is not None and bool((batch.diff() < 0).any()):
        raise ValueError(
            "batch must be ascending, so that the atoms of a molecule follow each other; sort the "
            "atoms by molecule."
        )
    # Half precision would misplace the cutoff by up to 0.02 Å.
    points = pos.detach().float() if pos.dtype in (torch.float16, torch.bfloat16) else pos.detach()
    cluster = _torch_cluster_for(points.device.type)
    if cluster is None:
        candidates = _plain_candidates(points, cutoff, batch)
    else:
        candidates = _cluster_candidates(cluster, points, cutoff, batch)
    inside = _inside(points, candidates[0], candidates[1], cutoff)
    # Nearly always all of them: the search goes 1e-5 further than the cutoff.
    return candidates if bool(inside.all()) else candidates[:, inside]


def traceable_radius_graph(pos: Tensor, cutoff: float, ptr: Tensor) -> Tensor:
    """The edges of :func:`radius_graph`, by operators that an exported program may hold.

    It compares all pairs of atoms within each molecule at once, which takes 50 to 100 bytes a pair.

    Args:
        pos: Positions ``[N, 3]`` in angstrom.
        cutoff: Cutoff radius in angstrom.
        ptr: First atom of each molecule, and N: ``[B + 1]``.

    Returns:
        ``edge_index`` ``[2, E]``, sorted by target and source.
    """
    molecule = segment_index(ptr, pos.size(0))  # [N]
    partners = ptr.diff()[molecule]  # [N], the atom itself among them
    first_pair = torch.cat([ptr.new_zeros(1), partners.cumsum(0)])  # [N + 1]
    # int() would make it the number of the molecules that the program is traced with.
    pairs: int = first_pair[-1].item()  # type: ignore[assignment]
    target = segment_index(first_pair, pairs)  # [P]
    number = torch.arange(pairs, device=pos.device) - first_pair[target]
    source = ptr[molecule[target]] + number
    inside = _inside(pos, source, target, cutoff) & (source != target)
    kept = inside.nonzero().squeeze(1)
    return torch.stack([source[kept], target[kept]])


def _inside(pos: Tensor, source: Tensor, target: Tensor, cutoff: float) -> Tensor:
    """The comparison that decides which pairs are edges."""
    return (pos[source] - pos[target]).square().sum(dim=1) < cutoff * cutoff


def _cluster_candidates(
    cluster: ModuleType, pos: Tensor, cutoff: float, batch: Tensor | None
) -> Tensor:
    largest = pos.size(0) if batch is None else int(batch.bincount().max()) if len(batch) else 0
    cap = min(_FIRST_CAP, max(largest, 1))
    while True:
        edges = cluster.radius_graph(pos, cutoff * _SLACK, batch, max_num_neighbors=cap)
        # An atom has fewer neighbours than its molecule has atoms: at that cap nothing is lost.
        if cap >= largest or not bool((edges[1].bincount() >= cap).any()):
            return edges
        cap = min(4 * cap, largest)


def _plain_candidates(pos: Tensor, cutoff: float, batch: Tensor | None) -> Tensor:
    """Compares all pairs within each molecule, some rows at a time."""
    molecule = pos.new_zeros(pos.size(0), dtype=torch.long) if batch is None else batch
    sizes = molecule.bincount()
    first = (sizes.cumsum(0) - sizes)[molecule]  # [N] first atom of the own molecule
    width = int(sizes.max()) if sizes.numel() else 1
    rows = max(1, _CHUNK_PAIRS // width)
    offsets = torch.arange(width, device=pos.device)
    chunks = []
    for start in range(0, pos.size(0), rows):
        i = torch.arange(start, min(start + rows, pos.size(0)), device=pos.device)
        j = first[i, None] + offsets  # [rows, width]
        inside = (offsets < sizes[molecule[i], None]) & (j != i[:, None])
        j = j.clamp(max=pos.size(0) - 1)
        near = (pos[j] - pos[i, None]).square().sum(dim=2) < (cutoff * _SLACK) ** 2
        row, column = (inside & near).nonzero(as_tuple=True)
        chunks.append(torch.stack([j[row, column], i[row]]))
    return torch.cat(chunks, dim=1) if chunks else molecule.new_empty((2, 0))


@functools.cache
def _torch_cluster_for(device_type: str) -> ModuleType | None:
    """torch-cluster if it works on such a device; else None, and a warning, once."""
    problem = ""
    try:
        cluster = importlib.import_module("torch_cluster")
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: another CUDA version
        problem = f"torch-cluster cannot be imported ({error})"
    else:
        if device_type == "cpu":
            return cluster
        if device_type == "cuda" and torch.ops.torch_cluster.cuda_version() != -1:
            return cluster
        problem = f"torch-cluster was built without support for {device_type} tensors"
    warnings.warn(
        f"{problem}: radius graphs are built in plain PyTorch instead, with the same edges but "
        "slower for large molecules. `make setup`, or installing torch-cluster for this torch, "
        "mends that.",
        RuntimeWarning,
        stacklevel=4,
    )
    return None
