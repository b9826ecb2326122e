"""Files of molecules, streamed into a table of predictions."""

from __future__ import annotations

import csv
import gzip
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn.config import COVERAGE, ConformerConfig, ModelConfig, PredictConfig
from dipolegnn.inference import (
    JobMismatch,
    OutputInUse,
    Predictions,
    failures_path,
    predict_files,
    predict_list,
    write_predictions,
)
from dipolegnn.inference.output import Counts, Line, Progress, as_csv, opened_parts
from dipolegnn.models import ModelChoice, save_model
from dipolegnn.molecules import (
    MoleculeError,
    TableColumns,
    from_smiles,
    read_failures,
    read_file,
    text_of,
)
from dipolegnn.molecules.records import RecordFile, Records, chained, file_records
from dipolegnn.nn import build_model
from tests.tolerances import PRINTED_D, PRINTED_E

SMILES = ["C", "N", "O", "CO", "C1CC", "CN", "CC", "C=O", "CCO", "N#N", "C#N", "CC=O", "[Na]"]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, build_model(ModelConfig(hidden_channels=16, num_interactions=1)), {})
    return path


@pytest.fixture
def models(model_path: Path) -> ModelChoice:
    return ModelChoice(model_path)


@pytest.fixture
def smi(tmp_path: Path) -> Path:
    path = tmp_path / "list.smi"
    path.write_text("".join(f"{smiles} m{row}\n" for row, smiles in enumerate(SMILES, start=1)))
    return path


def table(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return list(csv.DictReader(content.decode().splitlines()))


def in_one_piece(
    paths: list[Path], models: ModelChoice, conformers: ConformerConfig | None = None
) -> Predictions:
    records = list(chained([file_records(path) for path in paths]))
    return predict_list(records, models, PredictConfig(conformers or PredictConfig.embedding))


def test_a_table_is_what_the_same_molecules_give_in_one_piece(
    smi: Path, models: ModelChoice, tmp_path: Path
) -> None:
    structures = [from_smiles(smiles, name=smiles)[0] for smiles in ("CCO", "CC=O", "O")]
    for number, data in enumerate(structures):
        data.mol_id.fill_(number)
    files = [smi]
    for suffix in (".sdf", ".xyz", ".extxyz"):
        files.append(tmp_path / f"three{suffix}.gz")
        files[-1].write_bytes(gzip.compress(text_of(structures, suffix).encode()))
    result = predict_files(files, tmp_path / "out.csv", models, part_records=4, workers=0)

    whole = in_one_piece(files, models)
    expected = list(csv.DictReader(as_csv(whole.molecules, COVERAGE).splitlines()))
    found = table(tmp_path / "out.csv")
    assert [(line["source"], line["row"]) for line in found] == [
        (line["source"], line["row"]) for line in expected
    ]
    for line, other in zip(found, expected, strict=True):
        assert (line["name"], line["symbols"]) == (other["name"], other["symbols"])
        assert float(line["magnitude_D"]) == pytest.approx(
            float(other["magnitude_D"]), abs=PRINTED_D
        )
    failures = read_failures(failures_path(tmp_path / "out.csv"))
    assert failures == whole.failures
    assert [(failure.source, failure.row) for failure in failures] == [
        ("list.smi", 5),
        ("list.smi", 13),
    ]
    assert (result.molecules, result.failures, result.earlier) == (len(SMILES) - 2 + 9, 2, 0)
    assert result.first_failures == failures
    assert not (tmp_path / "out.csv.parts").exists()


def test_the_number_of_workers_and_the_size_of_the_parts_do_not_matter(
    smi: Path, models: ModelChoice, tmp_path: Path
) -> None:
    sdf = tmp_path / "three.sdf"
    sdf.write_text(text_of([from_smiles(smiles)[0] for smiles in ("CCO", "CC=O", "O")], ".sdf"))
    outputs = []
    for name, workers, size in (("none", 0, 1000), ("two", 2, 1000), ("small", 0, 3)):
        outputs.append(tmp_path / f"{name}.csv")
        predict_files([smi, sdf], outputs[-1], models, workers=workers, part_records=size)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    for line, other in zip(table(outputs[0]), table(outputs[2]), strict=True):
        assert line["name"] == other["name"]
        assert float(line["magnitude_D"]) == pytest.approx(
            float(other["magnitude_D"]), abs=PRINTED_D
        )


def test_every_kind_of_table_holds_the_same(smi: Path, models: ModelChoice, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("a.csv", "a.csv.gz", "a.parquet"):
        predict_files([smi], tmp_path / name, models, part_records=5, workers=0)
    lines = table(tmp_path / "a.csv")
    assert table(tmp_path / "a.csv.gz") == lines
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert list(rows[0]) == list(lines[0])
    for row, line in zip(rows, lines, strict=True):
        assert (row["row"], row["conformers"]) == (int(line["row"]), int(line["conformers"]))
        assert row["magnitude_D"] == pytest.approx(float(line["magnitude_D"]), abs=PRINTED_D)
        assert row["half_width_D"] is None
        charges = [float(charge) for charge in line["atomic_charges_e"].split()]
        assert row["atomic_charges_e"] == pytest.approx(charges, abs=PRINTED_E)
        assert len(row["positions_angstrom"]) == 3 * len(charges)


@pytest.mark.parametrize("suffix", [".sdf", ".sdf.gz", ".extxyz", ".extxyz.gz", ".xyz"])
def test_structures_with_their_predictions_are_written_part_by_part(
    smi: Path, models: ModelChoice, tmp_path: Path, suffix: str
) -> None:
    smi.write_text(f"{smi.read_text()}CCCO m14\n")  # which has several conformers
    config = ConformerConfig(conformers=4)
    result = predict_files(
        [smi], tmp_path / f"parts{suffix}", models, conformers=config, part_records=4, workers=0
    )
    whole = in_one_piece([smi], models, config)
    failures = write_predictions(tmp_path / f"whole{suffix}", whole, PredictConfig())[0]
    assert (result.molecules, result.failures) == (len(SMILES) - 1, 2)
    beside = failures_path(tmp_path / f"parts{suffix}")
    assert read_failures(beside) == failures == whole.failures
    found, expected = (read_file(tmp_path / f"{name}{suffix}").data for name in ("parts", "whole"))
    conformers = [c for molecule in whole.molecules for c in molecule.conformers]
    assert len(found) == len(expected) == len(conformers) > len(SMILES) - 1
    for data, other, prediction in zip(found, expected, conformers, strict=True):
        assert (data.name, data.mol_id.item()) == (other.name, other.mol_id.item())
        torch.testing.assert_close(data.pos, prediction.data.pos, atol=1e-4, rtol=0)
        if suffix != ".xyz":  # which has nothing but structures
            assert data.dipole_magnitude.item() == pytest.approx(
                prediction.magnitude, abs=PRINTED_D
            )
            for name, last in (("atomic_charges", PRINTED_E), ("dipole", PRINTED_D)):
                torch.testing.assert_close(data[name], other[name], atol=last, rtol=0)


def test_molecules_of_several_files_do_not_become_conformers_of_each_other(
    models: ModelChoice, tmp_path: Path
) -> None:
    paths = []
    for smiles in ("O", "N", "CCCO"):
        paths.append(tmp_path / f"{smiles}.smi")
        paths[-1].write_text(f"{smiles}\n")
    output = tmp_path / "out.sdf"
    config = ConformerConfig(conformers=4)
    predict_files(paths, output, models, conformers=config, workers=0)
    numbers = [data.mol_id.item() for data in read_file(output).data]
    assert numbers[:2] == [0, 1]
    assert numbers[2:] == [2] * (len(numbers) - 2)
    assert len(numbers) > 3


def test_an_sdf_leaves_out_only_structures_without_bonds(
    models: ModelChoice, tmp_path: Path
) -> None:
    path = tmp_path / "three.xyz"
    octahedron = "".join(f"F {x} {y} {z}\n" for x, y, z in 1.6 * np.vstack([np.eye(3), -np.eye(3)]))
    anion = f"7\nPF6- charge=-1\nP 0 0 0\n{octahedron}"  # RDKit does not find its bonds
    path.write_text(f"2\nHF\nH 0 0 0\nF 0 0 0.92\n{anion}2\nH2\nH 0 0 0\nH 0 0 0.74\n")
    result = predict_files([path], tmp_path / "out.sdf", models, part_records=2, workers=0)
    assert (result.molecules, result.failures) == (2, 1)
    assert [data.name for data in read_file(tmp_path / "out.sdf").data] == ["HF", "H2"]
    (failure,) = read_failures(failures_path(tmp_path / "out.sdf"))
    assert result.first_failures == [failure]
    assert (failure.source, failure.row, failure.molecule, failure.stage) == (
        "three.xyz",
        2,
        "PF6-",
        "write",
    )
    assert "or write .xyz or .extxyz" in failure.remedy
    found = in_one_piece([path], models)
    assert write_predictions(tmp_path / "one.sdf", found, PredictConfig())[0] == [failure]
    one, parts = (read_file(tmp_path / f"{name}.sdf").data for name in ("one", "out"))
    for data, other in zip(one, parts, strict=True):
        assert (data.name, data.mol_id.item()) == (other.name, other.mol_id.item())
        assert torch.equal(data.pos, other.pos)
        # Other molecules share the batch, on which the last digits depend.
        for name, last in (("atomic_charges", PRINTED_E), ("dipole", PRINTED_D)):
            torch.testing.assert_close(data[name], other[name], atol=last, rtol=0)


def test_two_runs_do_not_write_the_same_output(
    smi: Path, models: ModelChoice, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    with (
        opened_parts(output, {}, COVERAGE),
        pytest.raises(OutputInUse, match=r"Another run is writing .*out\.csv\. Wait until"),
    ):
        predict_files([smi], output, models, workers=0)
    whole = in_one_piece([smi], models)
    with (
        opened_parts(output, {}, COVERAGE),
        pytest.raises(OutputInUse, match="Another run is writing"),
    ):
        write_predictions(output, whole, PredictConfig())
    assert predict_files([smi], output, models, workers=0).failures == 2
    # A run that has failed lets go of it.
    broken = tmp_path / "broken.smi.gz"
    broken.write_bytes(gzip.compress(b"O\n" * 20)[:-9])
    for _ in range(2):
        with pytest.raises(MoleculeError, match="cannot be decompressed"):
            predict_files([broken], output, models, workers=0)


def test_smiles_come_from_parquet_files(models: ModelChoice, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    columns = {"Structure": ["O", None, "CCO"], "name": ["water", "nothing", None], "n": [1, 2, 3]}
    parquet.write_table(pyarrow.table(columns), path)
    columns_named = TableColumns(smiles="structure")
    found = read_file(path, columns=columns_named)
    assert [data.name for data in found.data] == ["water", "CCO"]
    assert [(failure.row, failure.molecule) for failure in found.failures] == [(2, "nothing")]

    result = predict_files([path], tmp_path / "out.csv", models, columns=columns_named, workers=0)
    assert [(line["row"], line["name"]) for line in table(tmp_path / "out.csv")] == [
        ("1", "water"),
        ("3", "CCO"),
    ]
    assert result.failures == 1
    with pytest.raises(MoleculeError, match=r"list\.parquet: No column 'smiles'; the columns are"):
        read_file(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(MoleculeError, match=r"list\.parquet: The file cannot be read as Parquet"):
        read_file(path)


def assert_same_line(line: dict[str, str], expected: dict[str, str]) -> None:
    """The same texts, and numbers that differ by no more than the last printed digit."""
    assert line.keys() == expected.keys()
    for column, text in line.items():
        for word, wanted in zip(text.split(), expected[column].split(), strict=True):
            try:
                number = float(wanted)
            except ValueError:
                assert word == wanted
            else:
                digits = len(wanted.partition(".")[2])
                assert float(word) == pytest.approx(
                    number, abs=1.01 * 10.0**-digits if digits else 0
                )


KILLED = """
import sys
from pathlib import Path
from dipolegnn.inference import predict_files
from dipolegnn.models import ModelChoice
smi, output, model = map(Path, sys.argv[1:])
predict_files([smi], output, ModelChoice(model), workers=1, part_records=4)
"""


def test_a_run_that_is_killed_goes_on_and_nothing_is_twice_or_lost(
    model_path: Path, models: ModelChoice, tmp_path: Path
) -> None:
    smi = tmp_path / "many.smi"
    smi.write_text("".join(f"{SMILES[row % len(SMILES)]} m{row}\n" for row in range(400)))
    output = tmp_path / "out.csv"
    command = [sys.executable, "-c", KILLED, str(smi), str(output), str(model_path)]
    parts = tmp_path / "out.csv.parts"
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.counts.json"))) < 3:
        assert process.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()

    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.counts.json")}
    # What a crash in the middle of writing leaves is no part.
    (parts / "00000099.csv.tmp").write_text("half a li")
    again = predict_files([smi], output, models, workers=0, part_records=4)
    assert 12 <= again.earlier == 4 * len(before) < 400
    whole = predict_files([smi], tmp_path / "whole.csv", models, workers=0, part_records=4)
    assert whole.earlier == 0
    assert (again.molecules, again.failures) == (whole.molecules, whole.failures)
    # Not byte by byte: the killed workers had one thread each, and this process may have more.
    for line, expected in zip(table(output), table(tmp_path / "whole.csv"), strict=True):
        assert_same_line(line, expected)
    left_out = failures_path(output)
    assert left_out.read_bytes() == failures_path(tmp_path / "whole.csv").read_bytes()
    rows = [int(line["row"]) for line in table(output)]
    rows += [failure.row or 0 for failure in read_failures(left_out)]
    assert sorted(rows) == list(range(1, 401))


def test_parts_of_another_job_are_not_mixed_in(
    smi: Path, models: ModelChoice, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    broken = tmp_path / "broken.smi.gz"
    broken.write_bytes(gzip.compress(b"O\n" * 400)[:-9])
    with pytest.raises(MoleculeError, match=r"broken\.smi\.gz: The file cannot be decompressed"):
        predict_files([smi, broken], output, models, part_records=4, workers=0)
    kept = tmp_path / "out.csv.parts"
    assert len(list(kept.glob("*.counts.json"))) >= 4
    with pytest.raises(JobMismatch, match=r"temperature: 298\.15 there, 300 now"):
        predict_files([smi, broken], output, models, part_records=4, workers=0, temperature=300)
    broken.write_bytes(gzip.compress(b"O\n"))
    with pytest.raises(JobMismatch, match=r"remove the folder to begin again"):
        predict_files([smi, broken], output, models, part_records=4, workers=0)


def test_a_job_without_a_part_is_no_hindrance(models: ModelChoice, tmp_path: Path) -> None:
    path, output = tmp_path / "list.csv", tmp_path / "out.csv"
    path.write_text("structure\nO\n")
    with pytest.raises(MoleculeError, match="No column"):
        predict_files([path], output, models)
    columns = TableColumns(smiles="structure")
    assert predict_files([path], output, models, columns=columns).molecules == 1


def test_a_run_that_is_killed_while_it_removes_its_parts(
    smi: Path, models: ModelChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.csv"

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "job.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dipolegnn.inference.output.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_files([smi], output, models, part_records=4, workers=0)
    whole = output.read_bytes()
    result = predict_files([smi], output, models, part_records=4, workers=0)
    assert (result.earlier, output.read_bytes()) == (0, whole)
    assert not list(tmp_path.glob("out.csv.parts*"))


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet", "out.sdf"])
def test_no_molecules_give_a_table_without_lines(
    models: ModelChoice, tmp_path: Path, name: str
) -> None:
    empty = tmp_path / "empty.smi"
    empty.write_text("")
    output = tmp_path / name
    result = predict_files([empty], output, models)
    assert (result.molecules, result.failures) == (0, 0)
    if name == "out.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        assert parquet.read_table(output).column_names == Line.columns(levels=False)
    elif name == "out.sdf":
        assert output.read_bytes() == b""
    else:
        content = output.read_bytes()
        text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
        assert text.splitlines() == [",".join(Line.columns(levels=False))]


def test_the_row_is_where_the_molecule_is(models: ModelChoice, tmp_path: Path) -> None:
    water, ammonia, methane = (from_smiles(smiles)[0] for smiles in ("O", "N", "C"))
    ammonia.mol_id.fill_(4711)
    path = tmp_path / "a.sdf"
    path.write_text(text_of([water, ammonia, methane], ".sdf"))
    predict_files([path], tmp_path / "out.csv", models)
    assert [line["row"] for line in table(tmp_path / "out.csv")] == ["1", "2", "3"]
    assert [found.row for found in in_one_piece([path], models).molecules] == [1, 2, 3]


def test_conformers_of_a_molecule_stay_together(models: ModelChoice, tmp_path: Path) -> None:
    ethanol = from_smiles("CCCO", conformers=6)
    assert len(ethanol) > 3
    others = [from_smiles(smiles)[0] for smiles in ("O", "N")]
    for number, data in enumerate([*ethanol, *others]):
        data.mol_id.fill_(max(0, number + 1 - len(ethanol)))
    for suffix in (".sdf", ".extxyz"):
        path = tmp_path / f"conformers{suffix}"
        path.write_text(text_of([*ethanol, *others], suffix))
        predict_files([path], tmp_path / "out.csv", models, part_records=2, workers=0)
        lines = table(tmp_path / "out.csv")
        assert [line["conformers"] for line in lines] == [str(len(ethanol)), "1", "1"]


def test_a_file_is_read_with_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.smi.gz"
    path.write_bytes(gzip.compress(b"CCO a name of some length\n" * 60_000))
    tracemalloc.start()
    with RecordFile(path) as file:
        count = sum(1 for _ in file)
        assert file.position == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 60_000
    assert peak < 1_000_000


class Read(Records):
    """Records of which so many are read, up to such a position."""

    def __init__(self) -> None:
        super().__init__([])

    position = 0.0


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter((0.0, 30.0, 100.0, 110.0))
    records = Read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dipolegnn.inference.output.time.monotonic", lambda: next(clock))
        with Progress(True, records) as shown:
            records.read, records.position = 1000, 0.1
            shown.advance(1000, 1000)
            records.read, records.position = 10_000, 1.0
            shown.advance(4000, 4000)  # all is read, but half is not done
            shown.advance(100, 100)
    err = capsys.readouterr().err
    assert err.splitlines() == ["5,000 molecules (50 %), 50/s, 1 min 40 s left"]


def test_progress_does_not_report_0_s_left_while_running(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = iter((0.0, 100.0, 200.0, 300.0))
    records = Read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dipolegnn.inference.output.time.monotonic", lambda: next(clock))
        with Progress(True, records, [Counts(500, 490, 10)]) as shown:
            records.read, records.position = 10_500, 1.0
            shown.advance(9_999, 9_999)
            shown.advance(0, 0)
            shown.advance(1, 1)
    remarks = [line.rsplit(", ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert remarks == ["1 s left", "1 s left", "finishing"]


@pytest.mark.parametrize("name", ["list.smi", "list.smi.gz"])
def test_a_file_is_at_its_end_only_when_all_is_read(tmp_path: Path, name: str) -> None:
    content = b"CCO ethanol\n" * 1000
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with RecordFile(path) as file:
        positions = [file.position for _ in file]
        if name == "list.smi":
            assert positions[499] == pytest.approx(0.5, abs=0.01)
        assert positions[-1] < 1 == file.position


def test_impossible_numbers_are_refused(smi: Path, models: ModelChoice, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        predict_files([smi], tmp_path / "o.csv", models, workers=-1)
    with pytest.raises(ValueError, match="part_records must be at least 1, got 0"):
        predict_files([smi], tmp_path / "o.csv", models, part_records=0)
    with pytest.raises(ValueError, match="coverage must be between 0 and 1, got 90"):
        predict_files([smi], tmp_path / "o.csv", models, coverage=90)
    with pytest.raises(ValueError, match="temperature must be positive, in kelvin, got 0"):
        predict_files([smi], tmp_path / "o.csv", models, temperature=0)
    assert not (tmp_path / "o.csv.parts").exists()


def test_a_file_is_not_written_over(models: ModelChoice, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("smiles\nO\n")
    with pytest.raises(ValueError, match="is one of the files of molecules; choose another output"):
        predict_files([path], tmp_path / "." / "list.csv", models)
    assert path.read_text() == "smiles\nO\n"


def test_an_unknown_table(smi: Path, models: ModelChoice, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"o\.xls: unknown suffix, expected one of \.csv"):
        predict_files([smi], tmp_path / "o.xls", models)
    assert not (tmp_path / "o.xls.parts").exists()


def test_a_number_printed_as_0_has_no_sign(models: ModelChoice, tmp_path: Path) -> None:
    smi, output = tmp_path / "symmetric.smi", tmp_path / "out.csv"
    smi.write_text("C\nCC\nc1ccccc1\nC#C\n")
    predict_files([smi], output, models, workers=0)
    text = output.read_text()
    assert " 0.0000" in text or ",0.0000" in text
    assert "-0.0000" not in text
