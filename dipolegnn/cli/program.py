"""The command line: options of the commands, parsing, error messages and exit statuses.

Only the standard library, tyro and the configuration are imported here, so that ``--help`` is fast.
The dataclasses of the options are the schema that tyro converts to a command line; the docstring of
a field is its help text.
"""

from __future__ import annotations

import errno
import gc
import inspect
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from dipolegnn import __version__
from dipolegnn.config import (
    ConformerConfig,
    DFTConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    XTBConfig,
)

FAILED_MOLECULES = 1
USAGE_ERROR = 2
INTERRUPTED = 130

_Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Part = Literal["test", "val", "train", "all"]
"""Part of a data set."""

# Their help texts state the default, instead of "(default: None)" or "(default: False)".
_Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
_File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
_Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
_Level = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Debugging."""

    debug: _Flag = False
    """Show the Python traceback of an error (also: DIPOLEGNN_DEBUG=1)."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Columns of a .csv file; names are case-insensitive."""

    smiles_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "smiles"
    """Column with the SMILES."""
    name_column: _Name = None
    """Column with the names. Default: "name" if that column exists, else the SMILES."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Source of the reference dipoles."""

    label: Literal["xtb", "dft", "none"] = "xtb"
    """xtb: GFN2-xTB (fast). dft: PySCF (minutes per molecule). none: labels in the file."""
    optimize: _Flag = False
    """Optimize each geometry with the method of the label before labelling."""
    fmax: float = XTBConfig.fmax
    """Geometry optimization: convergence threshold of the forces, in eV/angstrom."""
    max_steps: int = XTBConfig.max_steps
    """Geometry optimization: maximum number of steps; a molecule that does not converge fails."""
    electronic_temperature: float = XTBConfig.electronic_temperature
    """xtb: electronic temperature, in kelvin."""
    xc: str = DFTConfig.xc
    """dft: functional; b3lypg is B3LYP as defined in Gaussian, used for QM9."""
    basis: str = DFTConfig.basis
    """dft: basis set; the default is that of QM9."""
    grid_level: int = DFTConfig.grid_level
    """dft: integration grid of PySCF, 0 (coarse) to 9."""
    scf_tolerance: float = DFTConfig.scf_tolerance
    """dft: convergence threshold of the SCF energy, in hartree."""
    exact_integrals: _Flag = not DFTConfig.density_fit
    """dft: no density fitting. Much slower; changes dipoles by about 0.001 D."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Training, validation and test molecules; all conformers of a molecule stay together."""

    split: Literal["random", "size", "scaffold"] = "random"
    """random; size: the largest molecules are for testing; scaffold: no shared ring scaffolds."""
    val: float = 0.1
    """Fraction of the molecules for validation."""
    test: float = 0.1
    """Fraction of the molecules for testing."""
    split_seed: int = 0
    """Random seed of the split."""


@dataclass(frozen=True, kw_only=True)
class Build(Debug):
    """Build a data set: read molecules, embed them in 3D, label and split them.

    INPUT is .smi, .csv or .parquet (SMILES, embedded in 3D), .sdf, .xyz or .extxyz (structures),
    all but .parquet also as .gz. If interrupted, repeat the same command to resume.

    Exit status: 0 all molecules are in the data set; 1 some failed and are listed in
    DIR/failures.csv; 2 error, no data set.
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """Input file of molecules."""
    output: _Folder
    """Folder of the data set."""
    overwrite: _Flag = False
    """Replace the data set in DIR. Labels that are already computed are reused."""
    magnitude_column: _Name = None
    """Column of a .csv file with reference dipole magnitudes in debye (with --label none)."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Number of processes. Default: one per core."""
    csv: TableOptions = TableOptions()
    conformer: ConformerConfig = field(default_factory=ConformerConfig)
    label: LabelOptions = LabelOptions()
    split: SplitOptions = SplitOptions()


@dataclass(frozen=True, kw_only=True)
class Train(Debug):
    """Train a model on a data set.

    Writes to RUN: model.safetensors (the model), history.csv (metrics per epoch), metrics.json,
    config.json, checkpoints and TensorBoard logs. The test set is evaluated once, at the end.

    Exit status: 0 trained; 2 error; 130 interrupted (Ctrl-C), --resume continues.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Folders of data sets (made by `dipolegnn build`). If their levels of theory differ, the model
    distinguishes them; the level of the first data set is the default in predictions."""
    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    resume: _Flag = False
    """Continue the run in RUN with its own settings; start it if RUN does not exist. The result is
    equal to the last bit on the same CPU with the same number of threads, which is read from RUN;
    elsewhere it differs by rounding."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Initialize from the weights and the architecture of a model: the name of a pretrained model,
    a model file, or the folder of a run. Useful for few molecules or another level of theory."""
    config: _File = None
    """Read the defaults of all settings below from a config.json; options override them."""
    time_limit: Annotated[float | None, tyro.conf.arg(metavar="MINUTES", help_behavior_hint="")] = (
        None
    )
    """Stop after the last epoch that ends within this time; affects --scheduler plateau least."""
    quiet: _Flag = False
    """Do not show progress."""
    devices: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Devices per node for data-parallel training (GPUs, or processes on a CPU). torchrun or srun
    starts one process for each: torchrun --nproc-per-node 2 -m dipolegnn train ... --devices 2.
    Each contributes a batch of --batch-size to an optimizer step."""
    num_nodes: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Number of nodes with that many devices each."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Debug):
    """Evaluate a model on a part of a data set.

    Writes to DIR: metrics.json, predictions.csv (one line per structure, in debye), parity.png, and
    errors.png (errors by size, element and magnitude).

    Exit status: 0 evaluated; 2 error.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Name of a pretrained model, a model file, or the folder of a run."""
    data: _Folder
    """Folder of a data set."""
    output: _Folder
    """Folder for the results."""
    split: Annotated[Part, tyro.conf.arg(metavar="PART")] = "test"
    """Part of the data set: test, val, train or all."""
    level: _Level = None
    """Level of theory of the predictions, one of those of the model. Default: that of the data set
    if the model has it, else the first of the model, with a warning."""


@dataclass(frozen=True, kw_only=True)
class Predict(Debug):
    """Predict dipole moments, in debye, from SMILES or from files of molecules.

    An argument that ends in .smi, .csv, .sdf, .xyz or .extxyz (or one of these and .gz) or in
    .parquet is a file; - reads SMILES from standard input, one per line as in a .smi file; any
    other argument is a SMILES. SMILES are embedded in 3D; structures are used as they are. The
    magnitude is the Boltzmann average over the conformers, also of structures with the same name or
    mol_id in a file, if their energies are known (see --energies). The
    vector is that of the lowest conformer, in the frame of the printed or written geometry. The
    origin of an ion's vector is its centre of mass (in .extxyz, as in ASE, the origin of the
    coordinates). Arguments after -- are not interpreted as options.

    The default model is $DIPOLEGNN_MODEL if set, else the pretrained model painn-organic.
    Pretrained models refuse elements that they were not trained on.

    Files of any size are streamed to one file with --output (all suffixes but .json); nothing is
    printed then. If such a run is killed, repeat the same command to resume.

    Exit status: 0 all predicted; 1 some molecules failed and are listed; 2 error.
    """

    molecules: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SMILES_OR_FILE ...", help_behavior_hint="(required)"),
    ]
    """SMILES (quoted for the shell) and files."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Name of a pretrained model, a model file, or the folder of a run. Default: see above."""
    json: _Flag = False
    """Write JSON to standard output instead of tables."""
    output: _File = None
    """Write to a file: .csv, .parquet, .json, or structures (all conformers) as .sdf, .extxyz or
    .xyz; .csv and structures also compressed (.gz)."""
    picture: _File = None
    """Draw the lowest conformers with their dipole moments: .png, .svg (one file per molecule) or
    .html (interactive; requires the extra app)."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Processes that embed SMILES; useful for hundreds of molecules. Default: one per core with
    files and --output, else 1."""
    csv: TableOptions = TableOptions()
    prediction: PredictConfig = field(default_factory=PredictConfig)


@dataclass(frozen=True, kw_only=True)
class Export(Debug):
    """Write a model as a program that runs without dipolegnn.

    FILE.pt2 is for PyTorch (torch.export), FILE.onnx for ONNX Runtime and others (extra onnx). The
    inputs are z [N], pos [N, 3] in angstrom, num_atoms [B] and charge [B] in e, for any numbers of
    atoms N and molecules B; the outputs are dipole [B, 3] and magnitude [B] in debye and charges
    [N] in e. The program predicts at one level of theory, has no error bars, does not check
    elements, and treats each molecule as one fragment.

    Exit status: 0 written; 2 error.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Name of a pretrained model, a model file, or the folder of a run."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """Output file: .pt2 or .onnx."""
    level: _Level = None
    """Level of theory of the program, one of those of the model. Default: the first."""


@dataclass(frozen=True, kw_only=True)
class Serve(Debug):
    """Serve a web page that predicts dipole moments of SMILES and files.

    The page is reachable from this machine only, unless --host is given; there is no password. No
    data is stored, and the page loads nothing from other machines. Requires the extra app.
    """

    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, tyro.conf.arg(metavar="INT")] = 8050
    """Port; 0 selects a free port."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Name of a pretrained model, a model file, or the folder of a run. Default: as for
    `dipolegnn predict`."""


_KEPT = {
    "build": "Finished labels are kept: free space, then repeat the same command.",
    "predict": "Finished parts of files written with --output are kept: free space, then repeat "
    "the same command.",
    "train": "Saved epochs are kept: free space, then repeat the command with --resume, which "
    "starts anew if there is none.",
}
"""What a command keeps when the disk is full, and how to continue."""

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
        print(f"dipolegnn {name}: error: {_message(error, name)}", file=sys.stderr)
        return USAGE_ERROR


def _message(error: Exception, command: str) -> str:
    """The message of an error; of errors of the operating system, in words."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    name = "" if error.filename is None else f" {error.filename}"
    if isinstance(error, FileNotFoundError) and name:
        return f"There is no file{name}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kept = _KEPT.get(command, "Free space, then repeat the command.")
        return f"The disk is full, or your quota on it ({str(error).strip()}). {kept}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"There is no permission for{name or ' a file'} ({error.strerror}). Change its "
            "permissions or those of its folder, or choose another path."
        )
    return str(error)


def _run(name: str, arguments: list[str]) -> int:
    if name in COMMANDS:
        options = _parse(COMMANDS[name], name, arguments)
        if isinstance(options, Train):
            options = _with_defaults(options, arguments)
        # Commands are imported after parsing: importing torch, Lightning and RDKit takes seconds,
        # of which garbage collection, which finds almost nothing, is a sixth.
        gc.disable()
        try:
            command = import_module(f"dipolegnn.cli.{name}")
        finally:
            gc.enable()
        return int(command.run(options))
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
    summaries = "".join(
        f"  {name:<10} {inspect.cleandoc(kind.__doc__ or '').splitlines()[0]}\n"
        for name, kind in COMMANDS.items()
    )
    return (
        f"usage: dipolegnn [-h] [--version] {{{','.join(COMMANDS)}}} ...\n\n"
        f"Dipole moments of molecules, by graph neural networks (dipolegnn {__version__}).\n\n"
        f"{summaries}\n`dipolegnn COMMAND --help` lists the options of a command.\n"
    )


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
    """The wrapped docstring of a command: tyro keeps line breaks that are followed by a space."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(textwrap.fill(p, width=88, subsequent_indent="  ") for p in paragraphs)


def _with_defaults(options: Train, arguments: list[str]) -> Train:
    """Returns the options, with defaults from an earlier run or a configuration file."""
    earlier = options.output / "config.json"
    path = earlier if options.resume and earlier.exists() else options.config
    if path is None:
        return options
    model, training = import_module("dipolegnn.cli.settings").read_settings(path)
    # The arguments are parsed again; a flag whose default is True would be switched off by tyro.
    unset = replace(options, debug=False, resume=False, quiet=False)
    return _parse(Train, "train", arguments, replace(unset, model=model, training=training))
