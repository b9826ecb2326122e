"""The data set of GFN2-xTB labels: its structures, and that an interrupted build continues."""

from __future__ import annotations

import hashlib
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from rdkit import Chem
from scipy.spatial.distance import cdist

from dipolegnn.data import ConformerDataset
from dipolegnn.molecules import from_smiles, read_failures

SCRIPT = Path(__file__).resolve().parent.parent / "datasets" / "organic_xtb" / "build.py"

SMILES = ("O", "CO", "C[NH3+]", "CC(=O)[O-]", "c1ccccc1", "CCCC", "CI", "CC", "C[Se]C", "CCl")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with parts of four molecules."""
    spec = util.spec_from_file_location("organic_xtb_build", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PART", 4)
    monkeypatch.setattr(module, "PAIRS_PER_PART", 2)
    return module


def test_an_interrupted_build_continues(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, held_back, output = (tmp_path / name for name in ("list.csv", "held_back.txt", "out"))
    listed.write_text("smiles\n" + "\n".join([*SMILES, "OC", "no SMILES"]) + "\n")
    key = Chem.MolToInchiKey(Chem.MolFromSmiles("CCl")).split("-")[0]
    held_back.write_text(hashlib.sha256(key.encode()).hexdigest() + "\n")
    arguments = [str(listed), "--exclude", str(held_back), "--output", str(output)]
    write = build.write_failures

    def interrupt(path: Path, failures: list[object]) -> None:
        if path.stem == "0001":
            raise RuntimeError("interrupted")
        write(path, failures)

    monkeypatch.setattr(build, "write_failures", interrupt)
    with pytest.raises(RuntimeError, match="interrupted"):
        build.main(arguments)
    monkeypatch.setattr(build, "write_failures", write)
    first = output / "parts" / "0000.npz"
    written = first.stat().st_mtime_ns
    build.main(arguments)
    assert first.stat().st_mtime_ns == written

    dataset = ConformerDataset(output)
    single = [data for data in dataset if data.mol_id < build.FIRST_PAIR]
    # Neither selenium, nor what is excluded, nor a molecule twice.
    assert {data.smiles for data in single} == {*SMILES} - {"C[Se]C", "CCl"}
    assert len(single) == 2 * (len(SMILES) - 2)
    pairs = [data for data in dataset if data.mol_id >= build.FIRST_PAIR]
    moved = read_failures(output / "failures.csv")
    assert len(pairs) + len(moved) == 4
    for data in dataset:
        formal = sum(Chem.GetFormalCharge(Chem.MolFromSmiles(x)) for x in data.smiles.split("."))
        assert data.charge.item() == formal
        assert data.atomic_charges.sum().item() == pytest.approx(formal, abs=1e-3)
    split = dataset.split()
    assert len(split.train) + len(split.val) == len(dataset)
    # A molecule that validates, and each pair with it, is not trained on.
    (validating,) = {data.smiles for data in single if int(data.mol_id) % 50 == 1}
    for part, position in [("train", k) for k in split.train] + [("val", k) for k in split.val]:
        found = validating in dataset[int(position)].smiles.split(".")
        assert found == (part == "val")


def test_each_molecule_of_a_pair_keeps_its_charge(build: ModuleType) -> None:
    # From the total charge alone, it is not known which molecule is the dianion.
    dianion, neutral = from_smiles("[O-]C(=O)C(=O)[O-]")[0], from_smiles("CO")[0]
    made = build.pair(dianion, neutral, 0, True, np.random.default_rng(0))
    assert made.fragment.tolist() == [0] * len(dianion.z) + [1] * len(neutral.z)
    assert made.fragment_charge.tolist() == [-2.0] * len(dianion.z) + [0.0] * len(neutral.z)


@pytest.mark.parametrize("far", [False, True])
def test_pairs_touch_at_the_stated_distance(build: ModuleType, far: bool) -> None:
    radii = Chem.GetPeriodicTable().GetRvdw
    first, second = from_smiles("CC(=O)[O-]")[0], from_smiles("C[NH3+]")[0]
    for seed in range(20):
        made = build.pair(first, second, 0, far, np.random.default_rng(seed))
        assert made.charge == 0
        assert made.smiles == "CC(=O)[O-].C[NH3+]"
        one, other = made.pos[: len(first.z)], made.pos[len(first.z) :]
        # Both are as they were, up to a rotation.
        for pos, before in ((one, first.pos), (other, second.pos)):
            assert torch.pdist(pos) == pytest.approx(torch.pdist(before), abs=1e-5)
        distances = cdist(one, other)
        sums = np.array(
            [[radii(a) + radii(b) for b in second.z.tolist()] for a in first.z.tolist()]
        )
        if far:
            gap = (distances - sums).min()
            assert build.GAP[0] - 1e-4 < gap < build.GAP[1] + 1e-4
        else:
            contact = (distances / sums).min()
            assert build.CONTACT[0] - 1e-4 < contact < build.CONTACT[1] + 1e-4


def test_conformers_of_flexible_molecules(build: ModuleType, tmp_path: Path) -> None:
    listed, output = tmp_path / "list.csv", tmp_path / "out"
    listed.write_text("smiles\nc1ccccc1\nOCCO\nNCCCO\n")
    build.main([str(listed), "--conformers", "6", "--output", str(output)])
    dataset = ConformerDataset(output)
    assert dataset.card is not None
    assert dataset.card.name == "conformers_xtb"
    by_molecule: dict[str, list[float]] = {}
    for data in dataset:
        by_molecule.setdefault(data.smiles, []).append(float(data.energy))
    assert by_molecule.keys() == {"OCCO", "NCCCO"}  # benzene is rigid
    for energies in by_molecule.values():
        assert 1 < len(energies) <= 6
        assert 0.01 < max(energies) - min(energies) < 10  # kcal/mol
