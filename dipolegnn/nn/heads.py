"""Heads: from the features of the atoms to the dipole moment of the molecule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dipolegnn._pyg import Data
from dipolegnn.config import TrainConfig
from dipolegnn.nn.errors import absolute_error, angle, length_of_error, squared_error
from dipolegnn.nn.features import Linear
from dipolegnn.nn.parts import (
    AtomFeatures,
    Head,
    HeadMetric,
    OutputField,
    Representation,
    Target,
    label,
    loss_of_error,
    require_label,
)
from dipolegnn.nn.scatter import segment, spread
from dipolegnn.units import DEBYE_PER_E_ANGSTROM


class DipoleOutput(NamedTuple):
    """What a dipole model predicts for a batch of B molecules with N atoms.

    Attributes:
        dipole: Dipole moment ``[B, 3]`` in debye; NaN from a head that has only a magnitude.
        magnitude: Its magnitude ``[B]`` in debye.
        charges: Atomic charges ``[N]`` in e; NaN from a head that has none.
    """

    dipole: Tensor
    magnitude: Tensor
    charges: Tensor


class BaseDipoleHead(Head[DipoleOutput]):
    r"""A head that predicts dipole moments: their labels, loss and metrics.

    The loss is that of an error e: the length of the error vector, :math:`|\mu - \mu_0|`, of a
    molecule that has a dipole vector, and the error of the magnitude, :math:`|\mu| - |\mu_0|`, of
    one that has only that. Labels are ``dipole [B, 3]`` and ``dipole_magnitude [B]`` in debye, NaN
    where unknown.
    """

    outputs: ClassVar[Mapping[str, OutputField]] = {
        "dipole": OutputField(("B", 3), "debye"),
        "magnitude": OutputField(("B",), "debye"),
        "charges": OutputField(("N",), "e"),
    }
    metrics: ClassVar[Mapping[str, HeadMetric]] = {
        "dipole_mae": HeadMetric(absolute_error, "magnitude", "MAE {:.4f} D", "debye"),
        "dipole_rmse": HeadMetric(squared_error, "magnitude", "RMSE {:.4f} D", "debye", root=True),
        "vector_mae": HeadMetric(length_of_error, "vector", "MAE {:.4f} D", "debye"),
        "angle": HeadMetric(angle, "vector", "angle {:.1f}°", "degree"),
    }

    @property
    def last_layer(self) -> nn.Module | None:
        """The layer whose outputs determine the dipole; error bars are made from its inputs.

        None if the head has no such layer; the model then has no error bars.
        """
        return None

    def targets(self, output: DipoleOutput, batch: Data) -> Mapping[str, Target]:
        """Magnitudes, and vectors if the head has them."""
        found = {"magnitude": Target(output.magnitude, label(batch, "dipole_magnitude", "[1]"))}
        if "dipole" in self.outputs:
            found["vector"] = Target(output.dipole, label(batch, "dipole", "[1, 3]"))
        return found

    def losses(
        self, output: DipoleOutput, batch: Data, config: TrainConfig
    ) -> tuple[Tensor, Tensor]:
        """The loss of each molecule, by its vector if it has one, else by its magnitude.

        Nothing here has a size that depends on the labels, so that no step waits for a GPU.
        """
        targets = self.targets(output, batch)
        magnitude = targets["magnitude"]
        labelled = magnitude.reference.isfinite()  # [B]
        # Filled before subtracting: a NaN that is masked afterwards comes back in the gradient.
        error = magnitude.predicted - magnitude.reference.where(labelled, 0.0)
        squared = error.square()
        if "vector" in targets:
            vector = targets["vector"]
            has_vector = vector.reference.isfinite().all(dim=1)  # [B]
            difference = vector.predicted - vector.reference.where(has_vector.unsqueeze(1), 0.0)
            squared = difference.square().sum(dim=1).where(has_vector, squared)
            labelled = labelled | has_vector
        kind = "dipole vector or magnitude" if "vector" in targets else "dipole magnitude"
        require_label(labelled, batch, kind)
        return loss_of_error(squared, config).where(labelled, 0.0), labelled


class DipoleHead(BaseDipoleHead):
    r"""Dipole moment from atomic charges and atomic dipoles.

    .. math:: \mu = \sum_i q_i r_i + \mu_i, \qquad \sum_i q_i = Q

    The charges come from the scalar features, the atomic dipoles from the vector features,
    through two :class:`GatedEquivariantBlock`; without vector features the charges come from a
    small network of the scalars alone and there are no atomic dipoles. What the charges lack to
    the total charge Q is spread evenly over the atoms of the molecule. From PhysNet (Unke and
    Meuwly, arXiv:1902.08408) and PaiNN (arXiv:2102.03150, equation 11).

    The charges are what the dipole asks for, not those of any population analysis. Because only
    the sum of all of them is fixed, molecules that lie far apart in one ``Data`` still exchange
    charge; give each molecule a ``Data`` of its own.

    Args:
        hidden_channels: Width F of the atom features.
        atomic_dipoles: Whether to use the vector features; None: where the representation has
            them.

    Raises:
        ValueError: If ``hidden_channels`` is below 2.
    """

    def __init__(self, hidden_channels: int, atomic_dipoles: bool | None = None) -> None:
        super().__init__()
        if hidden_channels < 2:
            raise ValueError(f"hidden_channels must be at least 2, got {hidden_channels}.")
        self.hidden_channels = hidden_channels
        self.atomic_dipoles = atomic_dipoles
        half = hidden_channels // 2
        self.charge: nn.Sequential | None = None
        self.blocks: nn.ModuleList | None = None
        if atomic_dipoles is False:
            self.charge = nn.Sequential(Linear(hidden_channels, half), nn.SiLU(), Linear(half, 1))
        else:
            self.blocks = nn.ModuleList(
                [
                    GatedEquivariantBlock(hidden_channels, half, hidden_channels, activate=True),
                    GatedEquivariantBlock(half, 1, half, activate=False),
                ]
            )

    def fitted_to(self, representation: Representation) -> DipoleHead:
        """The head for a representation with or without vectors: this one, or a new one.

        Raises:
            ValueError: If atomic dipoles are required and there are no vectors.
        """
        if representation.has_vectors or self.atomic_dipoles is False:
            return self
        if self.atomic_dipoles is None:
            like = next(self.parameters())
            return DipoleHead(self.hidden_channels, atomic_dipoles=False).to(like)
        raise ValueError(
            "DipoleHead(atomic_dipoles=True) needs vector features, and "
            f"{type(representation).__name__} has none. Use PaiNN, or leave atomic_dipoles out: "
            "the dipole is then made of charges alone."
        )

    def reverse_(self) -> None:
        """Turns all dipoles of neutral molecules, and all charges, into their opposites, in place.

        Magnitudes alone leave the sign of the vectors open; one molecule with a known direction
        settles it for all. (What is added to reach the total charge of an ion stays as it is.)
        """
        with torch.no_grad():
            for weight in self.last_layer.parameters():
                weight.neg_()

    @property
    def last_layer(self) -> nn.Module:
        """The layer that the charges, and the gate of the atomic dipoles, come out of."""
        network = self.charge
        if network is None:
            assert self.blocks is not None
            block = self.blocks[-1]
            assert isinstance(block, GatedEquivariantBlock)
            network = block.scalars
        return network[-1]

    def forward(
        self, features: AtomFeatures, pos: Tensor, ptr: Tensor, charge: Tensor
    ) -> DipoleOutput:
        """Predicts the dipole moment about the origin of ``pos``.

        Args:
            features: Features of the atoms.
            pos: Positions ``[N, 3]`` in angstrom. The dipole of an ion refers to their origin.
            ptr: First atom of each molecule, and N: ``[B + 1]``.
            charge: Total charge ``[B]`` in e.

        Returns:
            Dipole, magnitude and charges.
        """
        if self.charge is not None:
            raw = self.charge(features.s).squeeze(1)  # [N]
            atomic = None
        else:
            assert self.blocks is not None and features.v is not None
            s, v = features.s, features.v
            for block in self.blocks:
                s, v = block(s, v)
            raw, atomic = s.squeeze(1), v.squeeze(2)  # [N], [N, 3]
        missing = (charge - segment(raw, ptr)) / ptr.diff()  # [B]
        charges = raw + spread(missing, ptr, raw.size(0))
        contribution = charges.unsqueeze(1) * pos
        if atomic is not None:
            contribution = contribution + atomic
        dipole = DEBYE_PER_E_ANGSTROM * segment(contribution, ptr)  # [B, 3]
        return DipoleOutput(dipole, torch.linalg.vector_norm(dipole, dim=1), charges)


class GatedEquivariantBlock(nn.Module):
    r"""Scalars that gate vectors, so that both stay what they are under rotation (figure 3).

    .. math::
        (s', g) &= \mathbf{W}_2\, \mathrm{SiLU}\left(\mathbf{W}_1
            [s, \lVert \mathbf{V} v \rVert] + b_1\right) + b_2 \\
        v' &= g \circ \mathbf{W} v

    Args:
        in_channels: Channels of ``s`` and ``v`` that come in.
        out_channels: Channels of each that go out.
        hidden_channels: Width of the hidden layer.
        activate: Whether SiLU is applied to the scalars that go out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int, activate: bool
    ) -> None:
        super().__init__()
        self.vectors = Linear(in_channels, 2 * out_channels, bias=False)
        self.scalars = nn.Sequential(
            Linear(in_channels + out_channels, hidden_channels),
            nn.SiLU(),
            Linear(hidden_channels, 2 * out_channels),
        )
        self.activation = nn.SiLU() if activate else nn.Identity()

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``[N, F]`` and ``[N, 3, F]`` to ``[N, F']`` and ``[N, 3, F']``."""
        vv, wv = self.vectors(v).chunk(2, dim=2)  # [N, 3, F'] each
        norm = _norm(vv)  # [N, F']
        s, gate = self.scalars(torch.cat([s, norm], dim=1)).chunk(2, dim=1)
        return self.activation(s), gate.unsqueeze(1) * wv


def _norm(v: Tensor) -> Tensor:
    """Norms ``[N, F]`` of vectors ``[N, 3, F]``, with the gradient 0 where a vector is 0.

    As ``torch.linalg.vector_norm``, which takes twenty times as long over a dimension of 3.
    """
    square = v.square().sum(dim=1)
    zero = square == 0
    return torch.where(zero, square, torch.where(zero, 1.0, square).sqrt())


class AtomwiseHead(BaseDipoleHead):
    r"""The magnitude as a sum or mean of atomic scalars.

    .. math:: |\mu| \approx \sum_i f(s_i) \quad\text{or}\quad \frac1N \sum_i f(s_i)

    It is here to reproduce models that did so. A dipole is not a sum of invariants: this one can
    be negative, doubles for two distant molecules (the sum), and is not 0 for benzene. It ignores
    the total charge.

    Args:
        hidden_channels: Width F of the atom features.
        aggregation: ``"sum"`` or ``"mean"`` over the atoms of a molecule.

    Raises:
        ValueError: If an argument is not one of those.
    """

    outputs: ClassVar[Mapping[str, OutputField]] = {"magnitude": OutputField(("B",), "debye")}

    def __init__(self, hidden_channels: int, aggregation: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        if hidden_channels < 2:
            raise ValueError(f"hidden_channels must be at least 2, got {hidden_channels}.")
        if aggregation not in ("sum", "mean"):
            raise ValueError(f"aggregation must be 'sum' or 'mean', got {aggregation!r}.")
        self.hidden_channels = hidden_channels
        self.aggregation: Literal["sum", "mean"] = aggregation
        half = hidden_channels // 2
        self.layers = nn.Sequential(Linear(hidden_channels, half), nn.SiLU(), Linear(half, 1))

    @property
    def last_layer(self) -> nn.Module:
        """The layer that the atomic scalars come out of."""
        return self.layers[-1]

    def forward(
        self, features: AtomFeatures, pos: Tensor, ptr: Tensor, charge: Tensor
    ) -> DipoleOutput:
        """Predicts the magnitude alone; ``pos`` and ``charge`` play no part in it."""
        scalars = self.layers(features.s).squeeze(1)  # [N]
        magnitude = segment(scalars, ptr, reduce=self.aggregation)  # [B]
        unknown = torch.full_like(pos, torch.nan)  # [N, 3]
        return DipoleOutput(unknown[: magnitude.numel()], magnitude, unknown[:, 0])
