from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Batch, Data
from dipolegnn.config import ConformerConfig, ModelConfig
from dipolegnn.inference.pipeline import predict_smiles
from dipolegnn.inference.structures import (
    ENERGY_ERROR,
    SEARCH_ERROR,
    MoleculePrediction,
    Prediction,
    average,
    average_errors,
    boltzmann,
    predict,
)
from dipolegnn.models import load_model
from dipolegnn.molecules import MoleculeError, from_smiles, make_data
from dipolegnn.nn import (
    DipoleHead,
    DipoleModel,
    DipoleOutput,
    PaiNN,
    PropertyModel,
    build_model,
)
from dipolegnn.units import BOLTZMANN_KCAL_PER_MOL_K
from tests.tolerances import assert_close

CONFIG = ModelConfig(hidden_channels=8, num_interactions=1, num_rbf=5)
SMILES = ("O", "CC(=O)Oc1ccccc1C(=O)O", "N", "CCO", "CC(=O)[O-]")


@pytest.fixture
def model() -> DipoleModel:
    torch.manual_seed(3)
    return build_model(CONFIG)


@pytest.fixture(scope="module")
def molecules() -> list[Data]:
    return [from_smiles(smiles, mol_id=i)[0] for i, smiles in enumerate(SMILES)]


def test_predictions_equal_the_model_in_input_order(
    model: DipoleModel, molecules: list[Data]
) -> None:
    output: DipoleOutput = model(Batch.from_data_list(molecules, exclude_keys=["mol_block"]))
    assert output.dipole is not None
    assert output.charges is not None

    found = predict(model, molecules)

    assert [p.data for p in found] == molecules
    assert_close(np.array([p.magnitude for p in found]), output.magnitude, torch.float32)
    assert_close(np.array([p.dipole for p in found]), output.dipole, torch.float32)
    charges = [p.charges for p in found]
    assert_close(np.concatenate(charges), output.charges, torch.float32)
    assert [len(c) for c in charges] == [data.z.numel() for data in molecules]


def test_batches_are_bounded_by_atoms_and_change_nothing(
    model: DipoleModel, molecules: list[Data]
) -> None:
    atoms: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, batch: atoms.append(batch[0].z.numel()))
    found = predict(model, molecules, batch_atoms=14)
    hook.remove()

    # Aspirin alone is larger than a batch; ammonia and ethanol fit into one.
    assert atoms == [3, 21, 13, 7]
    together = predict(model, molecules)
    assert_close(
        np.array([p.dipole for p in found]), np.array([p.dipole for p in together]), torch.float32
    )


def test_leaves_the_model_and_the_molecules_as_they_were(
    model: DipoleModel, molecules: list[Data]
) -> None:
    before = [data.clone() for data in molecules]
    model.train()

    predict(model, molecules)

    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    for data, copy in zip(molecules, before, strict=True):
        assert data.keys() == copy.keys()
        assert torch.equal(data.pos, copy.pos)
        assert torch.equal(data.dipole.isnan(), copy.dipole.isnan())


def test_another_device_leaves_the_model_where_it_was(
    model: DipoleModel, molecules: list[Data]
) -> None:
    assert predict(model, [], device="meta") == []
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    # "cpu:0" differs from "cpu" by name, so that a copy of the model computes.
    copied, own = predict(model, molecules, device="cpu:0"), predict(model, molecules)
    assert [p.magnitude for p in copied] == [p.magnitude for p in own]


def test_coordinates_follow_the_precision_of_the_model(
    model: DipoleModel, molecules: list[Data]
) -> None:
    single = predict(model, molecules)
    double = predict(model.double(), molecules)

    assert_close(
        np.array([p.dipole for p in single]), np.array([p.dipole for p in double]), torch.float32
    )


def test_positions_and_elements_are_enough(model: DipoleModel) -> None:
    water = from_smiles("O")[0]

    (found,) = predict(model, [Data(z=water.z, pos=water.pos)])

    assert found.magnitude == pytest.approx(predict(model, [water])[0].magnitude)


def test_charges_of_an_ion_sum_to_its_charge_and_its_dipole_does_not_move_with_it(
    model: DipoleModel,
) -> None:
    acetate = from_smiles("CC(=O)[O-]")[0]
    moved = acetate.clone()
    moved.pos = acetate.pos + torch.tensor([1.0, -2.0, 3.0])

    here, there = predict(model, [acetate, moved])

    assert here.charges is not None
    assert here.charges.sum() == pytest.approx(-1, abs=1e-5)
    assert here.dipole is not None
    assert there.dipole is not None
    assert_close(here.dipole, there.dipole, torch.float32)


def test_a_model_without_vectors_gives_a_magnitude(molecules: list[Data]) -> None:
    model = build_model(ModelConfig(hidden_channels=8, num_interactions=1, head="atomwise"))

    found = predict(model, molecules)

    assert not any(p.has_vector or np.isfinite(p.charges).any() for p in found)
    assert all(math.isfinite(p.magnitude) for p in found)
    labels = found[0].as_labels()
    assert labels.dipole.isnan().all()
    assert labels.atomic_charges.isnan().all()


def test_no_molecules_no_predictions(model: DipoleModel) -> None:
    assert predict(model, []) == []


def test_names_the_molecule_that_no_model_knows(model: DipoleModel) -> None:
    dimer = make_data([101, 1], [[0, 0, 0], [0, 0, 2]], name="mendelevium hydride")

    with pytest.raises(
        MoleculeError, match=r"row 2, molecule 'mendelevium hydride'.*101.*1 to 100"
    ):
        predict(model, [from_smiles("O")[0], dimer])
    with pytest.raises(MoleculeError, match=r"row 1.*coordinates pos"):
        predict(model, [Data(z=torch.tensor([1, 1]))])
    with pytest.raises(ValueError, match="batch_atoms must be at least 1, got 0"):
        predict(model, [], batch_atoms=0)


def test_prediction_as_labels(model: DipoleModel) -> None:
    water = from_smiles("O", name="water")[0]
    (found,) = predict(model, [water])

    labels = found.as_labels()

    assert found.dipole is not None
    assert labels.dipole.shape == (1, 3)
    assert_close(labels.dipole[0], found.dipole, torch.float32)
    assert labels.dipole_magnitude.item() == pytest.approx(found.magnitude)
    assert labels.atomic_charges.sum().item() == pytest.approx(0, abs=1e-6)
    assert (labels.name, labels.dipole.dtype) == ("water", torch.float32)
    assert water.dipole.isnan().all()


def conformer(energy: float | None, magnitude: float, mol_id: int = 0) -> Prediction:
    pos = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]]
    data = make_data([1, 1], pos, energy=energy, mol_id=mol_id, name="H2")
    return Prediction(data, magnitude, np.full(3, np.nan), np.full(2, np.nan))


def test_boltzmann_average_by_hand() -> None:
    # At this temperature RT is 1 kcal/mol, so the weights go as 1 : 1/e : 1/e².
    found = boltzmann(
        [conformer(7, 4.0), conformer(5, 1.0), conformer(6, 2.0)],
        temperature=1 / BOLTZMANN_KCAL_PER_MOL_K,
    )

    parts = np.exp([0.0, -1.0, -2.0])
    assert found.weights == pytest.approx(parts / parts.sum())
    assert found.magnitude == pytest.approx((1 + 2 / math.e + 4 / math.e**2) / parts.sum())
    assert [c.magnitude for c in found.conformers] == [1.0, 2.0, 4.0]
    assert (found.lowest.magnitude, found.smallest, found.largest) == (1.0, 1.0, 4.0)


def test_boltzmann_average_in_the_cold_and_in_the_heat() -> None:
    pair = [conformer(0, 1.0), conformer(1, 3.0)]

    assert boltzmann(pair, temperature=1).magnitude == pytest.approx(1.0)
    assert boltzmann(pair, temperature=1e9).magnitude == pytest.approx(2.0)


def test_boltzmann_average_needs_energies_and_a_temperature() -> None:
    assert boltzmann([conformer(None, 1.5)]).magnitude == 1.5  # one conformer needs no weight
    with pytest.raises(ValueError, match="conformer of H2 has no energy"):
        boltzmann([conformer(0, 1.0), conformer(None, 2.0)])
    with pytest.raises(ValueError, match="no conformers"):
        boltzmann([])
    with pytest.raises(ValueError, match="temperature must be positive, in kelvin, got 0"):
        boltzmann([conformer(0, 1.0)], temperature=0)


def test_average_goes_by_molecule_and_leaves_structures_without_energy_alone() -> None:
    found = average(
        [
            conformer(0, 1.0, mol_id=1),
            conformer(0, 3.0, mol_id=1),
            conformer(0, 5.0, mol_id=2),
            conformer(None, 7.0, mol_id=3),
            conformer(None, 9.0, mol_id=3),
        ]
    )

    assert [molecule.magnitude for molecule in found] == [2.0, 5.0, 7.0, 9.0]
    assert [len(molecule.conformers) for molecule in found] == [2, 1, 1, 1]


def test_errors_of_an_average() -> None:
    # Both far apart: the second has no weight whatever the error of the energies.
    far = average_errors([conformer(0, 1.0), conformer(1000 * ENERGY_ERROR, 9.0)], 298.15, 4)
    # 500 draws: standard deviation of their standard deviation 3 %.
    assert far.std() == pytest.approx(2 * SEARCH_ERROR * 9.0, rel=0.1)
    # In the cold, one of two equal conformers is the lowest: 1 or 3 D instead of 2 D.
    pair = average_errors([conformer(0, 1.0), conformer(0, 3.0)], 0.01, 0)
    assert np.quantile(np.abs(pair), 0.9) == pytest.approx(1.0, abs=1e-3)
    assert abs(pair.mean()) < 0.1
    # In the heat, energies do not matter.
    assert average_errors([conformer(0, 1.0), conformer(0, 3.0)], 1e9, 0).std() < 1e-5


def test_intervals_of_flexible_molecules_from_smiles_include_the_conformers() -> None:
    model = load_model("painn-organic")
    ethanol, benzene = predict_smiles(model, ["CCO", "c1ccccc1"]).molecules
    (one,) = predict_smiles(model, ["CCO"], conformers=ConformerConfig(conformers=1)).molecules
    (given,) = average(predict(model, from_smiles("CCO")))

    def factor(molecule: MoleculePrediction) -> float:
        whole, alone = molecule.half_width(0.9), molecule.lowest.half_width(0.9)
        assert whole is not None
        assert alone is not None
        return whole / alone

    assert factor(ethanol) > factor(one) > 1.1
    assert factor(benzene) == factor(given) == pytest.approx(1.0)


def test_smiles_to_dipoles_with_failures(model: DipoleModel) -> None:
    found = predict_smiles(model, ["CCO", "C1CC", "C"], conformers=ConformerConfig(conformers=4))

    ethanol, methane = found.molecules
    assert ethanol.lowest.data.smiles == "CCO"
    assert len(ethanol.conformers) > 1
    assert ethanol.smallest <= ethanol.magnitude <= ethanol.largest
    assert methane.magnitude == pytest.approx(0, abs=1e-4)
    (failure,) = found.failures
    assert (failure.row, failure.molecule) == (2, "C1CC")


@pytest.mark.parametrize("name", ["painn-organic", None])
def test_a_broken_bond_has_no_interval(name: str | None, model: DipoleModel) -> None:
    used = model if name is None else load_model(name)
    oxides = [make_data([6, 8], [[0.0, 0.0, 0.0], [0.0, 0.0, x]]) for x in (1.13, 30.0)]
    near, far = predict(used, oxides)
    assert (near.broken_bond, far.broken_bond) == ("", "the atom C1 has no bond")
    note = "the atom C1 has no bond: do not rely on the prediction, it has no interval"
    assert note in far.doubts
    assert note not in near.doubts
    assert far.half_width() == (None if name is None else math.inf)
    assert near.half_width() != math.inf


def test_a_model_of_another_property_is_refused(molecules: list[Data]) -> None:
    other: Any = PropertyModel(PaiNN(8, 1), DipoleHead(8))
    with pytest.raises(TypeError, match=r"needs a model of dipole moments .* got PropertyModel"):
        predict(other, molecules)
