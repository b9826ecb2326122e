"""Exported programs, run where dipolegnn is not imported, against the model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import dipolegnn
from dipolegnn import ModelConfig, export, load_model
from dipolegnn._pyg import Batch, Data
from dipolegnn.cli import main
from dipolegnn.export import ExportError, ProgramInput, export_model
from dipolegnn.models import save_model
from dipolegnn.nn import DipoleModel, DipoleOutput, build_model
from dipolegnn.units import DEBYE_PER_E_ANGSTROM
from tests.nn.models import randomize
from tests.nn.structures import benzene, carbon_dioxide, methane, molecule, random_molecule
from tests.tolerances import model_rounding

F32, F64 = torch.float32, torch.float64

# Exporting takes seconds for each program: all tests in one process.
pytestmark = pytest.mark.xdist_group("export")


class Case(NamedTuple):
    representation: str
    head: str
    dtype: torch.dtype
    suffix: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.representation}-{self.head}-{dtype}{self.suffix}"


CASES = [
    Case("painn", "dipole", F64, ".pt2"),
    Case("painn-bessel", "charges", F64, ".pt2"),
    Case("painn", "mean", F32, ".pt2"),
    Case("schnet", "dipole", F64, ".pt2"),
    Case("schnet", "sum", F32, ".pt2"),
    Case("painn-qm9", "dipole", F32, ".pt2"),
    Case("painn-bessel", "charges", F32, ".onnx"),
    Case("schnet", "sum", F32, ".onnx"),
    Case("painn-qm9", "dipole", F32, ".onnx"),
]

OTHERS = "{'dipolegnn', 'torch_geometric', 'torch_scatter', 'torch_cluster', 'numba'}"

RUN_TORCH = f"""
import sys, torch
for case in sys.argv[1:]:
    program = torch.export.load(case + "/program.pt2").module()
    given = torch.load(case + "/given.pt", weights_only=True)
    with torch.no_grad():
        torch.save([program(*one) for one in given], case + "/got.pt")
loaded = {OTHERS} & set(sys.modules)
assert not loaded, loaded
"""

RUN_ONNX = f"""
import sys, numpy, onnxruntime
for case in sys.argv[1:]:
    session = onnxruntime.InferenceSession(
        case + "/program.onnx", providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    arrays = numpy.load(case + "/given.npz")
    got = {{}}
    for k in sorted({{name.split(".")[0] for name in arrays}}):
        given = {{n: arrays[k + "." + n] for n in ("z", "pos", "num_atoms", "charge")}}
        for name, value in zip(names, session.run(None, given)):
            got[k + "." + name] = value
    numpy.savez(case + "/got.npz", **got)
loaded = ({OTHERS} | {{"torch"}}) & set(sys.modules)
assert not loaded, loaded
"""


def by_command(case: Case) -> bool:
    """True for the cases that are exported by the command, one of each suffix."""
    return (case.representation, case.head, case.dtype) == ("schnet", "sum", F32)


def model_of(case: Case) -> DipoleModel:
    if case.representation.endswith("qm9"):
        return load_model(case.representation)
    return small_model(case.representation, case.head, case.dtype)


def small_model(representation: str, head: str, dtype: torch.dtype) -> DipoleModel:
    """Random weights; two interactions, because tracing takes time for each."""
    config = ModelConfig(
        representation="schnet" if representation == "schnet" else "painn",
        radial_basis="bessel" if representation == "painn-bessel" else "gaussian",
        hidden_channels=16,
        num_interactions=2,
        num_rbf=10,
        cutoff=4.0,
        head="charges" if head == "charges" else "dipole" if head == "dipole" else "atomwise",
        atomwise_aggregation="mean" if head == "mean" else "sum",
    )
    model = build_model(config)
    randomize(model, seed=0)
    return model.to(dtype).eval()


def far_apart(dtype: torch.dtype) -> Data:
    """Two atoms without an edge."""
    return molecule([6, 8], [[0, 0, 0], [0, 0, 9]], dtype)


def batches(dtype: torch.dtype) -> list[list[Data]]:
    """Batches of one and more molecules; single atoms; without edges; ions."""
    return [
        [random_molecule(1, 0, dtype)],
        [random_molecule(1, 1, dtype), random_molecule(1, 2, dtype, charge=1)],
        [far_apart(dtype)],
        [random_molecule(9, 3, dtype)],
        [random_molecule(n, n, dtype, charge=n % 3 - 1) for n in (5, 1, 2, 30, 12)],
        [methane(dtype), far_apart(dtype), carbon_dioxide(dtype), benzene(dtype)],
        [random_molecule(n % 13 + 1, n, dtype) for n in range(40)],
    ]


def given_to(molecules: list[Data]) -> ProgramInput:
    return ProgramInput(
        torch.cat([data.z for data in molecules]),
        torch.cat([data.pos for data in molecules]),
        torch.tensor([data.z.numel() for data in molecules]),
        torch.cat([data.charge for data in molecules]),
    )


def run_elsewhere(code: str, folders: list[Path]) -> None:
    """Runs programs in a process that knows nothing of this project's folder."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folders[0],
    )
    assert done.returncode == 0, done.stderr


class Exported(NamedTuple):
    """A program, and the model that it was made of."""

    folder: Path
    model: DipoleModel
    printed: str


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Exported]:
    """Every case is exported once, one small model by the command.

    Each folder contains the program, the batches and the outputs for them from another process.
    """
    made = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp(str(case).replace(".", "-"))
        model, path = model_of(case).train(), folder / f"program{case.suffix}"
        printed = io.StringIO()
        if by_command(case):
            save_model(folder / "model.safetensors", model, {})
            with redirect_stdout(printed), redirect_stderr(printed):
                assert main(["export", str(folder), "--output", str(path)]) == 0
        else:
            export_model(path, model)
        made[case] = Exported(folder, model, printed.getvalue())
        given = [given_to(molecules) for molecules in batches(case.dtype)]
        torch.save([tuple(one) for one in given], folder / "given.pt")
        arrays = {
            f"{k}.{name}": value.numpy()
            for k, one in enumerate(given)
            for name, value in one._asdict().items()
        }
        np.savez(folder / "given.npz", **arrays)
    for suffix, code in ((".pt2", RUN_TORCH), (".onnx", RUN_ONNX)):
        run_elsewhere(code, [made[case].folder for case in CASES if case.suffix == suffix])
    return made


@pytest.fixture(scope="module")
def exported(programs: dict[Case, Exported]) -> dict[Case, Path]:
    """The folder of each case."""
    return {case: made.folder for case, made in programs.items()}


def results(case: Case, folder: Path) -> list[dict[str, Tensor]]:
    if case.suffix == ".pt2":
        got: list[dict[str, Tensor]] = torch.load(folder / "got.pt", weights_only=True)
        return got
    arrays = np.load(folder / "got.npz")
    found: list[dict[str, Tensor]] = [{} for _ in batches(case.dtype)]
    for key in arrays:
        k, name = key.split(".")
        found[int(k)][name] = torch.from_numpy(arrays[key])
    return found


def largest_contribution(output: DipoleOutput, molecules: list[Data]) -> float:
    """The largest number that a prediction is a sum of: more than the sum where terms cancel."""
    sizes = [1.0, float(output.magnitude.abs().max())]
    if not output.charges.isnan().any():
        distances = torch.cat([(data.pos - data.pos.mean(dim=0)).norm(dim=1) for data in molecules])
        sizes.append(DEBYE_PER_E_ANGSTROM * float((output.charges.abs() * distances).max()))
    return max(sizes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_the_model_elsewhere(exported: dict[Case, Path], case: Case) -> None:
    model = model_of(case)
    model.kernels = "plain"
    for molecules, got in zip(batches(case.dtype), results(case, exported[case]), strict=True):
        with torch.no_grad():
            output = model(Batch.from_data_list(molecules))
        expected = {name: x for name, x in output._asdict().items() if not x.isnan().all()}
        assert got.keys() == expected.keys()
        allowed = model_rounding(model, case.dtype) * largest_contribution(output, molecules)
        for name, wanted in expected.items():
            assert got[name].dtype == case.dtype
            assert got[name].shape == wanted.shape
            assert float((got[name] - wanted).abs().max()) <= allowed, name


def test_equal_to_the_fused_kernels(exported: dict[Case, Path]) -> None:
    """What everybody else runs is the other message passing."""
    (case,) = [case for case in CASES if str(case) == "painn-qm9-dipole-float32.pt2"]
    model = model_of(case)
    assert model.message_passing == "fused"
    for molecules, got in zip(batches(F32), results(case, exported[case]), strict=True):
        with torch.no_grad():
            wanted = model(Batch.from_data_list(molecules))
        allowed = model_rounding(model, F32) * largest_contribution(wanted, molecules)
        assert float((got["dipole"] - wanted.dipole).abs().max()) <= allowed


def folder_of(exported: dict[Case, Path], name: str) -> Path:
    (found,) = [folder for case, folder in exported.items() if str(case) == name]
    return found


def test_nothing_but_operators_of_torch(exported: dict[Case, Path]) -> None:
    for name in (
        "painn-qm9-dipole-float32.pt2",
        "painn-mean-float32.pt2",
        "schnet-sum-float32.pt2",
    ):
        program = torch.export.load(folder_of(exported, name) / "program.pt2")
        called = {node.target for node in program.graph.nodes if node.op == "call_function"}
        operators = {target for target in called if isinstance(target, torch._ops.OpOverload)}
        assert {operator.namespace for operator in operators} == {"aten"}
        assert {target.__module__ for target in called - operators} == {"_operator"}


def test_nothing_but_operators_of_onnx(exported: dict[Case, Path]) -> None:
    onnx = pytest.importorskip("onnx")
    for case, folder in exported.items():
        if case.suffix == ".onnx":
            model = onnx.load(folder / "program.onnx")
            onnx.checker.check_model(model)
            assert {opset.domain for opset in model.opset_import} == {""}
            assert not model.functions
            sizes = [
                [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
                for value in (*model.graph.input, *model.graph.output)
            ]
            assert sizes[:5] == [["N"], ["N", 3], ["B"], ["B"], sizes[4]]
            assert sizes[4] in (["B", 3], ["B"])


def description(path: Path) -> dict[str, object]:
    if path.suffix == ".pt2":
        extra = {"dipolegnn.json": ""}
        torch.export.load(path, extra_files=extra)
        text = extra["dipolegnn.json"]
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        text = session.get_modelmeta().custom_metadata_map["dipolegnn"]
    read = json.loads(text)
    assert isinstance(read, dict)
    return read


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_file_describes_itself(exported: dict[Case, Path], suffix: str) -> None:
    folder = folder_of(exported, f"painn-qm9-dipole-float32{suffix}")
    about = description(folder / f"program{suffix}")
    assert about["cutoff"] == 5.0
    assert about["elements"] == ["C", "H", "N", "O"]
    assert about["accuracy"] == load_model("painn-qm9").card.accuracy
    assert str(about["accuracy"]).endswith("D on test molecules (qm9, B3LYP/6-31G(2df,p))")
    assert about["exported_by"] == {
        "dipolegnn": dipolegnn.__version__,
        "torch": torch.__version__,
    }
    assert about["inputs"] == [
        {"name": "z", "shape": ["N"], "dtype": "int64", "unit": "atomic number"},
        {"name": "pos", "shape": ["N", 3], "dtype": "float32", "unit": "angstrom"},
        {"name": "num_atoms", "shape": ["B"], "dtype": "int64", "unit": "atoms"},
        {"name": "charge", "shape": ["B"], "dtype": "float32", "unit": "e"},
    ]
    assert about["outputs"] == [
        {"name": "dipole", "shape": ["B", 3], "dtype": "float32", "unit": "debye"},
        {"name": "magnitude", "shape": ["B"], "dtype": "float32", "unit": "debye"},
        {"name": "charges", "shape": ["N"], "dtype": "float32", "unit": "e"},
    ]


def test_the_description_of_an_untrained_model(exported: dict[Case, Path]) -> None:
    about = description(folder_of(exported, "painn-mean-float32.pt2") / "program.pt2")
    assert (about["accuracy"], about["elements"], about["provenance"]) == (None, None, {})
    assert about["outputs"] == [
        {"name": "magnitude", "shape": ["B"], "dtype": "float32", "unit": "debye"}
    ]


def test_no_folder_of_this_machine_is_in_a_file(
    exported: dict[Case, Path], project_root: Path
) -> None:
    for case, folder in exported.items():
        path = folder / f"program{case.suffix}"
        parts = [path.read_bytes()]
        if case.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        for place in (str(project_root), "site-packages"):
            assert not any(place.encode() in part for part in parts), case


def test_numbers_of_atoms_that_do_not_add_up_are_an_error(exported: dict[Case, Path]) -> None:
    z, pos, num_atoms, charge = given_to(batches(F32)[4])
    path = folder_of(exported, "painn-qm9-dipole-float32.pt2") / "program.pt2"
    program = torch.export.load(path).module()
    session = pytest.importorskip("onnxruntime").InferenceSession(
        folder_of(exported, "painn-qm9-dipole-float32.onnx") / "program.onnx"
    )
    for change in (-1, 1):
        wrong = num_atoms.clone()
        wrong[0] += change
        with pytest.raises((IndexError, RuntimeError)):
            program(z, pos, wrong, charge)
        given = ProgramInput(z, pos, wrong, charge)._asdict()
        with pytest.raises(Exception, match=r"out of|Invalid|invalid"):
            session.run(None, {name: value.numpy() for name, value in given.items()})


def test_can_be_differentiated(exported: dict[Case, Path]) -> None:
    path = folder_of(exported, "painn-dipole-float64.pt2") / "program.pt2"
    program = torch.export.load(path).module()
    model = small_model("painn", "dipole", F64)
    data = random_molecule(9, 3)

    def gradient(dipole: Callable[[Tensor], Tensor]) -> Tensor:
        pos = data.pos.clone().requires_grad_()
        (found,) = torch.autograd.grad(dipole(pos).sum(), pos)
        return found

    counts = torch.tensor([9])
    got = gradient(lambda pos: program(data.z, pos, counts, data.charge)["dipole"])
    wanted = gradient(lambda pos: model(Data(z=data.z, pos=pos, charge=data.charge)).dipole)
    assert float((got - wanted).abs().max()) <= 1e-11 * float(wanted.abs().max())


def test_export_does_not_change_the_model(programs: dict[Case, Exported]) -> None:
    for case, (_, model, printed) in programs.items():
        if printed:  # the command has loaded a model of its own
            continue
        before = model_of(case)
        assert (model.training, model.kernels) == (True, "auto")
        assert (model.calibration is None) == (before.calibration is None)
        weights = before.state_dict()
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("program.pt", F32, r"ends in .pt2 \(for PyTorch\) or .onnx .*, got '.*program.pt'"),
        ("program.pt2", torch.bfloat16, "this one is torch.bfloat16: use model.float"),
        ("program.onnx", F64, "torch.float64, and the converter to ONNX rounds .* a .pt2 file"),
    ],
)
def test_what_cannot_be_exported(
    tmp_path: Path, name: str, dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export_model(tmp_path / name, small_model("painn", "dipole", dtype))
    assert not list(tmp_path.iterdir())


def test_without_the_packages_for_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    model = small_model("painn", "dipole", F32)
    with pytest.raises(
        ImportError, match=r"onnxscript must be installed: pip install 'dipolegnn\[onnx\]'"
    ):
        export_model(tmp_path / "program.onnx", model)


def test_a_program_that_is_wrong_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(content: bytes) -> Callable[[ProgramInput], dict[str, Tensor]]:
        module = torch.export.load(io.BytesIO(content)).module()
        return lambda given: {name: x + 1e-3 for name, x in module(*given).items()}

    monkeypatch.setattr(export, "_torch_runner", wrong)
    with pytest.raises(
        ExportError, match=r"output dipole of the program for program.pt2 differs .* by 1.0e-03"
    ):
        export_model(tmp_path / "program.pt2", small_model("painn", "dipole", F32))
    assert not list(tmp_path.iterdir())


def test_the_command(
    programs: dict[Case, Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suffixes = set()
    for case, (folder, _, printed) in programs.items():
        if by_command(case):
            program = folder / f"program{case.suffix}"
            assert printed == f"wrote {program}\n"
            assert description(program)["cutoff"] == 4.0
            suffixes.add(case.suffix)
    assert suffixes == {".pt2", ".onnx"}
    assert main(["export", "painn-qm9", "--output", str(tmp_path / "mine.pth")]) == 2
    assert "ends in .pt2 (for PyTorch) or .onnx" in capsys.readouterr().err


def test_the_level_of_theory_is_fixed(tmp_path: Path) -> None:
    levels = ("DFT", "xTB")
    model = build_model(ModelConfig(hidden_channels=8, num_interactions=1, levels=levels))
    randomize(model, seed=0)
    save_model(tmp_path / "model.safetensors", model, {})
    path = tmp_path / "program.pt2"
    printed = io.StringIO()
    with redirect_stdout(printed):
        words = [str(tmp_path / "model.safetensors"), "--output", str(path), "--level", "xTB"]
        assert main(["export", *words]) == 0
    assert printed.getvalue() == f"wrote {path} at xTB\n"
    assert description(path)["level"] == "xTB"
    molecules = [random_molecule(n, n, F32) for n in (5, 1, 9)]
    batch = Batch.from_data_list(molecules)
    program = torch.export.load(path).module()
    with torch.no_grad():
        default = model(batch)
        batch.level = "xTB"
        wanted = model(batch)
        found = program(*given_to(molecules))["magnitude"]
    allowed = model_rounding(model, F32) * largest_contribution(wanted, molecules)
    assert float((found - wanted.magnitude).abs().max()) <= allowed
    assert float((found - default.magnitude).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="no level of theory 'MP2'; it has DFT, xTB"):
        export_model(path, model, level="MP2")


def test_a_program_for_onnx_is_at_the_first_level(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    levels = ("DFT", "xTB")
    model = build_model(ModelConfig(hidden_channels=8, num_interactions=1, levels=levels))
    randomize(model, seed=0)
    path = tmp_path / "program.onnx"
    export_model(path, model)  # compares the program with the model
    assert description(path)["level"] == "DFT"
