"""Trains the broad model ``painn-organic``: twelve elements, ions, several levels of theory.

First part (``--part first``): from the weights of ``painn-qm9``, on all data sets at once, each at
its level of theory. Most structures have cheap labels (``organic_xtb``, GFN2-xTB), few have DFT
ones (``organic`` of this project, and the sets of ``datasets/public/build.py``). Second part: from
the weights of the first (``--start RUN``), on the DFT sets alone, at a smaller learning rate; and
on the same labels at force-field geometries, as levels of their own.

A weak further target are the Mulliken charges of GFN2-xTB, which all sets have.

The result is written to the folder RUN; ``--resume`` continues an interrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from dipolegnn.config import TrainConfig
from dipolegnn.data import ConformerDataset, JoinedDataset
from dipolegnn.evaluation import describe_metrics
from dipolegnn.models import load_model
from dipolegnn.nn import DipoleHead, DipoleModel
from dipolegnn.nn.model import with_levels
from dipolegnn.training import fit

DFT = ("organic", "drug_conformers", "torsion_profiles", "s66x8_dimers", "qm9")
"""Data sets with DFT labels; the level of the first is the default of the model."""

REPEATS = {"organic": 3}
"""How often a small data set occurs in an epoch."""

AT_FORCE_FIELD = ("organic-mmff94s", "drug_conformers-mmff94s", "qm9-mmff94s")
"""Data sets with the same labels at geometries of a force field, for molecules from SMILES."""

XTB = "organic_xtb"

START_LEVEL = "B3LYP/6-31G(2df,p)"
"""Level of theory of ``painn-qm9``."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the broad model."""

    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder with the data sets organic, drug_conformers, torsion_profiles, s66x8_dimers, qm9
    (datasets/public/build.py) and, for the first part, organic_xtb."""
    part: Literal["first", "second"] = "first"
    """first: all data sets; second: those with DFT labels."""
    start: Annotated[Path, tyro.conf.arg(metavar="MODEL")] = Path("painn-qm9")
    """Model to start from: a pretrained model, a model file or the folder of a run."""
    max_epochs: int = 12
    """Passes over the training structures."""
    lr: float = 1e-3
    """Peak learning rate; 2e-4 for the second part."""
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
    names += [XTB] if options.part == "first" else AT_FORCE_FIELD
    dataset = JoinedDataset([ConformerDataset(options.data / name) for name in names])
    split = dataset.split()
    print(f"{split} structures; levels: {', '.join(dataset.levels)}")
    torch.manual_seed(options.seed)
    start = load_model(options.start)
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
