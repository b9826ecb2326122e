"""The configuration schema: frozen dataclasses.

The options of the commands are generated from these classes. The resolved values are written as
JSON to the folder of a run and to every saved model. Invalid values raise an error on construction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dipolegnn.units import ROOM_TEMPERATURE_K

JSON = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None
"""Values of a JSON file."""

COVERAGE = 0.9
"""Default coverage of an error bar: the fraction of references inside."""


def _require(config: object, name: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"{name} must be {expected}, got {getattr(config, name)!r}.")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a dipole model with parts of dipolegnn.nn."""

    representation: str = "painn"
    """Message passing network: painn or schnet (or another representation of dipolegnn.nn)."""
    hidden_channels: int = 128
    """Width F of the atom features."""
    num_interactions: int = 3
    """Number of message passing steps."""
    num_rbf: int = 20
    """Number of radial basis functions."""
    cutoff: float = 5.0
    """Cutoff radius of the graph, in angstrom."""
    radial_basis: Literal["gaussian", "bessel"] = "gaussian"
    """Radial basis functions."""
    head: str = "dipole"
    """dipole: charges, and atomic dipoles if the representation has vectors; charges: charges
    only; atomwise: a sum of atomic scalars, for reproducing published models."""
    atomwise_aggregation: Literal["sum", "mean"] = "sum"
    """Aggregation over atoms in the atomwise head; other heads ignore it."""
    charge_weights: bool = False
    """Restore the total charge by learned weights instead of evenly (heads with charges)."""
    levels: tuple[str, ...] = ()
    """Levels of theory that the model distinguishes, the default first, named as on the cards of
    the data sets."""

    def __post_init__(self) -> None:
        _require(self, "hidden_channels", self.hidden_channels >= 2, "at least 2")
        _require(self, "num_interactions", self.num_interactions >= 1, "at least 1")
        _require(self, "num_rbf", self.num_rbf >= 2, "at least 2")
        _require(self, "cutoff", 0 < self.cutoff < math.inf, "a positive distance in angstrom")


@dataclass(frozen=True)
class TrainConfig:
    """The training recipe."""

    max_epochs: int = 200
    """Maximum number of epochs."""
    batch_size: int = 64
    """Molecules per optimizer step and device."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    loss: Literal["huber", "l1", "mse"] = "huber"
    """Loss on the vector where a molecule has one, else on the magnitude."""
    huber_beta: float = 0.1
    """Error at which the Huber loss changes from quadratic to linear, in debye."""
    charge_loss: float = 0.0
    """Weight of the mean squared error of the atomic charges, in D/e², for labels with charges of a
    population analysis; 0: the charges are fitted to the dipole alone."""
    scheduler: Literal["plateau", "cosine", "onecycle"] = "onecycle"
    """Learning-rate schedule: plateau follows the validation loss, the others are fixed."""
    plateau_factor: float = 0.5
    """Plateau: factor of the learning rate."""
    plateau_patience: int = 11
    """Plateau: epochs without improvement before the learning rate is reduced."""
    plateau_cooldown: int = 5
    """Plateau: epochs after a reduction that are not counted."""
    early_stopping_patience: int | None = None
    """Stop after this many epochs without a better validation loss; None: never. With the plateau
    schedule, less than plateau_patience + plateau_cooldown + 1 halves the rate at most once."""
    ema_decay: float | None = 0.999
    """Decay per step of the exponential moving average of the weights; None: no average."""
    gradient_clip: float | None = 5.0
    """Maximum norm of the gradient; None: no clipping."""
    precision: Literal[32, 64] = 32
    """Floating-point precision in bits."""
    seed: int = 0
    """Seed of the weights and of the order of the batches."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device for training."""

    def __post_init__(self) -> None:
        _require(self, "max_epochs", self.max_epochs >= 1, "at least 1")
        _require(self, "batch_size", self.batch_size >= 1, "at least 1")
        _require(self, "lr", self.lr > 0, "positive")
        _require(self, "weight_decay", self.weight_decay >= 0, "zero or positive")
        _require(self, "huber_beta", self.huber_beta > 0, "positive")
        _require(self, "charge_loss", 0 <= self.charge_loss < math.inf, "0 or more")
        _require(self, "plateau_factor", 0 < self.plateau_factor < 1, "in (0, 1)")
        decay, clip = self.ema_decay, self.gradient_clip
        _require(self, "ema_decay", decay is None or 0 < decay < 1, "in (0, 1), or None")
        _require(self, "gradient_clip", clip is None or clip > 0, "positive, or None")


@dataclass(frozen=True)
class ConformerConfig:
    """Embedding of SMILES in 3D: ETKDGv3, then MMFF94s (UFF where it has no parameters)."""

    conformers: int | Literal["auto"] = 1
    """Conformers embedded per molecule; auto: as many as the molecule needs, 1 (rigid) to 128 by
    its rotatable bonds and flexible rings, in about half a second for a drug-like molecule."""
    conformer_seed: int = 7
    """Seed of the embedding."""
    max_atoms: int = 500
    """Largest number of atoms, hydrogens included, of a SMILES; larger molecules fail."""
    embed_time_limit: int = 60
    """Time limit in seconds for embedding a conformer and for minimizing it. A worker process is
    ended after this times five plus the number of conformers (auto: nine); its molecule fails."""
    embed_memory_limit: float = 2.0
    """Memory limit of a worker process in GB, of which 0.5 are the program (Linux); a molecule that
    needs more fails."""
    stereoisomers: int = 1
    """Maximum number of stereoisomers of a SMILES that does not define its stereochemistry, each
    with a line of its own; mirror images, which have equal magnitudes, count once. 1: one of them,
    determined by the seed."""
    largest_fragment: bool = False
    """Keep only the largest fragment (most atoms) of a SMILES with several, such as a salt; a note
    states what is left out. Charges are not neutralized. Otherwise such a SMILES is refused."""

    def __post_init__(self) -> None:
        _require(self, "max_atoms", self.max_atoms >= 1, "at least 1")
        _require(self, "embed_time_limit", self.embed_time_limit >= 1, "at least 1 second")
        _require(self, "embed_memory_limit", self.embed_memory_limit >= 1, "at least 1 GB")
        count = self.conformers
        _require(self, "conformers", count == "auto" or count >= 1, "at least 1")
        _require(self, "conformer_seed", 0 <= self.conformer_seed < 2**31, "0 to 2147483647")
        _require(self, "stereoisomers", self.stereoisomers >= 1, "at least 1")


EnergyMethod: TypeAlias = Literal["model", "xtb", "mmff"]
"""Method for the energies of conformers."""


@dataclass(frozen=True)
class PredictConfig:
    """Averages over conformers, error bars, and level of theory."""

    embedding: ConformerConfig = ConformerConfig(conformers="auto")
    """Embedding of SMILES; structures are taken as they are."""
    temperature: float = ROOM_TEMPERATURE_K
    """Temperature of the Boltzmann average, in kelvin."""
    coverage: float = COVERAGE
    """Coverage of the error bars, between 0 and 1."""
    level: str | None = None
    """Level of theory, one of those that the model distinguishes; None: the first of the model."""
    energies: EnergyMethod | Literal["auto"] = "auto"
    """Energies of conformers, for their weights: model (trained on DLPNO-CCSD(T)), xtb (GFN2-xTB,
    requires the extra xtb, 10 to 100 ms per conformer), or mmff (force field); also of structures
    of one molecule (same name or mol_id) in a file without energies. Energies in a file are kept.
    auto: model, but structures of the same name are not averaged (frames of a trajectory)."""

    def __post_init__(self) -> None:
        _require(self, "temperature", self.temperature > 0, "positive, in kelvin")
        _require(self, "coverage", 0 < self.coverage < 1, "between 0 and 1")

    @property
    def energy_method(self) -> EnergyMethod:
        """Method for conformers from SMILES, and for structures without energies."""
        return "model" if self.energies == "auto" else self.energies


@dataclass(frozen=True)
class XTBConfig:
    """Labels from GFN2-xTB (tblite)."""

    optimize: bool = False
    """Optimize the geometry with the same method before labelling."""
    fmax: float = 0.02
    """Convergence threshold of the forces, in eV/angstrom."""
    max_steps: int = 500
    """Maximum number of optimization steps; a molecule that does not converge fails."""
    electronic_temperature: float = 300.0
    """Electronic temperature, in kelvin."""


@dataclass(frozen=True)
class DFTConfig:
    """Labels from density functional theory (PySCF)."""

    xc: str = "b3lypg"
    """Functional; b3lypg is B3LYP as defined in Gaussian, used for QM9."""
    basis: str = "6-31g(2df,p)"
    """Basis set; the default is that of QM9, with the exponents of 6-31G."""
    density_fit: bool = True
    """Density fitting: much faster; changes dipoles by about 0.001 D."""
    grid_level: int = 3
    """Integration grid of PySCF, 0 (coarse) to 9; 1 changes dipoles by about 0.001 D."""
    scf_tolerance: float = 1e-9
    """Convergence threshold of the SCF energy, in hartree."""
    optimize: bool = False
    """Optimize the geometry with the same method before labelling."""
    fmax: float = 0.02
    """Convergence threshold of the forces, in eV/angstrom."""
    max_steps: int = 200
    """Maximum number of optimization steps; a molecule that does not converge fails."""
