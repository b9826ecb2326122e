"""How fast dipolegnn is beside schnetpack and torch_geometric, measured in one run.

    make peers
    .venv-peers/bin/python experiments/compare_speed.py --data ../shared/data

Both sides have the same weights, molecules, precision and threads, and take turns step by step;
the run stops if they do not predict the same. A training step is forward, backward and AdamW
(fused, on both sides), an inference step forward alone. Ours makes its radius graph in every step,
schnetpack gets its neighbour list ready made. With ``--device cuda`` the same on a GPU.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from markdown_table import markdown_table
from matplotlib.figure import Figure
from peers import PyGSchNetPeer, SchnetpackPeer
from rich.console import Console
from speed_measure import (
    ROOT,
    Mode,
    Molecules,
    Row,
    cluster,
    compare,
    matrix_products,
    peak_memory,
    where_time_goes,
)

from dipolegnn.config import ModelConfig
from dipolegnn.plots.curves import BLUE, GREY, ORANGE

PAINN = ModelConfig(hidden_channels=128, num_interactions=3, num_rbf=20, cutoff=5.0)
RECIPE = ModelConfig(num_interactions=7, num_rbf=17, cutoff=6.0, head="atomwise")
SCHNET = ModelConfig(representation="schnet", num_interactions=6, num_rbf=20, head="atomwise")
MODES: tuple[Mode, ...] = ("training", "inference")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure dipolegnn beside its peers."""

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
    """All that a run finds out."""

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
        raise SystemExit("--device cuda: PyTorch sees no CUDA device.")
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
    """How many times as long the peer takes: one bar per row."""
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
    """The name of the processor, where Linux tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
