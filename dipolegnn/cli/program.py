"""Entry point of the command line: parsing, error messages and exit statuses."""

from __future__ import annotations

import gc
import inspect
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import TypeVar

import tyro

from dipolegnn import __version__
from dipolegnn.cli.options import Build, Debug, Evaluate, Export, Predict, Serve, Train

FAILED_MOLECULES = 1
USAGE_ERROR = 2
INTERRUPTED = 130

COMMANDS: dict[str, type[Debug]] = {
    "build": Build,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "export": Export,
    "serve": Serve,
}
"""Options of each command; the command is the function ``run`` of the module of the same name."""

_Options = TypeVar("_Options", bound=Debug)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments after the name of the program; None: those of this process.

    Returns:
        The exit status: 0 success; 1 some molecules failed and are listed; 2 wrong usage or
        unusable data; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    try:
        return _run(name, arguments[1:])
    except SystemExit as stop:  # from tyro, after printing help or an error
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\ndipolegnn {name}: {str(interrupt) or 'Interrupted.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. Python would report it when flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED_MOLECULES
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "--debug" in arguments or os.environ.get("DIPOLEGNN_DEBUG", "0") not in ("", "0"):
            raise
        print(f"dipolegnn {name}: error: {_message(error)}", file=sys.stderr)
        return USAGE_ERROR


def _run(name: str, arguments: list[str]) -> int:
    if name in COMMANDS:
        options = _parse(COMMANDS[name], name, arguments)
        if isinstance(options, Train):
            options = _with_defaults(options, arguments)
        # Commands are imported after parsing: importing torch, Lightning and RDKit takes seconds.
        return int(_load(name).run(options))
    if name in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if name == "--version":
        print(f"dipolegnn {__version__}")
        return 0
    problem = f"there is no command {name!r}" if name else "a command is missing"
    print(f"dipolegnn: error: {problem}\n\n{_help()}", end="", file=sys.stderr)
    return USAGE_ERROR


def _help() -> str:
    summaries = (
        f"  {name:<10} {inspect.cleandoc(kind.__doc__ or '').splitlines()[0]}"
        for name, kind in COMMANDS.items()
    )
    return "\n".join(
        [
            f"usage: dipolegnn [-h] [--version] {{{','.join(COMMANDS)}}} ...\n",
            f"Dipole moments of molecules, by graph neural networks (dipolegnn {__version__}).\n",
            *summaries,
            "\n`dipolegnn COMMAND --help` lists the options of a command.\n",
        ]
    )


def _load(command: str) -> ModuleType:
    """Imports a command.

    Garbage collection is disabled meanwhile: it takes a sixth of the time and finds almost nothing.
    """
    gc.disable()
    try:
        return import_module(f"dipolegnn.cli.{command}")
    finally:
        gc.enable()


def _parse(
    kind: type[_Options], name: str, arguments: list[str], default: _Options | None = None
) -> _Options:
    options = tyro.cli(
        kind,
        prog=f"dipolegnn {name}",
        description=_description(kind.__doc__ or ""),
        args=arguments,
        default=default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    assert options is not None
    return options


def _description(docstring: str) -> str:
    """The docstring of a command, wrapped: tyro keeps those line breaks that a space follows."""
    summary, *paragraphs = inspect.cleandoc(docstring).split("\n\n")
    wrapped = [
        textwrap.fill(paragraph, width=88, subsequent_indent="  ") for paragraph in paragraphs
    ]
    return "\n\n".join([summary, *wrapped])


def _with_defaults(options: Train, arguments: list[str]) -> Train:
    """Returns the options, with defaults from an earlier run or a configuration file."""
    earlier = options.output / "config.json"
    path = earlier if options.resume and earlier.exists() else options.config
    if path is None:
        return options
    model, training = import_module("dipolegnn.cli.settings").read_settings(path)
    # Given flags are parsed again; tyro would switch off flags whose default is True.
    unset = replace(options, debug=False, resume=False, quiet=False)
    return _parse(Train, "train", arguments, replace(unset, model=model, training=training))


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"There is no file {error.filename}."
    return str(error) or type(error).__name__
