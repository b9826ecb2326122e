"""``dipolegnn train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dipolegnn.cli.program import INTERRUPTED, USAGE_ERROR, Train
from dipolegnn.config import ModelConfig
from dipolegnn.data import ConformerDataset, JoinedDataset
from dipolegnn.evaluation import describe_metrics
from dipolegnn.models import load_model
from dipolegnn.nn import DipoleModel, build_model
from dipolegnn.nn.model import describe, with_levels
from dipolegnn.training import (
    FirstProcessFailed,
    RunFolder,
    TrainingInterrupted,
    fit,
    is_first_process,
)


def run(options: Train) -> int:
    """Trains a model and prints its metrics and path."""
    if not options.data:
        raise ValueError("--data needs the folder of at least one data set.")
    start = None if options.start is None else _started(options.start, options.model)
    levels = options.model.levels if start is None else start.representation.levels
    datasets = [ConformerDataset(folder) for folder in options.data]
    dataset = JoinedDataset(datasets) if len(datasets) > 1 or levels else datasets[0]
    split = dataset.split()
    recipe = options.training
    torch.manual_seed(recipe.seed)
    model = _model(options.model, start, dataset)
    if not options.quiet and is_first_process():
        parameters = sum(weight.numel() for weight in model.parameters())
        folders = ", ".join(str(folder) for folder in options.data)
        print(f"{folders}: {split} structures; the model has {parameters:,} parameters.")
    try:
        result = fit(
            model,
            dataset,
            split,
            recipe,
            options.output,
            resume=options.resume,
            test=len(split.test) > 0,
            progress=not options.quiet,
            time_limit=None if options.time_limit is None else 60 * options.time_limit,
            devices=options.devices,
            num_nodes=options.num_nodes,
            provenance=None if start is None else {"start": start.card.origin},
        )
    except FirstProcessFailed:
        return USAGE_ERROR  # The first process prints the error.
    except TrainingInterrupted:
        if is_first_process():
            raise
        return INTERRUPTED
    if not is_first_process():
        return 0
    for part, metrics in result.metrics.items():
        print(f"{part}: {describe_metrics(metrics)}")
    print(f"model: {result.model_path}")
    print(f"history: {RunFolder(options.output).history}")
    return 0


def _model(
    config: ModelConfig, start: DipoleModel | None, dataset: ConformerDataset | JoinedDataset
) -> DipoleModel:
    """The model to train, with the levels of theory of the data sets if there are several."""
    levels = dataset.levels if isinstance(dataset, JoinedDataset) else []
    if start is None:
        if len(levels) > 1 and not config.levels:
            config = replace(config, levels=tuple(levels))
        new: DipoleModel = build_model(config)
        return new
    if not levels:
        return start
    first = start.card.get("data", "level_of_theory") or levels[0]
    return with_levels(start, levels, first) if {*levels} - {first} else start


def _started(path: Path, wanted: ModelConfig) -> DipoleModel:
    """Loads the model of ``--start``, which also determines the architecture."""
    model = load_model(path)
    if wanted != ModelConfig() and describe(wanted) != model.config:
        raise ValueError(
            f"--start {path} is a model of another architecture: {model.config}, and "
            f"{describe(wanted)} was requested. Omit the options of the model, or train without "
            "--start."
        )
    return model
