"""Serving the page."""

from __future__ import annotations

import ipaddress
import socket
import threading

from flask import Flask, Response, abort, request
from waitress.server import create_server
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from dipolegnn.app.page import make_page
from dipolegnn.app.service import MAX_CHARACTERS, TOO_MUCH, Request, Service

MAX_REQUEST_BYTES = 20 * MAX_CHARACTERS
"""A request for a download contains the predictions, which are larger than the input."""


def make_server(service: Service, *, local: bool = True) -> Flask:
    """The page as a WSGI application.

    Args:
        service: Service that computes the predictions.
        local: True to accept requests for loopback host names only, which prevents access by web
            sites through DNS rebinding.
    """
    server: Flask = make_page(service).server
    server.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES

    @server.before_request
    def check() -> None:
        host = request.host.rsplit(":", 1)[0].strip("[]")
        if local and not is_loopback(host):
            abort(403, "This page is for this machine only.")

    @server.after_request
    def protect(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        # No component can load anything from other hosts.
        response.headers["Content-Security-Policy"] = (
            "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
            "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' "
            "blob:; connect-src 'self'"
        )
        return response

    @server.errorhandler(Exception)
    def explain(error: Exception) -> tuple[str, int]:
        if isinstance(error, RequestEntityTooLarge):
            return TOO_MUCH, 413
        if isinstance(error, HTTPException):
            return f"{error.description}", error.code or 500
        server.logger.error("%s: %s", type(error).__name__, error)
        return "Internal error; see the output of dipolegnn serve.", 500

    return server


def is_loopback(host: str) -> bool:
    """True if a host name or an address is reachable from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(host: str, port: int, model: str | None) -> None:
    """Serves the page until it is interrupted.

    Args:
        host: Address to listen on.
        port: Port; 0 selects a free port.
        model: Name of a pretrained model, a model file or the folder of a run; None: the defaults.

    Raises:
        OSError: If the port is in use.
    """
    service = Service(model)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family)
    server = create_server(
        make_server(service, local=is_loopback(host)),
        sockets=[listening],
        threads=8,
        # Requests are kept in memory: waitress would write larger ones to a file before their size
        # is checked.
        max_request_body_size=2 * MAX_REQUEST_BYTES,
        inbuf_overflow=2 * MAX_REQUEST_BYTES + 1,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listening.getsockname()[1]}/  (Ctrl-C stops it)", flush=True)
    if not is_loopback(host):
        print("Everyone whose machine can reach this address can use the page.", flush=True)
    # Imports the libraries before the first request of the user.
    threading.Thread(target=service.ask, args=(Request("C"),), daemon=True).start()
    try:
        server.run()
    finally:
        service.close()
