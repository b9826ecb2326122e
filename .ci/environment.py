"""The environment ``.venv``, seen from outside: what is in it, and how to run things there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from processes import SetupError, say

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOGS = VENV / "setup-logs"


def pip(*arguments: str) -> list[str]:
    """A pip command in ``.venv`` that asks nothing."""
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def in_venv(code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in ``.venv``; isolated, so that it sees nothing but what is installed there."""
    command = [str(PYTHON), "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def distributions() -> dict[str, str]:
    """Versions of what is installed in ``.venv`` as a whole, by name.

    pip takes a distribution for installed as soon as its metadata are there. It writes the
    file INSTALLER last; what has none was interrupted, and what begins with ``~`` was being
    replaced. The metadata of both are removed, so that pip installs them again.
    """
    found = in_venv(
        "import importlib.metadata as m, json\n"
        "print(json.dumps([(str(d._path), d.read_text('INSTALLER') is not None,"
        " d.metadata['Name'], d.metadata['Version']) for d in m.distributions()]))"
    )
    if found.returncode != 0:
        raise SetupError(f"{PYTHON} does not work:\n{found.stderr}\nRemove {VENV} and run again.")
    whole = {}
    for folder, has_installer, name, version in json.loads(found.stdout):
        path = Path(folder)
        if has_installer and name and version and not path.name.startswith("~"):
            whole[name.lower().replace("_", "-")] = version
        elif path.suffix == ".dist-info" and VENV in path.parents:
            say(f"{path.name} was left half installed; it is installed again")
            shutil.rmtree(path)
    return whole
