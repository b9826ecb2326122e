"""Export of a model as a program that runs without dipolegnn.

The file contains the complete model, from atomic numbers and positions to the dipole moment: radius
graph, network and weights. It uses only operators of PyTorch or ONNX, so that neither dipolegnn nor
PyTorch Geometric is required to run it. It predicts at one level of theory and contains no error
bars.

The file also describes the model as JSON: inputs, outputs, units, cutoff, elements, accuracy, level
of theory and provenance. In a ``.pt2`` file this is the extra file ``dipolegnn.json``, in an
``.onnx`` file the metadata entry ``dipolegnn``.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dipolegnn import __version__
from dipolegnn._pyg import Data
from dipolegnn.config import JSON
from dipolegnn.files import replacing
from dipolegnn.nn import DipoleModel, OutputField
from dipolegnn.nn.graph import RadiusGraph

FORMAT_VERSION = 1
"""Version of inputs, outputs and description; incremented when one of them changes, except if an
entry is added to the description."""

DESCRIPTION = "dipolegnn"
"""Name of the description in the file."""

_CLOSE_ENOUGH = {torch.float32: 1e-5, torch.float64: 1e-11}
"""Largest accepted difference between program and model, relative to the largest value."""


class ExportError(ValueError):
    """The exported program does not reproduce the model."""


class ProgramInput(NamedTuple):
    """Inputs of an exported program, in this order and with these names.

    Attributes:
        z: Atomic numbers ``[N]``, 1 to 100, int64; the atoms of each molecule are contiguous.
        pos: Positions ``[N, 3]`` in angstrom, in the precision of the model.
        num_atoms: Number of atoms of each molecule ``[B]``, at least 1, int64; they add up to N.
        charge: Total charge of each molecule ``[B]`` in e, in the precision of the model.
    """

    z: Tensor
    pos: Tensor
    num_atoms: Tensor
    charge: Tensor


_INPUTS = {
    "z": OutputField(("N",), "atomic number"),
    "pos": OutputField(("N", 3), "angstrom"),
    "num_atoms": OutputField(("B",), "atoms"),
    "charge": OutputField(("B",), "e"),
}


def export_model(path: str | Path, model: DipoleModel, level: str | None = None) -> None:
    """Exports a model as a program that runs without dipolegnn; the file is written atomically.

    The program maps the tensors of :class:`ProgramInput` to the fields of
    :class:`~dipolegnn.DipoleOutput` that the model predicts, by name. The numbers N of atoms and B
    of molecules are arbitrary (at least 1). The program is run and compared with the model before
    the file is saved.

    The program builds the radius graph by comparing all pairs of atoms within each molecule. It
    does not check elements: predictions for 0 and for elements that the model was not trained on
    are meaningless. Each molecule is one fragment: its charge is restored as a whole.

    Args:
        path: The file; an existing file is replaced. ``.pt2`` is for PyTorch (``torch.export``,
            without a guarantee that other versions can read it), ``.onnx`` for ONNX Runtime and
            others.
        model: The model, exported in its own precision.
        level: Level of theory of the program, one of ``model.levels``; None: the first of them.

    Raises:
        ValueError: If the file has another suffix, the precision of the model is not single or,
            for ``.pt2``, double, or the model does not have the level.
        ImportError: If the packages for ONNX are missing.
        ExportError: If the exported program does not reproduce the model.
    """
    path = Path(path)
    # A copy: the given model is not changed.
    program = _Program(copy.deepcopy(model).cpu().eval(), model.level_named(level))
    _check(path, program.dtype)
    about = json.dumps(_description(program))
    if path.suffix == ".pt2":
        content = _to_torch(program, about)
        run = _torch_runner(content)
    else:
        content = _to_onnx(program, about)
        run = _onnx_runner(content)
    for sizes in _EXAMPLES:
        _compare(program, run, _molecules(sizes, program.dtype), path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _check(path: Path, dtype: torch.dtype) -> None:
    """Checks that suffix and precision are supported and packages are installed."""
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(
            "A model is exported to a file that ends in .pt2 (for PyTorch) or .onnx (for ONNX "
            f"Runtime and others), got {str(path)!r}."
        )
    if dtype not in _CLOSE_ENOUGH:
        raise ValueError(
            f"Models in single or double precision can be exported, this one is {dtype}: use "
            "model.float()."
        )
    if path.suffix == ".pt2":
        return
    if dtype != torch.float32:
        raise ValueError(
            f"The model is {dtype}, and the converter to ONNX rounds constants to single "
            "precision: use model.float(), or export to a .pt2 file."
        )
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"For an .onnx file {' and '.join(missing)} must be installed: pip install "
            "'dipolegnn[onnx]'. A .pt2 file requires no further package."
        )


class _Program(nn.Module):
    """The model, at one level of theory, as a function of tensors."""

    def __init__(self, model: DipoleModel, level: str) -> None:
        super().__init__()
        self.level = level
        model.kernels = "plain"
        model.calibration = None
        self.model = model

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of the model."""
        return list(self.model.head.outputs)

    def forward(
        self, z: Tensor, pos: Tensor, num_atoms: Tensor, charge: Tensor
    ) -> dict[str, Tensor]:
        ptr = torch.cat([num_atoms.new_zeros(1), num_atoms.cumsum(0)])  # [B + 1]
        graph = RadiusGraph.traced(pos, self.model.representation.cutoff, ptr)
        batch = Data(z=z, pos=pos, charge=charge, ptr=ptr, radius_graph=graph, level=self.level)
        output = self.model(batch)
        return {name: getattr(output, name) for name in self.outputs}


_EXAMPLES = ((2, 3, 4), (1,), (1, 30, 1, 7))
"""Numbers of atoms of example molecules. The program is traced with the first tuple (tracing
specializes a size of 1) and tested with all."""


def _molecules(sizes: tuple[int, ...], dtype: torch.dtype) -> ProgramInput:
    """Example molecules: helices of hydrogen, carbon, nitrogen and oxygen atoms."""
    atom = torch.arange(sum(sizes), dtype=torch.float64)
    turn = 1.7 * atom
    pos = torch.stack([1.1 * torch.cos(turn), 1.1 * torch.sin(turn), 0.6 * atom], dim=1)
    z = torch.tensor([6, 1, 8, 1, 7])[torch.arange(sum(sizes)) % 5]
    charge = torch.arange(len(sizes)) % 2
    return ProgramInput(z, pos.to(dtype), torch.tensor(sizes), charge.to(dtype))


def _trace(program: _Program) -> ExportedProgram:
    atoms, molecules = Dim("N"), Dim("B")
    with torch.no_grad():
        exported = torch.export.export(
            program,
            tuple(_molecules(_EXAMPLES[0], program.dtype)),
            dynamic_shapes=({0: atoms}, {0: atoms}, {0: molecules}, {0: molecules}),
            strict=False,
        )
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # It contains paths of this machine.
    return exported


def _to_torch(program: _Program, about: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(_trace(program), file, extra_files={f"{DESCRIPTION}.json": about})
    return file.getvalue()


def _to_onnx(program: _Program, about: str) -> bytes:
    traced = _trace(program)
    with _quietly():
        made = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            # The optimizer of onnxscript replaces 1e-8 by 0, which removes PaiNN's epsilon.
            optimize=False,
            dynamic_shapes=({0: "N"}, {}, {0: "B"}, {}),  # names of the dimensions
            input_names=list(ProgramInput._fields),
            output_names=program.outputs,
        )
    assert made is not None
    for node in made.model.graph:
        node.metadata_props.clear()  # Source locations: a fifth of the file.
    made.model.metadata_props[DESCRIPTION] = about
    return bytes(made.model_proto.SerializeToString())


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses messages of the converter that concern its developers only."""
    # They report that torchvision is missing, and that a list of axes is empty.
    names = ("torch.onnx._internal.exporter._registration", "onnx_ir._convenience")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch uses an internal class that it has deprecated.
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


_Runner = Callable[[ProgramInput], dict[str, Tensor]]


def _torch_runner(content: bytes) -> _Runner:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda given: module(*given)


def _onnx_runner(content: bytes) -> _Runner:
    onnxruntime = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(given: ProgramInput) -> dict[str, Tensor]:
        found = session.run(None, {name: x.numpy() for name, x in given._asdict().items()})
        return {name: torch.from_numpy(x) for name, x in zip(names, found, strict=True)}

    return run


def _compare(program: _Program, run: _Runner, given: ProgramInput, path: Path) -> None:
    with torch.no_grad():
        expected, got = program(*given), run(given)
    for name, wanted in expected.items():
        largest = max(float(wanted.abs().max()), 1.0)
        off = float((got[name] - wanted).abs().max())
        if not off <= _CLOSE_ENOUGH[program.dtype] * largest:
            raise ExportError(
                f"The output {name} of the program for {path.name} differs from that of the model "
                f"by {off:.1e} (largest value {largest:.1e}); nothing was written. Try other "
                "versions of torch, onnx, onnxscript and onnxruntime."
            )


def _description(program: _Program) -> dict[str, JSON]:
    model = program.model
    real = str(program.dtype).removeprefix("torch.")

    def described(fields: Mapping[str, OutputField]) -> list[JSON]:
        return [
            {
                "name": name,
                "shape": [*field.shape],
                "dtype": "int64" if name in ("z", "num_atoms") else real,
                "unit": field.unit,
            }
            for name, field in fields.items()
        ]

    return {
        "format_version": FORMAT_VERSION,
        "inputs": described(_INPUTS),
        "outputs": described(model.head.outputs),
        "cutoff": model.representation.cutoff,
        "elements": None if model.card.elements is None else [*sorted(model.card.elements)],
        "accuracy": model.card.accuracy or None,
        "level": program.level or None,
        "origin": "centre of mass (standard atomic weights); it matters for ions only",
        "model": {**model.config},
        "provenance": {**model.card.provenance},
        "exported_by": {"dipolegnn": __version__, "torch": torch.__version__},
    }
