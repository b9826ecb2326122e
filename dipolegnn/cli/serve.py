"""``dipolegnn serve``."""

from __future__ import annotations

import errno
from importlib import import_module

from dipolegnn.cli.program import Serve
from dipolegnn.models import load_model


def run(options: Serve) -> int:
    """Serves the page until interrupted."""
    try:
        server = import_module("dipolegnn.app.server")
    except ImportError as error:
        raise ImportError(
            f"The page needs dash, plotly and waitress, which cannot be imported ({error}). "
            "Install them with: pip install 'dipolegnn[app]'"
        ) from error
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be between 0 and 65535, got {options.port}.")
    if options.model is not None:
        load_model(options.model)  # reports an invalid model before the page is served
    try:
        server.serve(
            options.host, options.port, None if options.model is None else str(options.model)
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"Port {options.port} is in use, perhaps by another dipolegnn serve. Select "
                "another with --port."
            ) from None
        raise
    return 0
