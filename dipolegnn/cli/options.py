"""What each command can be told: the schema that tyro turns into a command line.

Only the standard library, tyro and the configuration are imported here, so that ``--help`` comes
up at once. The text under a field is its help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dipolegnn.config import (
    COVERAGE,
    ConformerConfig,
    DFTConfig,
    ModelConfig,
    TrainConfig,
    XTBConfig,
)
from dipolegnn.units import ROOM_TEMPERATURE_K

_Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Part = Literal["test", "val", "train", "all"]
"""What of a data set to look at."""

# Their helps say what leaving them out means, better than "(default: None)" or "(default: False)".
_Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
_File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
_Column = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Finding out more."""

    debug: _Flag = False
    """Show the Python traceback of an error (also: DIPOLEGNN_DEBUG=1)."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Columns of a .csv; upper and lower case do not matter."""

    smiles_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "smiles"
    """Column of the SMILES."""
    name_column: _Column = None
    """Column of the names; left out: "name" if there is such a column, else the SMILES."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Where the reference dipoles come from."""

    label: Literal["xtb", "dft", "none"] = "xtb"
    """xtb: GFN2-xTB (fast). dft: PySCF (minutes a molecule). none: what the file says."""
    optimize: _Flag = False
    """Relax each geometry first, with the method of the label."""
    fmax: float = XTBConfig.fmax
    """Relaxation: largest remaining force, in eV/angstrom."""
    max_steps: int = XTBConfig.max_steps
    """Relaxation: steps at most; not converged by then is a failure."""
    electronic_temperature: float = XTBConfig.electronic_temperature
    """xtb: electronic temperature, in kelvin."""
    xc: str = DFTConfig.xc
    """dft: functional; b3lypg is B3LYP as Gaussian (and so QM9) defines it."""
    basis: str = DFTConfig.basis
    """dft: basis set; the default is QM9's."""
    grid_level: int = DFTConfig.grid_level
    """dft: integration grid of PySCF, 0 (coarse) to 9."""
    scf_tolerance: float = DFTConfig.scf_tolerance
    """dft: the SCF has converged when the energy changes by less, in hartree."""
    exact_integrals: _Flag = not DFTConfig.density_fit
    """dft: no density fitting. Much slower, and dipoles change by about 0.001 D."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Training, validation and test molecules; all conformers of a molecule stay together."""

    split: Literal["random", "size", "scaffold"] = "random"
    """At random; the largest molecules for testing; or scaffolds (rings) that were never seen."""
    val: float = 0.1
    """Fraction of the molecules for validation."""
    test: float = 0.1
    """Fraction of the molecules for testing."""
    split_seed: int = 0
    """Seed of the draw."""


@dataclass(frozen=True, kw_only=True)
class Build(Debug):
    """Make a data set: read molecules, embed them, label them with dipoles, split them.

    INPUT is .smi, .csv or .parquet (SMILES, embedded in 3D), .sdf, .xyz or .extxyz (structures),
    all but .parquet also as .gz. Interrupted, the same command goes on where it stopped.

    Exit status: 0 all molecules are in the data set; 1 some failed, and are listed in
    DIR/failures.csv; 2 nothing was built.
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """File of molecules."""
    output: _Folder
    """Folder of the data set."""
    overwrite: _Flag = False
    """Replace the data set that is in DIR. Labels that it has are not computed again."""
    magnitude_column: _Column = None
    """Column of a .csv with reference dipole magnitudes in debye (with --label none)."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Processes; left out: one per core."""
    csv: TableOptions = TableOptions()
    conformer: ConformerConfig = field(default_factory=ConformerConfig)
    label: LabelOptions = LabelOptions()
    split: SplitOptions = SplitOptions()


@dataclass(frozen=True, kw_only=True)
class Train(Debug):
    """Train a model on a data set.

    RUN gets model.safetensors (the model), history.csv (every epoch), metrics.json, config.json,
    checkpoints and TensorBoard logs. The test molecules are looked at once, at the end.

    Exit status: 0 trained; 2 an error; 130 interrupted (Ctrl-C), and --resume goes on.
    """

    data: _Folder
    """Folder of a data set (made by `dipolegnn build`)."""
    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    resume: _Flag = False
    """Go on with the run in RUN, with its own settings; start it if there is none. The result is
    equal to the last bit on the same CPU with the same number of threads, which is taken up from
    RUN; elsewhere it differs by rounding."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Start from the weights of a model, and with its architecture: the name of one that comes
    along, a model file, or the folder of a run. For few molecules, or another level of theory."""
    config: _File = None
    """Take the defaults of all settings below from a config.json; flags override them."""
    time_limit: Annotated[float | None, tyro.conf.arg(metavar="MINUTES", help_behavior_hint="")] = (
        None
    )
    """Stop after the last epoch that ends in time; with --scheduler plateau it costs least."""
    quiet: _Flag = False
    """Show no progress."""
    devices: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Devices per node that train together (GPUs, or processes on a CPU). Each adds a batch of
    --batch-size to an optimizer step. torchrun and srun must start one process for each."""
    num_nodes: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Nodes with that many devices each."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Debug):
    """Measure a model on a part of a data set.

    DIR gets metrics.json, predictions.csv (one line per structure, in debye), parity.png, and
    errors.png: the error by size, element and magnitude.

    Exit status: 0 measured; 2 an error.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Name of a model that comes along, a model file, or the folder of a run."""
    data: _Folder
    """Folder of a data set."""
    output: _Folder
    """Folder for the results."""
    split: Annotated[Part, tyro.conf.arg(metavar="PART")] = "test"
    """Part of the data set: test, val, train or all."""


@dataclass(frozen=True, kw_only=True)
class Predict(Debug):
    """Predict dipole moments, in debye, from SMILES or from files of molecules.

    An argument that ends in .smi, .csv, .sdf, .xyz or .extxyz (or one of these and .gz) or in
    .parquet is a file, - is SMILES from standard input, one per line as in a .smi, any other a
    SMILES. SMILES are embedded in 3D; structures are taken as they are. The magnitude is the
    Boltzmann average over the conformers, by their force-field energies. The vector is that of the
    lowest conformer, in the frame of the geometry that is printed or written; an ion's refers to
    its centre of mass (in .extxyz, as in ASE, to the origin of the coordinates). Arguments after --
    are never options.

    Without --model it is $DIPOLEGNN_MODEL, else one that comes with the package: for SMILES
    painn-qm9-mmff94s, which expects the geometries that they are given here, for structures
    painn-qm9. Such a model refuses elements that it was not trained on.

    Files of any size become one file (--output; all suffixes but .json) with little memory, and
    nothing is printed then. If such a run is killed, the same command goes on where it stopped.

    Exit status: 0 all predicted; 1 some molecules failed, and are listed; 2 an error.
    """

    molecules: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SMILES_OR_FILE ...", help_behavior_hint="(required)"),
    ]
    """SMILES (in quotes, because of the shell) and files."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Name of a model that comes along, a model file, or the folder of a run; left out: see
    above."""
    json: _Flag = False
    """Write JSON to standard output instead of tables."""
    output: _File = None
    """Write to a file as well: .csv, .parquet, .json, or structures (all conformers) as .sdf,
    .extxyz or .xyz; .csv and structures also with .gz behind it."""
    picture: _File = None
    """Draw the lowest conformers with their dipole moments: .png, .svg (one file per molecule) or
    .html (to be turned with the mouse; needs the extra app)."""
    temperature: float = ROOM_TEMPERATURE_K
    """Temperature of the Boltzmann average, in kelvin."""
    coverage: float = COVERAGE
    """How often the error bars hold, between 0 and 1."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Processes that embed SMILES, worth it for hundreds of molecules; left out: one per core where
    files become a file, else 1."""
    csv: TableOptions = TableOptions()
    conformer: ConformerConfig = field(default_factory=ConformerConfig)


@dataclass(frozen=True, kw_only=True)
class Export(Debug):
    """Write a model as a program that runs without dipolegnn.

    FILE.pt2 is for PyTorch (torch.export), FILE.onnx for ONNX Runtime and others (extra onnx). The
    program takes z [N], pos [N, 3] in angstrom, num_atoms [B] and charge [B] in e, for any numbers
    of atoms N and molecules B, and gives dipole [B, 3] and magnitude [B] in debye and charges [N]
    in e. Error bars are not in it, and it does not refuse any elements.

    Exit status: 0 written; 2 an error.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Name of a model that comes along, a model file, or the folder of a run."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """File of the program: .pt2 or .onnx."""


@dataclass(frozen=True, kw_only=True)
class Serve(Debug):
    """Show a page in the browser: SMILES or a file in, molecule and dipole moment out.

    For this machine only, unless --host says otherwise; there is no password. Nothing is kept, and
    the page asks no other machine for anything. Needs the extra app.
    """

    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen at."""
    port: Annotated[int, tyro.conf.arg(metavar="INT")] = 8050
    """Port; 0: any that is free."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """Name of a model that comes along, a model file, or the folder of a run; left out: as for
    predict."""
