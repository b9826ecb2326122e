"""torch-scatter and torch-cluster: PyG's binary wheels where there are any, else from source."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from environment import LOGS, VENV, distributions, in_venv, pip
from processes import SetupError, fetch, last_line, run_logged, say

EXTENSIONS = {
    "torch-scatter": "torch-scatter>=2.1.2,<3",
    "torch-cluster": "torch-cluster>=1.6.3,<2",
}
TRIALS = {
    "torch-scatter": "from torch_scatter import scatter_add as f;"
    "assert f(t([1., 2.]), t([0, 0])).item() == 3",
    "torch-cluster": "from torch_cluster import radius_graph as f;"
    "assert f(t([[0.], [1.]]), 2.0).shape == (2, 2)",
}
PYG_WHEELS = os.environ.get("PYG_WHEELS", "https://data.pyg.org/whl")

# Measured; a compiler takes up to 1.5 GB of memory.
CORE_MINUTES = {"torch-scatter": 7, "torch-cluster": 13}
GIGABYTES_PER_JOB = 1.5


def missing_extensions() -> dict[str, str]:
    """What is wrong with each extension that is absent or fails, as one for another torch does."""
    here = distributions()
    wrong = {}
    for name, trial in TRIALS.items():
        outcome = in_venv(f"from torch import tensor as t; {trial}")
        if name not in here:
            wrong[name] = "not installed"
        elif outcome.returncode != 0:
            wrong[name] = (outcome.stderr.strip().splitlines() or ["crashed"])[-1]
    return wrong


def install_extensions(torch: str) -> None:
    """Installs torch-scatter and torch-cluster: PyG's binary wheels, else from source."""
    missing = list(missing_extensions())
    if missing and (url := binary_wheels(torch, missing)):
        requirements = [EXTENSIONS[name] for name in missing]
        options = ["--only-binary", ":all:", "--find-links", url]
        try:
            install(f"{' and '.join(missing)} from {url}", [*options, *requirements])
        except SetupError:
            say(f"the binary wheels cannot be used: {last_line(LOGS / 'extensions.log')}")
        missing = list(missing_extensions())
    if not missing:
        return
    # Wheels that pip has built before come first; they may have been built for another torch.
    cached = cached_by_pip(missing)
    build_wheels(missing, torch, cached=cached)
    install(" and ".join(missing), [str(wheel_of(name, torch)) for name in missing])
    wrong = missing_extensions()
    # Something else that is absent is no reason to build for minutes.
    if stale := [n for n in wrong if n in cached and "No module named" not in wrong[n]]:
        for name in stale:
            say(f"the {name} that pip had kept does not fit torch {torch} ({wrong[name]})")
            wheel_of(name, torch).unlink()
        build_wheels(stale, torch, cached=[], use_cache=False)
        install(" and ".join(stale), [str(wheel_of(name, torch)) for name in stale])
        wrong = missing_extensions()
    if wrong:
        problems = "\n".join(f"{name}: {problem}" for name, problem in wrong.items())
        raise SetupError(
            f"Built against torch {torch}, but not usable:\n{problems}\n"
            f"The logs are in {LOGS}. Remove {VENV} and run make setup again."
        )


def install(what: str, arguments: list[str]) -> None:
    """Installs over what is there, and without dependencies: those come with the package."""
    command = pip("install", "--no-deps", "--force-reinstall", *arguments)
    run_logged(f"installing {what}", {"extensions": command}, LOGS)


def python_tag() -> str:
    """``cp311`` for Python 3.11."""
    return in_venv("import sys; print('cp%d%d' % sys.version_info[:2], end='')").stdout


def binary_wheels(torch: str, names: list[str]) -> str | None:
    """The page of PyG's index with wheels for this torch, Python and machine, if there is one."""
    cuda = in_venv("import torch; print(torch.version.cuda or '', end='')").stdout
    device = f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    release = torch.split("+")[0]
    # Wheels are made for the first release of a series and serve its later ones.
    series = ".".join([*release.split(".")[:2], "0"])
    machine = platform.machine()
    for version in dict.fromkeys([release, series]):
        url = f"{PYG_WHEELS}/torch-{version}+{device}.html"
        page, problem = fetch(url, seconds=5)
        if problem and not problem.startswith("HTTP Error"):
            say(f"PyG's binary wheels cannot be reached ({problem})")
            return None
        rest = rf"-[^\"<>]*-{python_tag()}-[^\"<>]*({machine}|universal2)\.whl"
        if all(re.search(name.replace("-", "_") + rest, page) for name in names):
            return url
    say(f"PyG has no binary wheels for torch {release} ({device}), {python_tag()}, {machine}")
    return None


def cached_by_pip(names: list[str]) -> list[str]:
    """Those of the extensions that pip has built before, and kept."""
    listed = subprocess.run(pip("cache", "list"), capture_output=True, text=True, check=False)
    tag = python_tag()
    return [n for n in names if re.search(rf"{n.replace('-', '_')}-[^-]*-{tag}", listed.stdout)]


def wheel_of(name: str, torch: str) -> Path:
    """The wheel of an extension built against a version of torch (or where it will be)."""
    folder = VENV / "setup-wheels" / f"torch-{torch}" / name
    return next(folder.glob("*.whl"), folder / "none.whl")


def build_wheels(
    names: list[str], torch: str, *, cached: list[str], use_cache: bool = True
) -> None:
    """Builds the wheels that are not there yet, all at once, on all cores."""
    names = [name for name in names if not wheel_of(name, torch).exists()]
    to_build = [name for name in names if name not in cached]
    jobs = build_jobs()
    if to_build:
        check_compiler()
        minutes = max(3, round(sum(CORE_MINUTES[name] for name in to_build) / jobs))
        say(
            f"building {' and '.join(to_build)} from source, which takes about {minutes} minutes"
            f" with {jobs} jobs, and is done once"
        )
    config = LOGS / "build.cfg"
    config.write_text(f"[build_ext]\nparallel = {jobs}\n")
    env = {
        "DIST_EXTRA_CONFIG": str(config),
        # Without debugging symbols the compiler needs half the time and memory.
        "CFLAGS": f"{os.environ.get('CFLAGS', '')} -g0".strip(),
        "MAX_JOBS": str(jobs),
    }
    commands = {}
    for name in names:
        options = ["--no-deps", "--no-build-isolation"]
        options += [] if use_cache else ["--no-cache-dir"]
        options += ["--wheel-dir", str(wheel_of(name, torch).parent)]
        commands[name] = pip("wheel", *options, EXTENSIONS[name])
    if commands:
        run_logged(f"wheels of {' and '.join(names)}", commands, LOGS, env)


def build_jobs() -> int:
    """How many compilers each build may run at once: the cores, as far as memory suffices."""
    if named := os.environ.get("MAX_JOBS"):
        return max(1, int(named))
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, int(gigabytes / GIGABYTES_PER_JOB / len(EXTENSIONS))))


def check_compiler() -> None:
    """Finds out before minutes of building that it cannot work."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if not shutil.which(compiler):
        raise SetupError(
            f"torch-scatter and torch-cluster have to be built, but there is no C++ compiler"
            f" ({compiler}).\nInstall one (Debian, Ubuntu: apt install g++; macOS:"
            " xcode-select --install) and run make setup again."
        )
    include = in_venv("import sysconfig; print(sysconfig.get_path('include'), end='')").stdout
    if not (Path(include) / "Python.h").exists():
        raise SetupError(
            f"Python's headers are missing: there is no {include}/Python.h.\n"
            "Install them (Debian, Ubuntu: apt install python3-dev) and run make setup again."
        )
