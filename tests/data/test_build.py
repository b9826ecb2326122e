"""Data sets from SMILES and from files in one line, cached by their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes

from dipolegnn import ConformerDataset
from dipolegnn._pyg import DataLoader
from dipolegnn.config import ConformerConfig, XTBConfig
from dipolegnn.data import About, Card, SplitConfig, check_card, save_dataset, write_card
from dipolegnn.labels import ASEConfig, label_many
from dipolegnn.molecules import Molecules, TableColumns, from_smiles, write_file
from tests.data.samples import sample_molecules
from tests.labels.toys import PointCharges

SMILES = ["O", "CO", "N", "CCO"]


class ElementCharges(PointCharges):
    """Charges of (4 - Z) / 10, made neutral: quick, and known."""

    def __init__(self) -> None:
        super().__init__([])

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        assert atoms is not None
        if atoms.info["charge"]:
            raise CalculationFailed("an ion")
        charges = (4.0 - atoms.numbers) / 10
        self.charges = charges - charges.mean()
        super().calculate(atoms, properties, system_changes)


def element_charges(charge: int) -> Calculator:
    return ElementCharges()


TOY = ASEConfig(element_charges, name="element charges")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of structures of each data set that is made."""
    done: list[int] = []

    def counting(root: Path, molecules: Molecules, *args: Any, **options: Any) -> Card:
        done.append(len(molecules.data))
        return save_dataset(root, molecules, *args, **options)

    monkeypatch.setattr("dipolegnn.data.build.save_dataset", counting)
    return done


def test_from_smiles_in_one_line(tmp_path: Path) -> None:
    dataset = ConformerDataset.from_smiles(SMILES, root=tmp_path / "my")

    assert [data.smiles for data in dataset] == SMILES
    (expected,) = from_smiles("CCO")
    assert torch.equal(dataset[3].pos, expected.pos)
    assert dataset.failures == []
    assert dataset.card == check_card(tmp_path / "my")
    assert dataset.card is not None
    assert dataset.card.name == "my"
    assert dataset.card.geometry == "ETKDGv3, MMFF94s or UFF (RDKit)"
    assert dataset.card.level_of_theory == "none: no labels"
    assert dataset.card.seed == ConformerConfig().conformer_seed
    split = dataset.split()
    assert (len(split.train), len(split.val), len(split.test)) == (2, 1, 1)
    batch = next(iter(DataLoader(dataset[split.train], batch_size=2)))
    assert batch.charge.shape == (2,)


def test_two_molecules_have_no_split_unless_one_is_asked_for(tmp_path: Path) -> None:
    dataset = ConformerDataset.from_smiles(["O", "N"], root=tmp_path / "few")
    with pytest.raises(FileNotFoundError, match="Make a split"):
        dataset.split()
    with pytest.raises(ValueError, match="Nothing is left to train on"):
        ConformerDataset.from_smiles(["O", "N"], root=tmp_path / "few2", split=SplitConfig())


def test_labels_by_a_calculator_of_ase(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 molecules failed .*dataset\.failures"):
        dataset = ConformerDataset.from_smiles(
            ["O", "C1CC", "[NH4+]", "CO"], root=tmp_path, label=TOY
        )
    water = dataset[0]
    charges = (4.0 - water.z.numpy()) / 10
    charges -= charges.mean()
    expected = charges @ water.pos.double().numpy() * 4.80320471
    assert np.allclose(water.dipole[0].numpy(), expected, atol=1e-6)
    assert dataset.mol_ids().tolist() == [0, 3]
    assert [(failure.row, failure.stage) for failure in dataset.failures] == [
        (2, "read"),
        (3, "label"),
    ]
    assert dataset.card is not None
    assert dataset.card.level_of_theory == "element charges"
    assert dataset.card.counts.failures == 2


def test_labels_by_a_calculator_of_ase_in_processes() -> None:
    molecules = [from_smiles(smiles)[0] for smiles in ("O", "CO", "N")]
    serial = label_many(molecules, TOY)
    parallel = label_many(molecules, TOY, workers=2)
    assert torch.equal(serial.data[1].dipole, parallel.data[1].dipole)
    with pytest.raises(ValueError, match=r"top level of a module, or use workers=1"):
        label_many(molecules, ASEConfig(lambda charge: ElementCharges(), name="l"), workers=2)


def test_labels_by_xtb(tmp_path: Path) -> None:
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra xtb")
    dataset = ConformerDataset.from_smiles(["O"], root=tmp_path, label=XTBConfig(optimize=True))
    assert dataset[0].dipole_magnitude.item() == pytest.approx(2.2, abs=0.1)
    assert dataset.card is not None
    assert dataset.card.geometry.endswith("relaxed with GFN2-xTB (tblite)")


def test_it_is_made_once_and_again_when_its_inputs_change(
    tmp_path: Path, builds: list[int]
) -> None:
    made: list[Callable[[], ConformerDataset]] = [
        lambda: ConformerDataset.from_smiles(SMILES, tmp_path),
        lambda: ConformerDataset.from_smiles(SMILES[:3], tmp_path),
        lambda: ConformerDataset.from_smiles(SMILES[:3], tmp_path, label=TOY),
        lambda: ConformerDataset.from_smiles(SMILES[:3], tmp_path, split=SplitConfig(seed=1)),
        lambda: ConformerDataset.from_smiles(
            SMILES[:3], tmp_path, conformers=ConformerConfig(conformer_seed=1)
        ),
        lambda: ConformerDataset.from_smiles(SMILES[:3], tmp_path, about=About(name="other")),
    ]
    for count, make in enumerate(made, start=1):
        first = make()
        assert len(builds) == count
        again = make()
        assert len(builds) == count
        assert torch.equal(first.pos, again.pos)
    assert again.card is not None
    assert again.card.name == "other"
    assert again.card.description == "Molecules of a list of 3 SMILES."


def test_a_build_that_was_cut_short_is_not_taken_for_whole(
    tmp_path: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ConformerDataset.from_smiles(SMILES, tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dipolegnn.data.build.write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            ConformerDataset.from_smiles(SMILES[:3], tmp_path)
    assert len(ConformerDataset.from_smiles(SMILES, tmp_path)) == 4
    assert builds == [4, 3, 4]


def test_a_kill_right_after_the_card_was_written_costs_nothing(
    tmp_path: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, card: Card) -> None:
        write_card(path, card)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dipolegnn.data.build.write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            ConformerDataset.from_smiles(SMILES, tmp_path)
    assert len(ConformerDataset.from_smiles(SMILES, tmp_path)) == 4
    assert builds == [4]


def test_a_data_set_made_in_another_way_is_not_replaced(tmp_path: Path) -> None:
    save_dataset(tmp_path, Molecules(sample_molecules(), []), About(name="mine"))
    with pytest.raises(FileExistsError, match=r"made in another way and will not be replaced"):
        ConformerDataset.from_smiles(SMILES, tmp_path)
    assert len(ConformerDataset(tmp_path)) == len(sample_molecules())


def test_from_a_table(tmp_path: Path, builds: list[int]) -> None:
    table = tmp_path / "x.csv"
    table.write_text("smiles,mu\nO,1.85\nCO,1.70\nN,1.47\n", encoding="utf-8")
    columns = TableColumns(magnitude="mu")
    dataset = ConformerDataset.from_file(table, tmp_path / "x", columns=columns)
    assert dataset.dipole_magnitude.tolist() == pytest.approx([1.85, 1.70, 1.47])
    assert dataset.card is not None
    assert dataset.card.level_of_theory == "as stated in x.csv"

    ConformerDataset.from_file(table, tmp_path / "x", columns=columns)
    assert builds == [3]
    table.write_text("smiles,mu\nO,1.85\nCO,1.70\nN,1.48\n", encoding="utf-8")
    changed = ConformerDataset.from_file(table, tmp_path / "x", columns=columns)
    assert builds == [3, 3]
    assert changed.dipole_magnitude[2].item() == pytest.approx(1.48)
    with pytest.raises(ValueError, match="'mu' gives reference dipoles, and label would replace"):
        ConformerDataset.from_file(table, tmp_path / "x", columns=columns, label=TOY)


def test_from_structures(tmp_path: Path) -> None:
    write_file(tmp_path / "few.extxyz", sample_molecules())
    dataset = ConformerDataset.from_file(tmp_path / "few.extxyz", tmp_path / "few")
    assert len(dataset) == len(sample_molecules())
    assert dataset.card is not None
    assert (dataset.card.geometry, dataset.card.seed) == ("few.extxyz", None)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be a list of SMILES, got the text 'CCO'"):
        ConformerDataset.from_smiles("CCO", tmp_path)
    with pytest.raises(ValueError, match="there are no molecules"):
        ConformerDataset.from_smiles([], tmp_path)
    with pytest.raises(ValueError, match=r"all 1 molecules failed.*failures\.csv"):
        ConformerDataset.from_smiles(["C1CC"], tmp_path)
    with pytest.raises(FileNotFoundError):
        ConformerDataset.from_file(tmp_path / "none.csv", tmp_path)
