"""A model of all of QM9, or of part of it: how good it gets, and how that grows with the data.

Trains on the training part of ``qm9_dipole.npz`` (108,762 molecules), chooses by the validation
part (5,000) and measures once on the test part (5,000). By default on the magnitudes alone,
which are CC0; the vectors of that file are derived from CHAMPS (CC BY-NC-SA 4.0).

``--geometry mmff94s`` trains on the same labels at the geometries of a force field, so that the
model expects what comes from a SMILES. ``--smallest`` trains on the data set ``datasets/smallest``
as well, because QM9 has few molecules of one to three heavy atoms; none that QM9's validation and
test parts have.

The result is written to ``RUN/metrics.json``; ``--resume`` resumes an interrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from common import ROOT, data_folder, read_arrays, read_npz
from geometry import perceived, relax_all
from rdkit import Chem

from dipolegnn._pyg import Data
from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.data import About, ConformerDataset, Split, save_dataset
from dipolegnn.evaluation import describe_metrics, evaluate
from dipolegnn.models import load_model
from dipolegnn.molecules import MoleculeError, Molecules, canonical_smiles
from dipolegnn.nn import DipoleModel, build_model
from dipolegnn.nn.model import describe
from dipolegnn.plots import learning_curve, parity_plot
from dipolegnn.training import RunFolder, fit, read_history

FILE = "qm9_dipole.npz"

# 20 passes are about an hour on 2 cores. Beta is below the expected errors, because the MAE is
# to be small.
MODEL = ModelConfig()
TRAIN = TrainConfig(max_epochs=20, batch_size=64, lr=1e-3, huber_beta=0.02)

FAST_MOLECULES = 20

SMALLEST_ATOMS = 3
"""Heavy atoms of the molecules of datasets/smallest at most."""

REPEATS = 16
"""Repetitions of each of these 73 molecules among the hundred thousand of QM9."""

FIRST_SMALLEST = 1_000_000
"""First of their numbers, above those of QM9."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on QM9, or on part of it."""

    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    dataset: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder for the molecules in this package's format, made at first use; left out: in RUN."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with qm9_dipole.npz; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    representation: Literal["painn", "schnet"] = "painn"
    """The network."""
    head: Literal["dipole", "atomwise"] = "dipole"
    """dipole: the length of a vector; atomwise: a sum of atomic scalars."""
    molecules: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")
    ] = None
    """Train on so many molecules, drawn by the seed."""
    validation: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")
    ] = None
    """Validate on so many molecules, drawn by the seed: all are many for a few training ones."""
    vectors: bool = False
    """Train on dipole vectors where their direction is known, instead of magnitudes only."""
    geometry: Literal["b3lyp", "mmff94s"] = "b3lyp"
    """b3lyp: that of QM9. mmff94s: relaxed from there by the force field of from_smiles."""
    smallest: bool = False
    """Train on the smallest molecules, labelled for this project, as well."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Start from the weights of this model.safetensors, of the same architecture."""
    max_epochs: int = TRAIN.max_epochs
    """Passes over the training molecules."""
    lr: float = TRAIN.lr
    """Peak learning rate."""
    batch_size: int = TRAIN.batch_size
    """Molecules per step."""
    seed: int = 0
    """Seed of the weights, of the order of the batches and of the draws of molecules."""
    resume: bool = False
    """Resume an interrupted run."""
    fast: bool = False
    """Quick test: few molecules, some seconds."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    source = data_folder(options.data, FILE)
    name = "qm9" if options.geometry == "b3lyp" else f"qm9-{options.geometry}"
    marks = ["vectors"] * options.vectors + ["smallest"] * options.smallest
    marks += ["fast"] * options.fast
    folder = (options.dataset or options.output) / "-".join([name, *marks])
    if not (folder / "card.yaml").exists():
        convert(source / FILE, folder, options)
    dataset = ConformerDataset(folder)
    split = dataset.split()
    split = Split(
        drawn(split.train, options.molecules, options.seed, "--molecules"),
        drawn(split.val, options.validation, options.seed, "--validation"),
        split.test,
    )
    print(f"{split} structures")

    schnet = ModelConfig(representation="schnet", num_interactions=6, num_rbf=50)
    model = replace(MODEL if options.representation == "painn" else schnet, head=options.head)
    train = replace(
        TRAIN,
        max_epochs=options.max_epochs,
        lr=options.lr,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    if options.fast:
        model = replace(model, hidden_channels=16, num_interactions=1)
    torch.manual_seed(train.seed)
    start = None if options.start is None else started(options.start, model)
    result = fit(
        build_model(model) if start is None else start,
        dataset,
        split,
        train,
        options.output,
        resume=options.resume,
        test=True,
        provenance=None if start is None else {"start": start.card.origin},
    )
    history = read_history(RunFolder(options.output).history)
    learning_curve(history, f"QM9, {len(split.train):,} molecules").savefig(
        options.output / "learning_curve.png"
    )
    evaluation = evaluate(result.model, list(dataset[split.test]), progress=True)
    parity_plot(
        [float(p.data.dipole_magnitude) for p in evaluation.predictions],
        [p.magnitude for p in evaluation.predictions],
        "QM9, test molecules",
    ).savefig(options.output / "parity.png")
    for part in ("val", "test"):
        print(f"{part}: {describe_metrics(result.metrics[part])}")
    print(f"wrote {result.model_path}")


def drawn(rows: torch.Tensor, count: int | None, seed: int, option: str) -> torch.Tensor:
    """A random subset of the rows in their order; None: all."""
    if count is None:
        return rows
    if not 0 < count <= len(rows):
        raise SystemExit(f"{option} must be between 1 and {len(rows)}, got {count}.")
    kept = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows[torch.from_numpy(np.sort(kept))]


def started(path: Path, config: ModelConfig) -> DipoleModel:
    """The model of a file, which must be of this architecture."""
    model = load_model(path)
    if model.config != describe(config):
        raise SystemExit(f"{path} is of another architecture: {model.config}, not {config}.")
    return model


def smallest(held_back: Sequence[Data]) -> list[Data]:
    """The smallest molecules, each several times, without those that are held back.

    Args:
        held_back: The molecules of the validation and test parts.
    """
    taken = set()
    for data in held_back:
        if int((data.z > 1).sum()) <= SMALLEST_ATOMS:
            with suppress(MoleculeError):
                taken.add(Chem.MolToSmiles(Chem.RemoveHs(perceived(data))))
    found = []
    for data in ConformerDataset(ROOT / "datasets" / "smallest"):
        if canonical_smiles(data.smiles) not in taken:
            data.dipole.fill_(torch.nan)  # magnitudes only, as in QM9
            data.mol_id += FIRST_SMALLEST
            found.append(data)
    print(f"{len(found)} of the smallest molecules, {REPEATS} times each")
    return [data.clone() for _ in range(REPEATS) for data in found]


def convert(path: Path, folder: Path, options: Options) -> None:
    """Makes a data set of the file, with its split."""
    part = read_arrays(path)["split"]
    rows = [np.flatnonzero(part == number) for number in range(3)]
    if options.fast:
        rows = [every[:FAST_MOLECULES] for every in rows]
    molecules = read_npz(
        path, number="qm9_index", vectors=options.vectors, rows=np.concatenate(rows)
    )
    if molecules.failures:  # The split contains every molecule.
        raise SystemExit(f"{path.name} cannot be used: {molecules.failures[0].problem}.")
    number = np.repeat(np.arange(3), [len(every) for every in rows])
    if options.smallest:
        more = smallest([data for data, n in zip(molecules.data, number, strict=True) if n > 0])
        molecules = Molecules(molecules.data + more, molecules.failures)
        number = np.concatenate([number, np.zeros(len(more), dtype=number.dtype)])
    if options.geometry == "mmff94s":
        found, failures = relax_all(molecules.data)
        number = number[[data is not None for data in found]]
        molecules = Molecules([data for data in found if data is not None], failures)
    save_dataset(
        folder,
        molecules,
        About(
            name="qm9",
            description="QM9 without F and without the uncharacterized molecules.",
            licence="CC BY-NC-SA 4.0 (vectors from CHAMPS)" if options.vectors else "CC0-1.0",
            citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014)",
            level_of_theory="B3LYP/6-31G(2df,p)",
            geometry={"b3lyp": "B3LYP/6-31G(2df,p)", "mmff94s": "MMFF94s"}[options.geometry],
            created_by="experiments/qm9.py",
        ),
        split=Split(*(torch.from_numpy(np.flatnonzero(number == k)) for k in range(3))),
    )
    print(f"{folder}: {len(molecules.data)} molecules, {len(molecules.failures)} failures")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"\n{str(interrupt) or 'Interrupted.'}") from None
