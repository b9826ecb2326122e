"""How models are composed, what they refuse, and their configuration."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import pytest
import torch
from ase import Atoms
from torch import Tensor

from dipolegnn._pyg import Batch, Data
from dipolegnn.config import ModelConfig
from dipolegnn.nn import (
    AtomFeatures,
    AtomwiseHead,
    DipoleHead,
    DipoleModel,
    PaiNN,
    RadiusGraph,
    Representation,
    SchNet,
    build_model,
)
from dipolegnn.nn.features import MAX_Z
from dipolegnn.nn.graph import radius_graph
from dipolegnn.nn.model import describe, options, with_levels
from dipolegnn.units import DEBYE_PER_E_ANGSTROM
from tests.nn.models import make_model, randomize
from tests.nn.structures import methane, molecule, random_molecule
from tests.tolerances import assert_close

F32, F64 = torch.float32, torch.float64

REPRESENTATIONS: tuple[Literal["painn", "schnet"], ...] = ("painn", "schnet")
BASES: tuple[Literal["gaussian", "bessel"], ...] = ("gaussian", "bessel")
HEADS: tuple[Literal["dipole", "charges", "atomwise"], ...] = ("dipole", "charges", "atomwise")
AGGREGATIONS: tuple[Literal["sum", "mean"], ...] = ("sum", "mean")

CONFIGS = [
    ModelConfig(representation, 8, 2, 5, 4.25, basis, head, aggregation)
    for representation in REPRESENTATIONS
    for basis in BASES
    for head in HEADS
    for aggregation in AGGREGATIONS
] + [ModelConfig("painn", 8, 2, 5, charge_weights=True, levels=("DFT", "xTB"))]


# The model's parts


def test_shapes_of_the_features() -> None:
    data = random_molecule(7, seed=0, dtype=F32)
    edges = radius_graph(data.pos, 5.0)
    s, v = PaiNN(hidden_channels=12)(data.z, data.pos, edges)
    assert s.shape == (7, 12)
    assert v is not None
    assert v.shape == (7, 3, 12)
    s, v = SchNet(hidden_channels=12)(data.z, data.pos, edges)
    assert s.shape == (7, 12)
    assert v is None


def test_edges_point_from_target_to_source() -> None:
    """One edge alone, into atom 0: only that atom learns of the other, in its direction."""
    painn = make_model("painn", "dipole").representation
    z, pos = torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [0.0, 0, 1.2]], dtype=F64)
    edge = torch.tensor([[1], [0]])
    _, v = painn(z, pos, edge)
    assert v is not None
    assert v[1].abs().max() == 0
    assert v[0, :2].abs().max() == 0
    assert v[0, 2].abs().max() > 0.01


def test_number_of_parameters_is_that_of_schnetpack() -> None:
    """580,736 there, with embeddings of the numbers 0 to 99; here also of element 100."""
    parameters = sum(p.numel() for p in PaiNN(128, 3, 20, 5.0).parameters())
    assert parameters == 580_736 + 128


@pytest.mark.parametrize("make", [PaiNN, SchNet])
def test_fresh_weights(make: type[PaiNN | SchNet]) -> None:
    """As published: N(0, 1) embeddings, Xavier-uniform matrices, biases of 0."""
    torch.manual_seed(0)
    for name, parameter in make(hidden_channels=64).named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0
        elif name == "embedding.weight":
            assert parameter.std().item() == pytest.approx(1.0, abs=0.05)
        else:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.9 * bound < parameter.abs().max() <= bound


# Composition


@pytest.mark.parametrize("head", [DipoleHead(16), AtomwiseHead(16)])
@pytest.mark.parametrize("make", [PaiNN, SchNet])
def test_widths_must_agree(make: type[PaiNN | SchNet], head: DipoleHead | AtomwiseHead) -> None:
    expected = f"{make.__name__} has hidden_channels=8 and {type(head).__name__} expects 16"
    with pytest.raises(ValueError, match=expected):
        DipoleModel(make(8), head)


def test_atomic_dipoles_need_vectors() -> None:
    with pytest.raises(ValueError, match="needs vector features, and SchNet has none"):
        DipoleModel(SchNet(8), DipoleHead(8, atomic_dipoles=True))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_a_head_adapted_to_schnet_keeps_its_precision(dtype: torch.dtype) -> None:
    model = DipoleModel(SchNet(8).to(dtype), DipoleHead(8).to(dtype))
    assert model(methane(dtype)).dipole.dtype == dtype


@pytest.mark.parametrize("make", [PaiNN, SchNet])
@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("hidden_channels", 0, "at least 1"),
        ("num_interactions", 0, "at least 1"),
        ("num_rbf", 1, "at least 2"),
        ("cutoff", 0.0, "a positive distance"),
        ("cutoff", -5.0, "a positive distance"),
        ("cutoff", math.nan, "a positive distance"),
        ("cutoff", math.inf, "a positive distance"),
        ("radial_basis", "spline", "'gaussian' or 'bessel'"),
    ],
)
def test_sizes_that_make_no_network(
    make: type[PaiNN | SchNet], argument: str, value: float | str, expected: str
) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be {expected}.*got '?{value}"):
        make(**{argument: value})  # type: ignore[arg-type]


# What comes in


def test_charge_defaults_to_0() -> None:
    model = make_model("painn", "dipole", F32)
    batch = Batch.from_data_list([random_molecule(5, 0, F32), random_molecule(6, 1, F32)])
    bare = Data(z=batch.z, pos=batch.pos, batch=batch.batch)
    assert torch.equal(model(bare).dipole, model(batch).dipole)


@pytest.mark.parametrize("charge", [torch.tensor([2]), torch.tensor([[2.0]]), torch.tensor(2.0)])
def test_charge_may_be_whole_or_have_another_shape(charge: torch.Tensor) -> None:
    model = make_model("painn", "dipole", F32)
    data = random_molecule(5, seed=0, dtype=F32, charge=2.0)
    expected = model(data).dipole
    data.charge = charge
    output = model(data)
    assert output.dipole.dtype == F32
    assert torch.equal(output.dipole, expected)


def test_an_ion_refers_to_its_centre_of_mass() -> None:
    """With weights of 0, each atom has the same charge."""
    model = make_model("painn", "dipole")
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    data = random_molecule(7, seed=5, charge=-2.0)
    center = torch.tensor(Atoms(data.z.numpy(), data.pos.numpy()).get_center_of_mass())
    expected = -2.0 * DEBYE_PER_E_ANGSTROM * (data.pos.mean(dim=0) - center)
    assert expected.norm() > 1
    # ASE's masses are in double precision, the model's were made in single.
    assert_close(model(data).dipole[0], expected, F32)


@pytest.mark.parametrize("field", ["z", "pos"])
def test_missing_field(field: str) -> None:
    data = methane(F32)
    del data[field]
    left = sorted(data.keys())
    with pytest.raises(ValueError, match=r"needs z \[N\] and pos \[N, 3\]") as caught:
        make_model("painn", "dipole", F32)(data)
    assert str(left) in str(caught.value)


@pytest.mark.parametrize(("ours", "theirs"), [(F32, F64), (F64, F32)])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_precisions_must_agree(representation: str, ours: torch.dtype, theirs: torch.dtype) -> None:
    model = make_model(representation, "dipole", ours)
    with pytest.raises(ValueError, match=f"positions are {theirs} and the model is {ours}"):
        model(methane(theirs))


@pytest.mark.parametrize("number", [-1, 0, MAX_Z + 1, 118])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_unknown_element(representation: str, number: int) -> None:
    data = methane(F32)
    data.z[3] = number
    with pytest.raises(ValueError, match=f"atomic number {number}, expected 1 to {MAX_Z}"):
        make_model(representation, "dipole", F32)(data)


def test_every_element_of_the_embedding_is_taken() -> None:
    z = list(range(1, MAX_Z + 1))
    data = molecule(z, [[2.0 * i, 0.0, 0.0] for i in z], F32)
    output = make_model("painn", "dipole", F32)(data)
    assert bool(output.charges.isfinite().all())
    assert len(output.charges.unique()) > 90


@pytest.mark.parametrize("charges", [0, 1, 3])
def test_charge_needs_an_entry_per_molecule(charges: int) -> None:
    batch = Batch.from_data_list([methane(F32), methane(F32)])
    batch.charge = torch.zeros(charges)
    with pytest.raises(ValueError, match=rf"one entry per molecule \[2\], got \[{charges}\]"):
        make_model("painn", "dipole", F32)(batch)


def test_atoms_of_a_molecule_must_follow_each_other() -> None:
    data = methane(F32)
    data.batch = torch.tensor([0, 1, 0, 1, 0])
    del data.charge
    with pytest.raises(ValueError, match="batch must be ascending"):
        make_model("painn", "dipole", F32)(data)


@pytest.mark.parametrize("field", ["fragment", "fragment_charge"])
def test_fragments_need_both_fields(field: str) -> None:
    data = methane(F32)
    data[field] = torch.zeros(5)
    with pytest.raises(ValueError, match=rf"has {field} \[N\] and no \w+ \[N\]; give both"):
        make_model("painn", "dipole", F32)(data)


def test_fragments_have_an_entry_per_atom() -> None:
    data = methane(F32)
    data.fragment, data.fragment_charge = torch.zeros(4, dtype=torch.long), torch.zeros(5)
    with pytest.raises(ValueError, match=r"fragment must have one entry per atom \[5\], got \[4\]"):
        make_model("painn", "dipole", F32)(data)


# Levels of theory

LEVELS = ("B3LYP", "GFN2-xTB")


@pytest.fixture(params=REPRESENTATIONS)
def two_levels(request: pytest.FixtureRequest) -> DipoleModel:
    config = ModelConfig(request.param, 16, 2, 5, 4.0, levels=LEVELS)
    model: DipoleModel = build_model(config)
    randomize(model, seed=0)
    return model


def at_level(data: Data, level: str) -> Data:
    copy = data.clone()
    copy.level = level
    return copy


def test_levels_are_equal_before_training() -> None:
    model = build_model(ModelConfig(hidden_channels=16, levels=LEVELS))
    data = random_molecule(6, seed=0, dtype=F32)
    outputs = [model(at_level(data, level)).dipole for level in LEVELS]
    assert torch.equal(*outputs)
    model.representation.level_embedding.weight.data.fill_(1.0)
    model.reset_parameters()
    assert not model.representation.level_embedding.weight.any()


def test_level_changes_the_prediction_and_the_first_is_the_default(
    two_levels: DipoleModel,
) -> None:
    data = random_molecule(6, seed=0, dtype=F32)
    first, second = (two_levels(at_level(data, level)).magnitude for level in LEVELS)
    assert abs(first - second) > 0.01
    assert torch.equal(two_levels(data).magnitude, first)
    assert torch.equal(two_levels(at_level(data, "")).magnitude, first)


def test_molecules_of_a_batch_may_have_different_levels(two_levels: DipoleModel) -> None:
    data = [random_molecule(atoms, seed=atoms, dtype=F32) for atoms in (6, 1, 9)]
    data = [at_level(d, level) for d, level in zip(data, (*LEVELS, LEVELS[1]), strict=True)]
    single = torch.cat([two_levels(d).magnitude for d in data])
    assert_close(two_levels(Batch.from_data_list(data)).magnitude, single, F32)


def test_unknown_level_is_an_error(two_levels: DipoleModel) -> None:
    data = at_level(random_molecule(6, seed=0, dtype=F32), "MP2")
    with pytest.raises(ValueError, match="no level of theory 'MP2'; it has B3LYP, GFN2-xTB"):
        two_levels(data)


def test_a_level_per_molecule(two_levels: DipoleModel) -> None:
    batch = Batch.from_data_list([methane(F32), methane(F32)])
    batch.level = ["B3LYP"]
    with pytest.raises(ValueError, match=r"level must have one entry per molecule \(2\), got 1"):
        two_levels(batch)


def test_a_model_of_one_level_ignores_the_name() -> None:
    data = random_molecule(6, seed=0, dtype=F32)
    model = make_model("painn", "dipole", F32)
    assert torch.equal(model(at_level(data, "MP2")).dipole, model(data).dipole)


def test_an_added_level_starts_as_the_first(two_levels: DipoleModel) -> None:
    data = random_molecule(6, seed=0, dtype=F32)
    before = {level: two_levels(at_level(data, level)).magnitude for level in LEVELS}
    model = with_levels(two_levels, ["GFN2-xTB", "MP2"])
    assert model.representation.levels == [*LEVELS, "MP2"]
    for level in LEVELS:
        assert torch.equal(model(at_level(data, level)).magnitude, before[level])
    assert torch.equal(model(at_level(data, "MP2")).magnitude, before["B3LYP"])
    assert two_levels.representation.levels == list(LEVELS)


def test_levels_are_added_to_a_model_without_levels() -> None:
    data = random_molecule(6, seed=0, dtype=F64)
    single = make_model("schnet", "dipole", F64)
    model = with_levels(single, ["MP2"], first="B3LYP")
    for level in ("B3LYP", "MP2", ""):
        assert torch.equal(model(at_level(data, level)).magnitude, single(data).magnitude)


def test_levels_occur_once() -> None:
    with pytest.raises(ValueError, match="must occur once, got B3LYP, B3LYP"):
        PaiNN(16, levels=("B3LYP", "B3LYP"))


# Configuration


@pytest.mark.parametrize("asked", CONFIGS, ids=str)
def test_config_round_trip(asked: ModelConfig) -> None:
    model = build_model(asked)
    assert model.config == describe(asked)
    again = build_model(model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict(), strict=True)
    data = random_molecule(6, seed=0, dtype=F32)
    assert torch.equal(again(data).magnitude, model(data).magnitude)
    # The options of the commands, from the parts: up to those that the parts do not have.
    assert describe(options(model.config)) == model.config


def test_config_is_that_of_the_parts() -> None:
    model = DipoleModel(PaiNN(24, 2, 7, 4.5, "bessel"), AtomwiseHead(24, "mean"))
    assert model.config == {
        "representation": {
            "class": "PaiNN",
            "hidden_channels": 24,
            "num_interactions": 2,
            "num_rbf": 7,
            "cutoff": 4.5,
            "radial_basis": "bessel",
            "levels": [],
        },
        "head": {"class": "AtomwiseHead", "hidden_channels": 24, "aggregation": "mean"},
    }


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_default_config_is_the_default_model(representation: Literal["painn", "schnet"]) -> None:
    if representation == "painn":
        assert DipoleModel(PaiNN(), DipoleHead(128)).config == describe(ModelConfig())
    model = build_model(ModelConfig(representation=representation))
    assert options(model.config) == ModelConfig(representation=representation)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(representation="gcn"), "no representation 'gcn' among PaiNN, SchNet"),
        (
            ModelConfig(head="energy"),
            "no head 'energy' among AtomwiseHead, ConformerEnergyHead, DipoleHead",
        ),
        ({"representation": {"class": "PaiNN", "layers": 3}, "head": {}}, "unknown: layers"),
        (
            {"representation": {"class": "PaiNN"}, "head": {"class": "DipoleHead"}},
            "missing: hidden_channels",
        ),
        (
            {"representation": {"class": "PaiNN", "cutoff": "far"}, "head": {}},
            "PaiNN cannot be made from {'cutoff': 'far'}",
        ),
    ],
)
def test_parts_that_do_not_exist(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_model(config)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_reset_parameters_draws_as_the_constructor(
    representation: Literal["painn", "schnet"],
) -> None:
    config = ModelConfig(representation=representation, hidden_channels=8)
    torch.manual_seed(0)
    model = build_model(config)
    model.calibration = torch.nn.Identity()
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(0)
    model.reset_parameters()
    again = model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert model.calibration is None
    model.reset_parameters()
    changed = [name for name, weight in model.named_parameters() if name.endswith("weight")]
    assert all(not torch.equal(first[name], again[name]) for name in changed)


class Elements(Representation):
    """Features of the element of each atom and nothing else."""

    def __init__(self, hidden_channels: int = 8) -> None:
        super().__init__()
        self.hidden_channels, self.cutoff = hidden_channels, 5.0
        self.table = torch.nn.Embedding(100, hidden_channels)

    def forward(self, z: Tensor, pos: Tensor, edge_index: Tensor | RadiusGraph) -> AtomFeatures:
        return AtomFeatures(self.table(z), None)


def test_a_representation_of_ones_own() -> None:
    model = DipoleModel(Elements(), DipoleHead(8))
    assert model(random_molecule(5, seed=0, dtype=F32)).magnitude.item() > 0
    assert model.message_passing == "plain"
    assert model.config["representation"] == {"class": "Elements", "hidden_channels": 8}
    with pytest.raises(ValueError, match=r"no representation 'Elements' .* give it"):
        build_model(model.config)
    assert build_model(model.config, [Elements]).config == model.config
    with pytest.raises(ValueError, match="options of the commands cannot state this model"):
        options(DipoleModel(PaiNN(), DipoleHead(128, atomic_dipoles=True)).config)


def test_parts_must_be_parts() -> None:
    linear: Any = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"representation must be a .*Representation, got Linear"):
        DipoleModel(linear, DipoleHead(8))


def test_arguments_that_a_part_does_not_keep() -> None:
    class Careless(Elements):
        def __init__(self, depth: int = 3) -> None:
            super().__init__(8 * depth // 3)

    with pytest.raises(TypeError, match="Careless has the argument depth and no attribute"):
        _ = DipoleModel(Careless(), DipoleHead(8)).config
