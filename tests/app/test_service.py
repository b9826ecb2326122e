"""Responses and refusals of the page's service."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("dash", reason="dash is not installed (extra app)")

from dipolegnn.app.service import Request, Service, respond
from dipolegnn.models import save_model
from dipolegnn.molecules import from_smiles, read_text, text_of
from tests.inference.test_levels import new_model

# One process that answers: all tests in one process.
pytestmark = pytest.mark.xdist_group("page")

MODEL = "painn-xtb"


def request(smiles: str = "", name: str = "", text: str = "", conformers: int = 1) -> Request:
    return Request(smiles, name, text, conformers, MODEL)


def test_smiles_with_names_and_a_bad_one_among_them() -> None:
    response = respond(request("CCO ethanol\n\nC1CC broken\nCl"))
    assert response.refusal == ""
    names = [molecule["name"] for molecule in response.report["molecules"]]
    assert names == ["ethanol", "Cl"]
    assert response.report["molecules"][0]["magnitude"] > 0.5
    (failure,) = response.report["failures"]
    assert (failure["molecule"], failure["row"]) == ("broken", 3)
    assert response.files[".csv"].startswith("source,row,name,smiles,charge_e,magnitude_D")
    for suffix in (".sdf", ".extxyz"):
        read = read_text(response.files[suffix], f"out{suffix}").data
        assert [data.name for data in read] == names
        expected = response.report["molecules"][0]["conformers"][0]["dipole"]
        assert read[0].dipole.flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_a_file_and_conformers() -> None:
    text = text_of(from_smiles("CCO", name="mine"), ".sdf")
    (molecule,) = respond(request(name="some.sdf", text=text)).report["molecules"]
    assert molecule["name"] == "mine"

    response = respond(request("CCCO", conformers=5))
    (molecule,) = response.report["molecules"]
    assert len(molecule["conformers"]) > 1
    assert sum(conformer["weight"] for conformer in molecule["conformers"]) == pytest.approx(1)


def test_an_sdf_leaves_out_only_structures_without_bonds() -> None:
    apart = "3\nlone\nC 0 0 0\nH 0 0 2.2\nH 2.2 0 0\n"
    water = "3\nwater\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
    response = respond(request(name="a.xyz", text=water + apart))
    assert response.refusal == ""
    assert response.without_bonds == ("lone",)
    for suffix, names in ((".sdf", ["water"]), (".extxyz", ["water", "lone"])):
        read = read_text(response.files[suffix], f"out{suffix}").data
        assert [data.name for data in read] == names


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(), "Type or paste a SMILES"),
        (request("C", conformers=0), "must be a whole number from 1 to 20"),
        (request("C\n" * 51), "51 molecules, at most 50"),
        (request(name="a.xyz", text="1\n\nHe 0 0 0\n" * 51), "51 molecules"),
        (request(name="a.xyz", text="1\n\nH 0 0 0\n" * 1001), "1001 molecules"),
        (request(name="a.extxyz", text="1\nmol_id=0\nHe 0 0 0\n" * 51), "51 molecules"),
        (request(name="a.csv", text="smiles\n" + "C\n" * 51), "51 molecules"),
        (request(name="a.txt", text="C"), r"a.txt: this file format is not supported"),
        (request(name="a.sdf", text=""), "holds no molecules"),
        (request(name="a.csv", text="name\nx\n"), "smiles"),
        (request("C" * 1_000_001), "at most 1,000,000 characters"),
        (request("C" * 120), "has 362 atoms, and the page takes molecules of up to 300"),
        (
            request(name="a.csv", text="smiles\n" + "C" * 160),
            "has 482 atoms, and the page takes",
        ),
        (request(name="a.parquet", text="PAR1"), "supported are .smi, .csv, .sdf"),
        (Request("C", "", "", 1, "nowhere"), "There is no model nowhere."),
    ],
)
def test_what_it_refuses(asked: Request, reason: str) -> None:
    response = respond(asked)
    assert reason in response.refusal
    assert "Traceback" not in response.refusal
    assert response.report == {}


@pytest.fixture(scope="module")
def started() -> Iterator[Service]:
    made = Service(MODEL)
    yield made
    made.close()


@pytest.fixture
def service(started: Service) -> Service:
    """One for all tests: its process takes seconds to start."""
    started.time_limit = 60
    return started


def test_a_request_that_takes_too_long_is_given_up_and_the_next_one_answered(
    service: Service,
) -> None:
    assert service.ask(Request("O")).refusal == ""  # the process is warm
    process = service._worker
    assert process is not None
    service.time_limit = process.time_limit = 0.05
    assert "not finished after" in service.ask(Request("CC(=O)Oc1ccccc1C(=O)O\n" * 20)).refusal
    service.time_limit = 60
    response = service.ask(Request("O"))
    assert response.refusal == ""
    assert response.report["molecules"][0]["name"] == "O"


def test_a_process_that_died_is_replaced(service: Service) -> None:
    service.ask(Request("O"))
    assert service._worker is not None
    service._worker.process.kill()
    assert "The prediction failed" in service.ask(Request("O")).refusal
    assert service.ask(Request("O")).refusal == ""


def test_only_models_that_come_along_can_be_asked_for(service: Service) -> None:
    assert (
        service.ask(Request("O", model="painn-xtb")).report["molecules"][0]["model"] == "painn-xtb"
    )
    refused = service.ask(Request("O", model="/etc/passwd"))
    assert refused.refusal == "There is no model '/etc/passwd' here."


def test_a_busy_service_refuses_a_second_request(service: Service) -> None:
    service.time_limit = 0.05
    with service._busy:
        start = time.monotonic()
        assert "busy" in service.ask(Request("O")).refusal
        assert time.monotonic() - start < 5


def test_nothing_is_written(tmp_path: Path) -> None:
    # In a separate process, because an audit hook cannot be removed.
    program = """
import os, sys
from dipolegnn.app.service import Request, respond

def watch(event, arguments):
    if event == "open" and watching:
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path) != os.devnull:
            written.append(path)
    if event in ("os.mkdir", "os.rename", "tempfile.mkstemp") and watching:
        written.append(event)

written, watching = [], False
sys.addaudithook(watch)
respond(Request("O", "", "", 1, "painn-xtb"))  # what is imported may be compiled
watching = True
upload = respond(Request("", "a.xyz", "1\\nargon\\nC 0 0 0\\n", 1, "painn-xtb"))
answer = respond(Request("CCO\\nxyz", "", "", 2, "painn-xtb"))
assert answer.report["molecules"] and answer.report["failures"] and upload.report["molecules"]
print("written:", written)
open("mine", "w").close()
print("then:", written)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["written: []", "then: ['mine']"]


def test_files_as_spreadsheets_and_old_editors_write_them() -> None:
    from dipolegnn.app.page import _decoded

    excel = base64.b64encode("\ufeffsmiles,name\nO,water\n".encode()).decode()
    text = _decoded(f"data:text/csv;base64,{excel}")
    (water,) = respond(request(name="a.csv", text=text)).report["molecules"]
    assert water["name"] == "water"
    found = respond(request(name="a.smi", text="O water\rN ammonia\r")).report["molecules"]
    assert [molecule["name"] for molecule in found] == ["water", "ammonia"]


def test_a_level_of_theory_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, new_model(), {})
    service = Service(str(path))
    assert service.levels() == ["DFT", "xTB"]
    assert service.levels(MODEL) == []
    with pytest.raises(ValueError, match="There is no model"):
        service.levels("/etc/passwd")
    for level, stated in ((None, "DFT"), ("xTB", "xTB")):
        response = respond(Request("O", model=str(path), level=level))
        assert response.report["molecules"][0]["level"] == stated
        header, line = response.files[".csv"].splitlines()
        assert dict(zip(header.split(","), line.split(","), strict=False))["level"] == stated
    response = respond(Request("O\nN", model=str(path), level="MP2"))
    assert "no level of theory 'MP2'; it has DFT, xTB" in response.refusal


def test_stereoisomers_and_salts() -> None:
    asked = Request("ClC=CCl", conformers=1, model=MODEL, stereoisomers=2)
    isomers = respond(asked).report["molecules"]
    assert {isomer["smiles"] for isomer in isomers} == {"Cl/C=C/Cl", r"Cl/C=C\Cl"}
    salt = Request("[Na+].CC(=O)[O-]", conformers=1, model=MODEL)
    (failure,) = respond(salt).report["failures"]
    assert "2 fragments" in failure["problem"]
    (acetate,) = respond(salt._replace(largest_fragment=True)).report["molecules"]
    assert acetate["smiles"] == "CC(=O)[O-]"
    assert "the largest fragment, CC(=O)[O-]; left out: [Na+]" in acetate["notes"]
    refused = respond(asked._replace(stereoisomers=9))
    assert refused.refusal == "Stereoisomers must be a whole number from 1 to 8, got 9."
