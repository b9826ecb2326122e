"""``dipolegnn train``."""

from __future__ import annotations

import torch

from dipolegnn.cli.options import Train
from dipolegnn.cli.program import INTERRUPTED, USAGE_ERROR
from dipolegnn.data import ConformerDataset, DipoleDataModule
from dipolegnn.evaluation import describe_metrics
from dipolegnn.nn import build_model
from dipolegnn.training import (
    FirstProcessFailed,
    RunFolder,
    TrainingInterrupted,
    fit,
    is_first_process,
)


def run(options: Train) -> int:
    """Trains a model, and says how good it is and where it lies."""
    dataset = ConformerDataset(options.data)
    split = dataset.split()
    recipe = options.training
    data = DipoleDataModule(dataset, split, recipe.batch_size, seed=recipe.seed)
    torch.manual_seed(recipe.seed)
    model = build_model(options.model)
    if not options.quiet and is_first_process():
        parameters = sum(weight.numel() for weight in model.parameters())
        print(f"{options.data}: {split} structures; the model has {parameters:,} parameters.")
    try:
        result = fit(
            model,
            data,
            recipe,
            options.output,
            resume=options.resume,
            test=len(split.test) > 0,
            progress=not options.quiet,
            time_limit=None if options.time_limit is None else 60 * options.time_limit,
            devices=options.devices,
            num_nodes=options.num_nodes,
        )
    except FirstProcessFailed:
        return USAGE_ERROR  # The first process says why.
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
