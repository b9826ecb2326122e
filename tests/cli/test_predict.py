from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
from pathlib import Path

import pytest
from ase.io import read as ase_read
from rdkit import Chem

from dipolegnn.cli import main
from dipolegnn.config import ModelConfig
from dipolegnn.models import DEFAULT, save_model
from dipolegnn.molecules import from_smiles, read_failures, read_file, write_file
from dipolegnn.nn import build_model
from tests.cli.helpers import TABLE, assert_message, predictions
from tests.tolerances import PRINTED_D, PRINTED_E


def test_one_broken_molecule_does_not_stop_the_others(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "O", "C1CC", "[NH4+]", "--model", str(trained)]) == 1

    captured = capsys.readouterr()
    assert "failed: argument 2, C1CC: Not a valid SMILES" in captured.err
    for text in ("|μ| (D)", "x (Å)", "charge (e)", "[NH4+]", "mean error"):
        assert text in captured.out
    assert "[NH4+]: ion (+1 e): the dipole refers to the centre of mass" in captured.out


def test_json_has_units_conformers_and_failures(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("CCO", "xyz", "[OH-]", "--model", str(trained), "--conformers", "4")
    content = predictions(capsys, *words)

    ethanol, hydroxide = content["molecules"]
    assert content["units"]["magnitude"] == "debye"
    assert ethanol["symbols"] == ["C", "C", "O", *"HHHHHH"]
    conformers = ethanol["conformers"]
    assert len(conformers) > 1
    assert conformers[0]["energy"] == 0
    assert sum(c["weight"] for c in conformers) == pytest.approx(1)
    mean = sum(c["weight"] * c["magnitude"] for c in conformers)
    assert ethanol["magnitude"] == pytest.approx(mean)
    assert ethanol["smallest"] == min(c["magnitude"] for c in conformers)
    assert [len(c["charges"]) for c in conformers] == [9] * len(conformers)
    assert sum(hydroxide["conformers"][0]["charges"]) == pytest.approx(-1, abs=1e-5)
    assert "centre of mass" in hydroxide["notes"][0]
    (failure,) = content["failures"]
    assert (failure["molecule"], failure["row"]) == ("xyz", 2)


def test_one_conformer_of_a_flexible_molecule_gives_a_warning(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smiles = ["CCO", "CCCO", "CCS", "CCN", "OCCO", "CCCN", "C"]
    assert main(["predict", *smiles, "--model", str(trained), "--conformers", "1"]) == 0
    remark = "this is one conformer; others may have other dipole moments"
    said = " ".join(capsys.readouterr().out.split())
    assert f"CCO, CCCO, CCS, CCN, OCCO, 1 more: {remark}" in said
    assert said.count(remark) == 1

    # Not if more were asked for, nor of a structure that somebody chose.
    (asked,) = predictions(capsys, "CCO", "--model", str(trained), "--conformers", "2")["molecules"]
    (default,) = predictions(capsys, "CCO", "--model", str(trained))["molecules"]
    assert len(default["conformers"]) == 3
    path = tmp_path / "ethanol.xyz"
    write_file(path, from_smiles("CCO"))
    (given,) = predictions(capsys, str(path), "--model", str(trained))["molecules"]
    assert remark not in asked["notes"] + default["notes"] + given["notes"]


def test_temperature_moves_the_average(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("CCCO", "--model", str(trained), "--conformers", "4", "--energies", "mmff")
    (cold,) = predictions(capsys, *words, "--temperature", "1")["molecules"]
    (hot,) = predictions(capsys, *words, "--temperature", "100000")["molecules"]

    assert cold["magnitude"] == pytest.approx(cold["conformers"][0]["magnitude"])
    magnitudes = [c["magnitude"] for c in hot["conformers"]]
    assert hot["magnitude"] == pytest.approx(sum(magnitudes) / len(magnitudes), rel=1e-2)


def test_arguments_after_two_dashes_are_molecules(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = predictions(capsys, "--model", str(trained), "--", "O", "-C")

    assert [molecule["smiles"] for molecule in content["molecules"]] == ["O"]
    assert [failure["molecule"] for failure in content["failures"]] == ["-C"]


def test_files_and_smiles_keep_their_order(
    table: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = predictions(capsys, "O", str(table), "N", "--model", str(trained))

    names = [molecule["name"] for molecule in content["molecules"]]
    expected = [line.split(",")[1] for line in TABLE.splitlines()[1:] if "broken" not in line]
    assert names == ["O", *expected, "N"]
    assert [(f["source"], f["row"]) for f in content["failures"]] == [("table.csv", 7)]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".extxyz", ".sdf"])
def test_predictions_in_a_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = tmp_path / "new" / f"out{suffix}"
    content = predictions(capsys, "O", "CCO", "--model", str(trained), "--output", str(path))

    ethanol = content["molecules"][1]
    dipole = ethanol["conformers"][0]["dipole"]
    if suffix == ".json":
        assert json.loads(path.read_text(encoding="utf-8")) == content
    elif suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            row = list(csv.DictReader(file))[1]
        assert float(row["magnitude_D"]) == pytest.approx(ethanol["magnitude"], abs=PRINTED_D)
        vector = [float(row[f"dipole_{x}_D"]) for x in "xyz"]
        assert vector == pytest.approx(dipole, abs=PRINTED_D)
    else:
        _, read, *_ = read_file(path).data  # the lowest conformer comes first
        assert read.dipole.flatten().tolist() == pytest.approx(dipole, abs=PRINTED_D)
        charges = ethanol["conformers"][0]["charges"]
        assert read.atomic_charges.tolist() == pytest.approx(charges, abs=PRINTED_E)
    assert not path.with_name(f"{path.name}.failures.csv").exists()


def test_structures_carry_their_error_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".sdf", ".extxyz"):
        path = tmp_path / f"out{suffix}"
        words = ("--conformers", "3", "--coverage", "0.68", "--output", str(path))
        ion, propanol = predictions(capsys, "[NH4+]", "CCCO", *words)["molecules"]
        if suffix == ".sdf":
            said = [mol.GetPropsAsDict() for mol in Chem.SDMolSupplier(str(path), removeHs=False)]
        else:
            said = [atoms.info for atoms in ase_read(path, index=":", format="extxyz")]
        first, *conformers = said
        assert len(conformers) == len(propanol["conformers"]) > 1
        assert first["notes"] == "; ".join(ion["notes"]) != ""
        assert {data["model"] for data in said} == {DEFAULT}
        assert {data["coverage"] for data in said} == {0.68}
        assert "notes" not in conformers[0]
        # That of the average includes energies and search, beside the mean of the conformers.
        weights = [conformer["weight"] for conformer in propanol["conformers"]]
        widths = [data["half_width_D"] for data in conformers]
        mean = sum(w * x for w, x in zip(weights, widths, strict=True))
        # Two rotatable bonds; 500 draws give their 68 % interval within 10 %.
        missed = 0.07 * math.sqrt(2) * propanol["largest"]
        assert propanol["half_width"] > math.hypot(mean, 0.9 * missed)


def test_smiles_from_standard_input(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    given(b"\xef\xbb\xbfO water\n\nC1CC\nC b\xe9\nCCO ethanol\n")
    content = predictions(capsys, "N", "-", "--model", str(trained))
    assert [molecule["name"] for molecule in content["molecules"]] == ["N", "water", "ethanol"]
    rows = [(failure["source"], failure["row"]) for failure in content["failures"]]
    assert rows == [("stdin.smi", 3), ("stdin.smi", 4)]

    given(b"")
    assert main(["predict", "-", "--model", str(trained)]) == 2
    assert_message(capsys, "stdin.smi: The file holds no molecules")
    assert main(["predict", "-", "-", "--model", str(trained)]) == 2
    assert_message(capsys, "- stands for standard input, which can be read once only")


def test_failures_lie_beside_the_output(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    assert main(["predict", "O", "C1CC", "--model", str(trained), "--output", str(path)]) == 1
    assert [f.molecule for f in read_failures(tmp_path / "out.csv.failures.csv")] == ["C1CC"]

    assert main(["predict", "O", "--model", str(trained), "--output", str(path)]) == 0
    assert not (tmp_path / "out.csv.failures.csv").exists()


def test_conformers_of_a_structure_file_are_averaged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.sdf"
    words = ("--model", str(trained))
    from_smiles_ = predictions(
        capsys, "CCCO", "CCO", *words, "--conformers", "4", "--output", str(path)
    )
    from_file = predictions(capsys, str(path), *words)

    for before, after in zip(from_smiles_["molecules"], from_file["molecules"], strict=True):
        assert len(after["conformers"]) == len(before["conformers"])
        assert after["magnitude"] == pytest.approx(before["magnitude"], abs=1e-3)


def test_unknown_elements_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, build_model(ModelConfig()), {"data": {"elements": ["H", "C", "O"]}})

    content = predictions(capsys, "CO", "CN", "--model", str(path))

    methanol, methylamine = content["molecules"]
    assert methanol["notes"] == []
    assert methylamine["notes"] == ["the model was not trained on N: do not rely on it"]


def test_an_element_that_no_model_knows_is_a_failure(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "heavy.xyz"
    path.write_text("2\nmendelevium hydride\nMd 0 0 0\nH 0 0 2\n", encoding="utf-8")

    content = predictions(capsys, "O", str(path), "N", "--model", str(trained))

    assert [molecule["name"] for molecule in content["molecules"]] == ["O", "N"]
    (failure,) = content["failures"]
    assert (failure["source"], failure["row"]) == ("heavy.xyz", 1)
    assert failure["molecule"] == "mendelevium hydride"


def test_a_magnitude_without_a_vector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, build_model(ModelConfig(hidden_channels=8, head="atomwise")), {})

    (water,) = predictions(capsys, "O", "--model", str(path))["molecules"]
    assert water["conformers"][0]["dipole"] is None
    assert "magnitude only" in water["notes"][0]

    assert main(["predict", "O", "--model", str(path), "--output", str(tmp_path / "o.csv")]) == 0
    assert "–" in capsys.readouterr().out


def test_the_model_may_be_named_by_the_environment(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPOLEGNN_MODEL", str(trained))
    assert len(predictions(capsys, "O")["molecules"]) == 1

    monkeypatch.setenv("DIPOLEGNN_MODEL", "elsewhere")
    assert main(["predict", "O"]) == 2
    assert_message(capsys, "DIPOLEGNN_MODEL: There is no model elsewhere.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No molecules"),
        (["O", "--output", "o.txt"], "unknown suffix, expected one of .csv, .csv.gz, .parquet"),
        (["O", "--temperature", "0"], "temperature must be positive, in kelvin, got 0"),
        (["missing.sdf"], "There is no file missing.sdf"),
        (["O", "--conformers", "0"], "conformers must be at least 1, got 0"),
    ],
)
def test_predict_refuses(
    trained: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["predict", *words, "--model", str(trained)]) == 2
    assert_message(capsys, message)


def test_files_become_a_table_and_failures_are_listed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.smi"
    path.write_text("O water\n" + "C1CC broken\n" * 12 + "CCO ethanol\n")
    output = tmp_path / "out" / "dipoles.csv.gz"
    words = ["predict", str(path), "--model", str(trained), "--output", str(output)]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("failed: list.smi, row") == 10
    assert "failed: 12 in total" in captured.err
    assert f"wrote {output}: 2 molecules, 14 read in" in captured.err
    with gzip.open(output, "rt") as file:
        lines = list(csv.DictReader(file))
    assert [(line["source"], line["row"], line["name"]) for line in lines] == [
        ("list.smi", "1", "water"),
        ("list.smi", "14", "ethanol"),
    ]
    assert len(read_failures(output.with_name("dipoles.csv.gz.failures.csv"))) == 12
    path.write_text("O water\n")
    assert main(words) == 0
    assert [file.name for file in output.parent.iterdir()] == ["dipoles.csv.gz"]


@pytest.mark.parametrize("workers", ["0", "-3"])
def test_workers_below_one(capsys: pytest.CaptureFixture[str], workers: str) -> None:
    assert main(["predict", "O", f"--workers={workers}"]) == 2
    assert "--workers must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_pictures(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    if suffix == ".html":
        pytest.importorskip("plotly", reason="plotly is not installed (extra app)")
    path = tmp_path / "new" / f"out{suffix}"
    words = ["predict", "CCO", "O", "--model", str(trained), "--picture", str(path)]
    assert main(words) == 0
    names = {"out.html"} if suffix == ".html" else {f"out-1{suffix}", f"out-2{suffix}"}
    assert {found.name for found in path.parent.iterdir()} == names
    said = capsys.readouterr().err
    for found in path.parent.iterdir():
        assert f"wrote {found}" in said
        content = found.read_bytes()
        if suffix == ".png":
            assert content.startswith(b"\x89PNG")
        elif suffix == ".svg":
            text = content.decode()
            assert "<svg" in text
            assert "|μ| = " in text
        else:
            text = content.decode()
            assert "CCO" in text
            assert "http" not in text.partition("<body>")[0]
            assert text.count('class="plotly-graph-div"') == 2


def test_pictures_state_the_error_bar(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed (extra app)")
    report = tmp_path / "o.json"
    words = ["predict", "O", "--output", str(report)]  # a model that comes along has error bars
    assert main([*words, "--picture", str(tmp_path / "o.svg")]) == 0
    assert main([*words, "--picture", str(tmp_path / "o.html")]) == 0
    (water,) = json.loads(report.read_text())["molecules"]
    value = f"{water['magnitude']:.2f} ± {water['half_width']:.2f} D"
    assert f"|μ| = {value}" in (tmp_path / "o.svg").read_text()
    (caption,) = re.findall(r'"text":"([^"]*arrow from[^"]*)"', (tmp_path / "o.html").read_text())
    assert json.loads(f'"{caption}"').startswith(f"|μ| = {value}; arrow")


def test_a_picture_of_another_kind(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "O", "--model", str(trained), "--picture", "a.gif"]) == 2
    assert_message(capsys, "a.gif: unknown suffix, expected one of .png, .svg, .html")


@pytest.mark.parametrize("more", [["--json"], ["CCO"], []])
def test_a_file_of_molecules_is_not_written_over(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    path = tmp_path / "in.csv"
    path.write_text("smiles\nO\n")
    words = ["predict", str(path), *more, "--output", str(path), "--model", str(trained)]
    assert main(words) == 2
    assert_message(capsys, "in.csv is one of the files of molecules; choose another output")
    assert path.read_text() == "smiles\nO\n"

    failed = tmp_path / "out.csv.failures.csv"
    failed.write_text("smiles\nO\n")
    words = ["predict", str(failed), *more, "--output", str(tmp_path / "out.csv")]
    assert main([*words, "--model", str(trained)]) == 2
    assert_message(capsys, "failures would be written to it")
    assert failed.read_text() == "smiles\nO\n"
    assert main(["predict", str(path), "--output", str(tmp_path), "--model", str(trained)]) == 2
    assert_message(capsys, "unknown suffix")
    (tmp_path / "folder.csv").mkdir()
    words = ["predict", str(path), *more, "--output", str(tmp_path / "folder.csv")]
    assert main([*words, "--model", str(trained)]) == 2
    assert_message(capsys, "folder.csv is a folder; choose a file as output")


def test_a_file_of_another_kind_is_no_smiles(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "protein.pdb"
    path.write_text("ATOM\n")
    assert main(["predict", str(path), "--model", str(trained)]) == 2
    assert_message(capsys, "protein.pdb: this file format is not supported; supported are .smi")


def test_rows_beside_one_that_is_no_text(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "bytes.csv", tmp_path / "out.csv"
    path.write_bytes(b"smiles,name\nO,water\nC,b\xe9\nN,ammonia\n")
    words = ["predict", "C1CC", str(path), "CO", "--output", str(output), "--model", str(trained)]
    assert main(words) == 1
    with output.open(encoding="utf-8", newline="") as file:
        rows = [(row["source"], row["row"], row["smiles"]) for row in csv.DictReader(file)]
    assert rows == [("bytes.csv", "1", "O"), ("bytes.csv", "3", "N"), ("", "3", "CO")]
    failures = read_failures(tmp_path / "out.csv.failures.csv")
    assert [(failure.source, failure.row) for failure in failures] == [("", 1), ("bytes.csv", 2)]
