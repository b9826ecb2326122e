"""Speed of dipolegnn compared with schnetpack and torch_geometric, measured in one run.

    make peers
    .venv-peers/bin/python experiments/compare_speed.py --data ../shared/data

Both sides have the same weights, molecules, precision and threads, and alternate step by step;
the run stops if their predictions differ. A training step is forward, backward and AdamW (fused, on
both sides), an inference step forward alone. dipolegnn builds its radius graph in every step;
schnetpack receives its neighbour list. With ``--device cuda`` both run on a GPU.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from common import ROOT, markdown_table
from matplotlib.figure import Figure
from peers import PyGSchNetPeer, SchnetpackPeer
from rich.console import Console
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dipolegnn._pyg import Batch, Data
from dipolegnn.config import ModelConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.nn import DipoleModel, build_model
from dipolegnn.plots.curves import BLUE, GREY, ORANGE

PAINN = ModelConfig(hidden_channels=128, num_interactions=3, num_rbf=20, cutoff=5.0)
RECIPE = ModelConfig(num_interactions=7, num_rbf=17, cutoff=6.0, head="atomwise")
SCHNET = ModelConfig(representation="schnet", num_interactions=6, num_rbf=20, head="atomwise")
MODES: tuple[Mode, ...] = ("training", "inference")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the speed of dipolegnn with that of its peers."""

    output: Path = ROOT / "runs" / "speed"
    """Folder for speed.md, speed.json and the pictures."""
    data: Path | None = None
    """Folder with qm9_dipole.npz; left out: the molecules that come along, which are smaller."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    threads: int = 2
    """CPU threads."""
    repeats: int = 7
    """Counted steps of each side per row, after two that are not."""
    fast: bool = False
    """Few and small rows, to see that everything works."""
    memory: str | None = None
    """Internal: measure the peak memory of one side, in a process of its own."""


class Measured(NamedTuple):
    """All results of a run."""

    rows: list[Row]
    memory_mb: dict[str, float]
    """Peak memory of a training step by side, in MB; empty on a GPU."""
    products_ms: dict[int, float]
    """Matrix products of a training step alone, by molecules per batch, in ms."""
    profiles: dict[str, dict[str, float]]
    """Where the time of a training step goes with plain PyTorch and with the kernels, in ms."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    molecules = Molecules(options.data)
    if options.memory is not None:
        size = 20 if options.fast else 400
        print(json.dumps(peak_memory(options.memory, PAINN, molecules, size)))
        return
    console = Console()
    rows: list[Row] = []

    def add(new: Row) -> None:
        rows.append(new)
        console.print(
            f"{new.what}, {new.mode}: {new.ours_ms:.1f} ms, {new.peer} {new.peer_ms:.1f} ms, "
            f"{new.ratio:.1f} times",
            highlight=False,
        )

    repeats, device = options.repeats, options.device
    size = 10 if options.fast else 100
    batch = molecules.batch(size)
    for name, config, peers in (
        ("PaiNN F 128 L 3", PAINN, (SchnetpackPeer,)),
        ("recipe L 7, 6 Å", RECIPE, (SchnetpackPeer,)),
        ("SchNet F 128 L 6", SCHNET, (SchnetpackPeer, PyGSchNetPeer)),
    ):
        for peer in peers:
            for mode in MODES:
                add(compare(name, config, peer, batch, mode, repeats, device))
    for size in (1, 3) if options.fast else (1, 10, 1000):
        batch = molecules.batch(size)
        for mode in MODES:
            turns = min(3, repeats) if size == 1000 else repeats
            name = f"PaiNN, batch of {size}"
            add(compare(name, PAINN, SchnetpackPeer, batch, mode, turns, device))
    for atoms in (10, 50) if options.fast else (10, 100, 1000, 5000):
        name = f"PaiNN, one molecule of {atoms} atoms"
        add(compare(name, PAINN, SchnetpackPeer, cluster(atoms), "inference", repeats, device))
    sizes = (10,) if options.fast else (100, 1000)
    products = {n: matrix_products(PAINN, molecules.batch(n), device, repeats) for n in sizes}
    memory, profiles = {}, {}
    if device == "cpu":
        memory = {side: memory_of(side, options) for side in ("dipolegnn", "schnetpack")}
        batch = molecules.batch(sizes[0])
        profiles = {
            "plain PyTorch": where_time_goes(PAINN, batch, "training", "plain"),
            "fused kernels": where_time_goes(PAINN, batch, "training", "auto"),
        }
    measured = Measured(rows, memory, products, profiles)
    write(options, molecules, measured)
    console.print(f"{options.output / 'speed.md'}", highlight=False, soft_wrap=True)


def memory_of(side: str, options: Options) -> float:
    """The peak memory of one side, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory", side, "--threads", str(options.threads)]
    if options.data is not None:
        command += ["--data", str(options.data)]
    if options.fast:
        command.append("--fast")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def write(options: Options, molecules: Molecules, measured: Measured) -> None:
    """Tables as Markdown, numbers as JSON, pictures."""
    where = f"{options.threads} CPU threads ({_processor()})"
    if options.device == "cuda":
        where = torch.cuda.get_device_name()
    lines = [
        f"{where}, float32, molecules of {molecules.name}, medians of {options.repeats} whole "
        "steps, the two sides taking turns.",
        "",
    ]
    rates = ("dipolegnn, ms", "peer, ms", "ratio", "dipolegnn, molecules/s")
    lines.append(
        markdown_table(
            ("", "step", *rates, "parameters"),
            [
                (
                    row.what,
                    row.mode,
                    f"{row.ours_ms:.1f}",
                    f"{row.peer_ms:.1f} ({row.peer})",
                    f"{row.ratio:.1f}",
                    f"{1e3 * row.molecules / row.ours_ms:.0f}",
                    f"{row.parameters:,}",
                )
                for row in measured.rows
            ],
        )
    )
    lines += ["", "Parameters are counted without the embedding of the elements."]
    if measured.memory_mb:
        ours, theirs = measured.memory_mb["dipolegnn"], measured.memory_mb["schnetpack"]
        lines += [
            "",
            f"Peak memory of a training step of PaiNN, batch of {20 if options.fast else 400}: "
            f"{ours:.0f} MB, schnetpack {theirs:.0f} MB, {theirs / ours:.1f} times.",
        ]
    for size, products in measured.products_ms.items():
        lines += [
            "",
            f"Matrix products of a training step of PaiNN alone, batch of {size}: "
            f"{products:.1f} ms.",
        ]
    if measured.profiles:
        names = list(measured.profiles)
        kinds = list(measured.profiles[names[0]])
        lines += ["", "Where a training step of PaiNN spends its time, ms:", ""]
        lines.append(
            markdown_table(
                ("", *names),
                [(kind, *(f"{measured.profiles[n][kind]:.1f}" for n in names)) for kind in kinds],
            )
        )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {
        "where": where,
        "rows": [row._asdict() for row in measured.rows],
        "memory_MB": measured.memory_mb,
        "matrix_products_ms": measured.products_ms,
        "profiles_ms": measured.profiles,
    }
    (options.output / "speed.json").write_text(json.dumps(content, indent=1) + "\n")
    picture(measured.rows, where).savefig(options.output / "speed.png", dpi=120)


def picture(rows: Sequence[Row], where: str) -> Figure:
    """Time of the peer relative to dipolegnn: one bar per row."""
    figure = Figure(figsize=(8.0, 0.32 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    colors = [BLUE if row.mode == "training" else ORANGE for row in rows]
    bars = axes.barh(places, [row.ratio for row in rows], color=colors)
    axes.bar_label(bars, [f"{row.ratio:.1f}" for row in rows], padding=3)
    axes.set_yticks(places, [f"{row.what}, {row.mode}, {row.peer}" for row in rows])
    axes.invert_yaxis()
    axes.axvline(1.0, color=GREY, linewidth=1)
    axes.set_xlabel("time of the peer / time of dipolegnn, whole steps")
    axes.set_title(where, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _processor() -> str:
    """Name of the processor, from /proc/cpuinfo where that exists."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


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
        """Time of the peer divided by that of dipolegnn."""
        return self.peer_ms / self.ours_ms


class Molecules:
    """The molecules to measure on: QM9 if available, else the data set in the repository."""

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
    """Times one step of both sides alternately.

    Raises:
        RuntimeError: The predictions or the numbers of parameters differ.
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
    """Number of parameters without the embeddings, whose numbers of elements differ."""
    inside = {
        id(w) for m in module.modules() if isinstance(m, nn.Embedding) for w in m.parameters()
    }
    return sum(w.numel() for w in module.parameters() if id(w) not in inside)


def timed(function: Callable[[], None], device: str) -> float:
    """Milliseconds of a call, including its work on a GPU."""
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    wait()
    start = time.perf_counter()
    function()
    wait()
    return 1e3 * (time.perf_counter() - start)


def _nothing() -> None:
    """Nothing to wait for on a CPU."""


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
    """Milliseconds of the matrix products of a training step alone: a lower bound."""
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
    """Milliseconds of one step on a CPU by kind of operation, the mean of five steps."""
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
    """Peak memory of a training step above the memory in use before, in MB.

    CPU and Linux only. To be called in a separate process.
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
    step(model, lambda: magnitudes(small), "training")()  # loads libraries and kernels
    run = step(model, lambda: magnitudes(large), "training")
    with _peak() as peak:
        run()
    return peak[0]


@contextlib.contextmanager
def _peak() -> Iterator[list[float]]:
    """A list that contains the peak growth of the memory in use, in MB, afterwards."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
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


if __name__ == "__main__":
    main()
