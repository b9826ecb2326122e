"""Trains the broad model ``painn-organic``: twelve elements, ions, several levels of theory.

First part (``--part first``): from the weights of ``painn-qm9``, on all data sets at once, each at
its level of theory. Most structures have cheap labels (``organic_xtb``, GFN2-xTB), few have DFT
ones (``organic`` of this project, and the sets of ``datasets/public/build.py``). Second part: from
the weights of the first (``--start RUN``), at a smaller learning rate, on the DFT sets, on the same
labels at force-field geometries as levels of their own, and on a part of the cheap labels.

``--part publish --start RUN --output FILE`` writes the model of a run with error bars for each
level of theory.

A weak further target are the Mulliken charges of GFN2-xTB, which all sets have.

The result is written to the folder RUN; ``--resume`` continues an interrupted run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from rich.progress import track

from dipolegnn._pyg import Batch, Data
from dipolegnn.calibrate import TRAINING_MOLECULES, calibrate
from dipolegnn.config import TrainConfig
from dipolegnn.data import ConformerDataset, JoinedDataset, Split
from dipolegnn.evaluation import describe_metrics
from dipolegnn.models import load_model, save_model
from dipolegnn.nn import DipoleHead, DipoleModel
from dipolegnn.nn.model import with_levels
from dipolegnn.training import fit

DFT = ("organic", "smallest", "drug_conformers", "torsion_profiles", "s66x8_dimers", "qm9")
"""Data sets with DFT labels; the level of the first is the default of the model."""

REPEATS = {"organic": 3, "smallest": 8}
"""How often a small data set occurs in an epoch."""

AT_FORCE_FIELD = ("organic-mmff94s", "drug_conformers-mmff94s", "qm9-mmff94s")
"""Data sets with the same labels at geometries of a force field, for molecules from SMILES."""

DRUG_LIKE = ("drug_conformers", "drug_conformers-mmff94s")

PER_MOLECULE = 2
"""Structures of a molecule in the calibration set at most."""

XTB = "organic_xtb"

XTB_SHARE = 5
"""In the second part, one of so many structures of ``organic_xtb`` is used."""

START_LEVEL = "B3LYP/6-31G(2df,p)"
"""Level of theory of ``painn-qm9``."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the broad model."""

    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run; with --part publish the model file."""
    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder with the data sets of datasets/public/build.py, and organic_xtb."""
    part: Literal["first", "second", "publish"] = "first"
    """The part of the training, or what comes after it."""
    start: Annotated[Path, tyro.conf.arg(metavar="MODEL")] = Path("painn-qm9")
    """Model to start from: a pretrained model, a model file or the folder of a run."""
    max_epochs: int = 12
    """Passes over the training structures."""
    lr: float = 1e-3
    """Peak learning rate; 3e-4 for the second part."""
    batch_size: int = 50
    """Structures per step."""
    huber_beta: float = 0.05
    """Error at which the loss changes from quadratic to linear, in debye."""
    charge_loss: float = 5.0
    """Weight of the mean squared error of the atomic charges, in D/e²."""
    seed: int = 0
    """Seed of the new weights and of the order of the batches."""
    resume: bool = False
    """Continue an interrupted run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one part of the training."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    names = [name for name in DFT for _ in range(REPEATS.get(name, 1))]
    if options.part != "first":
        names += AT_FORCE_FIELD
    names.append(XTB)
    dataset = JoinedDataset([ConformerDataset(options.data / name) for name in names])
    split = dataset.split()
    if options.part != "first":
        split = with_less_xtb(split, len(dataset) - len(dataset.datasets[-1]))
    print(f"{split} structures; levels: {', '.join(dataset.levels)}")
    start = load_model(options.start)
    if options.part == "publish":
        publish(start, dataset, split, options.output)
        return
    torch.manual_seed(options.seed)
    model = broad(start, dataset.levels)
    recipe = TrainConfig(
        max_epochs=options.max_epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        huber_beta=options.huber_beta,
        charge_loss=options.charge_loss,
        seed=options.seed,
    )
    result = fit(
        model,
        dataset,
        split,
        recipe,
        options.output,
        resume=options.resume,
        provenance={"start": start.card.origin},
    )
    print(f"val: {describe_metrics(result.metrics['val'])}")
    print(f"wrote {result.model_path}")


def publish(model: DipoleModel, dataset: JoinedDataset, split: Split, path: Path) -> None:
    """Writes the model with error bars for each level of theory.

    Of a molecule, two structures of a set count, because conformers have similar errors. The
    drug-like molecules, labelled without diffuse functions, also count at the default level
    (and at that of force-field geometries): the levels differ by less than the errors, and the
    other validation molecules of the default level are small.
    """
    ends = torch.tensor([len(one) for one in dataset.datasets]).cumsum(0)
    names = [one.folder.name for one in dataset.datasets]
    calibrating: list[Data] = []
    seen: Counter[tuple[str, int]] = Counter()
    for position in split.val.tolist():
        place = int(torch.searchsorted(ends, position, right=True))
        if names.index(names[place]) < place:
            continue  # a copy
        data = dataset[position]
        molecule = (names[place], int(data.mol_id))
        seen[molecule] += 1
        if seen[molecule] > PER_MOLECULE:
            continue
        if names[place] in DRUG_LIKE:
            copy = data.clone()
            copy.level = model.level_named(None, embedded=names[place] in AT_FORCE_FIELD)
            calibrating.append(copy)
        calibrating.append(data)
    some = split.train[:: -(-len(split.train) // TRAINING_MOLECULES)].tolist()
    training = [dataset[position] for position in some]
    order = np.random.default_rng(0).permutation(len(calibrating)).tolist()
    calibrate(model, batches(training), batches([calibrating[place] for place in order]))
    about = "from the validation structures of each level of theory"
    save_model(path, model, {**model.card.provenance, "error_bars": about})
    print(f"wrote {path}: error bars from {len(calibrating)} structures")


def batches(structures: Sequence[Data]) -> Iterator[Data]:
    """Batches of a hundred."""
    for start in track(range(0, len(structures), 100), "Error bars", transient=True):
        yield Batch.from_data_list(list(structures[start : start + 100]))


def with_less_xtb(split: Split, first: int) -> Split:
    """The split with part of the training structures from position ``first`` on."""
    cheap = split.train >= first
    kept = torch.cat([split.train[~cheap], split.train[cheap][::XTB_SHARE]])
    return Split(kept, split.val, split.test)


def broad(start: DipoleModel, levels: Sequence[str]) -> DipoleModel:
    """A copy of a model with these levels; from a model without levels, charge weights are added.

    A new level starts as the first of the model, and the default of a new model is the first here.
    """
    if start.representation.levels:
        return with_levels(start, levels)
    extended = with_levels(start, levels, START_LEVEL)
    old, head = extended.representation, extended.head
    assert isinstance(head, DipoleHead)
    names = list(dict.fromkeys([*levels, *old.levels]))
    # All levels are still equal, so that their order can change.
    representation = type(old).from_config({**old.config, "levels": names})
    representation.load_state_dict(old.state_dict())
    weighted = DipoleHead(head.hidden_channels, head.atomic_dipoles, charge_weights=True)
    missing, unexpected = weighted.load_state_dict(head.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("weight.") for name in missing)
    return DipoleModel(representation, weighted)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"\n{str(interrupt) or 'Interrupted.'}") from None
