"""Makes ``.venv``: what ``make setup`` runs.

torch first, then torch-scatter and torch-cluster, then the package with what its tests need.
The second step is why this is a script and not three lines of ``pip install``: the two are on
PyPI as sources only, have to be compiled against the torch that is already there, and take
minutes. Binary wheels from PyG's own index are used where that can be reached.

It may be interrupted at any time and started again: what is finished is found by looking at
the environment, and is not done twice. When nothing is left to do it says so at once.

It lies beside ``.ci/run`` because it prepares a machine and knows nothing of dipoles; it uses
the standard library only, since it runs before anything is installed.

Environment variables: ``TORCH`` (version of torch; default: what ``.venv`` has, else 2.13.0),
``MAX_JOBS`` (compilers at once), ``PYG_WHEELS`` (index of binary wheels), and all that pip
reads (``PIP_INDEX_URL`` and so on).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from environment import LOGS, PYTHON, ROOT, VENV, distributions, in_venv, pip
from extensions import install_extensions
from processes import SetupError, elapsed, run_logged, say

STAMP = VENV / "setup-stamp.json"
LOCK = VENV / "setup-lock"
HALF_MADE = VENV / "setup-half-made"

PYTHONS = [(3, 13), (3, 12), (3, 11), (3, 10)]
TORCH = "2.13.0"


def fingerprint() -> str:
    """Changes with everything that set-up depends on, the place of the project included."""
    files = [ROOT / "pyproject.toml", *sorted(Path(__file__).parent.glob("*.py"))]
    parts = [str(ROOT).encode(), *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_complete(torch_wanted: str | None) -> bool:
    """Whether the last set-up went through and nothing that it depends on has changed since."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return (
        PYTHON.exists()
        and stamp["fingerprint"] == fingerprint()
        and (torch_wanted is None or is_version(stamp["torch"], torch_wanted))
    )


def is_version(installed: str, wanted: str) -> bool:
    """``2.13.0+cpu`` is what was wanted by ``2.13.0``, as pip sees it."""
    return wanted in (installed, installed.split("+")[0])


# Python and torch ------------------------------------------------------------------------------


def find_python() -> str:
    """A Python that the package supports: the running one if it will do."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for major, minor in PYTHONS:
        path = shutil.which(f"python{major}.{minor}")
        # One that is found may still not run (a shim of a version manager).
        if path and subprocess.run([path, "-V"], capture_output=True, check=False).returncode == 0:
            return path
    raise SetupError(
        f"Python 3.10 to 3.13 is needed; this is {platform.python_version()}, and no other was"
        " found.\nInstall one, or name it: make setup PYTHON=/path/to/python3.12"
    )


def make_venv() -> None:
    """Makes ``.venv``, unless there is one with a supported Python and a pip that works."""
    if PYTHON.exists() and not HALF_MADE.exists():
        version = in_venv("import sys; print(*sys.version_info[:2])").stdout.split()
        if tuple(map(int, version)) in PYTHONS:
            # An environment made by another tool may have no pip.
            if in_venv("import pip._internal.cli.main").returncode != 0:
                run_logged("adding pip", {"pip": [str(PYTHON), "-m", "ensurepip"]}, LOGS)
            return
    left_over = [path for path in VENV.iterdir() if path != LOCK]
    if left_over:
        say(f"{VENV} is not a whole environment for Python 3.10 to 3.13; it is made anew")
    for path in left_over:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    HALF_MADE.touch()
    python = find_python()
    what = f"making .venv with Python from {python}"
    run_logged(what, {"venv": [python, "-m", "venv", str(VENV)]}, LOGS)
    HALF_MADE.unlink()


def install_torch(wanted: str | None) -> str:
    """Installs torch, and what the extensions need to be built and loaded; returns its version.

    pip is asked even where all of that is there: it puts back a dependency of torch that an
    interruption has left half installed.
    """
    version = wanted or distributions().get("torch", TORCH)
    # torch-cluster imports scipy. setuptools 77 is what pyproject.toml asks for.
    requirements = [f"torch=={version}", "setuptools>=77", "wheel", "scipy"]
    run_logged(f"installing torch {version}", {"torch": pip("install", *requirements)}, LOGS)
    return distributions()["torch"]


# The whole -------------------------------------------------------------------------------------


def install_package(torch: str) -> None:
    """Installs the package, in place, with all that its tests need; torch stays as it is."""
    constraints = LOGS / "constraints.txt"
    constraints.write_text(f"torch=={torch}\n")
    command = pip("install", "--no-build-isolation", "-c", str(constraints), "-e", f"{ROOT}[dev]")
    run_logged("installing the package and its dependencies", {"package": command}, LOGS)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Waits until no other set-up works on the same ``.venv``."""
    VENV.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Does what is left to do; the exit status is 0 if the environment is complete."""
    wanted = os.environ.get("TORCH") or None
    if is_complete(wanted):
        say(".venv is complete")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    try:
        with alone():
            if is_complete(wanted):  # by the one that this one waited for
                return 0
            STAMP.unlink(missing_ok=True)
            make_venv()
            LOGS.mkdir(exist_ok=True)
            torch = install_torch(wanted)
            install_extensions(torch)
            install_package(torch)
            STAMP.write_text(json.dumps({"fingerprint": fingerprint(), "torch": torch}))
    except SetupError as error:
        print(f"\nsetup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; make setup goes on from here", file=sys.stderr)
        return 130
    say(f".venv is complete, after {elapsed(time.monotonic() - start)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
