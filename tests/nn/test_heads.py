from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from dipolegnn.nn import AtomFeatures, AtomwiseHead, DipoleHead, Geometry
from dipolegnn.nn.heads import GatedEquivariantBlock
from tests.nn.models import randomize
from tests.nn.structures import random_rotation
from tests.tolerances import assert_close

F64 = torch.float64


def features(atoms: int, channels: int, seed: int = 0) -> AtomFeatures:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(atoms, channels, generator=generator, dtype=F64)
    return AtomFeatures(s, torch.randn(atoms, 3, channels, generator=generator, dtype=F64))


def zeroed(head: DipoleHead) -> DipoleHead:
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head.double()


def tensor(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=F64)


def geometry(pos: Tensor, ptr: list[int], charge: list[float]) -> Geometry:
    return Geometry.of(pos, torch.tensor(ptr), torch.tensor(charge, dtype=pos.dtype))


def test_hydrogen_fluoride_by_hand() -> None:
    """0.4 e over 0.92 Å: 1.7676 D, from the negative fluorine to the positive hydrogen."""
    head = zeroed(DipoleHead(2, atomic_dipoles=False))
    layer = nn.Linear(2, 1, bias=False, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(tensor([[1.0, 0.0]]))
    head.charge = nn.Sequential(layer)
    s = tensor([[-0.3, 7.0], [0.5, 7.0]])  # 0.1 too much on each
    pos = tensor([[0.0, 0.0, 0.0], [0.0, 0.92, 0.0]])
    output = head(AtomFeatures(s, None), geometry(pos, [0, 2], [0.0]))
    assert_close(output.charges, tensor([-0.4, 0.4]), F64)
    assert output.dipole is not None
    assert output.dipole[0].tolist() == pytest.approx([0, 1.7675793, 0], abs=1e-7)
    assert output.magnitude.tolist() == pytest.approx([1.7675793], abs=1e-7)


def test_total_charge_is_spread_evenly() -> None:
    """With weights of 0 each atom has Q / n, and the dipole is Q times the centroid."""
    head = zeroed(DipoleHead(4))
    pos = tensor([[1.0, 0, 0], [3.0, 0, 0], [0.0, 2, 0], [0.0, 0, 0], [0, 0, 1.5]])
    output = head(features(5, 4), geometry(pos, [0, 2, 5], [1.0, -3.0]))
    assert_close(output.charges, tensor([0.5, 0.5, -1, -1, -1]), F64)
    debye = 4.803204712570263
    expected = debye * tensor([[2.0, 0.0, 0.0], [0.0, -2.0, -1.5]])
    assert_close(output.dipole, expected, F64)
    assert_close(output.magnitude, tensor([2 * debye, 2.5 * debye]), F64)


def test_weights_distribute_the_total_charge() -> None:
    """The network of the weights is replaced by one that returns the first feature."""
    head = zeroed(DipoleHead(2, charge_weights=True))
    layer = nn.Linear(2, 1, bias=False, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(tensor([[1.0, 0.0]]))
    head.weight = nn.Sequential(layer)
    given = features(3, 2)
    s = tensor([[0.0, 7.0], [1.0, 7.0], [-50.0, 7.0]])
    output = head(AtomFeatures(s, given.v), geometry(torch.eye(3, dtype=F64), [0, 3], [2.0]))
    weights = [math.log(2), math.log(1 + math.e), math.exp(-50)]  # softplus
    assert_close(output.charges, 2 * tensor(weights) / sum(weights), F64)


def test_charge_stays_in_its_fragment() -> None:
    """A cation of two atoms between the atoms of a dianion, and a second, neutral molecule."""
    head = DipoleHead(8)
    randomize(head, seed=0)
    head.double()
    placed = Geometry.of(
        torch.eye(3, dtype=F64).repeat(2, 1),
        torch.tensor([0, 4, 6]),
        tensor([-1.0, 0.0]),
        fragment=torch.tensor([1, 0, 0, 1, 0, 0]),
        fragment_charge=tensor([-2.0, 1.0, 1.0, -2.0, 0.0, 0.0]),
    )
    charges = head(features(6, 8), placed).charges
    assert charges.abs().min() > 0.01
    assert_close(charges[[0, 3]].sum(), -2.0, F64)
    assert_close(charges[[1, 2]].sum(), 1.0, F64)
    assert_close(charges[4:].sum(), 0.0, F64)


def test_without_vectors_only_the_scalars_count() -> None:
    head = DipoleHead(8, atomic_dipoles=False)
    randomize(head, seed=0)
    head.double()
    both, pos = features(6, 8), torch.randn(6, 3, dtype=F64)
    scalars = AtomFeatures(both.s, None)
    placed = geometry(pos, [0, 6], [0.0])
    first = head(both, placed)
    assert torch.equal(first.magnitude, head(scalars, placed).magnitude)
    assert first.magnitude.item() > 0.1


def test_a_single_neutral_atom_has_its_atomic_dipole() -> None:
    """A lone atom never has vector features in a model; here it is given some."""
    head = DipoleHead(8)
    randomize(head, seed=0)
    head.double()
    output = head(features(1, 8), geometry(tensor([[5.0, 5, 5]]), [0, 1], [0.0]))
    assert output.charges.tolist() == [0.0]
    assert output.magnitude.item() > 0.001


def test_gated_block_turns_with_its_input() -> None:
    block = GatedEquivariantBlock(8, 5, 7, activate=True)
    randomize(block, seed=0)
    block.double()
    s, v = features(10, 8)
    assert v is not None
    rotation = random_rotation(0)
    s_out, v_out = block(s, v)
    s_turned, v_turned = block(s, torch.einsum("xy,nyf->nxf", rotation, v))
    assert s_out.shape == (10, 5)
    assert v_out.shape == (10, 3, 5)
    assert v_out.abs().max() > 0.1
    assert_close(s_turned, s_out, F64)
    assert_close(v_turned, torch.einsum("xy,nyf->nxf", rotation, v_out), F64)


def test_gated_block_has_a_finite_gradient_at_0() -> None:
    block = GatedEquivariantBlock(4, 2, 4, activate=False)
    v = torch.zeros(3, 3, 4, requires_grad=True)
    s_out, v_out = block(torch.ones(3, 4), v)
    (gradient,) = torch.autograd.grad(s_out.sum() + v_out.sum(), v)
    assert bool(gradient.isfinite().all())


def test_atomwise_sum_and_mean() -> None:
    total, mean = AtomwiseHead(8, "sum"), AtomwiseHead(8, "mean")
    randomize(total, seed=0)
    mean.load_state_dict(total.state_dict())
    placed = geometry(torch.zeros(5, 3), [0, 1, 5], [0.0, 0.0])
    scalars = AtomFeatures(features(5, 8).s.float(), None)
    summed, averaged = total(scalars, placed), mean(scalars, placed)
    assert bool(summed.dipole.isnan().all())
    assert bool(summed.charges.isnan().all())
    assert summed.dipole.shape == (2, 3)
    assert_close(summed.magnitude, averaged.magnitude * torch.tensor([1, 4]), torch.float32)
    assert summed.magnitude.abs().min() > 0.01


@pytest.mark.parametrize("make", [DipoleHead, AtomwiseHead])
@pytest.mark.parametrize("hidden_channels", [-1, 0, 1])
def test_too_few_channels(make: type[DipoleHead | AtomwiseHead], hidden_channels: int) -> None:
    with pytest.raises(
        ValueError, match=f"hidden_channels must be at least 2, got {hidden_channels}"
    ):
        make(hidden_channels)


def test_unknown_aggregation() -> None:
    with pytest.raises(ValueError, match="aggregation must be 'sum' or 'mean', got 'max'"):
        AtomwiseHead(8, "max")  # type: ignore[arg-type]


@pytest.mark.parametrize("atomic_dipoles", [True, False])
def test_reversed_dipoles_of_neutral_molecules_are_opposite(atomic_dipoles: bool) -> None:
    head = DipoleHead(8, atomic_dipoles=atomic_dipoles).double()
    randomize(head, seed=3)
    given = features(5, 8)
    pos = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    neutral = geometry(pos, [0, 2, 5], [0.0, 0.0])
    before = head(given, neutral)
    head.reverse_()
    after = head(given, neutral)
    assert_close(after.dipole, -before.dipole, F64)
    assert_close(after.charges, -before.charges, F64)
    assert_close(after.magnitude, before.magnitude, F64)
    assert_close(head(given, geometry(pos, [0, 2, 5], [1.0, 1.0])).charges.sum(), 2.0, F64)
