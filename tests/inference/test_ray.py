"""Pipelines over several machines, on a cluster of this one."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from dipolegnn.config import ConformerConfig, ModelConfig, XTBConfig
from dipolegnn.inference import failures_path, predict_files
from dipolegnn.labels import label_many
from dipolegnn.models import ModelChoice, save_model
from dipolegnn.molecules import SmilesRow, embed_smiles, read_failures
from dipolegnn.nn import build_model

psutil = pytest.importorskip("psutil", reason="finds Ray's processes")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ray = pytest.importorskip("ray")
ray_data = pytest.importorskip("dipolegnn.inference.ray", reason="needs ray[data]")

pytestmark = [
    # One cluster: all tests in one process.
    pytest.mark.xdist_group("ray"),
    pytest.mark.usefixtures("ray_cluster"),
    # Ray's own defaults are among what it deprecates.
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning:ray.data.context"),
    # Sockets and log files that Ray leaves for the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

FAILING = ["C1CC", None, "[Na]", "not a SMILES"]
SMILES = [*FAILING, "C", "N", "O", "CO", "CN", "CC", "C=O", "CCO", "N#N", "C#N", "CC=O"]
SMILES += ["C[NH3+]", "CC(=O)[O-]", "C1CC1", "OCCO", "CCN", "CCC", "COC", "C1", "NC=O"]
SMILES += ["CC#N", "FCC", "CCCO", "CCF", "", "CCCl"]
# They take long enough that there is work left when the first are done.
SMILES += [f"CC(C)CCOC{'C' * number}" for number in range(14)] * 2

CONFORMERS = ConformerConfig(conformers=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelChoice:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, build_model(ModelConfig(hidden_channels=16, num_interactions=1)), {})
    return ModelChoice(path)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    numbers = list(range(1, len(SMILES) + 1))
    columns = {"number": numbers, "Smiles": SMILES, "name": [f"m{number}" for number in numbers]}
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_labels_equal_those_of_one_machine(tmp_path: Path) -> None:
    smiles = ["CCCO", "C1", "O", "[Na]"]
    config, method = CONFORMERS, XTBConfig()
    embedded = embed_smiles([SmilesRow(row, s) for row, s in enumerate(smiles, start=1)], config)
    expected = label_many(embedded.data, method)
    assert len(expected.data) == 3

    data = ray.data.from_arrow(pyarrow.table({"number": [0, 1, 2, 3], "smiles": smiles}))
    with pytest.raises(ValueError, match="expected stereoisomers=1, got 2"):
        ray_data.label_dataset(data, method, conformers=ConformerConfig(stereoisomers=2))
    labelled = ray_data.label_dataset(data, method, conformers=config)
    counts = ray_data.write_rows(labelled, str(tmp_path / "labels"))
    assert counts == (len(expected.data), len(embedded.failures))
    with pytest.raises(ValueError, match="exists"):
        ray_data.write_rows(labelled, str(tmp_path / "labels"))
    found = parquet.read_table(tmp_path / "labels").to_pylist()
    found.sort(key=lambda row: (row["number"], row["conformer"] or 0))
    fine = [row for row in found if row["problem"] is None]
    failed = [row for row in found if row["problem"] is not None]
    for row, other in zip(fine, expected.data, strict=True):
        assert row["number"] == int(other.mol_id)
        assert row["magnitude_D"] == pytest.approx(float(other.dipole_magnitude), abs=2e-6)
        vector = [row[f"dipole_{axis}_D"] for axis in "xyz"]
        assert vector == pytest.approx(other.dipole[0].tolist(), abs=2e-6)
        assert row["energy_kcal_per_mol"] == pytest.approx(float(other.energy), rel=1e-6)
        assert row["atomic_charges_e"] == pytest.approx(other.atomic_charges.tolist(), abs=1e-6)
        assert row["positions_angstrom"] == pytest.approx(other.pos.flatten().tolist(), abs=1e-6)
    for row, failure in zip(failed, embedded.failures, strict=True):
        assert (row["number"] + 1, row["problem"]) == (failure.row, failure.problem)
        assert row["magnitude_D"] is None


def running(name: str) -> list[Any]:
    """The processes of this cluster that run something of such a name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:  # it has ended in the meantime
            continue
        if title.startswith("ray::") and name in title:
            found.append(process)
    return found


def kill_a_task(killed: list[int]) -> None:
    """Kills the first process that is found embedding molecules."""
    deadline = time.monotonic() + 120
    while not killed and time.monotonic() < deadline:
        time.sleep(0.1)
        for process in running("embed_block")[:1]:
            with suppress(psutil.Error):
                if process.children():  # that is where it does so
                    process.kill()
                    killed.append(process.pid)


def test_rows_equal_those_of_one_machine_after_workers_are_killed(
    rows: Path, models: ModelChoice, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"conformers": CONFORMERS, "temperature": 310.0, "coverage": 0.8}
    data = ray.data.read_parquet(str(rows))
    predicted = ray_data.predict_dataset(data, models, rows_per_task=len(FAILING), **options)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_task, args=(killed,))
    killer.start()
    blocks = iter(predicted.iter_batches(batch_size=None, batch_format="pyarrow"))
    tables = [next(blocks)]
    killer.join()
    assert killed, "no task could be killed"
    (actor,) = running("PredictBlock")
    actor.kill()
    actors = set()
    for table in blocks:
        tables.append(table)
        actors |= {process.pid for process in running("PredictBlock")}
    assert actors - {actor.pid}, "the model was not loaded again"

    # The first block has nothing but failures.
    assert all(table.schema == tables[0].schema for table in tables)
    found = pyarrow.concat_tables(tables).to_pylist()
    found.sort(key=lambda row: row["number"])
    assert [(row["number"], row["Smiles"]) for row in found] == list(enumerate(SMILES, start=1))
    one = tmp_path / "one.parquet"
    # In batches of the same size, as single precision is felt in the sixth decimal.
    predict_files([rows], one, models, workers=0, part_records=len(FAILING), **options)
    expected = {row["row"]: row for row in parquet.read_table(one).to_pylist()}
    failures = {failure.row: failure for failure in read_failures(failures_path(one))}
    assert len(failures) >= len(FAILING)
    types = {field.name: field.type for field in parquet.read_schema(one)}
    for name in ray_data.PREDICTION_COLUMNS:
        assert tables[0].schema.field(name).type == types[name]
    for row in found:
        reason = (row["stage"], row["problem"], row["remedy"])
        if failure := failures.get(row["number"]):
            assert reason == (failure.stage, failure.problem, failure.remedy)
            assert all(row[name] is None for name in ray_data.PREDICTION_COLUMNS)
            continue
        assert reason == (None, None, None)
        other = expected[row["number"]]
        for name in ray_data.PREDICTION_COLUMNS:
            if isinstance(other[name], float | list):
                assert row[name] == pytest.approx(other[name], abs=2e-6), name
            else:
                assert row[name] == other[name], name


def test_wrong_arguments_are_refused_before_anything_runs(models: ModelChoice) -> None:
    table = pyarrow.table({"smiles": ["C"], "model": ["mine"], "problem": ["none"]})
    data = ray.data.from_arrow(table)
    with pytest.raises(ValueError, match=r"would be added: model, problem\. Rename them"):
        ray_data.predict_dataset(data, models)
    with pytest.raises(ValueError, match=r"would be added: problem\."):
        ray_data.label_dataset(data, XTBConfig())
    with pytest.raises(ValueError, match=r"No column 'SMI'; the columns are 'smiles', 'model'"):
        ray_data.predict_dataset(data, models, smiles_column="SMI")
    data = data.drop_columns(["model", "problem"])
    with pytest.raises(ValueError, match="rows_per_task must be at least 1, got 0"):
        ray_data.predict_dataset(data, models, rows_per_task=0)
    with pytest.raises(ValueError, match=r"actors must be at least 1, .* got \(3, 2\)"):
        ray_data.predict_dataset(data, models, actors=(3, 2))
    with pytest.raises(ValueError, match=r"gpus_per_actor must be zero or positive, got -1"):
        ray_data.predict_dataset(data, models, gpus_per_actor=-1)
    with pytest.raises(FileNotFoundError, match="There is no model nowhere"):
        ray_data.predict_dataset(data, ModelChoice(Path("nowhere.safetensors")))
