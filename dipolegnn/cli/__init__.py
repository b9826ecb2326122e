"""The ``dipolegnn`` command: one file per subcommand, thin over the package."""

from dipolegnn.cli.program import main

__all__ = ["main"]
