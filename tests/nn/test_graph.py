"""Radius graphs against all distances, with torch-cluster and without."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dipolegnn.nn import graph
from dipolegnn.nn.graph import radius_graph

PRECISIONS = (torch.float32, torch.float64)

BACKENDS = ("cluster", "plain")


@pytest.fixture
def without_torch_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch-cluster cannot be imported, and nobody has been told yet."""
    monkeypatch.setitem(sys.modules, "torch_cluster", None)
    graph._torch_cluster_for.cache_clear()
    yield
    graph._torch_cluster_for.cache_clear()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Runs a test twice, the second time in plain PyTorch."""
    if request.param == "plain":
        request.getfixturevalue("without_torch_cluster")
        with pytest.warns(RuntimeWarning):
            assert graph._torch_cluster_for("cpu") is None
    else:
        assert graph._torch_cluster_for("cpu") is not None
    name: str = request.param
    return name


def by_all_distances(pos: Tensor, cutoff: float, batch: Tensor | None = None) -> Tensor:
    """The edges, sorted by target and then by source."""
    batch = torch.zeros(len(pos), dtype=torch.long) if batch is None else batch
    wide = pos.double()
    distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    # Rounding may decide otherwise only where a distance is the cutoff to 1e-5.
    assert not ((distance - cutoff).abs() < 1e-5).any()
    near = (distance < cutoff) & (batch[:, None] == batch) & ~torch.eye(len(pos), dtype=torch.bool)
    i, j = near.nonzero(as_tuple=True)
    return torch.stack([j, i])


def in_order(edge_index: Tensor, atoms: int) -> Tensor:
    """Edges sorted by target and then by source."""
    return edge_index[:, (edge_index[1] * atoms + edge_index[0]).argsort()]


def random_positions(atoms: int, width: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (width * torch.rand(atoms, 3, generator=generator, dtype=torch.float64)).to(dtype)


def assert_is(edge_index: Tensor, expected: Tensor, atoms: int) -> None:
    assert edge_index.dtype == torch.long
    assert bool((edge_index[1].diff() >= 0).all()), "edges are not sorted by target"
    assert torch.equal(in_order(edge_index, atoms), expected)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("cutoff", [1.5, 5.0, 30.0])
def test_one_molecule(backend: str, dtype: torch.dtype, cutoff: float) -> None:
    pos = random_positions(80, 9.0, dtype) - 4.0
    expected = by_all_distances(pos, cutoff)
    assert 0 < expected.size(1) <= 80 * 79
    assert (expected.size(1) == 80 * 79) == (cutoff == 30.0)
    assert_is(radius_graph(pos, cutoff), expected, 80)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_batch(backend: str, dtype: torch.dtype) -> None:
    sizes = torch.tensor([1, 20, 1, 1, 7, 90, 2, 1])
    batch = torch.arange(len(sizes)).repeat_interleave(sizes)
    pos = random_positions(len(batch), 6.0, dtype, seed=1)  # all molecules on top of each other
    expected = by_all_distances(pos, 4.0, batch)
    assert torch.equal(batch[expected[0]], batch[expected[1]])
    assert expected.size(1) < 0.6 * by_all_distances(pos, 4.0).size(1)
    assert_is(radius_graph(pos, 4.0, batch), expected, len(batch))


def test_numbers_of_molecules_may_be_missing(backend: str) -> None:
    batch = torch.tensor([1, 1, 4, 4, 4])
    pos = random_positions(5, 2.0, torch.float64)
    assert_is(radius_graph(pos, 9.0, batch), by_all_distances(pos, 9.0, batch), 5)


@pytest.mark.parametrize("batch", [None, torch.zeros(0, dtype=torch.long)], ids=["none", "batch"])
def test_no_atoms(backend: str, batch: Tensor | None) -> None:
    edge_index = radius_graph(torch.zeros(0, 3), 5.0, batch)
    assert edge_index.shape == (2, 0)
    assert edge_index.dtype == torch.long


@pytest.mark.parametrize("atoms", [1, 2])
def test_no_edges(backend: str, atoms: int) -> None:
    pos = 7.0 * torch.eye(3)[:atoms]
    assert radius_graph(pos, 5.0).shape == (2, 0)
    assert radius_graph(pos, 5.0, torch.arange(atoms)).shape == (2, 0)


# Around 64 neighbours, where the first search ends, and far beyond.
@pytest.mark.parametrize("atoms", [64, 65, 66, 67, 200, 300])
def test_no_edge_is_dropped(backend: str, atoms: int) -> None:
    pos = random_positions(atoms, 2.5, torch.float32)  # within 4.4 Å
    degree = radius_graph(pos, 5.0)[1].bincount(minlength=atoms)
    assert degree.tolist() == [atoms - 1] * atoms

    batch = torch.cat([torch.tensor([0, 1, 1]), torch.full((atoms,), 2), torch.tensor([3])])
    pos = torch.cat([random_positions(3, 1.0, torch.float32), pos, torch.zeros(1, 3)])
    degree = radius_graph(pos, 5.0, batch)[1].bincount(minlength=len(batch))
    assert degree.tolist() == [0, 1, 1, *[atoms - 1] * atoms, 0]


def test_one_crowded_atom_among_many(backend: str) -> None:
    """The cap of the search is about single atoms, not about averages."""
    shell = random_positions(150, 1.0, torch.float64) - 0.5
    shell = 4.5 * shell / shell.norm(dim=1, keepdim=True)
    pos = torch.cat([torch.zeros(1, 3, dtype=torch.float64), shell])
    edge_index = radius_graph(pos, 5.0)
    assert (edge_index[1] == 0).sum() == 150
    assert_is(edge_index, by_all_distances(pos, 5.0), 151)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("cutoff", [4.0, 5.0])
def test_the_cutoff_itself_is_outside(backend: str, dtype: torch.dtype, cutoff: float) -> None:
    at = torch.tensor([[0, 0, 0], [0.6 * cutoff, 0.8 * cutoff, 0]], dtype=dtype)
    if cutoff == 5.0:  # 3, 4, 5: without rounding
        assert radius_graph(at, cutoff).size(1) == 0
    axis = torch.zeros(2, 3, dtype=dtype)
    axis[1, 2] = cutoff
    assert radius_graph(axis, cutoff).size(1) == 0
    axis[1, 2] = torch.nextafter(axis[1, 2], axis[0, 2])
    assert radius_graph(axis, cutoff).size(1) == 2


def test_atoms_in_one_place_are_neighbours(backend: str) -> None:
    assert radius_graph(torch.ones(3, 3), 1.0).size(1) == 6


def test_half_precision_is_searched_in_single() -> None:
    pos = random_positions(60, 9.0, torch.float16)
    assert torch.equal(radius_graph(pos, 4.0), radius_graph(pos.float(), 4.0))


def test_positions_may_require_a_gradient() -> None:
    pos = random_positions(5, 2.0, torch.float32).requires_grad_()
    assert radius_graph(pos, 5.0).size(1) == 20


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("pairs", [1, 1000, 4_000_000])
@pytest.mark.usefixtures("without_torch_cluster")
def test_plain_and_cluster_build_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, pairs: int
) -> None:
    sizes = torch.tensor([50, 1, 120, 3])
    batch = torch.arange(len(sizes)).repeat_interleave(sizes)
    pos = random_positions(len(batch), 7.0, dtype)
    monkeypatch.setattr(graph, "_CHUNK_PAIRS", pairs)
    with pytest.warns(RuntimeWarning):
        plain = radius_graph(pos, 5.0, batch)
    monkeypatch.undo()
    graph._torch_cluster_for.cache_clear()
    cluster = radius_graph(pos, 5.0, batch)
    assert_is(cluster, in_order(plain, len(batch)), len(batch))


@pytest.mark.usefixtures("without_torch_cluster")
def test_absence_is_said_once() -> None:
    pos = random_positions(5, 2.0, torch.float32)
    with pytest.warns(RuntimeWarning, match="torch-cluster cannot be imported") as said:
        edges = [radius_graph(pos, 5.0) for _ in range(3)]
    assert torch.equal(edges[0], edges[2])
    assert len(said) == 1
    assert said[0].filename == __file__
    assert "make setup" in str(said[0].message)


@pytest.mark.parametrize("version", [-1, 12040])
def test_a_build_without_cuda_does_not_serve_a_gpu(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    graph._torch_cluster_for.cache_clear()
    assert graph._torch_cluster_for("cpu") is not None
    monkeypatch.setattr(torch.ops.torch_cluster, "cuda_version", lambda: version)
    if version == -1:
        with pytest.warns(RuntimeWarning, match="built without support for cuda tensors"):
            assert graph._torch_cluster_for("cuda") is None
    else:
        assert graph._torch_cluster_for("cuda") is not None
    graph._torch_cluster_for.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.filterwarnings("ignore:torch-cluster was built without support:RuntimeWarning")
def test_cuda_is_cpu() -> None:
    batch = torch.tensor([0] * 150 + [1] * 70)
    pos = random_positions(220, 7.0, torch.float32)
    edge_index = radius_graph(pos.cuda(), 5.0, batch.cuda())
    assert edge_index.device.type == "cuda"
    assert_is(edge_index.cpu(), by_all_distances(pos, 5.0, batch), 220)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, math.nan, math.inf])
def test_cutoff_must_be_positive(cutoff: float) -> None:
    with pytest.raises(ValueError, match=rf"cutoff must be .* positive .* got {cutoff}"):
        radius_graph(torch.zeros(2, 3), cutoff)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2, 3)])
def test_positions_must_be_rows_of_three(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pos must have the shape \[N, 3\], got \["):
        radius_graph(torch.zeros(shape), 5.0)


def test_batch_must_have_an_entry_per_atom() -> None:
    with pytest.raises(ValueError, match=r"one entry per atom \[4\], got \[3\]"):
        radius_graph(torch.zeros(4, 3), 5.0, torch.zeros(3, dtype=torch.long))


def test_batch_must_be_ascending() -> None:
    with pytest.raises(ValueError, match="batch must be ascending"):
        radius_graph(torch.zeros(4, 3), 5.0, torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 1), (40, 1, 3, 25)])
def test_traceable_graph_has_the_same_edges(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    atoms = sum(sizes)
    pos = random_positions(atoms, 6.0, dtype, seed=3)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    expected = in_order(radius_graph(pos, 3.0, batch), atoms)
    assert torch.equal(graph.traceable_radius_graph(pos, 3.0, ptr), expected)
