"""``dipolegnn export``."""

from __future__ import annotations

from dipolegnn.cli.program import Export
from dipolegnn.export import export_model
from dipolegnn.models import load_model


def run(options: Export) -> int:
    """Exports a model and prints the path."""
    model = load_model(options.model)
    export_model(options.output, model, options.level)
    if model.card.accuracy:
        print(f"{model.card.name}: {model.card.accuracy}")
    level = model.level_named(options.level)
    print(f"wrote {options.output}{f' at {level}' if level else ''}")
    return 0
