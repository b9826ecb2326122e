"""Throughput, memory and profile of ``dipolegnn predict`` on a large file.

Predicts a large file of SMILES or structures into a table (all cores; the run can be killed and
started again) and samples the memory of all processes. Then it predicts the first molecules of the
file again, in one process with one thread, and reports the time of each step.

It writes ``RUN/throughput.json``, ``RUN/throughput.md`` and ``RUN/throughput.png``.
"""

from __future__ import annotations

import cProfile
import itertools
import json
import pstats
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
import torch
import tyro
from common import markdown_table
from matplotlib.figure import Figure

from dipolegnn.config import ConformerConfig
from dipolegnn.inference import BulkResult, predict_files
from dipolegnn.models import ModelChoice
from dipolegnn.molecules import write_file
from dipolegnn.molecules.embedding import structures
from dipolegnn.molecules.records import RecordFile
from dipolegnn.molecules.workers import usable_cores

MIB = 2**20

LOOK_EVERY = 5.0
"""Seconds between two samples of the memory, which take some milliseconds each."""

STEPS = {
    "read the SMILES": ("molecules/chemistry.py", "parse_smiles"),
    "embed in 3D (ETKDG)": ("molecules/chemistry.py", "_make_conformers"),
    "relax (MMFF94s)": ("molecules/chemistry.py", "_minimize"),
    "read the structure": ("molecules/embedding.py", "structures"),
    "predict": ("inference/structures.py", "predict"),
    "write": ("inference/output.py", "flush"),
}
"""Functions whose time is that of a step; for SMILES "read the structure" is the remainder."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the rate, the memory and the profile of predicting a large file."""

    input: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """File of molecules."""
    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder for the table and what was measured."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Model; left out: as for dipolegnn predict."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Processes that read and embed; left out: one per core."""
    profiled: int = 1000
    """Molecules that are profiled, from SMILES and as structures."""


@dataclass
class Watch:
    """Samples taken during the run."""

    seconds: list[float] = field(default_factory=list)
    molecules: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    """MiB of all processes; shared memory is counted once (proportional set size)."""


class Profile(NamedTuple):
    """Milliseconds per molecule of one process with one thread."""

    what: str
    molecules: int
    total: float
    steps: dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    options.output.mkdir(parents=True, exist_ok=True)
    models = ModelChoice(options.model)
    table = options.output / "predictions.csv.gz"
    watch, stop = Watch(), threading.Event()
    watcher = threading.Thread(target=look, args=(watch, stop, Path(f"{table}.parts")))
    watcher.start()
    try:
        result = predict_files(
            [options.input], table, models, workers=options.workers, progress=True
        )
    finally:
        stop.set()
        watcher.join()
    profiles = profile(options, models)
    content = {
        "file": options.input.name,
        "cores": usable_cores(),
        "result": {**asdict(result), "first_failures": len(result.first_failures)},
        "watch": asdict(watch),
        "profiles": [each._asdict() for each in profiles],
    }
    path = options.output / "throughput.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = described(options.input.name, result, watch, profiles)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    drawn(watch).savefig(path.with_suffix(".png"), dpi=120)
    print(f"{text}\nwrote {path}, {path.stem}.md and {path.stem}.png")


def look(watch: Watch, stop: threading.Event, parts: Path) -> None:
    """Samples the memory and the number of finished molecules."""
    start = time.monotonic()
    while not stop.wait(LOOK_EVERY if watch.seconds else 1.0):
        memory = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                memory += process.memory_full_info().pss
            except psutil.Error:
                continue  # it has ended in the meantime
        done = 0
        for path in parts.glob("*.counts.json"):
            counts = json.loads(path.read_text(encoding="utf-8"))
            done += counts["molecules"] + counts["failures"]
        watch.seconds.append(time.monotonic() - start)
        watch.molecules.append(done or max(watch.molecules, default=0))
        watch.memory.append(memory / MIB)


def profile(options: Options, models: ModelChoice) -> list[Profile]:
    """Time per step, from the file and, if it contains SMILES, also from structures."""
    config = ConformerConfig()
    with RecordFile(options.input) as file:
        records = list(itertools.islice(file, options.profiled))
        embedded = file.embedded
    found = [structures(record, config) for record in records]
    data = [each[0] for each in found if isinstance(each, list)]
    sdf = options.output / "structures.sdf"
    write_file(sdf, data)
    files = [("structures (SDF)", sdf)]
    if embedded:
        smiles = options.output / "smiles.smi"
        smiles.write_text("".join(f"{each.smiles}\n" for each in data), encoding="utf-8")
        files.insert(0, ("SMILES", smiles))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [profile_one(what, path, models, options.output) for what, path in files]
    finally:
        torch.set_num_threads(threads)


def profile_one(what: str, path: Path, models: ModelChoice, folder: Path) -> Profile:
    """The profile of one file, after everything has been loaded.

    A profiler slows down small functions, so the shares are its and the sum is of another run.
    """
    table = folder / "profiled.csv"
    for _ in range(2):
        plain = predict_files([path], table, models, workers=0)
    profiler = cProfile.Profile()
    profiled = profiler.runcall(predict_files, [path], table, models, workers=0)
    count = plain.molecules + plain.failures
    slower = profiled.seconds / plain.seconds
    times: dict[str, float] = {}
    # Its get_stats_profile() tells functions apart by name alone; typeshed does not know "stats".
    for (file, _, function), (*_, cumulative, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        for step, (of_file, of_function) in STEPS.items():
            if function == of_function and file.endswith(of_file):
                times[step] = 1000 * cumulative / count / slower
    within = ("read the SMILES", "embed in 3D (ETKDG)", "relax (MMFF94s)")
    times["read the structure"] -= sum(times.get(step, 0.0) for step in within)
    if "relax (MMFF94s)" in times:
        times["check stereo, make the structure"] = times.pop("read the structure")
    total = 1000 * plain.seconds / count
    times["the rest"] = total - sum(times.values())
    return Profile(what, count, total, times)


def described(name: str, result: BulkResult, watch: Watch, profiles: Sequence[Profile]) -> str:
    """The result as Markdown."""
    done = result.molecules + result.failures - result.earlier
    cores = usable_cores()
    rate = done / result.seconds
    lines = [
        "# How many molecules per second",
        "",
        f"`{name}`: {done:,} molecules, {result.failures:,} of them failed, in "
        f"{result.seconds / 60:.1f} min on {cores} cores: {rate:.0f} per second, "
        f"{rate / cores:.0f} per second and core.",
        "",
    ]
    if watch.memory:
        half = len(watch.memory) // 2
        lines += [
            f"Memory of all processes: at most {max(watch.memory):.0f} MiB; at most "
            f"{max(watch.memory[: half + 1]):.0f} MiB in the first half and "
            f"{max(watch.memory[half:]):.0f} MiB in the second.",
            "",
        ]
    for each in profiles:
        lines += [
            f"From {each.what}, {each.molecules:,} molecules, one process and one thread: "
            f"{each.total:.1f} ms per molecule ({1000 / each.total:.0f} per second).",
            "",
            markdown_table(
                ("step", "ms per molecule", "share"),
                [
                    (step, f"{ms:.2f}", f"{100 * ms / each.total:.0f} %")
                    for step, ms in each.steps.items()
                ],
            ),
            "",
        ]
    return "\n".join(lines)


def drawn(watch: Watch) -> Figure:
    """Molecules and memory over time."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    minutes = [second / 60 for second in watch.seconds]
    left.plot(minutes, watch.molecules)
    left.set(xlabel="time (min)", ylabel="molecules written")
    right.plot(minutes, watch.memory)
    right.set(xlabel="time (min)", ylabel="memory of all processes (MiB)", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted; the same command goes on.") from None
