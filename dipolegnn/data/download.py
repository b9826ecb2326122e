"""Downloads that can be interrupted, and that end with the file that was meant."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dipolegnn.files import sha256_of

_BLOCK = 1 << 16


class DownloadError(OSError):
    """A file that could not be fetched, or is not the one that was meant."""


def download(
    url: str,
    path: str | Path,
    *,
    size: int,
    sha256: str,
    attempts: int = 5,
    pause: float = 3.0,
    progress: bool = False,
) -> Path:
    """Fetch a file, unless it is there already.

    What has arrived is kept in ``path.part``, and asked for no second time: neither when the
    connection breaks nor after the program was stopped.

    Args:
        url: Where it is.
        path: Where it goes.
        size: Its length in bytes.
        sha256: SHA-256 of its content, in hexadecimal.
        attempts: How often to try in a row without a single byte of progress.
        pause: Seconds between two attempts.
        progress: Show a progress bar.

    Returns:
        ``path``, whole and checked.

    Raises:
        DownloadError: The server cannot be reached or refuses, or sends another file.
    """
    target = Path(path)
    if target.exists():
        verify(target, size, sha256, f"Delete {target} to fetch it again from {url}.")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), BarColumn(), *columns, disable=not progress)
    with bar:
        task = bar.add_task(f"Fetching {target.name}", total=size)
        left = attempts
        while (have := part.stat().st_size if part.exists() else 0) < size:
            bar.update(task, completed=have)
            try:
                _fetch(url, part, have, lambda done: bar.update(task, completed=done))
            except (OSError, http.client.HTTPException) as error:
                grown = part.exists() and part.stat().st_size > have
                left = attempts if grown else left - 1
                refused = isinstance(error, urllib.error.HTTPError) and error.code in (
                    401,
                    403,
                    404,
                )
                if refused or left <= 0:
                    raise DownloadError(
                        f"{url} cannot be fetched: {error}. What has arrived is kept; run it again "
                        f"to go on, or fetch the file by other means and put it at {target}."
                    ) from error
                time.sleep(pause)
    try:
        verify(part, size, sha256, "It was deleted; run it again to fetch it anew.")
    except DownloadError:
        part.unlink()
        raise
    return part.replace(target)


def _fetch(url: str, part: Path, have: int, report: Callable[[int], None]) -> None:
    """Append to ``part`` what it lacks."""
    request = urllib.request.Request(url, headers={"User-Agent": "dipolegnn"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=60) as response:
        if response.status not in (200, 206):
            raise OSError(f"the server answered {response.status} instead of sending the file")
        # 200: the server does not resume, and sends the file from its beginning.
        resumed = response.status == 206
        done = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                done += len(block)
                report(done)
        if response.length:
            raise OSError(f"the connection broke with {response.length} bytes to come")


def verify(path: Path, size: int, sha256: str, remedy: str) -> None:
    """Make sure that a file is the one that was meant.

    Args:
        path: The file.
        size: Its length in bytes.
        sha256: SHA-256 of its content, in hexadecimal.
        remedy: What to do if it is not, in a sentence.

    Raises:
        DownloadError: It is another file, or a part of it.
    """
    if path.stat().st_size != size:
        raise DownloadError(f"{path} has {path.stat().st_size} bytes, expected {size}. {remedy}")
    digest = sha256_of(path)
    if digest != sha256:
        raise DownloadError(f"{path} has the SHA-256 {digest}, expected {sha256}. {remedy}")
