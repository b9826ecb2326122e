"""``dipolegnn evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dipolegnn._pyg import Data
from dipolegnn.cli.program import Evaluate, Part
from dipolegnn.data import ConformerDataset
from dipolegnn.data.joined import level_of
from dipolegnn.evaluation import METRIC_UNITS, describe_metrics, evaluate, write_predictions
from dipolegnn.models import FILE_NAME, load_model, unknown_elements
from dipolegnn.nn import DipoleModel
from dipolegnn.plots import error_bars, parity_plot


def run(options: Evaluate) -> int:
    """Evaluates a model, prints the metrics and writes the details."""
    model = load_model(options.model)
    dataset = ConformerDataset(options.data)
    level, doubt = _level(model, dataset, options.level)
    structures = list(_part(dataset, options.split))
    if not structures:
        raise ValueError(
            f"The {options.split} part of {options.data} is empty; choose another with --split."
        )
    _require_known(model, structures)
    evaluation = evaluate(model, structures, level=level or None, progress=True)
    options.output.mkdir(parents=True, exist_ok=True)
    note = "; ".join(filter(None, (doubt, _note(model, dataset, options.split))))
    report = {
        "model": model.card.name,
        **({"level": level} if level else {}),
        "data": {"folder": str(options.data), "split": options.split},
        "structures": len(evaluation.predictions),
        "labelled": len(evaluation.labelled),
        "metrics": evaluation.metrics,
        "units": {
            **{name: METRIC_UNITS[name] for name in evaluation.metrics},
            **{"mae": "debye", "bias": "debye"},
        },
        "groups": [asdict(group) for group in evaluation.groups],
        "note": note,
    }
    path = options.output / "metrics.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_predictions(options.output / "predictions.csv", evaluation.predictions)
    labelled = evaluation.labelled
    title = _title(model, dataset, options)
    references = [float(p.data.dipole_magnitude) for p in labelled]
    figure = parity_plot(references, [p.magnitude for p in labelled], title)
    figure.savefig(options.output / "parity.png")
    error_bars(evaluation.groups, title).savefig(options.output / "errors.png")
    print(
        f"{options.split}: {len(labelled)} of {len(evaluation.predictions)} structures have a "
        f"reference; {describe_metrics(evaluation.metrics)}{f' at {level}' if level else ''}"
    )
    if note:
        print(f"note: {note}")
    for name in ("metrics.json", "predictions.csv", "parity.png", "errors.png"):
        print(f"wrote {options.output / name}")
    return 0


def _level(model: DipoleModel, dataset: ConformerDataset, wanted: str | None) -> tuple[str, str]:
    """Level of theory to predict at, and a warning if it is not known to be that of the labels.

    Without an option, it is the level of the data set if the model has it.

    Raises:
        ValueError: If the model does not have the level of the option.
    """
    reference = "" if dataset.card is None else level_of(dataset)
    level = model.level_named(wanted)
    if wanted is None and reference in model.representation.levels:
        level = reference
    if level in ("", reference):
        return level, ""
    return (
        level,
        f"the predictions are at {level}, and the labels at {reference or 'no stated level'}",
    )


def _title(model: DipoleModel, dataset: ConformerDataset, options: Evaluate) -> str:
    """Title of a figure: model and data."""
    path = Path(model.card.name)
    name = path.resolve().parent.name if path.name == FILE_NAME else path.stem
    data = options.data.resolve().name if dataset.card is None else dataset.card.name
    return f"{name} on {data} ({options.split})"


def _require_known(model: DipoleModel, structures: Sequence[Data]) -> None:
    """Raises an error if the model does not predict some of the molecules."""
    refused = [p for data in structures if (p := unknown_elements(model, data)) is not None]
    if refused:
        first = refused[0]
        raise ValueError(
            f"{model.card.name} cannot be evaluated on {len(refused)} of {len(structures)} "
            f"structures, the first {first.molecule or 'without a name'}: {first.problem}. "
            f"{first.remedy}."
        )


def _part(dataset: ConformerDataset, name: Part) -> ConformerDataset:
    if name == "all":
        return dataset
    try:
        split = dataset.split()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Or evaluate on all molecules: --split all.") from None
    part: ConformerDataset = dataset[getattr(split, name)]
    return part


def _note(model: DipoleModel, dataset: ConformerDataset, name: Part) -> str:
    """Note if the molecules were used in training, so that the errors are too low."""
    card = dataset.card
    if card is None or model.card.get("data", "sha256") != card.sha256:
        return ""
    return {
        "test": "",
        "val": "these molecules were used for model selection; --split test evaluates unseen ones",
        "train": "the model was trained on these molecules; --split test evaluates unseen ones",
        "all": "the model was trained on some of the molecules; --split test evaluates unseen ones",
    }[name]
