from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from dipolegnn.data import ConformerDataset
from dipolegnn.molecules import read_failures
from tests.cli.helpers import assert_message, build


def test_build_labels_with_xtb_and_goes_on_from_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra xtb")
    (tmp_path / "few.smi").write_text("O water\nN ammonia\nC=O formaldehyde\n", encoding="utf-8")
    folder = tmp_path / "xtb"
    assert build(tmp_path / "few.smi", folder) == 0

    water = ConformerDataset(folder)[0]
    assert water.dipole_magnitude.item() == pytest.approx(2.3, abs=0.1)  # GFN2-xTB is high
    assert water.atomic_charges[0].item() < -0.4
    card = ConformerDataset(folder).card
    assert card is not None
    assert card.level_of_theory == "GFN2-xTB (tblite)"
    assert "tblite" in card.versions

    # With the labels known, nothing is calculated any more.
    def refuse(*_: object) -> None:
        raise AssertionError("a label was calculated again")

    monkeypatch.setattr("dipolegnn.labels.batch.make_calculator", refuse)
    assert build(tmp_path / "few.smi", folder, "--overwrite") == 0


def test_build_of_conformers(tmp_path: Path) -> None:
    (tmp_path / "few.smi").write_text("CCCO\nCCO\nO\nCO\n", encoding="utf-8")
    words = ("--label", "none", "--conformers", "3", "--val", "0.25", "--test", "0.25")
    assert build(tmp_path / "few.smi", tmp_path / "out", *words) == 0

    ids = ConformerDataset(tmp_path / "out").mol_ids().tolist()
    assert len(ids) > 4
    assert sorted(set(ids)) == [0, 1, 2, 3]


def test_the_card_of_a_parquet_table_states_how_its_smiles_were_embedded(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra parquet")
    parquet = importlib.import_module("pyarrow.parquet")
    parquet.write_table(arrow.table({"smiles": ["CCO", "O"]}), tmp_path / "few.parquet")
    words = ("--label", "none", "--split", "random", "--val", "0", "--test", "0")
    assert build(tmp_path / "few.parquet", tmp_path / "out", "--conformer-seed", "7", *words) == 0

    card = ConformerDataset(tmp_path / "out").card
    assert card is not None
    assert card.geometry == "ETKDGv3, MMFF94s or UFF (RDKit)"
    assert card.seed == 7


def test_build_of_nothing_lists_the_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.smi").write_text("C1CC\n[CH3]\n", encoding="utf-8")

    assert build(tmp_path / "bad.smi", tmp_path / "out", "--label", "none") == 2

    assert "all 2 molecules failed" in capsys.readouterr().err
    assert [f.row for f in read_failures(tmp_path / "out" / "failures.csv")] == [1, 2]


def test_build_does_not_replace_a_data_set_unasked(
    table: Path, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(table, built, "--label", "none") == 2
    assert "already contains a data set. Add --overwrite" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:table.csv, 12 records. the column 'mu' looks like a charge")
def test_build_interrupted_says_how_to_go_on(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dipolegnn.data.build.label_many", interrupt)
    assert build(table, tmp_path) == 130
    assert "Repeat the same command to resume" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:table.csv, 12 records. the column 'mu' looks like a charge")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "none", "--optimize"], "--optimize needs a method"),
        (["--magnitude-column", "mu"], "on the command line: --label none"),
        (["--label", "none", "--smiles-column", "smi"], "No column 'smi'"),
        (["--label", "none", "--val", "0.6", "--test", "0.5"], "--split, --val and --test"),
    ],
)
def test_build_refuses(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert build(table, tmp_path / "out", *words) == 2
    assert_message(capsys, message)
