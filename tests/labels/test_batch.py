"""Many labels: nothing done twice, nothing lost, whatever happens in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from ase.calculators.calculator import BaseCalculator

from dipolegnn._pyg import Data
from dipolegnn.config import XTBConfig
from dipolegnn.labels import batch, label_many, run
from dipolegnn.labels.batch import HEADER
from dipolegnn.molecules import Molecules
from dipolegnn.molecules.workers import Lost, Pool
from tests.labels.toys import uranium, water

METHOD = XTBConfig()


def waters(count: int) -> list[Data]:
    """Different geometries, so that no two labels are the same."""
    return [water(shift=0.001 * i, mol_id=i) for i in range(count)]


def assert_equal(found: Sequence[Data], expected: Sequence[Data], atol: float = 0.0) -> None:
    assert [d.mol_id.item() for d in found] == [d.mol_id.item() for d in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.name, a.smiles) == (b.name, b.smiles)
        for field in ("pos", "dipole", "dipole_magnitude", "atomic_charges"):
            torch.testing.assert_close(a[field], b[field], rtol=0, atol=atol)
        torch.testing.assert_close(a.energy, b.energy, rtol=1e-6, atol=0)


@pytest.fixture
def calculations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the molecules that are calculated, as it happens."""
    done: list[str] = []
    original = run.label

    def counting(
        data: Data, calculator: BaseCalculator, *, optimize: bool, fmax: float, max_steps: int
    ) -> Data:
        done.append(data.name)
        return original(data, calculator, optimize=optimize, fmax=fmax, max_steps=max_steps)

    monkeypatch.setattr(batch, "label", counting)
    return done


def test_parallel_is_serial_in_order_with_failures_listed() -> None:
    molecules = [water(mol_id=0), uranium(mol_id=1), water(shift=0.05, mol_id=2)]
    serial = label_many(molecules, METHOD, source="mine.smi")
    parallel = label_many(molecules, METHOD, workers=2, source="mine.smi")
    assert [d.name for d in serial.data] == ["water 0", "water 2"]
    assert_equal(parallel.data, serial.data, atol=1e-5)
    assert parallel.failures == serial.failures
    (failure,) = serial.failures
    assert (failure.source, failure.row, failure.molecule) == ("mine.smi", 2, "uranium")
    assert failure.stage == "label"
    assert "The calculation failed" in failure.problem
    assert failure.remedy


def test_input_stays_as_it_is() -> None:
    molecule = water(shift=0.1)
    before = molecule.clone()
    label_many([molecule], XTBConfig(optimize=True))
    assert torch.equal(molecule.pos, before.pos)
    assert molecule.dipole.isnan().all()


def test_relaxes_where_the_method_says_so() -> None:
    (relaxed,) = label_many([water(shift=0.1)], XTBConfig(optimize=True)).data
    bonds = (relaxed.pos[1:] - relaxed.pos[0]).norm(dim=1)
    assert (bonds[0] - bonds[1]).abs().item() < 0.01
    few_steps = label_many([water(shift=0.1)], XTBConfig(optimize=True, max_steps=1))
    assert few_steps.data == []
    assert "did not converge in 1 steps" in few_steps.failures[0].problem


def test_no_structures() -> None:
    assert label_many([], METHOD, workers=2) == Molecules([], [])


def test_no_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        label_many(waters(1), METHOD, workers=0)


def test_missing_program_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite", None)
    with pytest.raises(ImportError, match=r"pip install 'dipolegnn\[xtb\]'"):
        label_many(waters(3), METHOD)


class TestJournal:
    def test_second_run_calculates_nothing(self, tmp_path: Path, calculations: list[str]) -> None:
        molecules = [*waters(2), uranium(mol_id=2)]
        journal = tmp_path / "new" / "journal.jsonl"
        first = label_many(molecules, METHOD, journal=journal)
        assert len(calculations) == 3
        second = label_many(molecules, METHOD, journal=journal)
        assert len(calculations) == 3  # the failure is remembered too
        assert_equal(second.data, first.data)
        assert second.failures == first.failures
        assert len(second.failures) == 1

    def test_other_method_geometry_or_charge_is_another_calculation(
        self, tmp_path: Path, calculations: list[str]
    ) -> None:
        journal = tmp_path / "journal.jsonl"
        label_many([water()], METHOD, journal=journal)
        label_many([water(shift=0.001)], METHOD, journal=journal)
        label_many([water()], XTBConfig(electronic_temperature=310.0), journal=journal)
        dication = water()
        dication.charge = torch.tensor([2.0])
        label_many([dication], METHOD, journal=journal)
        assert len(calculations) == 4

    def test_name_and_number_are_those_of_the_second_run(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        label_many([water(mol_id=1)], METHOD, journal=journal)
        (again,) = label_many([water(mol_id=8)], METHOD, journal=journal).data
        assert (again.name, again.mol_id.item()) == ("water 8", 8)

    @pytest.mark.parametrize("cut", [1, 20, 200])
    def test_torn_last_line_is_done_again(
        self, tmp_path: Path, calculations: list[str], cut: int
    ) -> None:
        journal = tmp_path / "journal.jsonl"
        whole = label_many(waters(3), METHOD, journal=journal)
        content = journal.read_bytes()
        journal.write_bytes(content[:-cut])
        calculations.clear()
        resumed = label_many(waters(3), METHOD, journal=journal)
        assert calculations == ["water 2"]
        assert_equal(resumed.data, whole.data, atol=1e-6)
        assert [json.loads(line) for line in journal.read_text().splitlines()]
        assert len(journal.read_text().splitlines()) == 4

    def test_torn_header_is_written_again(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        journal.write_text(HEADER[:9])
        label_many(waters(1), METHOD, journal=journal)
        assert journal.read_text().startswith(HEADER)
        assert len(journal.read_text().splitlines()) == 2

    @pytest.mark.parametrize("content", ["smiles,name\nO,water\n", "my notes", "\n"])
    def test_other_file_is_refused_and_left_alone(self, tmp_path: Path, content: str) -> None:
        other = tmp_path / "molecules.csv"
        other.write_text(content)
        with pytest.raises(ValueError, match=r"molecules.csv is not a journal of labels"):
            label_many(waters(1), METHOD, journal=other)
        assert other.read_text() == content

    def test_damage_before_the_end_names_the_line(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal.jsonl"
        label_many(waters(3), METHOD, journal=journal)
        lines = journal.read_text().splitlines(keepends=True)
        lines[2] = lines[2][:40] + "\n"
        journal.write_text("".join(lines))
        with pytest.raises(ValueError, match=r"Line 3 of the journal .* cannot be read"):
            label_many(waters(3), METHOD, journal=journal)
        assert journal.read_text() == "".join(lines)

    def test_crashed_worker_is_a_failure_and_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: object, **__: object) -> Iterator[tuple[int, Lost]]:
            yield 1, Lost("the worker process died (SIGSEGV)")
            yield 0, Lost("not finished after 9 s")

        journal = tmp_path / "journal.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr(Pool, "run", crash)
            lost = label_many(waters(2), METHOD, workers=2, journal=journal)
        assert lost.data == []
        assert [f.molecule for f in lost.failures] == ["water 0", "water 1"]
        assert "SIGSEGV" in lost.failures[1].problem
        assert len(label_many(waters(2), METHOD, journal=journal).data) == 2


RUN = """
import sys
from pathlib import Path
from tests.labels.test_batch import METHOD, waters
from dipolegnn.labels import label_many
label_many(waters(60), METHOD, workers=int(sys.argv[2]), journal=Path(sys.argv[1]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_resumes_after_a_kill(
    workers: int, tmp_path: Path, project_root: Path, calculations: list[str]
) -> None:
    journal = tmp_path / "journal.jsonl"
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(journal), str(workers)], cwd=project_root
    )
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert run.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    done = journal.read_bytes().count(b"\n") - 1
    assert 3 <= done < 60
    resumed = label_many(waters(60), METHOD, journal=journal)
    assert len(calculations) == len(set(calculations)) == 60 - done
    assert len(resumed.data) == 60
    assert_equal(resumed.data, label_many(waters(60), METHOD).data, atol=1e-5)
