"""The data set that the repository carries, and the script that makes it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from rdkit import Chem

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.data import (
    ConformerDataset,
    check_card,
    random_split,
    read_card,
    read_molecules,
    read_split,
)
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.molecules import read_failures

ELEMENTS = {"H", "C", "N", "O", "F", "S", "Cl"}


@pytest.fixture(scope="module")
def folder(project_root: Path) -> Path:
    return project_root / "datasets" / "small_molecules"


@pytest.fixture(scope="module")
def molecules(folder: Path) -> list[Data]:
    return read_molecules(folder / "raw" / "molecules.npz")


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[[str], ModuleType]:
    """Import a file of the folder, which is no package."""

    def by_name(name: str) -> ModuleType:
        sys.path.insert(0, str(folder))
        try:
            return __import__(name)
        finally:
            sys.path.remove(str(folder))

    return by_name


def heavy_atoms(data: Data) -> int:
    return int((data.z > 1).sum())


@pytest.fixture(scope="module")
def mols(molecules: list[Data]) -> list[Chem.Mol]:
    """RDKit's molecules of the SMILES, parsed once."""
    return [Chem.MolFromSmiles(data.smiles) for data in molecules]


@pytest.mark.committed_data
@pytest.mark.xdist_group("small_molecules")  # parses them once
class TestData:
    def test_card_is_that_of_the_data(self, folder: Path) -> None:
        check_card(folder)
        card = read_card(folder / "card.yaml")
        assert card.licence == "CC0-1.0"
        assert "GFN2-xTB" in card.level_of_theory
        assert set(card.elements) == ELEMENTS
        assert {"rdkit", "tblite", "ase"} <= set(card.versions)

    def test_is_large_enough_and_small_enough(self, folder: Path, molecules: list[Data]) -> None:
        assert len(molecules) >= 5000
        assert (folder / "raw" / "molecules.npz").stat().st_size <= 6e6

    def test_small_neutral_molecules_of_seven_elements(self, molecules: list[Data]) -> None:
        for data in molecules:
            assert {chemical_symbols[z] for z in data.z.tolist()} <= ELEMENTS, data.name
            assert 1 <= heavy_atoms(data) <= 8, data.name
            assert data.charge.item() == 0, data.name
            assert abs(data.atomic_charges.sum().item()) < 1e-3, data.name

    def test_every_label_is_there_and_sensible(self, molecules: list[Data]) -> None:
        for data in molecules:
            assert data.dipole.isfinite().all(), data.name
            assert data.dipole.norm().item() == pytest.approx(
                data.dipole_magnitude.item(), abs=1e-4
            )
            assert data.dipole_magnitude.item() < 20, data.name

    def test_every_molecule_is_there_once(
        self, molecules: list[Data], mols: list[Chem.Mol]
    ) -> None:
        canonical = Counter(Chem.MolToSmiles(mol) for mol in mols)
        assert canonical.most_common(1)[0][1] == 1
        assert len({int(data.mol_id) for data in molecules}) == len(molecules)

    def test_structures_are_those_of_the_smiles(
        self, molecules: list[Data], mols: list[Chem.Mol]
    ) -> None:
        for data, heavy in zip(molecules, mols, strict=True):
            mol = Chem.AddHs(heavy)
            assert [a.GetAtomicNum() for a in mol.GetAtoms()] == data.z.tolist(), data.name
            assert not any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()), data.name

    @pytest.mark.parametrize(
        ("group", "least"),
        [
            ("[OH][CX4]", 300),  # alcohols
            ("[#6]-C(=O)-[#6,H]", 300),  # aldehydes and ketones
            ("C(=O)[OH]", 100),
            ("C(=O)O[#6]", 100),
            ("C(=O)[NX3]", 200),
            ("[NX3;!$(N-*=*)][CX4]", 300),
            ("C#N", 200),
            ("C#C", 200),
            ("F", 300),
            ("Cl", 300),
            ("[SH]", 50),
            ("S(=O)", 50),
            ("S(=O)(=O)", 20),
            ("[N+](=O)[O-]", 20),
            ("C1CC1", 50),
            ("[CX4]1O[CX4]1", 30),
            ("c1ccccc1", 10),
            ("n1cccc1", 20),
            ("[n;r6]", 30),
            ("o1cccc1", 20),
            ("s1cccc1", 20),
        ],
    )
    def test_functional_groups(self, mols: list[Chem.Mol], group: str, least: int) -> None:
        pattern = Chem.MolFromSmarts(group)
        assert sum(mol.HasSubstructMatch(pattern) for mol in mols) >= least

    def test_well_known_molecules_are_there(self, molecules: list[Data]) -> None:
        known = (
            "O N C S F Cl CO C=O C#N CC#N O=C=O [C-]#[O+] O=S=O CCl FC(F)F C[N+](=O)[O-] CS(C)=O "
            "CC(=O)O NC=O CC(C)=O C1CO1 c1ccccc1 c1ccncc1 c1cc[nH]c1 c1ccoc1 c1ccsc1 Oc1ccccc1"
        )
        assert set(known.split()) <= {data.smiles for data in molecules}

    def test_split_is_the_stated_one_and_complete(
        self, folder: Path, molecules: list[Data]
    ) -> None:
        mol_id = torch.tensor([int(data.mol_id) for data in molecules])
        split = read_split(folder / "split.csv", mol_id)
        again = random_split(mol_id, seed=read_card(folder / "card.yaml").seed or 0)
        parts = [(split.train, again.train), (split.val, again.val), (split.test, again.test)]
        for part, expected in parts:
            assert torch.equal(part, expected)
        sizes = [len(part) / len(molecules) for part, _ in parts]
        np.testing.assert_allclose(sizes, [0.8, 0.1, 0.1], atol=0.001)

    def test_failures_are_listed(self, folder: Path, molecules: list[Data]) -> None:
        failures = read_failures(folder / "failures.csv")
        assert len(failures) == read_card(folder / "card.yaml").counts.failures
        labelled = {data.smiles for data in molecules}
        for failure in failures:
            assert failure.molecule not in labelled
            assert failure.problem
        assert len(failures) < 0.05 * len(molecules)

    @pytest.mark.parametrize("number", [3, 700, 3500, 6500])
    def test_labels_are_those_of_the_method(self, molecules: list[Data], number: int) -> None:
        data = molecules[number]
        again = label(data, xtb_calculator(XTBConfig()))
        torch.testing.assert_close(again.dipole, data.dipole, atol=5e-3, rtol=0)
        torch.testing.assert_close(again.atomic_charges, data.atomic_charges, atol=1e-3, rtol=0)


class TestEnumeration:
    def test_gives_the_molecules_of_the_data_by_its_seed(
        self, folder: Path, molecules: list[Data], load: Callable[[str], ModuleType]
    ) -> None:
        made_with = read_card(folder / "card.yaml").versions["rdkit"]
        if made_with != version("rdkit"):
            pytest.skip(f"made with RDKit {made_with}: another may write other SMILES")
        enumerate_molecules = load("enumeration").enumerate_molecules
        enumerated = enumerate_molecules(load("build").SEED, largest=5)
        small = [data.smiles for data in molecules if heavy_atoms(data) <= 5]
        failed = {failure.molecule for failure in read_failures(folder / "failures.csv")}
        assert [smiles for smiles in enumerated if smiles not in failed] == small
        assert enumerate_molecules(1, largest=5) != enumerated

    @pytest.mark.parametrize(
        ("smiles", "allowed"),
        [
            ("CC(=O)OCC", True),
            ("C1CC2CCC1C2", True),
            ("c1ccc(O)cc1", True),
            ("CS(=O)(=O)CC", True),
            ("CCC[N+](=O)[O-]", True),
            ("CCC1CO1", True),
            ("CCNS(C)(=O)=O", True),
            ("NOOC", False),  # a chain of heteroatoms
            ("C1CC#CC1", False),  # a triple bond in a ring
            ("C1=C2CCC(C1)C2", False),  # against Bredt's rule
            ("C1=CC=C1C", False),  # cyclobutadiene
            ("CCC(O)=CC", False),  # an enol
            ("CCCOCl", False),  # a hypochlorite
            ("CC(O)(O)CC", False),  # a hydrate
            ("CCC(F)O", False),  # loses HF
        ],
    )
    def test_rules(self, load: Callable[[str], ModuleType], smiles: str, allowed: bool) -> None:
        assert load("rules").Rules().allow(Chem.MolFromSmiles(smiles)) is allowed


def test_build_script(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "set"), "--limit", "6", "--largest", "3"]
    load("build").main([*words, "--journal", str(tmp_path / "journal.jsonl")])
    check_card(tmp_path / "set")
    card = read_card(tmp_path / "set" / "card.yaml")
    assert card.counts.molecules + card.counts.failures == 6
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) >= 6


def test_displaced_copies(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    load("displace").main(["--output", str(tmp_path / "set"), "--limit", "5", "--copies", "2"])

    check_card(tmp_path / "set")
    dataset = ConformerDataset(tmp_path / "set")
    assert len(dataset) == 15
    at_rest, moved = list(dataset)[:5], list(dataset)[5:]
    shift = torch.cat([m.pos - at_rest[k // 2].pos for k, m in enumerate(moved)])
    assert float(shift.square().mean().sqrt()) == pytest.approx(0.04, rel=0.25)
    # Labelled where they are, not where they came from.
    expected = label(moved[3], xtb_calculator(XTBConfig()))
    assert torch.allclose(moved[3].dipole, expected.dipole, atol=1e-3)
    assert not torch.allclose(moved[3].dipole, at_rest[1].dipole, atol=1e-3)
    # Molecules stay in their parts.
    split = dataset.split()
    parts = [set(dataset.mol_ids()[part].tolist()) for part in (split.train, split.val, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 5
    assert sum(map(len, (split.train, split.val, split.test))) == 15


def test_grown_molecules(
    load: Callable[[str], ModuleType], molecules: list[Data], tmp_path: Path
) -> None:
    path = tmp_path / "grown.smi"
    load("grow").main(["--output", str(path), "--count", "300"])

    grown = path.read_text().splitlines()
    assert len(set(grown)) == len(grown) == 300
    assert grown == [Chem.MolToSmiles(Chem.MolFromSmiles(smiles)) for smiles in grown]
    assert not {data.smiles for data in molecules} & set(grown)
    allow = load("rules").Rules().allow
    assert all(allow(Chem.MolFromSmiles(smiles)) for smiles in grown)
    # From parents all over the data set.
    assert len({Chem.MolFromSmiles(smiles).GetNumHeavyAtoms() for smiles in grown}) > 2


def test_grown_molecules_can_be_grown_again(
    load: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "grown.smi"
    load("grow").main(["--output", str(path), "--count", "2000", "--parents", "1"])

    largest_group = 4
    heavy = [Chem.MolFromSmiles(smiles).GetNumHeavyAtoms() for smiles in path.read_text().split()]
    assert len(heavy) == 2000
    assert max(heavy) > 1 + largest_group
