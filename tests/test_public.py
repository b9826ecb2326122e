"""Data sets of public DFT dipoles, and the training of the broad model on them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rdkit import Chem

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.data import About, ConformerDataset, make_split, save_dataset
from dipolegnn.inference.structures import predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import load_model
from dipolegnn.molecules import Molecules, from_smiles, make_data
from dipolegnn.molecules.molecule import relabelled
from dipolegnn.nn import DipoleHead

DRUG_LIKE = ("CCO", "CC(=O)[O-]", "NCCO", "CSC", "CC(C)=O", "ClCCl", "OCCO", "CC=O")
EXCLUDED = "CSC"


def script(root: Path, folder: str, name: str) -> ModuleType:
    path = root / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def joined(structures: list[Data]) -> dict[str, NDArray[Any]]:
    """The arrays that all files have."""
    return {
        "n": np.array([len(data.z) for data in structures], dtype=np.int32),
        "z": torch.cat([data.z for data in structures]).numpy().astype(np.uint8),
        "pos": torch.cat([data.pos for data in structures]).numpy(),
        "charge": torch.cat([data.charge for data in structures]).numpy().astype(np.int8),
        "smiles": np.array([data.smiles for data in structures]),
        "mu": np.arange(1.0, len(structures) + 1, dtype=np.float32),
    }


def dimer(first: str, second: str) -> Data:
    """Two molecules side by side."""
    one, other = from_smiles(first)[0], from_smiles(second)[0]
    return make_data(
        torch.cat([one.z, other.z]),
        torch.cat([one.pos, other.pos + one.pos.max(0).values - other.pos.min(0).values + 1.5]),
    )


def write_sources(folder: Path) -> None:
    """Files in the format of the reference data, with made-up dipoles."""
    conformers = [d for text in DRUG_LIKE for d in from_smiles(text, conformers=2)]
    arrays = joined(conformers)
    count = len(conformers)
    named = {"molecule": arrays["smiles"], "conformer": np.array([f"c{k}" for k in range(count)])}
    energy = np.full(count, np.nan, dtype=np.float32)
    np.savez(
        folder / "drug_conformers.npz",
        allow_pickle=False,
        mu_b3lyp=arrays.pop("mu"),
        energy_dlpno=energy,
        **named,
        **arrays,
    )
    vectors = np.arange(3.0 * count).reshape(count, 3).astype(np.float32)
    scan = {"scan": np.arange(count), "angle": np.arange(count)}
    np.savez(
        folder / "torsion_profiles.npz", allow_pickle=False, dipole_com=vectors, **scan, **arrays
    )
    dimers = joined([dimer("O", "CO"), dimer("N", "C=O")])
    np.savez(
        folder / "s66x8_dimers.npz",
        allow_pickle=False,
        dipole=vectors[:2],
        dimer=np.array(["1-2", "3-4"]),
        step=np.arange(2),
        **dimers,
    )
    small = joined([from_smiles(text)[0] for text in ("O", "N", "C", "CO", "C#N", "C=O")])
    split: dict[str, NDArray[Any]] = {
        "split": np.array([0, 0, 0, 0, 1, 2], dtype=np.int8),
        "qm9_index": np.arange(6) + 10,
    }
    np.savez(folder / "qm9_dipole.npz", allow_pickle=False, **split, **small)
    excluded = Chem.MolToInchiKey(Chem.MolFromSmiles(EXCLUDED)).split("-")[0]
    (folder / "excluded.txt").write_text(hashlib.sha256(excluded.encode()).hexdigest() + "\n")


@pytest.fixture(scope="module")
def public(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets that the script makes."""
    folder = tmp_path_factory.mktemp("public")
    write_sources(folder)
    own = []
    for place, text in enumerate(("CF", "CBr", "CS", "C[SiH3]", "CP", "C[NH3+]")):
        (data,) = from_smiles(text, mol_id=place)
        own.append(relabelled(data, dipole=[0.0, 0.0, 1.0 + place]))
    about = About(name="organic", level_of_theory="B3LYP/def2-TZVPD (PySCF)")
    save_dataset(folder / "own", Molecules(own, []), about, split=make_split(own, "random"))
    build = script(project_root, "datasets/public", "build")
    arguments = ["--source", folder, "--output", folder / "sets", "--organic", folder / "own"]
    build.main([str(word) for word in [*arguments, "--exclude", folder / "excluded.txt"]])
    return folder / "sets"


LEVELS = {
    "organic": "B3LYP/def2-TZVPD (PySCF)",
    "smallest": "B3LYP/6-31G(2df,p) (PySCF, density fitting)",
    "drug_conformers": "B3LYP/def2-TZVP (Orca, with D3BJ, which does not change the dipole)",
    "torsion_profiles": "B3LYP/def2-TZVPD (with D3BJ and a second polarization function, TZVPPD)",
    "s66x8_dimers": "wB97X/6-31G*",
    "qm9": "B3LYP/6-31G(2df,p)",
    "organic-mmff94s": "B3LYP/def2-TZVPD from MMFF94s geometry",
    "drug_conformers-mmff94s": "B3LYP/def2-TZVP from MMFF94s geometry",
    "qm9-mmff94s": "B3LYP/6-31G(2df,p) from MMFF94s geometry",
}


@pytest.mark.xdist_group("public")
def test_structures_keep_their_labels_and_get_charges_of_xtb(public: Path) -> None:
    assert {folder.name for folder in public.iterdir() if folder.is_dir()} == set(LEVELS)
    for name, level in LEVELS.items():
        card = ConformerDataset(public / name).card
        assert card is not None
        assert card.level_of_theory == level
    conformers = ConformerDataset(public / "drug_conformers")
    assert {data.smiles for data in conformers} == set(DRUG_LIKE) - {EXCLUDED}
    row = DRUG_LIKE.index("CC(=O)[O-]")
    acetate = next(data for data in conformers if data.smiles == "CC(=O)[O-]")
    assert float(acetate.charge) == -1
    assert float(acetate.dipole_magnitude) == pytest.approx(
        1.0 + sum(len(from_smiles(text, conformers=2)) for text in DRUG_LIKE[:row])
    )
    expected = label(acetate, xtb_calculator(XTBConfig(), -1)).atomic_charges
    assert torch.allclose(acetate.atomic_charges, expected, atol=1e-5)
    pair = ConformerDataset(public / "s66x8_dimers")[0]
    assert set(pair.fragment.tolist()) == {0, 1}


@pytest.mark.xdist_group("public")
def test_conformers_of_a_molecule_are_in_one_part(public: Path) -> None:
    for name in ("drug_conformers", "torsion_profiles"):
        dataset = ConformerDataset(public / name)
        split = dataset.split()
        train, val = ({dataset[int(k)].smiles for k in part} for part in (split.train, split.val))
        assert train
        assert val
        assert not train & val
    split = ConformerDataset(public / "qm9").split()
    assert (len(split.train), len(split.val)) == (4, 1)  # without QM9's test part


@pytest.mark.xdist_group("public")
def test_relaxed_structures_have_the_labels_of_the_original(public: Path) -> None:
    original = {data.name: data for data in ConformerDataset(public / "drug_conformers")}
    relaxed = list(ConformerDataset(public / "drug_conformers-mmff94s"))
    assert relaxed
    for data in relaxed:
        before = original[data.name]
        assert torch.equal(data.dipole_magnitude, before.dipole_magnitude)
        # They were made by the same force field.
        assert torch.allclose(torch.pdist(data.pos), torch.pdist(before.pos), atol=0.02)
    ids = [int(data.mol_id) for data in ConformerDataset(public / "organic-mmff94s")]
    assert ids == [1, 2, 3]  # of the others, the labels are of unrelaxed geometries


@pytest.mark.xdist_group("public")
def test_the_broad_model_learns_all_levels(
    project_root: Path, public: Path, tmp_path: Path
) -> None:
    organic = script(project_root, "experiments", "organic")
    start = load_model("painn-qm9")
    levels = ["B3LYP/def2-TZVPD", "GFN2-xTB"]
    model = organic.broad(start, levels)
    assert isinstance(model.head, DipoleHead)
    assert model.head.charge_weights
    assert list(model.representation.levels) == [*levels, organic.START_LEVEL]
    # The new weights distribute no charge in neutral molecules whose charges sum to nearly 0.
    (water,) = from_smiles("O")
    assert predict(model, [water])[0].magnitude == pytest.approx(
        predict(start, [water])[0].magnitude, abs=0.3
    )

    cheap = [
        relabelled(from_smiles(text, mol_id=place)[0], dipole=[0.0, 0.0, 1.0])
        for place, text in enumerate(("CO", "CN", "CS", "CF"))
    ]
    about = About(name="organic_xtb", level_of_theory="GFN2-xTB (tblite)")
    split = make_split(cheap, "random", val=1, test=0)
    save_dataset(tmp_path / "organic_xtb", Molecules(cheap, []), about, split=split)
    for folder in public.iterdir():
        (tmp_path / folder.name).symlink_to(folder)

    run = tmp_path / "run"
    words = ["--data", tmp_path, "--output", run, "--part", "second", "--max-epochs", 1]
    organic.main([str(word) for word in words])

    trained = load_model(run)
    assert set(trained.representation.levels) == {
        *(level.partition(" (")[0] for level in LEVELS.values()),
        *(organic.START_LEVEL, "GFN2-xTB"),
    }
    assert trained.representation.levels[0] == "B3LYP/def2-TZVPD"


@pytest.mark.xdist_group("public")
def test_the_report_has_errors_of_the_model_and_of_xtb(
    project_root: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project_root / "experiments")  # for its module common
    report = script(project_root, "experiments", "organic_report")
    words = ["--sets", public, "--only", "drug_conformers", "--output", tmp_path]
    report.main([*map(str, words), "--no-experiment"])
    whole = json.loads((tmp_path / "report.json").read_text())[0]
    dataset = ConformerDataset(public / "drug_conformers")
    validation = [dataset[int(place)] for place in dataset.split().val]
    assert (whole["part"], whole["structures"]) == ("all", len(validation))
    found = predict(load_model("painn-organic"), validation, level="B3LYP/def2-TZVP")
    errors = [abs(p.magnitude - float(p.data.dipole_magnitude)) for p in found]
    assert whole["MAE"] == pytest.approx(np.mean(errors), abs=1e-4)
    labelled = [label(data, xtb_calculator(XTBConfig())) for data in validation]
    errors = [
        abs(float(one.dipole_magnitude) - float(data.dipole_magnitude))
        for one, data in zip(labelled, validation, strict=True)
    ]
    assert whole["GFN2-xTB MAE"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert "| drug_conformers |" in (tmp_path / "report.md").read_text()


@pytest.mark.xdist_group("public")
def test_bonding_situations_that_a_data_set_lacks_are_named(
    project_root: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project_root / "experiments")
    coverage = script(project_root, "experiments", "element_coverage")
    (tmp_path / "list.csv").write_text("smiles\nCF\nC[NH3+]\nCC#N\nnonsense(\n")
    words = ["--lists", tmp_path / "list.csv", "--data", public / "organic", "--least", 1]
    coverage.main([str(word) for word in [*words, "--output", tmp_path]])
    rows = (tmp_path / "coverage.md").read_text().splitlines()
    # CF and C[NH3+] are in the data set, a nitrile is not.
    assert "| F | 1 | 1 | 1 (100.00%) |  |" in rows
    assert "| N | 2 | 2 | 1 (50.00%) | N (1 bonds, valence 3) 1 |" in rows
