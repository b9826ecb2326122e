"""From the command line to a command, and from errors to messages and exit statuses."""

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
from dipolegnn.cli.options import Build, Evaluate, Export, Predict, Serve, Train

FAILED_MOLECULES = 1
USAGE_ERROR = 2
INTERRUPTED = 130

HELP = f"""\
usage: dipolegnn [-h] [--version] {{build,train,evaluate,predict,export,serve}} ...

Dipole moments of molecules, by graph neural networks (dipolegnn {__version__}).

  build      build a data set: read molecules, embed, label with dipoles, split
  train      train a model on a data set
  evaluate   evaluate a model on a part of a data set
  predict    predict dipole moments, in debye, from SMILES or from files of molecules
  export     write a model as a program that runs without dipolegnn (.pt2, .onnx)
  serve      serve a web page that predicts dipole moments

`dipolegnn COMMAND --help` lists the options of a command.
"""

_Options = TypeVar("_Options", Build, Train, Evaluate, Predict, Export, Serve)


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out a command line.

    Args:
        argv: The arguments after the name of the program; None: those of this process.

    Returns:
        The exit status: 0 done; 1 done, but for molecules that failed and are listed; 2 wrong
        usage, or data that cannot be used; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    try:
        return _run(name, arguments[1:])
    except SystemExit as stop:  # tyro's, after it has printed help or what is wrong
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\ndipolegnn {name}: {str(interrupt) or 'Interrupted.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED_MOLECULES
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "--debug" in arguments or os.environ.get("DIPOLEGNN_DEBUG", "0") not in ("", "0"):
            raise
        print(f"dipolegnn {name}: error: {_message(error)}", file=sys.stderr)
        return USAGE_ERROR


def _run(name: str, arguments: list[str]) -> int:
    # A command is imported only once its options are good: torch, Lightning and RDKit take seconds.
    match name:
        case "build":
            build = _parse(Build, name, arguments)
            return int(_load("build").run(build))
        case "train":
            train = _with_defaults(_parse(Train, name, arguments), arguments)
            return int(_load("train").run(train))
        case "evaluate":
            evaluate = _parse(Evaluate, name, arguments)
            return int(_load("evaluate").run(evaluate))
        case "predict":
            predict = _parse(Predict, name, arguments)
            return int(_load("predict").run(predict))
        case "export":
            export = _parse(Export, name, arguments)
            return int(_load("export").run(export))
        case "serve":
            serve = _parse(Serve, name, arguments)
            return int(_load("serve").run(serve))
        case "-h" | "--help":
            print(HELP, end="")
            return 0
        case "--version":
            print(f"dipolegnn {__version__}")
            return 0
    problem = f"there is no command {name!r}" if name else "a command is missing"
    print(f"dipolegnn: error: {problem}\n\n{HELP}", end="", file=sys.stderr)
    return USAGE_ERROR


def _load(command: str) -> ModuleType:
    """Imports a command.

    Importing makes hardly any garbage, but so many objects that looking for it takes a sixth of
    the time.
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
    """The options with the settings of an earlier run for those that are not given."""
    earlier = options.output / "config.json"
    path = earlier if options.resume and earlier.exists() else options.config
    if path is None:
        return options
    model, training = import_module("dipolegnn.cli.settings").read_settings(path)
    # The flags that are given will be given again; tyro turns those that are set already off.
    unset = replace(options, debug=False, resume=False, quiet=False)
    return _parse(Train, "train", arguments, replace(unset, model=model, training=training))


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"There is no file {error.filename}."
    return str(error) or type(error).__name__
