"""Trains the model of conformer energies, from the network of a dipole model.

    python experiments/conformer_energies.py --data DIR --output RUN

DIR has the data sets of ``datasets/public/build.py`` and ``conformers_xtb``
(``datasets/organic_xtb/build.py LISTS --conformers 8``). The network learns relative energies
within molecules: many of GFN2-xTB, few of DLPNO-CCSD(T) at DFT geometries and, as a level of its
own, at the geometries that the force field makes of these.

``--start RUN --only-reference`` continues a run on the DLPNO-CCSD(T) energies alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from dipolegnn.config import TrainConfig
from dipolegnn.data import ConformerDataset, JoinedDataset
from dipolegnn.evaluation import describe_metrics
from dipolegnn.models import load_model
from dipolegnn.nn import ConformerEnergyHead, PropertyModel
from dipolegnn.nn.model import FROM_FORCE_FIELD
from dipolegnn.training import fit

REFERENCE = "DLPNO-CCSD(T)"

LEVELS = {
    "drug_conformers": REFERENCE,
    "drug_conformers-mmff94s": f"{REFERENCE}{FROM_FORCE_FIELD}",
    "conformers_xtb": "GFN2-xTB",
}
"""Level of theory of the energies of each data set."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the model of conformer energies."""

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder with the data sets."""
    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, with its model.safetensors."""
    start: Annotated[Path, tyro.conf.arg(metavar="MODEL")] = Path("painn-organic")
    """Model to start from: a dipole model, or the folder of a run of this script."""
    only_reference: bool = False
    """Train on the DLPNO-CCSD(T) energies alone."""
    max_epochs: int = 6
    """Passes over the training structures."""
    lr: float = 1e-3
    """Peak learning rate."""
    batch_size: int = 50
    """Structures per step; the conformers of a molecule are together."""
    huber_beta: float = 0.3
    """Error at which the loss changes from quadratic to linear, in kcal/mol."""
    seed: int = 0
    """Seed of the new weights and of the order of the batches."""
    resume: bool = False
    """Continue an interrupted run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains the model."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    names = [name for name in LEVELS if not options.only_reference or REFERENCE in LEVELS[name]]
    dataset = JoinedDataset(
        [ConformerDataset(options.data / name) for name in names],
        [LEVELS[name] for name in names],
    )
    split = dataset.split()
    print(f"{split} structures; levels: {', '.join(dataset.levels)}")
    torch.manual_seed(options.seed)
    start = load_model(options.start)
    recipe = TrainConfig(
        max_epochs=options.max_epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        huber_beta=options.huber_beta,
        seed=options.seed,
    )
    result = fit(
        energy_model(start),
        dataset,
        split,
        recipe,
        options.output,
        resume=options.resume,
        provenance={"start": start.card.origin},
    )
    print(f"val: {describe_metrics(result.metrics['val'], ConformerEnergyHead.metrics)}")
    print(f"wrote {result.model_path}")


def energy_model(start: PropertyModel[Any]) -> PropertyModel[Any]:
    """A model of energies with the network of another model; levels of theory start as the first.

    A model that predicts energies already is returned as it is.
    """
    if isinstance(start.head, ConformerEnergyHead):
        return start
    old = start.representation
    representation = type(old).from_config({**old.config, "levels": list(LEVELS.values())})
    state = old.state_dict()
    embedding = "level_embedding.weight"
    first = state.get(embedding, representation.state_dict()[embedding])[:1]
    state[embedding] = first.expand(len(LEVELS), -1).clone()
    representation.load_state_dict(state)
    return PropertyModel(representation, ConformerEnergyHead(representation.hidden_channels))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"\n{str(interrupt) or 'Interrupted.'}") from None
