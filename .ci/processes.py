"""Runs commands so that a person sees what goes on; the tools of ``setup_env.py``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path


class SetupError(Exception):
    """What went wrong and what to do about it, for a person to read."""


def say(text: str) -> None:
    """Prints one line at once, also into a file or a pipe."""
    print(f"setup: {text}", flush=True)


def elapsed(seconds: float) -> str:
    """``75.2`` -> ``1 min 15 s``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:2d} s" if minutes else f"{rest} s"


def run_logged(
    what: str, commands: dict[str, list[str]], logs: Path, env: dict[str, str] | None = None
) -> None:
    """Runs commands side by side, each with a log of its own, and shows that time passes.

    Args:
        what: What is being done, for the messages.
        commands: Each command by the name of its log.
        logs: Folder of the logs.
        env: Environment variables on top of those there are.

    Raises:
        SetupError: One failed; the end of its log and a remedy are in the message.
    """
    logs.mkdir(exist_ok=True)
    start = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    say(f"{what} ...")
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("wb") as log:
                # A session of its own, so that it can be ended with all that it has started.
                # Open files are passed on: should this script be killed, the lock holds until
                # the command has ended.
                running[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                    close_fds=False,
                )
        wait_for(running, logs, start)
    except BaseException:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        raise
    for name, process in running.items():
        if process.returncode != 0:
            text = (logs / f"{name}.log").read_text(errors="replace")
            tail = "\n".join(text.splitlines()[-25:])
            raise SetupError(
                f"{what} failed ({name}, exit status {process.returncode}).\n"
                f"--- the last lines of {logs / name}.log\n{tail}\n---\n{remedy(text)}"
            )
    say(f"{what}: done in {elapsed(time.monotonic() - start)}")


def wait_for(running: dict[str, subprocess.Popen[bytes]], logs: Path, start: float) -> None:
    """Waits for all; a line that changes on a terminal, now and then a new one elsewhere."""
    live = sys.stdout.isatty()
    reported = 0.0
    while busy := [name for name, process in running.items() if process.poll() is None]:
        time.sleep(0.2)
        seconds = time.monotonic() - start
        if live:
            line = f"  {elapsed(seconds)}  {', '.join(busy)}: {last_line(logs / f'{busy[0]}.log')}"
            columns = shutil.get_terminal_size().columns
            print(f"\r\033[K{line[: columns - 1]}", end="", flush=True)
        elif seconds - reported >= 30:
            reported = seconds
            say(f"  {elapsed(seconds)}: {', '.join(busy)} still at work")
    if live:
        print("\r\033[K", end="", flush=True)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


REMEDIES = {
    r"Python\.h: No such file": "Install Python's headers (Debian: apt install python3-dev).",
    r"ensurepip": "Install Python's venv (Debian: apt install python3-venv).",
    r"Killed|out of memory|internal compiler error": (
        "The compiler ran out of memory: make setup MAX_JOBS=1 needs the least."
    ),
    r"CUDA version|nvcc": (
        "The CUDA compiler does not fit torch: FORCE_ONLY_CPU=1 make setup builds without CUDA."
    ),
    r"No space left on device": "The disk is full: 3 GB are needed, with CUDA 10 GB.",
    r"Could not find a version|Connection|Max retries|timed out": (
        "Can the package index be reached (PIP_INDEX_URL, proxy), and has it a build for this"
        " Python?"
    ),
}


def remedy(text: str) -> str:
    """What most likely helps, judged by the text of a log."""
    fitting = (help_ for pattern, help_ in REMEDIES.items() if re.search(pattern, text))
    fallback = "Put right what it says and run make setup again; finished steps are kept."
    return next(fitting, fallback)


def fetch(url: str, seconds: float) -> tuple[str, str]:
    """Text of a page and, if there is none, the problem. Never takes longer than said."""
    result = ("", f"no answer within {seconds:.0f} s")

    def read() -> None:
        nonlocal result
        try:
            with urllib.request.urlopen(url, timeout=seconds) as answer:
                result = (answer.read().decode(errors="replace"), "")
        except (OSError, ValueError) as error:
            result = ("", str(error))

    # In a thread, because looking up a name heeds no timeout.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(seconds)
    return result
