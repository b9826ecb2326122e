"""Complete radius graphs, built on the device of the positions.

torch-cluster searches neighbours. With its default ``max_num_neighbors=32`` it drops edges
silently, and different ones on CPU and GPU; here the limit is raised until no atom reaches it. If
torch-cluster is not available, plain PyTorch finds the same edges.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

from dipolegnn._pyg import Batch, index2ptr
from dipolegnn.nn.scatter import segment_index

_SLACK = 1.0 + 1e-5
"""Factor of the search radius of torch-cluster. The edges are then selected by the same comparison
for all back ends, so that they do not depend on the rounding of a back end."""

_FIRST_CAP = 64
"""Initial limit of neighbours per atom; a 5 Å sphere in a dense molecular crystal contains about
60 atoms."""

_CHUNK_PAIRS = 1_000_000
"""Pairs of atoms that the plain search compares at once, which bounds its memory."""


def can_check_values(tensor: Tensor) -> bool:
    """True if values can be checked without a GPU synchronization."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


class RadiusGraph:
    """A radius graph with the properties that the fused kernels require.

    Every edge has its reverse, no edge is longer than the cutoff, and edges are sorted by target.
    Only this module creates such graphs; any other ``edge_index`` is processed by plain PyTorch.

    Attributes:
        edge_index: ``[2, E]`` as :func:`radius_graph` returns it.
        cutoff: Cutoff radius in angstrom.

    Example:
        >>> pos = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0]])
        >>> graph = RadiusGraph.of(pos, cutoff=5.0)
        >>> graph.is_of(pos), graph.is_of(pos + 0.1)
        (True, False)
    """

    edge_index: Tensor
    cutoff: float
    _pos: _Original
    _batch: _Original | None

    def __init__(self) -> None:
        raise TypeError(
            "A RadiusGraph cannot be built from edges, because the kernels do not check them. "
            "Build it from positions with RadiusGraph.of(pos, cutoff, batch), or pass edge_index "
            "[2, E] to the network, which then uses plain PyTorch."
        )

    @classmethod
    def _trusted(
        cls, edge_index: Tensor, cutoff: float, pos: Tensor, batch: Tensor | None
    ) -> RadiusGraph:
        graph = cls.__new__(cls)
        graph.edge_index, graph.cutoff = edge_index, float(cutoff)
        graph._pos = _Original(pos)
        graph._batch = None if batch is None else _Original(batch)
        return graph

    @classmethod
    def of(cls, pos: Tensor, cutoff: float, batch: Tensor | None = None) -> RadiusGraph:
        """Builds the graph; arguments and errors as for :func:`radius_graph`."""
        return cls._trusted(radius_graph(pos, cutoff, batch), cutoff, pos, batch)

    @classmethod
    def traced(cls, pos: Tensor, cutoff: float, ptr: Tensor) -> RadiusGraph:
        """Builds the graph with :func:`traceable_radius_graph`."""
        return cls._trusted(traceable_radius_graph(pos, cutoff, ptr), cutoff, pos, None)

    def is_of(self, pos: Tensor, batch: Tensor | None = None) -> bool:
        """True if the graph was built from these positions.

        On the CPU, values are compared. On a GPU (to avoid a synchronization) the same tensor
        is accepted if its version counter (``Tensor._version``) is unchanged; another tensor is
        compared by value. Changes through ``.data`` on a GPU are not detected.

        Args:
            pos: Positions ``[N, 3]`` in angstrom.
            batch: Molecule of each atom ``[N]``; None to skip the comparison.
        """
        if not self._pos.equals(pos):
            return False
        return batch is None or (self._batch is not None and self._batch.equals(batch))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RadiusGraph:
        """Returns the graph on a device; called by PyG when a batch is moved."""
        edge_index = self.edge_index.to(device, non_blocking=non_blocking)
        if edge_index is self.edge_index:
            return self
        pos, batch = (
            None if kept is None else kept.values.to(device, non_blocking=non_blocking)
            for kept in (self._pos, self._batch)
        )
        assert pos is not None
        return self._trusted(edge_index, self.cutoff, pos, batch)

    @functools.cached_property
    def rowptr(self) -> Tensor:
        """First edge of each target atom, and E: ``[N + 1]``."""
        return index2ptr(self.edge_index[1], self._pos.values.size(0))

    @property
    def col(self) -> Tensor:
        """Source of each edge ``[E]``."""
        return self.edge_index[0]


class _Original:
    """A tensor and its values at the time when a graph was built from it."""

    def __init__(self, tensor: Tensor) -> None:
        traced = torch.compiler.is_compiling()
        self.tensor = tensor
        self.values = tensor if traced else tensor.detach().clone()
        # Tensors created in inference mode have no version counter.
        self.version = None if traced or tensor.is_inference() else tensor._version

    def __reduce__(self) -> tuple[type[_Original], tuple[Tensor]]:
        return _Original, (self.values,)  # pickled without the original tensor

    def equals(self, tensor: Tensor) -> bool:
        if torch.compiler.is_compiling():
            return tensor is self.tensor
        if tensor is self.tensor and self.version is not None and not can_check_values(tensor):
            return tensor._version == self.version
        kept = self.values
        return (
            (tensor.device, tensor.dtype) == (kept.device, kept.dtype)
            and tensor.shape == kept.shape
            and torch.equal(tensor, kept)
        )


class MoleculeGraphs:
    """Radius graphs of many molecules, stored contiguously and combined into those of batches.

    Args:
        cutoff: Cutoff radius in angstrom.
        batches: The molecules, in batches.

    Attributes:
        ends: First edge of each molecule, and the number of edges ``[M + 1]``; on the CPU.
    """

    def __init__(self, cutoff: float, batches: Iterable[Batch]) -> None:
        edges, counts = [], [torch.zeros(1, dtype=torch.long)]
        for batch in batches:
            edge_index = radius_graph(batch.pos, cutoff, batch.batch)  # [2, E]
            owner = batch.batch[edge_index[1]]
            # Atom indices relative to the first atom of the molecule.
            edges.append((edge_index - batch.ptr[owner]).int())
            counts.append(owner.bincount(minlength=batch.num_graphs).cpu())
        self.cutoff, self.ends = cutoff, torch.cat(counts).cumsum(0)
        self._edge_index = torch.cat(edges, dim=1)

    def joined(
        self, rows: Tensor, owner: Tensor, pos: Tensor, batch: Tensor, ptr: Tensor
    ) -> RadiusGraph:
        """Returns the radius graph of a batch of these molecules.

        Args:
            rows: Indices of the edges of the batch, molecule by molecule ``[E]``.
            owner: Index in the batch of the molecule of each edge ``[E]``.
            pos: Positions ``[N, 3]`` in angstrom, from which the graphs were built.
            batch: Molecule of each atom ``[N]``.
            ptr: First atom of each molecule, and N: ``[B + 1]``.
        """
        edge_index = self._edge_index.index_select(1, rows).long() + ptr[owner]
        return RadiusGraph._trusted(edge_index, self.cutoff, pos, batch)


def radius_graph(pos: Tensor, cutoff: float, batch: Tensor | None = None) -> Tensor:
    r"""Finds all pairs of atoms of the same molecule that are closer than the cutoff.

    .. math:: \{(j, i) : j \ne i,\ \lVert r_j - r_i \rVert < r_c\}

    Both directions of each pair are included. Edges are sorted by target ``i``.

    Args:
        pos: Positions ``[N, 3]`` in angstrom.
        cutoff: Cutoff radius :math:`r_c` in angstrom.
        batch: Molecule of each atom ``[N]``, ascending; None for one molecule.

    Returns:
        ``edge_index`` ``[2, E]`` on the device of ``pos``: row 0 the source (neighbour j), row 1
        the target (centre i), ascending.

    Raises:
        ValueError: If the cutoff is not a positive number, the shapes do not match, or ``batch`` is
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
    """The search as a custom operator, which torch.compile and torch.export do not trace."""
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
            "batch must be ascending, so that the atoms of each molecule are contiguous; sort the "
            "atoms by molecule."
        )
    # Half precision would misplace the cutoff by up to 0.02 Å.
    points = pos.detach().float() if pos.dtype in (torch.float16, torch.bfloat16) else pos.detach()
    cluster = _torch_cluster_for(points.device.type)
    if cluster is None:
        return _plain_edges(points, cutoff, batch)
    return _cluster_edges(cluster, points, cutoff, batch)


def traceable_radius_graph(pos: Tensor, cutoff: float, ptr: Tensor) -> Tensor:
    """Finds the edges of :func:`radius_graph` with PyTorch operators that can be exported.

    All pairs of atoms within each molecule are compared at once (50 to 100 bytes per pair).

    Args:
        pos: Positions ``[N, 3]`` in angstrom.
        cutoff: Cutoff radius in angstrom.
        ptr: First atom of each molecule, and N: ``[B + 1]``.

    Returns:
        ``edge_index`` ``[2, E]``, sorted by target and source.
    """
    return _edges_to(torch.arange(pos.size(0), device=pos.device), pos, cutoff, ptr)


def _edges_to(atoms: Tensor, pos: Tensor, cutoff: float, ptr: Tensor) -> Tensor:
    """Finds the edges to the targets ``atoms [n]`` by comparing all pairs at once."""
    molecule = segment_index(ptr, pos.size(0))[atoms]  # [n]
    partners = ptr.diff()[molecule]  # [n], the atom itself included
    first_pair = torch.cat([ptr.new_zeros(1), partners.cumsum(0)])  # [n + 1]
    # int() would make the number of the traced example a constant of the program.
    pairs: int = first_pair[-1].item()  # type: ignore[assignment]
    row = segment_index(first_pair, pairs)  # [P]
    number = torch.arange(pairs, device=pos.device) - first_pair[row]
    source, target = ptr[molecule[row]] + number, atoms[row]
    kept = (_inside(pos, source, target, cutoff) & (source != target)).nonzero().squeeze(1)
    return torch.stack([source[kept], target[kept]])


def _inside(pos: Tensor, source: Tensor, target: Tensor, cutoff: float) -> Tensor:
    """True for pairs closer than the cutoff; the one comparison that selects edges."""
    return (pos[source] - pos[target]).square().sum(dim=1) < cutoff * cutoff


def _cluster_edges(cluster: ModuleType, pos: Tensor, cutoff: float, batch: Tensor | None) -> Tensor:
    largest = pos.size(0) if batch is None else int(batch.bincount().max()) if len(batch) else 0
    cap = min(_FIRST_CAP, max(largest, 1))
    while True:
        edges: Tensor = cluster.radius_graph(pos, cutoff * _SLACK, batch, max_num_neighbors=cap)
        # An atom has fewer neighbours than its molecule has atoms: at that limit none is dropped.
        if cap >= largest or not bool((edges[1].bincount() >= cap).any()):
            break
        cap = min(4 * cap, largest)
    inside = _inside(pos, edges[0], edges[1], cutoff)
    # Usually all edges: the search radius is only 1e-5 larger than the cutoff.
    return edges if bool(inside.all()) else edges[:, inside]


def _plain_edges(pos: Tensor, cutoff: float, batch: Tensor | None) -> Tensor:
    """Compares all pairs within each molecule, in chunks of target atoms."""
    molecule = pos.new_zeros(pos.size(0), dtype=torch.long) if batch is None else batch
    sizes = molecule.bincount()
    ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    largest = int(sizes.max()) if sizes.numel() else 1
    atoms = torch.arange(pos.size(0), device=pos.device).split(max(1, _CHUNK_PAIRS // largest))
    return torch.cat([_edges_to(some, pos, cutoff, ptr) for some in atoms], dim=1)


@functools.cache
def _torch_cluster_for(device_type: str) -> ModuleType | None:
    """Returns torch-cluster if it supports the device, else None after one warning."""
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
        "slower for large molecules. Run `make setup`, or install torch-cluster for this version "
        "of torch.",
        RuntimeWarning,
        stacklevel=4,
    )
    return None
