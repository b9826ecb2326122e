"""The data set of the smallest molecules, and the script that makes it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dipolegnn.config import DFTConfig
from dipolegnn.data import ConformerDataset, check_card
from dipolegnn.labels import label_many

pytest.importorskip("pyscf", reason="the labels are PySCF's, which is not installed")


@pytest.fixture(scope="module")
def folder(project_root: Path) -> Path:
    return project_root / "datasets" / "smallest"


@pytest.fixture(scope="module")
def build(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_smallest", folder / "build.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["build_smallest"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.committed_data
def test_contents_are_those_of_the_build_script(
    folder: Path, build: ModuleType, project_root: Path
) -> None:
    card = check_card(folder)
    source = build.smallest(list(ConformerDataset(project_root / "datasets" / "small_molecules")))
    molecules = list(ConformerDataset(folder))
    assert [data.smiles for data in molecules] == [data.smiles for data in source]
    assert set(card.elements) == {"H", "C", "N", "O"}
    assert max(int((data.z > 1).sum()) for data in molecules) == build.LARGEST
    assert card.level_of_theory.startswith("B3LYP/6-31G(2df,p)")
    assert all(data.dipole.isfinite().all() for data in molecules)


@pytest.mark.committed_data
@pytest.mark.parametrize(
    ("smiles", "experiment"), [("O", 1.85), ("C=O", 2.33), ("C=C=O", 1.42), ("C#N", 2.98)]
)
def test_dipoles_are_near_those_of_experiment(folder: Path, smiles: str, experiment: float) -> None:
    (found,) = (data for data in ConformerDataset(folder) if data.smiles == smiles)
    assert float(found.dipole_magnitude) == pytest.approx(experiment, abs=0.25)


def test_a_label_can_be_made_again(folder: Path) -> None:
    (water,) = (data for data in ConformerDataset(folder) if data.smiles == "O")
    again = label_many([water], DFTConfig()).data[0]
    assert again.dipole.tolist()[0] == pytest.approx(water.dipole.tolist()[0], abs=1e-3)


def test_the_script_makes_a_data_set(build: ModuleType, tmp_path: Path) -> None:
    build.main(["--output", str(tmp_path / "few"), "--limit", "1"])
    (data,) = ConformerDataset(tmp_path / "few")
    assert data.dipole_magnitude.isfinite().all()
