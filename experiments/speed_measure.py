"""How the steps of compare_speed.py are measured: molecules, turns, memory, and where time goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from peers import PyGSchNetPeer, SchnetpackPeer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dipolegnn._pyg import Batch, Data
from dipolegnn.config import ModelConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.nn import DipoleModel, build_model

ROOT = Path(__file__).resolve().parent.parent

AGREEMENT = 1e-3
"""Largest difference of two magnitudes, relative to the largest, in float32 after 3 to 7 layers."""

Mode = Literal["training", "inference"]
Peer = type[SchnetpackPeer] | type[PyGSchNetPeer]


class Row(NamedTuple):
    """One comparison."""

    what: str
    mode: Mode
    peer: str
    ours_ms: float
    peer_ms: float
    molecules: int
    parameters: int
    """Of either side."""

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return self.peer_ms / self.ours_ms


class Molecules:
    """What is measured on: QM9 where it is at hand, else the data set that comes along."""

    def __init__(self, folder: Path | None) -> None:
        self.name = "small_molecules" if folder is None else "QM9"
        self._data: list[Data] = []
        rng = np.random.default_rng(0)
        if folder is None:
            dataset = ConformerDataset(ROOT / "datasets" / "small_molecules")
            self._data = [dataset[int(k)] for k in rng.permutation(len(dataset))[:1000]]
            return
        with np.load(folder / "qm9_dipole.npz") as file:
            counts, z, pos = file["n"].astype(np.int64), file["z"], file["pos"]
        last = counts.cumsum()
        for k in rng.permutation(len(counts))[:1000]:
            atoms = slice(last[k] - counts[k], last[k])
            self._data.append(
                Data(z=torch.tensor(z[atoms]).long(), pos=torch.tensor(pos[atoms]).float())
            )

    def batch(self, size: int) -> Batch:
        """The first ``size`` of them."""
        return Batch.from_data_list([Data(z=d.z, pos=d.pos) for d in self._data[:size]])


def cluster(atoms: int) -> Batch:
    """Atoms at the density of a molecular crystal, about 0.1 per cubic angstrom, none too close."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[:atoms]
    pos = 2.15 * grid + rng.uniform(-0.3, 0.3, (atoms, 3))
    z = rng.choice([1, 1, 6, 7, 8], atoms)
    return Batch.from_data_list([Data(z=torch.tensor(z), pos=torch.tensor(pos).float())])


def compare(
    what: str, config: ModelConfig, peer: Peer, batch: Batch, mode: Mode, repeats: int, device: str
) -> Row:
    """Times one step of both sides in turns.

    Raises:
        RuntimeError: If the two do not predict the same, or have not as many parameters.
    """
    model = build_model(config).to(device)
    other = peer(model).to(device)
    batch = batch.to(device)
    theirs = peer.prepare(batch, config.cutoff)
    with torch.no_grad():
        expected, got = other(theirs), model(batch).magnitude
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference < AGREEMENT:
        raise RuntimeError(f"{what}: the two sides differ by {difference:.1e} of the magnitude.")
    sizes = _parameters(model), _parameters(other)
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"{what}: {sizes[0]} parameters against {sizes[1]}.")
    steps = (
        step(model, lambda: model(batch).magnitude, mode),
        step(other, lambda: other(theirs), mode),
    )
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 2):
        for side in (0, 1):
            elapsed = timed(steps[side], device)
            if turn >= 2:
                times[side].append(elapsed)
    name = "schnetpack" if peer is SchnetpackPeer else "torch_geometric"
    return Row(
        what, mode, name, median(times[0]), median(times[1]), int(batch.num_graphs), sizes[0]
    )


def _parameters(module: nn.Module) -> int:
    """Numbers that are trained, without the embeddings: theirs know other elements."""
    inside = {
        id(w) for m in module.modules() if isinstance(m, nn.Embedding) for w in m.parameters()
    }
    return sum(w.numel() for w in module.parameters() if id(w) not in inside)


def timed(function: Callable[[], None], device: str) -> float:
    """Milliseconds that a call takes, with all that it leaves to a GPU."""
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    wait()
    start = time.perf_counter()
    function()
    wait()
    return 1e3 * (time.perf_counter() - start)


def _nothing() -> None:
    """A CPU has done its work when a call returns."""


def step(module: nn.Module, magnitudes: Callable[[], Tensor], mode: Mode) -> Callable[[], None]:
    """One step of training or inference."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)

    def train() -> None:
        optimizer.zero_grad()
        magnitudes().square().mean().backward()
        optimizer.step()

    def infer() -> None:
        with torch.no_grad():
            magnitudes()

    return train if mode == "training" else infer


def matrix_products(config: ModelConfig, batch: Batch, device: str, repeats: int) -> float:
    """Milliseconds that the matrix products of a training step take by themselves: the floor."""
    model = build_model(config).to(device)
    shapes: list[tuple[int, int, int]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del layer
        wide = inputs[0]
        shapes.append((wide.numel() // wide.size(-1), wide.size(-1), output.size(-1)))

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(note)
    model(batch.to(device))
    operands = [
        tuple(torch.randn(size, device=device) for size in ((rows, a), (b, a), (rows, b)))
        for rows, a, b in shapes
    ]

    def products() -> None:
        for x, weight, grad in operands:
            _ = x @ weight.t(), grad @ weight, grad.t() @ x

    return median([timed(products, device) for _ in range(repeats + 2)][2:])


_KINDS = (
    ("matrix products", ("mm", "addmm", "bmm")),
    ("messages, forward", ("dipolegnn::painn_message", "dipolegnn::cfconv")),
    ("messages, backward", ("dipolegnn::painn_message_backward", "dipolegnn::cfconv_backward")),
    ("mixing", ("dipolegnn::mixing",)),
    ("activations", ("silu", "silu_backward", "softplus", "softplus_backward")),
    ("radius graph", ("torch_cluster::radius",)),
    ("optimizer", ("_fused_adamw_",)),
    ("memory set and copied", ("fill_", "copy_", "cat", "zero_", "index_select")),
)


def where_time_goes(
    config: ModelConfig, batch: Batch, mode: Mode, kernels: Literal["auto", "plain"]
) -> dict[str, float]:
    """Milliseconds of one step on a CPU by what they are spent on, the mean of five steps."""
    model = build_model(config)
    model.kernels = kernels
    run = step(model, lambda: model(batch).magnitude, mode)
    for _ in range(2):
        run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            run()
    found = dict.fromkeys([kind for kind, _ in _KINDS] + ["everything else"], 0.0)
    for event in profiler.key_averages():
        found[_kind_of(event.key)] += event.self_cpu_time_total / 5e3
    return found


def _kind_of(key: str) -> str:
    # While gradients are recorded, the forward of an operator is timed under a name of autograd's.
    name = key.removeprefix("aten::")
    if name.startswith("GeneratedBackwardFor_dipolegnn_"):
        name = "dipolegnn::" + name.removeprefix("GeneratedBackwardFor_dipolegnn_")
        name = name.removesuffix("_default")
    for kind, names in _KINDS:
        if name in names or (kind == "mixing" and name.startswith(names)):
            return kind
    return "everything else"


def peak_memory(side: str, config: ModelConfig, molecules: Molecules, size: int) -> float:
    """Memory that a training step takes at most beyond what was there before, in MB.

    On the CPU, and Linux alone tells. To be called in a process of its own.
    """
    model: Any = build_model(config)
    batches = [molecules.batch(1), molecules.batch(size)]
    if side == "schnetpack":
        model = SchnetpackPeer(model)
        batches = [model.prepare(batch, config.cutoff) for batch in batches]

    def magnitudes(batch: Any) -> Tensor:
        out = model(batch)
        return out.magnitude if isinstance(model, DipoleModel) else out

    small, large = batches
    step(model, lambda: magnitudes(small), "training")()  # load what is loaded once
    run = step(model, lambda: magnitudes(large), "training")
    with _peak() as peak:
        run()
    return peak[0]


@contextlib.contextmanager
def _peak() -> Iterator[list[float]]:
    """A list that afterwards holds how much the memory in use grew at most, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is used now
    before = _peak_kb()
    grown: list[float] = []
    yield grown
    grown.append((_peak_kb() - before) / 1024)


def _peak_kb() -> int:
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1])
