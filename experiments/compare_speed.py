"""How fast dipolegnn is beside schnetpack and torch_geometric, measured in one run.

    make peers
    .venv-peers/bin/python experiments/compare_speed.py --data ../shared/data

Both sides have the same weights, molecules, precision and threads, and take turns step by step;
the run stops if they do not predict the same. A training step is forward, backward and AdamW
(fused, on both sides), an inference step forward alone. Ours makes its radius graph in every step,
schnetpack gets its neighbour list ready made.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro
from peers import PyGSchNetPeer, SchnetpackPeer
from rich.console import Console
from torch import nn

from dipolegnn._pyg import Batch, Data
from dipolegnn.config import ModelConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.nn import DipoleModel, build_model

ROOT = Path(__file__).resolve().parent.parent

PAINN = ModelConfig(hidden_channels=128, num_interactions=3, num_rbf=20, cutoff=5.0)
RECIPE = ModelConfig(num_interactions=7, num_rbf=17, cutoff=6.0, head="atomwise")
SCHNET = ModelConfig(representation="schnet", num_interactions=6, num_rbf=20, head="atomwise")

AGREEMENT = 1e-3
"""Largest difference of two magnitudes, relative to the largest, in float32 after 3 to 7 layers."""

Mode = Literal["training", "inference"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure dipolegnn beside its peers."""

    output: Path = ROOT / "runs" / "speed"
    """Folder for speed.md and speed.json."""
    data: Path | None = None
    """Folder with qm9_dipole.npz; left out: the molecules that come along, which are smaller."""
    threads: int = 2
    """CPU threads."""
    repeats: int = 7
    """Counted steps of each side per row, after two that are not."""
    fast: bool = False
    """Few and small rows, to see that everything works."""
    memory: str | None = None
    """Internal: measure the peak memory of one side, in a process of its own."""


class Row(NamedTuple):
    """One comparison."""

    what: str
    mode: str
    peer: str
    ours_ms: float
    peer_ms: float
    molecules: int

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return self.peer_ms / self.ours_ms


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    molecules = Molecules(options.data)
    if options.memory is not None:
        print(json.dumps(peak_memory(options.memory, molecules, 20 if options.fast else 400)))
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

    size = 10 if options.fast else 100
    batch = molecules.batch(size)
    for name, config, peers in (
        ("PaiNN F 128 L 3", PAINN, (SchnetpackPeer,)),
        ("recipe L 7, 6 Å", RECIPE, (SchnetpackPeer,)),
        ("SchNet F 128 L 6", SCHNET, (SchnetpackPeer, PyGSchNetPeer)),
    ):
        for peer in peers:
            for mode in ("training", "inference"):
                add(compare(name, config, peer, batch, mode, options.repeats))
    for size in (1, 3) if options.fast else (1, 10, 1000):
        batch = molecules.batch(size)
        for mode in ("training", "inference"):
            name = f"PaiNN, batch of {size}"
            repeats = 3 if size == 1000 else options.repeats
            add(compare(name, PAINN, SchnetpackPeer, batch, mode, repeats))
    for atoms in (10, 50) if options.fast else (10, 100, 1000, 5000):
        name = f"PaiNN, one molecule of {atoms} atoms"
        add(compare(name, PAINN, SchnetpackPeer, cluster(atoms), "inference", options.repeats))
    memory = {side: memory_of(side, options) for side in ("dipolegnn", "schnetpack")}
    write(options, molecules, rows, memory)
    console.print(f"{options.output / 'speed.md'}", highlight=False, soft_wrap=True)


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
    what: str,
    config: ModelConfig,
    peer: type[SchnetpackPeer] | type[PyGSchNetPeer],
    batch: Batch,
    mode: str,
    repeats: int,
) -> Row:
    """Times one step of both sides in turns.

    Raises:
        RuntimeError: If the two do not predict the same.
    """
    model = build_model(config)
    other = peer(model)
    theirs = peer.prepare(batch, config.cutoff)
    with torch.no_grad():
        expected, got = other(theirs), model(batch).magnitude
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference < AGREEMENT:
        raise RuntimeError(f"{what}: the two sides differ by {difference:.1e} of the magnitude.")
    steps = (
        step(model, lambda: model(batch).magnitude, mode),
        step(other, lambda: other(theirs), mode),
    )
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 2):
        for side in (0, 1):
            start = time.perf_counter()
            steps[side]()
            if turn >= 2:
                times[side].append(1e3 * (time.perf_counter() - start))
    name = "schnetpack" if peer is SchnetpackPeer else "torch_geometric"
    return Row(what, mode, name, median(times[0]), median(times[1]), int(batch.num_graphs))


def step(
    module: nn.Module, magnitudes: Callable[[], torch.Tensor], mode: str
) -> Callable[[], None]:
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


def peak_memory(side: str, molecules: Molecules, size: int) -> float:
    """Memory that a training step of PaiNN takes at most beyond what was there before, in MB.

    Linux alone tells.
    """
    model: DipoleModel | SchnetpackPeer = build_model(PAINN)
    batch = molecules.batch(size)
    small = molecules.batch(1)
    assert isinstance(model, DipoleModel)
    if side == "dipolegnn":
        ours = model
        step(ours, lambda: ours(small).magnitude, "training")()  # load what is loaded once
        run = step(ours, lambda: ours(batch).magnitude, "training")
    else:
        peer = SchnetpackPeer(model)
        warm, ready = peer.prepare(small, PAINN.cutoff), peer.prepare(batch, PAINN.cutoff)
        step(peer, lambda: peer(warm), "training")()
        run = step(peer, lambda: peer(ready), "training")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is used now
    before = _peak_kb()
    run()
    return (_peak_kb() - before) / 1024


def _peak_kb() -> int:
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1])


def memory_of(side: str, options: Options) -> float:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--memory", side, "--threads", str(options.threads)]
    if options.data is not None:
        command += ["--data", str(options.data)]
    if options.fast:
        command.append("--fast")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def write(
    options: Options, molecules: Molecules, rows: list[Row], memory: dict[str, float]
) -> None:
    """The table as Markdown, and the numbers as JSON."""
    lines = [
        f"{options.threads} CPU threads, float32, molecules of {molecules.name}, medians of "
        f"{options.repeats} whole steps.",
        "",
        "| | step | dipolegnn, ms | peer, ms | ratio | dipolegnn, molecules/s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.mode} | {row.ours_ms:.1f} | {row.peer_ms:.1f} ({row.peer}) "
        f"| {row.ratio:.1f} | {1e3 * row.molecules / row.ours_ms:.0f} |"
        for row in rows
    ]
    ours, theirs = memory["dipolegnn"], memory["schnetpack"]
    size = 20 if options.fast else 400
    lines += [
        "",
        f"Peak memory of a training step of PaiNN, batch of {size}: {ours:.0f} MB, schnetpack "
        f"{theirs:.0f} MB, {theirs / ours:.1f} times.",
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "speed.md").write_text("\n".join(lines) + "\n")
    (options.output / "speed.json").write_text(
        json.dumps({"rows": [row._asdict() for row in rows], "memory_MB": memory}, indent=1)
    )


if __name__ == "__main__":
    main()
