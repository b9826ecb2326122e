"""Which graphs the fused kernels take: those of this package, for the positions they belong to."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dipolegnn._pyg import Batch, EdgeIndex
from dipolegnn.nn import PaiNN, SchNet
from dipolegnn.nn.graph import RadiusGraph, radius_graph
from tests.nn.models import CUTOFF, make_model
from tests.nn.structures import random_molecule
from tests.tolerances import assert_close

DATA = random_molecule(24, seed=5)
EDGES = radius_graph(DATA.pos, CUTOFF)


@pytest.fixture(params=["painn", "schnet"])
def network(request: pytest.FixtureRequest) -> PaiNN | SchNet:
    found = make_model(request.param, "mean").representation
    assert isinstance(found, PaiNN | SchNet)
    return found


def features(network: PaiNN | SchNet, edges: Tensor | RadiusGraph, pos: Tensor) -> Tensor:
    s, v = network(DATA.z, pos, edges)
    return s if v is None else torch.cat([s.unsqueeze(1), v], dim=1)


def nearest(pos: Tensor, neighbours: int) -> Tensor:
    near = (torch.cdist(pos, pos) + 1e9 * torch.eye(len(pos))).topk(neighbours, largest=False)
    target = torch.arange(len(pos)).repeat_interleave(neighbours)
    return torch.stack([near.indices.flatten(), target])


def shuffled(edges: Tensor) -> Tensor:
    return edges[:, torch.randperm(edges.size(1), generator=torch.Generator().manual_seed(0))]


def everything(pos: Tensor) -> Tensor:
    return radius_graph(pos, 100.0)


GRAPHS: dict[str, Tensor] = {
    "directed": EDGES[:, EDGES[0] < EDGES[1]],
    "nearest neighbours": nearest(DATA.pos, 4),
    "too long": everything(DATA.pos),
    "unsorted": shuffled(EDGES),
    "radius graph": EDGES,
}


def one_by_one(network: PaiNN | SchNet, edges: Tensor, pos: Tensor) -> Tensor:
    """The features by the plain path, of edges that are sorted and short enough."""
    j, i = edges[:, edges[1].argsort(stable=True)]
    short = (pos[j] - pos[i]).norm(dim=1) < CUTOFF
    return features(network, torch.stack([j[short], i[short]]), pos)


@pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
def test_edges_from_elsewhere_take_the_plain_path(network: PaiNN | SchNet, edges: Tensor) -> None:
    expected = one_by_one(network, edges, DATA.pos)
    size = (len(DATA.z), len(DATA.z))
    given = [edges, EdgeIndex(edges, sparse_size=size)]
    if bool((edges[1].diff() >= 0).all()):
        given.append(EdgeIndex(edges, sparse_size=size, sort_order="col"))
    for graph in given:
        assert_close(features(network, graph, DATA.pos), expected, torch.float64)


def test_a_graph_of_the_package_takes_the_kernels(
    network: PaiNN | SchNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features(network, EDGES, DATA.pos)
    for layer in network.interactions:
        monkeypatch.setattr(layer, "message", None)
    graph = RadiusGraph.of(DATA.pos, CUTOFF)
    assert_close(features(network, graph, DATA.pos), expected, torch.float64)


def test_a_smaller_cutoff_is_allowed_and_a_larger_one_refused(network: PaiNN | SchNet) -> None:
    small = RadiusGraph.of(DATA.pos, 2.0)
    expected = features(network, small.edge_index, DATA.pos)
    assert_close(features(network, small, DATA.pos), expected, torch.float64)
    with pytest.raises(ValueError, match=r"cutoff 4.5 Å and the network 4.0 Å"):
        features(network, RadiusGraph.of(DATA.pos, 4.5), DATA.pos)


@pytest.mark.parametrize("wrap", [lambda edges: edges, EdgeIndex], ids=["tensor", "EdgeIndex"])
def test_self_loops_are_refused(network: PaiNN | SchNet, wrap: Callable[[Tensor], Tensor]) -> None:
    edges = torch.cat([EDGES, torch.tensor([[3, 4], [3, 4]])], dim=1)
    with pytest.raises(ValueError, match="has 2 self-loops, the first at atom 3"):
        features(network, wrap(edges), DATA.pos)


def test_edges_must_have_two_rows(network: PaiNN | SchNet) -> None:
    with pytest.raises(ValueError, match=r"shape \[2, E\], got \[5, 2\]"):
        features(network, torch.zeros(5, 2, dtype=torch.long), DATA.pos)


def stretched(pos: Tensor) -> Tensor:
    return 1.4 * pos


def in_place(pos: Tensor) -> Tensor:
    return pos.mul_(1.4)


def behind_the_back_of_autograd(pos: Tensor) -> Tensor:
    pos.data.mul_(1.4)
    return pos


def by_numpy(pos: Tensor) -> Tensor:
    pos.numpy()[:] *= 1.4
    return pos


MOVES = [stretched, in_place, behind_the_back_of_autograd, by_numpy]


@pytest.mark.parametrize("move", MOVES)
def test_a_network_refuses_the_graph_of_atoms_that_moved(
    network: PaiNN | SchNet, move: Callable[[Tensor], Tensor]
) -> None:
    pos = DATA.pos.clone()
    graph = RadiusGraph.of(pos, CUTOFF)
    with pytest.raises(ValueError, match="atoms have moved since it was built"):
        features(network, graph, move(pos))


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("representation", ["painn", "schnet"])
def test_a_model_builds_the_graph_again_when_atoms_moved(
    representation: str, move: Callable[[Tensor], Tensor]
) -> None:
    model = make_model(representation, "mean")
    batch = Batch.from_data_list([random_molecule(n, seed=n) for n in (9, 14)])
    batch.radius_graph = RadiusGraph.of(batch.pos, CUTOFF, batch.batch)
    at_rest = model(batch).magnitude
    assert not torch.equal(batch.radius_graph.edge_index, radius_graph(1.4 * batch.pos, CUTOFF))
    batch.pos = move(batch.pos)
    moved = model(batch).magnitude
    del batch.radius_graph
    assert torch.equal(moved, model(batch).magnitude)
    assert not torch.allclose(moved, at_rest)


def test_a_model_builds_the_graph_again_when_molecules_are_joined() -> None:
    model = make_model("painn", "mean")
    batch = Batch.from_data_list([random_molecule(n, seed=n) for n in (9, 14)])
    batch.radius_graph = RadiusGraph.of(batch.pos, CUTOFF, batch.batch)
    batch.batch, batch.ptr = torch.zeros_like(batch.batch), torch.tensor([0, len(batch.z)])
    batch.charge = torch.zeros(1, dtype=torch.float64)
    got = model(batch).magnitude
    del batch.radius_graph
    assert torch.equal(got, model(batch).magnitude)


def test_a_graph_survives_copies(network: PaiNN | SchNet) -> None:
    graph = pickle.loads(pickle.dumps(RadiusGraph.of(DATA.pos, CUTOFF)))
    expected = features(network, EDGES, DATA.pos)
    assert_close(features(network, graph, DATA.pos.clone()), expected, torch.float64)
    single = DATA.pos.float()
    assert graph.to("cpu") is graph
    assert not graph.is_of(single)
    assert not graph.is_of(DATA.pos[:-1])


def test_no_comparison_by_value_where_it_would_synchronize(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dipolegnn.nn.graph.can_check_values", lambda tensor: False)
    pos = DATA.pos.clone()
    graph = RadiusGraph.of(pos, CUTOFF)
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(torch, "equal", None)
        assert graph.is_of(pos)
        pos.add_(0.1)
        assert not graph.is_of(pos)
    assert graph.is_of(DATA.pos.clone())
    with torch.inference_mode():  # where changes are not counted
        pos = DATA.pos.clone()
        graph = RadiusGraph.of(pos, CUTOFF)
        assert graph.is_of(pos)
        pos.add_(0.1)
        assert not graph.is_of(pos)


def test_only_the_package_makes_such_graphs() -> None:
    with pytest.raises(TypeError, match=r"Build it from positions with RadiusGraph.of"):
        RadiusGraph()
