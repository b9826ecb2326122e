"""What every model must do, whatever its representation, head and precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ase.data import atomic_masses
from torch import Tensor

from dipolegnn._pyg import Batch, Data
from dipolegnn.nn import DipoleHead, DipoleModel, DipoleOutput, Geometry
from dipolegnn.nn.graph import radius_graph
from dipolegnn.units import DEBYE_PER_E_ANGSTROM
from tests.nn.models import CUTOFF, VARIANTS, Variant, make_model
from tests.nn.structures import (
    benzene,
    carbon_dioxide,
    chiral,
    fluoromethane,
    joined,
    methane,
    molecule,
    moved,
    random_molecule,
    random_reflection,
    random_rotation,
)
from tests.tolerances import TOLERANCES, assert_close, dipole_rounding

SHIFT = torch.tensor([3.0, -5.0, 4.0], dtype=torch.float64)

CROWDED = 60
"""Atoms of a molecule in which atoms have more than 32 neighbours."""


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    return chosen


@pytest.fixture
def model(variant: Variant) -> DipoleModel:
    return make_model(*variant)


def samples(dtype: torch.dtype) -> list[Data]:
    return [
        random_molecule(9, seed=1, dtype=dtype),
        random_molecule(CROWDED, seed=3, dtype=dtype),
        random_molecule(9, seed=4, dtype=dtype, charge=-1.0),
        random_molecule(12, seed=5, dtype=dtype, charge=2.0),
    ]


def assert_same(actual: DipoleOutput, expected: DipoleOutput, matrix: Tensor | None = None) -> None:
    """The same prediction, with the dipole vector transformed by ``matrix``."""
    dtype = expected.magnitude.dtype
    assert_close(actual.magnitude, expected.magnitude, dtype)
    assert has_vector(actual) == has_vector(expected)
    if has_vector(expected):
        matrix = torch.eye(3) if matrix is None else matrix
        assert_close(actual.dipole, expected.dipole @ matrix.to(dtype).T, dtype)
        assert_close(actual.charges, expected.charges, dtype)
    else:
        assert bool(actual.charges.isnan().all())


def has_vector(output: DipoleOutput) -> bool:
    """False from a head that predicts the magnitude alone, and NaN for all else."""
    return not bool(output.dipole.isnan().all())


def scalar(output: DipoleOutput) -> Tensor:
    """One number that depends on all that a model predicts, to differentiate."""
    if not has_vector(output):
        return output.magnitude.sum()
    weights = output.dipole.new_tensor([0.3, -0.5, 0.8])
    return (output.dipole @ weights).sum() + output.magnitude.sum()


def test_samples_have_ordinary_magnitudes_and_charges(model: DipoleModel, variant: Variant) -> None:
    """The other tests compare numbers that are neither about 0 nor enormous."""
    for data in samples(variant.dtype):
        output = model(data)
        per_atom = output.magnitude.abs() * (len(data.z) if variant.head == "mean" else 1)
        assert 0.3 < per_atom.item() < 200
        if has_vector(output):
            assert 0.01 < output.charges.std() < 10
    crowded = samples(variant.dtype)[1]
    assert radius_graph(crowded.pos, CUTOFF)[1].bincount().max() > 32


def test_plain_is_fused(model: DipoleModel, variant: Variant) -> None:
    """The same predictions and gradients on both paths: what holds for one holds for the other."""
    plain = make_model(*variant, kernels="plain")
    # Without symmetric molecules: a magnitude of 0 has no direction, and so no gradient to compare.
    extra = [molecule([8], [[1, 2, 3]], variant.dtype, charge=-2), chiral(variant.dtype)]
    extra += [_crossing(CUTOFF + step, variant.dtype) for step in (-0.5, -1e-3, 1e-3)]
    extra += [fluoromethane(variant.dtype)]
    for data in [*samples(variant.dtype), *extra, Batch.from_data_list(samples(variant.dtype))]:
        data.pos.requires_grad_()
        output, expected = model(data), plain(data)
        assert_same(output, expected)
        found, wanted = _gradients(model, output, data), _gradients(plain, expected, data)
        # A gradient is a sum over atoms whose terms cancel: its error goes with the size of the
        # terms, and so with the largest entry of its layer, whose weight and bias share them.
        size: dict[str, float] = {}
        for name, gradient in wanted.items():
            layer = name.rpartition(".")[0]
            size[layer] = max(size.get(layer, 0.0), float(gradient.abs().max()))
        for name, gradient in wanted.items():
            error = TOLERANCES[variant.dtype].rtol * size[name.rpartition(".")[0]]
            assert_close(found[name], gradient, variant.dtype, error)


def _gradients(model: DipoleModel, output: DipoleOutput, data: Data) -> dict[str, Tensor]:
    """Of a number that depends on the whole output, for the positions and all parameters."""
    inputs = {"pos": data.pos, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(
        scalar(output), list(inputs.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(inputs, gradients, strict=True))


def test_rotation(model: DipoleModel, variant: Variant) -> None:
    for seed, data in enumerate(samples(variant.dtype)):
        rotation = random_rotation(seed)
        assert_same(model(moved(data, rotation)), model(data), rotation)


def test_reflection(model: DipoleModel, variant: Variant) -> None:
    for seed, data in enumerate(samples(variant.dtype)):
        reflection = random_reflection(seed)
        assert_same(model(moved(data, reflection)), model(data), reflection)


def test_permutation(model: DipoleModel, variant: Variant) -> None:
    for seed, data in enumerate(samples(variant.dtype)):
        order = torch.randperm(len(data.z), generator=torch.Generator().manual_seed(seed))
        shuffled = Data(z=data.z[order], pos=data.pos[order], charge=data.charge)
        expected = model(data)
        if has_vector(expected):
            expected = expected._replace(charges=expected.charges[order])
        assert_same(model(shuffled), expected)


def test_translation(model: DipoleModel, variant: Variant) -> None:
    """Ions too, because the model refers them to their centre of mass."""
    for data in samples(variant.dtype):
        assert_same(model(moved(data, shift=SHIFT)), model(data))


def test_translation_of_a_bare_head(model: DipoleModel, variant: Variant) -> None:
    """A head refers the dipole to the origin of its positions: it moves by Q t."""
    for data in samples(variant.dtype):
        pos, shift = data.pos, SHIFT.to(variant.dtype)
        features = model.representation(data.z, pos, radius_graph(pos, CUTOFF))
        ptr = torch.tensor([0, len(pos)])
        before = model.head(features, Geometry.of(pos, ptr, data.charge))
        after = model.head(features, Geometry.of(pos + shift, ptr, data.charge))
        if not has_vector(before):
            assert_same(after, before)
        else:
            # Of the charges as they are, whose sum is off by the rounding of many; by how much is
            # what test_charges_sum_to_the_total_charge is about.
            total = before.charges.detach().double().sum()
            expected = before.dipole + DEBYE_PER_E_ANGSTROM * total * shift
            error = dipole_rounding(before.charges, pos)
            error += dipole_rounding(after.charges, pos + shift)
            assert_close(after.dipole, expected, variant.dtype, error)
            assert_close(after.charges, before.charges, variant.dtype)


def test_batched_is_single(model: DipoleModel, variant: Variant) -> None:
    dtype = variant.dtype
    data = [*samples(dtype), molecule([8], [[1, 2, 3]], dtype, charge=-2), methane(dtype)]
    single = [model(d) for d in data]
    output = model(Batch.from_data_list(data))
    assert output.magnitude.shape == (len(data),)
    assert_close(output.magnitude, torch.cat([s.magnitude for s in single]), dtype)
    if has_vector(output):
        assert output.dipole.shape == (len(data), 3)
        assert_close(output.dipole, torch.cat([s.dipole for s in single]), dtype)
        assert_close(output.magnitude, output.dipole.norm(dim=1), dtype)
        assert_close(output.charges, torch.cat([s.charges for s in single]), dtype)


def test_batch_without_ptr(model: DipoleModel, variant: Variant) -> None:
    """``ptr`` comes with a PyG Batch; ``batch`` alone says the same."""
    batch = Batch.from_data_list(samples(variant.dtype))
    bare = Data(z=batch.z, pos=batch.pos, batch=batch.batch, charge=batch.charge)
    assert_same(model(bare), model(batch))


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_distant_fragments_add(model: DipoleModel, variant: Variant, charge: float) -> None:
    """Two neutral molecules, and an ion pair, whose dipole refers to the common centre of mass."""
    one = random_molecule(9, seed=1, dtype=variant.dtype, charge=charge)
    other = random_molecule(12, seed=5, dtype=variant.dtype, charge=-charge)
    other = moved(other, shift=4 * CUTOFF * torch.tensor([0.6, 0.0, 0.8]))
    assert torch.cdist(one.pos, other.pos).min() > CUTOFF
    together = joined(one, other)
    assert together.charge == 0
    first, second, both = model(one), model(other), model(together)
    if has_vector(both):
        assert_close(both.charges, torch.cat([first.charges, second.charges]), variant.dtype)
        apart = charge * (_center_of_mass(one) - _center_of_mass(other))
        expected = first.dipole + second.dipole + DEBYE_PER_E_ANGSTROM * apart
        error = dipole_rounding(both.charges, together.pos)
        assert_close(both.dipole, expected, variant.dtype, error)
    else:
        total = first.magnitude + second.magnitude
        if variant.head == "mean":
            sizes = len(one.z), len(other.z)
            total = (sizes[0] * first.magnitude + sizes[1] * second.magnitude) / sum(sizes)
        assert_close(both.magnitude, total, variant.dtype)


def _center_of_mass(data: Data) -> Tensor:
    masses = torch.as_tensor(atomic_masses, dtype=torch.float32)  # as the model has them
    masses = masses[data.z].to(data.pos).unsqueeze(1)
    return (masses * data.pos).sum(dim=0) / masses.sum()


def test_charges_sum_to_the_total_charge(model: DipoleModel, variant: Variant) -> None:
    data = samples(variant.dtype)
    output = model(Batch.from_data_list(data))
    if not has_vector(output):
        assert variant.head in ("sum", "mean")
        return
    sums = [part.sum() for part in output.charges.split([len(d.z) for d in data])]
    assert_close(torch.stack(sums), torch.cat([d.charge for d in data]), variant.dtype)


def test_dtype_and_device_are_kept(model: DipoleModel, variant: Variant) -> None:
    batch = Batch.from_data_list(samples(variant.dtype))
    batch.pos.requires_grad_()
    output = model(batch)
    scalar(output).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    for tensor in [*output, batch.pos.grad, *gradients]:
        if tensor is not None:
            assert tensor.dtype == variant.dtype
            assert tensor.device == batch.pos.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_is_cpu(model: DipoleModel, variant: Variant) -> None:
    batch = Batch.from_data_list(samples(variant.dtype))
    expected = model(batch)
    output = model.to("cuda")(batch.to("cuda"))
    assert output.magnitude.device.type == "cuda"
    assert_same(DipoleOutput(*(values.cpu() for values in output)), expected)


def test_every_parameter_takes_part(model: DipoleModel, variant: Variant) -> None:
    scalar(model(Batch.from_data_list(samples(variant.dtype)))).backward()
    without = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 1e-4
    }
    # A constant that all charges share is taken away when they are made to sum to Q.
    charges_alone = isinstance(model.head, DipoleHead) and model.head.charge is not None
    expected = {"head.charge.2.bias"} if charges_alone else set()
    assert without == expected


def test_input_is_not_changed(model: DipoleModel, variant: Variant) -> None:
    batch = Batch.from_data_list(samples(variant.dtype))
    copy, state = batch.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    model(batch)
    assert sorted(batch.keys()) == sorted(copy.keys())
    assert all(torch.equal(batch[key], copy[key]) for key in copy.keys())  # noqa: SIM118
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_training_mode_changes_nothing(model: DipoleModel, variant: Variant) -> None:
    data = samples(variant.dtype)[0]
    assert torch.equal(model.train()(data).magnitude, model.eval()(data).magnitude)


def test_repetition_gives_the_same_bits(model: DipoleModel, variant: Variant) -> None:
    batch = Batch.from_data_list(samples(variant.dtype))
    assert torch.equal(model(batch).magnitude, model(batch).magnitude)


def _crossing(distance: float, dtype: torch.dtype) -> Data:
    """A molecule and, at that distance from its first atom, one more; no other is as near."""
    rest = random_molecule(8, seed=2)
    pos = rest.pos - rest.pos[rest.pos[:, 0].argmax()]
    pos[:, 0] *= 1.2
    order = pos[:, 0].argsort(descending=True)
    probe = torch.tensor([[distance, 0.0, 0.0]], dtype=torch.float64)
    return molecule(
        torch.cat([rest.z[order], torch.tensor([8])]).numpy(),
        torch.cat([pos[order], probe]).numpy(),
        dtype,
    )


def _value_and_gradient(model: DipoleModel, data: Data) -> tuple[Tensor, Tensor]:
    data.pos.requires_grad_()
    value = scalar(model(data))
    (gradient,) = torch.autograd.grad(value, data.pos)
    return value.detach(), gradient


def test_smooth_as_an_atom_crosses_the_cutoff(model: DipoleModel, variant: Variant) -> None:
    step = 1e-5 if variant.dtype == torch.float64 else 1e-3
    inside = _crossing(CUTOFF - step, variant.dtype)
    outside = _crossing(CUTOFF + step, variant.dtype)
    edges = [radius_graph(data.pos, CUTOFF).size(1) for data in (inside, outside)]
    assert edges[0] == edges[1] + 2

    # What the edge does where it is well inside, beyond what happens without it.
    value, gradient = _value_and_gradient(model, outside)
    slope = gradient[-1, 0]
    deep, deep_gradient = _value_and_gradient(model, _crossing(CUTOFF - 2, variant.dtype))
    effect = (deep + (2 + step) * slope - value).abs()
    gradient_effect = (deep_gradient - gradient).abs().max()
    assert effect > 1e-4
    assert gradient_effect > 1e-4

    # Just inside, next to nothing: of second order in the value and of first in the gradient.
    near, near_gradient = _value_and_gradient(model, inside)
    atol = TOLERANCES[variant.dtype].atol
    assert (near + 2 * step * slope - value).abs() < 10 * step * effect + atol
    assert (near_gradient - gradient).abs().max() < 10 * step * gradient_effect + atol


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize(
    ("z", "pos"),
    [
        ([6], [[0.5, 0.2, 0.1]]),
        ([8, 8], [[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]),
        ([8, 6, 8], [[0.0, 0.0, -1.2], [0.0, 0.0, 0.0], [0.0, 0.0, 1.2]]),
    ],
    ids=["atom", "no-edges", "symmetric"],
)
def test_gradient_is_finite_where_the_magnitude_is_0(
    model: DipoleModel, variant: Variant, z: list[int], pos: list[list[float]], zeroed: bool
) -> None:
    if zeroed:
        for parameter in model.head.parameters():
            torch.nn.init.zeros_(parameter)
    data = molecule(z, pos, variant.dtype)
    data.pos.requires_grad_()
    output = model(data)
    if has_vector(output) or zeroed:
        assert_close(output.magnitude, torch.zeros(1), variant.dtype)
    output.magnitude.sum().backward()
    assert data.pos.grad is not None
    for gradient in [data.pos.grad, *(parameter.grad for parameter in model.parameters())]:
        assert gradient is None or bool(gradient.isfinite().all())


@pytest.mark.parametrize("make", [methane, carbon_dioxide, benzene])
def test_symmetric_molecules_have_no_dipole(
    model: DipoleModel, variant: Variant, make: Callable[[torch.dtype], Data]
) -> None:
    data = moved(make(variant.dtype), random_rotation(1), SHIFT)
    output = model(data)
    if not has_vector(output):
        assert abs(output.magnitude.item()) > 0.01  # a sum of invariants cannot know
        return
    assert output.charges.abs().max() > 0.01
    assert_close(output.dipole, torch.zeros(1, 3), variant.dtype)
    assert model(fluoromethane(variant.dtype)).magnitude.item() > 0.3


def test_mirror_images_have_equal_magnitude(model: DipoleModel, variant: Variant) -> None:
    one = chiral(variant.dtype)
    other = moved(one, random_reflection(2))
    assert_close(model(other).magnitude, model(one).magnitude, variant.dtype)
