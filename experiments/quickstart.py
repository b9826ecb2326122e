"""Train PaiNN on the data set that comes along, and look at what it has learnt (``make demo``).

Reads ``datasets/small_molecules`` (dipole vectors by GFN2-xTB), trains, measures the model on
molecules that it has never seen, and predicts some that everybody knows from their SMILES. What
it makes lies in ``runs/quickstart``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from rich.console import Console
from rich.table import Table

from dipolegnn.config import ConformerConfig, ModelConfig, TrainConfig, XTBConfig
from dipolegnn.data import ConformerDataset, Split
from dipolegnn.evaluation import describe_metrics, evaluate, write_predictions
from dipolegnn.inference.pipeline import predict_smiles
from dipolegnn.inference.structures import MoleculePrediction
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.nn import DipoleModel, build_model
from dipolegnn.plots import draw_molecule, learning_curve, parity_plot
from dipolegnn.training import RunFolder, fit, read_history

# The recipe: chosen so that everything takes less than 6 minutes on 2 CPU cores.
MODEL = ModelConfig(hidden_channels=64, num_interactions=3, num_rbf=20, cutoff=5.0)
TRAIN = TrainConfig(max_epochs=22, batch_size=32, lr=2e-3, ema_decay=0.995, scheduler="onecycle")

# For the tests: takes seconds; the model is hardly trained.
FAST_MODEL = replace(MODEL, hidden_channels=16, num_interactions=1)
FAST_TRAIN = replace(TRAIN, max_epochs=2, batch_size=8)
FAST_SIZE = 20

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "runs" / "quickstart"


class Known(NamedTuple):
    """A molecule whose dipole moment is known."""

    name: str
    smiles: str
    experiment: float | None
    """Gas-phase magnitude in debye; None if not measured."""


# Source: NIST Computational Chemistry Comparison and Benchmark Database (cccbdb.nist.gov).
MOLECULES = (
    Known("water", "O", 1.85),
    Known("ammonia", "N", 1.47),
    Known("formaldehyde", "C=O", 2.33),
    Known("ethanol", "CCO", 1.69),
    Known("acetone", "CC(C)=O", 2.88),
    Known("acetonitrile", "CC#N", 3.92),
    Known("chloromethane", "CCl", 1.87),
    Known("benzene", "c1ccccc1", 0.0),
    Known("pyridine", "c1ccncc1", 2.19),
    Known("thiophene", "c1ccsc1", 0.55),
    Known("aspirin", "CC(=O)Oc1ccccc1C(=O)O", None),
)
PICTURED = "aspirin"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train PaiNN on small molecules and show its predictions."""

    data: Path = ROOT / "datasets" / "small_molecules"
    """Folder of the data set."""
    output: Path = RUN
    """Folder of the run. The one that this script made by default is replaced."""
    resume: bool = False
    """Resume an interrupted run."""
    fast: bool = False
    """Quick test of some seconds."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    console = Console()
    start = time.monotonic()
    model_config, train = (FAST_MODEL, FAST_TRAIN) if options.fast else (MODEL, TRAIN)
    if options.output == RUN and not options.resume:
        shutil.rmtree(RUN, ignore_errors=True)

    console.rule("Data")
    dataset = ConformerDataset(options.data)
    split = dataset.split()
    if options.fast:
        split = Split(split.train[:FAST_SIZE], split.val[:FAST_SIZE], split.test[:FAST_SIZE])
    console.print(f"{options.data}: {split} structures", highlight=False)

    console.rule("Training")
    torch.manual_seed(train.seed)
    result = fit(
        build_model(model_config),
        dataset,
        split,
        train,
        options.output,
        resume=options.resume,
        test=True,
    )
    run = RunFolder(options.output)
    learning_curve(read_history(run.history), "PaiNN, small molecules").savefig(
        options.output / "learning_curve.png"
    )

    console.rule("Test molecules, which it has never seen")
    evaluation = evaluate(result.model, list(dataset[split.test]))
    write_predictions(options.output / "test_predictions.csv", evaluation.predictions)
    parity_plot(
        [float(p.data.dipole_magnitude) for p in evaluation.predictions],
        [p.magnitude for p in evaluation.predictions],
        "PaiNN against GFN2-xTB, test molecules",
    ).savefig(options.output / "parity.png")
    console.print(describe_metrics(evaluation.metrics), highlight=False)

    console.rule("From SMILES")
    show_known(console, result.model, options.output / f"{PICTURED}.png")

    console.rule(f"Done in {time.monotonic() - start:.0f} s. Where everything lies")
    for path, what in (
        (run.model, "the model"),
        (options.output / "parity.png", "predicted against reference, test molecules"),
        (options.output / "test_predictions.csv", "the same as numbers"),
        (options.output / "learning_curve.png", "loss and error over the epochs"),
        (options.output / f"{PICTURED}.png", f"{PICTURED} and its dipole"),
        (run.metrics, "validation and test metrics"),
        (run.tensorboard, "for tensorboard --logdir"),
    ):
        console.print(f"{path}  {what}", highlight=False, soft_wrap=True)
    console.print(
        f"Next: dipolegnn predict CCO --model {run.model}", highlight=False, soft_wrap=True
    )


def show_known(console: Console, model: DipoleModel, picture: Path) -> None:
    """Prints the dipoles of some molecules next to their references, and draws one of them."""
    found = predict_smiles(
        model, [known.smiles for known in MOLECULES], conformers=ConformerConfig(conformers=5)
    )
    assert not found.failures, found.failures
    table = Table(title="Magnitude of the dipole moment in debye (D)", title_justify="left")
    table.add_column("molecule")
    table.add_column("SMILES")
    for header in ("PaiNN (D)", "GFN2-xTB (D)", "experiment (D)"):
        table.add_column(header, justify="right")
    for known, molecule in zip(MOLECULES, found.molecules, strict=True):
        xtb = xtb_magnitude(molecule)
        table.add_row(
            known.name,
            known.smiles,
            f"{molecule.magnitude:.2f}",
            "–" if xtb is None else f"{xtb:.2f}",
            "–" if known.experiment is None else f"{known.experiment:.2f}",
        )
        if known.name == PICTURED:
            lowest = molecule.lowest
            draw_molecule(lowest.data.z, lowest.data.pos, lowest.dipole, title=known.name).savefig(
                picture
            )
    console.print(table)
    console.print(
        "PaiNN learns GFN2-xTB, which is some tenths of a debye from experiment.\n"
        "Both are Boltzmann averages over up to 5 conformers, embedded by RDKit.\n"
        "Experiment: gas phase, NIST CCCBDB.",
        highlight=False,
    )


def xtb_magnitude(molecule: MoleculePrediction) -> float | None:
    """The same average by GFN2-xTB; None where tblite is not installed."""
    try:
        calculator = xtb_calculator(XTBConfig())
    except ImportError:
        return None
    labelled = [label(conformer.data, calculator) for conformer in molecule.conformers]
    magnitudes = [float(data.dipole_magnitude) for data in labelled]
    return float(molecule.weights @ magnitudes)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"\n{str(interrupt) or 'Interrupted.'}") from None
