"""``dipolegnn export``."""

from __future__ import annotations

from dipolegnn.cli.options import Export
from dipolegnn.export import export_model
from dipolegnn.models import open_model


def run(options: Export) -> int:
    """Writes a program, and says so."""
    loaded = open_model(options.model)
    export_model(options.output, loaded.model, loaded.provenance)
    if loaded.accuracy:
        print(f"{loaded.name}: {loaded.accuracy}")
    print(f"wrote {options.output}")
    return 0
