"""The data set of DFT labels: which molecules it is made of, and that it goes on where it was."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rdkit import Chem

from dipolegnn.config import DFTConfig
from dipolegnn.data import ConformerDataset, check_card
from dipolegnn.models import load_model
from tests.inference.test_levels import new_model

FOLDER = Path(__file__).resolve().parent.parent / "datasets" / "organic"


def load(name: str) -> ModuleType:
    """A script of the data set as a module."""
    spec = util.spec_from_file_location(f"organic_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """build.py, at a level that takes milliseconds."""
    module = load("build")
    monkeypatch.setattr(module, "LEVEL", DFTConfig(xc="lda,vwn", basis="sto-3g", grid_level=0))
    return module


def molecules_file(path: Path, *smiles: str) -> Path:
    lines = [f"{text},{Chem.MolFromSmiles(text).GetNumHeavyAtoms()}\n" for text in smiles]
    path.write_text("smiles,heavy_atoms\n" + "".join(lines), encoding="utf-8")
    return path


class TestSelection:
    def test_rare_environments_first_and_excluded_molecules_out(self, tmp_path: Path) -> None:
        select = load("select_molecules")
        listed = tmp_path / "some.csv.gz"
        smiles = [
            "CCO",
            "CCCO",
            "CS",
            "OCC",
            "CC(=O)[O-]",
            "[Na+].[Cl-]",
            "C[Se]C",
            "c1ccccc1",
            "CI",
        ]
        with gzip.open(listed, "wt") as file:
            file.write("\n".join(["smiles", *smiles, "C" * 13, "not one"]) + "\n")
        key = Chem.MolToInchiKey(Chem.MolFromSmiles("CI")).split("-")[0]
        held_back = tmp_path / "held_back.txt"
        held_back.write_text(hashlib.sha256(key.encode()).hexdigest() + "\n")
        output = tmp_path / "molecules.csv"
        select.main([str(listed), "--exclude", str(held_back), "--output", str(output)])
        with output.open() as file:
            rows = list(csv.DictReader(file))
        # Neither salts, selenium, 13 heavy atoms, the same molecule twice nor what is excluded.
        assert {row["smiles"] for row in rows} == {*("CCO", "CCCO", "CS", "CC(=O)[O-]", "c1ccccc1")}
        assert {row["source"] for row in rows} == {"some"}

    def test_no_environment_waits_for_the_second_of_another(self) -> None:
        select = load("select_molecules")

        def candidate(name: str, *environments: int) -> object:
            return select.Candidate(name, "", 0, 1, frozenset(environments), 1.0)

        many = [candidate(f"a{k}", 1) for k in range(9)]
        chosen = select.choose([*many, candidate("b", 2), candidate("ab", 1, 2)], 3)
        assert chosen[0].smiles == "ab"
        assert len(select.choose(many, 4)) == 4


class TestBuild:
    def test_goes_on_where_it_was(
        self, build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listed = molecules_file(
            tmp_path / "molecules.csv", "O", "C[NH3+]", "C#N", "[Na+].[Cl-]", "CF"
        )
        output = tmp_path / "organic"
        arguments = ["--output", str(output), "--molecules", str(listed)]
        build.main([*arguments, "--limit", "2"])
        first = (output / "raw" / "molecules.npz").read_bytes()
        build.main(arguments)
        dataset = ConformerDataset(output)
        assert [int(data.mol_id) for data in dataset] == [0, 1, 2, 4]
        assert [round(float(data.charge)) for data in dataset] == [0, 1, 0, 0]
        failed = (output / "failures.csv").read_text()
        assert "[Na+].[Cl-]" in failed
        assert failed.count("\n") == 2
        # Done: nothing is calculated again, failures included.
        monkeypatch.setattr(build, "labelled", None)
        build.main(arguments)
        assert len(ConformerDataset(output)) == 4
        assert first != (output / "raw" / "molecules.npz").read_bytes()

    def test_an_interrupted_run_keeps_what_it_has(
        self, build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        labelled = build.labelled

        def until_ethane(row: Any) -> Any:
            if row.smiles == "CC":
                raise KeyboardInterrupt
            return labelled(row)

        monkeypatch.setattr(build, "labelled", until_ethane)
        listed = molecules_file(tmp_path / "molecules.csv", "O", "C", "CC")
        output = tmp_path / "organic"
        build.main(["--output", str(output), "--molecules", str(listed)])
        assert [data.smiles for data in ConformerDataset(output)] == ["O", "C"]

    def test_least_certain_first(self, build: ModuleType) -> None:
        smiles = ("C", "CC", "[Na+].[Cl-]", "C[N+](=O)[O-]", "CCC", "OS(=O)(=O)O")
        rows = [
            build.Row(place, text, Chem.MolFromSmiles(text).GetNumHeavyAtoms())
            for place, text in enumerate(smiles)
        ]
        ordered = build.least_certain_first(rows, load_model("painn-organic"))
        assert sorted(ordered) == rows
        places = [row.smiles for row in ordered]
        assert places[0] == "[Na+].[Cl-]"  # not embedded
        # Alkanes are certain.
        assert set(places[1:3]) == {"C[N+](=O)[O-]", "OS(=O)(=O)O"}

    def test_least_certain_needs_error_bars(self, build: ModuleType) -> None:
        with pytest.raises(ValueError, match="has no error bars"):
            build.least_certain_first([build.Row(0, "C", 1)], new_model(("B3LYP", "xTB")))

    def test_kinds_of_geometry(self, build: ModuleType) -> None:
        def bonds(mol_id: int) -> list[float]:
            data = build.structure(build.Row(mol_id, "O", 1))
            return [float((data.pos[0] - data.pos[k]).norm()) for k in (1, 2)]

        force_field, relaxed, displaced = bonds(0), bonds(1), bonds(4)
        assert force_field == pytest.approx([0.969, 0.969], abs=2e-3)  # MMFF94s
        assert relaxed == pytest.approx([0.959, 0.959], abs=2e-3)  # GFN2-xTB
        assert abs(displaced[0] - displaced[1]) > 0.01
        assert bonds(4) == displaced


@pytest.mark.committed_data
def test_committed_labels_belong_to_the_list() -> None:
    card = check_card(FOLDER)
    rows = load("build").read_rows(FOLDER / "molecules.csv")
    dataset = ConformerDataset(FOLDER)
    assert card.level_of_theory.startswith("B3LYP/def2-TZVPD")
    assert len(dataset) == card.counts.structures > 0
    for data in dataset:
        assert data.smiles == rows[int(data.mol_id)].smiles
        assert data.dipole.isfinite().all()
        assert data.atomic_charges.sum().item() == pytest.approx(data.charge.item(), abs=1e-3)
