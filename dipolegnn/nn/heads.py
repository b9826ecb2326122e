"""Heads: map the features of the atoms to the dipole moment of the molecule."""

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
    Geometry,
    Head,
    HeadMetric,
    OutputField,
    Representation,
    Target,
    label,
    loss_of_error,
    require_label,
)
from dipolegnn.nn.scatter import segment
from dipolegnn.units import DEBYE_PER_E_ANGSTROM


class DipoleOutput(NamedTuple):
    """Prediction of a dipole model for a batch of B molecules with N atoms.

    Attributes:
        dipole: Dipole moment ``[B, 3]`` in debye; NaN if the head predicts only magnitudes.
        magnitude: Magnitude of the dipole moment ``[B]`` in debye.
        charges: Atomic charges ``[N]`` in e; NaN if the head predicts none.
    """

    dipole: Tensor
    magnitude: Tensor
    charges: Tensor


class BaseDipoleHead(Head[DipoleOutput]):
    r"""Base class of heads that predict dipole moments: labels, loss and metrics.

    The loss is a function of an error e: the length of the error vector, :math:`|\mu - \mu_0|`, for
    a molecule with a dipole vector, and the error of the magnitude, :math:`|\mu| - |\mu_0|`, for a
    molecule with only a magnitude. ``TrainConfig.charge_loss`` adds the error of the atomic charges
    (labels ``atomic_charges [N]`` in e). Labels are ``dipole [B, 3]`` and ``dipole_magnitude [B]``
    in debye, NaN where unknown.
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
        """Last layer of the head, used for last-layer gradients; None: no error bars."""
        return None

    def targets(self, output: DipoleOutput, batch: Data) -> Mapping[str, Target]:
        """Returns magnitudes and, if the head predicts them, vectors, with their labels."""
        found = {"magnitude": Target(output.magnitude, label(batch, "dipole_magnitude", "[1]"))}
        if "dipole" in self.outputs:
            found["vector"] = Target(output.dipole, label(batch, "dipole", "[1, 3]"))
        return found

    def losses(
        self, output: DipoleOutput, batch: Data, config: TrainConfig
    ) -> tuple[Tensor, Tensor]:
        """Computes the loss of each molecule from its vector, or its magnitude.

        All tensor sizes are independent of the labels, which avoids GPU synchronizations.
        """
        targets = self.targets(output, batch)
        magnitude = targets["magnitude"]
        labelled = magnitude.reference.isfinite()  # [B]
        # Fill before subtracting: masking a NaN afterwards leaves a NaN gradient.
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
        losses = loss_of_error(squared, config)
        if config.charge_loss:
            losses = losses + config.charge_loss * self._charge_error(output, batch)
        return losses.where(labelled, 0.0), labelled

    def _charge_error(self, output: DipoleOutput, batch: Data) -> Tensor:
        """Mean squared error of the atomic charges ``[B]`` in e², 0 for molecules without labels.

        Raises:
            ValueError: If the head predicts no charges.
        """
        if "charges" not in self.outputs:
            raise ValueError(
                f"{type(self).__name__} predicts no atomic charges; set charge_loss to 0."
            )
        reference = label(batch, "atomic_charges", "[N]")
        known = reference.isfinite()
        squared = (output.charges - reference.where(known, 0.0)).square().where(known, 0.0)
        ptr = batch.get("ptr")
        if ptr is None:
            ptr = torch.tensor([0, squared.size(0)], device=squared.device)
        return segment(squared, ptr, reduce="mean")


class DipoleHead(BaseDipoleHead):
    r"""Dipole moment from atomic charges and atomic dipoles.

    .. math:: \mu = \sum_i q_i r_i + \mu_i, \qquad \sum_i q_i = Q

    Two :class:`GatedEquivariantBlock` compute the charges from the scalar features and the atomic
    dipoles from the vector features. Without vector features, a two-layer network computes the
    charges from the scalars, and there are no atomic dipoles. The difference between the total
    charge Q of a fragment and the sum of its charges is distributed over its atoms. From PhysNet
    (Unke and Meuwly, arXiv:1902.08408) and PaiNN (arXiv:2102.03150, equation 11); weights as in
    AIMNet (Zubatyuk et al., Nat. Commun. 12, 4870, 2021).

    The charges are fitted to reproduce the dipole; unless the model is trained on reference charges
    as well, they are not those of a population analysis. The charges of each fragment sum to its
    charge, so that the dipole of distant molecules in one ``Data`` is the sum of theirs.

    Args:
        hidden_channels: Width F of the atom features.
        atomic_dipoles: True to use the vector features; None: if the representation has them.
        charge_weights: True to distribute the difference by learned weights, which a two-layer
            network computes from the scalar features; False: evenly.

    Raises:
        ValueError: If ``hidden_channels`` is below 2.
    """

    def __init__(
        self,
        hidden_channels: int,
        atomic_dipoles: bool | None = None,
        charge_weights: bool = False,
    ) -> None:
        super().__init__()
        if hidden_channels < 2:
            raise ValueError(f"hidden_channels must be at least 2, got {hidden_channels}.")
        self.hidden_channels = hidden_channels
        self.atomic_dipoles = atomic_dipoles
        self.charge_weights = charge_weights
        half = hidden_channels // 2
        self.charge: nn.Sequential | None = None
        self.blocks: nn.ModuleList | None = None
        self.weight: nn.Sequential | None = None
        if atomic_dipoles is False:
            self.charge = _scalar_network(hidden_channels)
        else:
            self.blocks = nn.ModuleList(
                [
                    GatedEquivariantBlock(hidden_channels, half, hidden_channels, activate=True),
                    GatedEquivariantBlock(half, 1, half, activate=False),
                ]
            )
        if charge_weights:
            self.weight = _scalar_network(hidden_channels)

    def fitted_to(self, representation: Representation) -> DipoleHead:
        """Returns this head, or a new one without atomic dipoles if there are no vector features.

        Raises:
            ValueError: If ``atomic_dipoles`` is True and the representation has no vectors.
        """
        if representation.has_vectors or self.atomic_dipoles is False:
            return self
        if self.atomic_dipoles is None:
            like = next(self.parameters())
            return DipoleHead(self.hidden_channels, False, self.charge_weights).to(like)
        raise ValueError(
            "DipoleHead(atomic_dipoles=True) needs vector features, and "
            f"{type(representation).__name__} has none. Use PaiNN, or omit atomic_dipoles: the "
            "dipole is then computed from charges alone."
        )

    def reverse_(self) -> None:
        """Reverses the sign of all charges and dipoles (of neutral molecules), in place.

        Training on magnitudes does not determine the sign of the vectors; one molecule with a known
        direction does. The correction to the total charge of an ion keeps its sign.
        """
        with torch.no_grad():
            for weight in self.last_layer.parameters():
                weight.neg_()

    @property
    def last_layer(self) -> nn.Module:
        """The layer that returns the charges and the gates of the atomic dipoles."""
        network = self.charge
        if network is None:
            assert self.blocks is not None
            block = self.blocks[-1]
            assert isinstance(block, GatedEquivariantBlock)
            network = block.scalars
        return network[-1]

    def forward(self, features: AtomFeatures, geometry: Geometry) -> DipoleOutput:
        """Predicts the dipole moment about the origin of the positions.

        Args:
            features: Features of the atoms.
            geometry: Positions, molecules and charges of the batch.

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
        charges = self._restored(raw, features.s, geometry)
        contribution = charges.unsqueeze(1) * geometry.pos
        if atomic is not None:
            contribution = contribution + atomic
        dipole = DEBYE_PER_E_ANGSTROM * segment(contribution, geometry.ptr)  # [B, 3]
        return DipoleOutput(dipole, torch.linalg.vector_norm(dipole, dim=1), charges)

    def _restored(self, raw: Tensor, s: Tensor, geometry: Geometry) -> Tensor:
        """Charges ``[N]`` that sum to the total charge of each fragment."""
        weight = torch.ones_like(raw)
        if self.weight is not None:
            weight = nn.functional.softplus(self.weight(s).squeeze(1))  # [N]
        # Sums over the atoms of a fragment, which need not be contiguous.
        sums = raw.new_zeros(raw.size(0), 2).index_add(
            0, geometry.fragment, torch.stack([raw, weight], dim=1)
        )
        total, weights = sums.index_select(0, geometry.fragment).unbind(1)  # [N] each
        return raw + (geometry.fragment_charge - total) * weight / weights


def _scalar_network(hidden_channels: int) -> nn.Sequential:
    """Two layers from the scalar features to one number per atom."""
    half = hidden_channels // 2
    return nn.Sequential(Linear(hidden_channels, half), nn.SiLU(), Linear(half, 1))


class GatedEquivariantBlock(nn.Module):
    r"""Gated equivariant block of PaiNN (figure 3): scalars gate vectors.

    .. math::
        (s', g) &= \mathbf{W}_2\, \mathrm{SiLU}\left(\mathbf{W}_1
            [s, \lVert \mathbf{V} v \rVert] + b_1\right) + b_2 \\
        v' &= g \circ \mathbf{W} v

    Args:
        in_channels: Channels F of the inputs ``s`` and ``v``.
        out_channels: Channels F' of each output.
        hidden_channels: Width of the hidden layer.
        activate: True to apply SiLU to the output scalars.
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
    """Norms ``[N, F]`` of vectors ``[N, 3, F]``, with gradient 0 where a vector is 0.

    Equal to ``torch.linalg.vector_norm``, and twenty times as fast over a dimension of 3.
    """
    square = v.square().sum(dim=1)
    zero = square == 0
    return torch.where(zero, square, torch.where(zero, 1.0, square).sqrt())


class AtomwiseHead(BaseDipoleHead):
    r"""Magnitude of the dipole as a sum or mean of atomic scalars.

    .. math:: |\mu| \approx \sum_i f(s_i) \quad\text{or}\quad \frac1N \sum_i f(s_i)

    For reproducing published models. A dipole magnitude is not a sum of invariants: the prediction
    can be negative, is not 0 for benzene, and (with the sum) doubles for two distant molecules. The
    total charge is ignored.

    Args:
        hidden_channels: Width F of the atom features.
        aggregation: ``"sum"`` or ``"mean"`` over the atoms of a molecule.

    Raises:
        ValueError: If ``hidden_channels`` is below 2 or ``aggregation`` has another value.
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
        self.layers = _scalar_network(hidden_channels)

    @property
    def last_layer(self) -> nn.Module:
        """The layer that returns the atomic scalars."""
        return self.layers[-1]

    def forward(self, features: AtomFeatures, geometry: Geometry) -> DipoleOutput:
        """Predicts the magnitude; positions and charges are not used."""
        scalars = self.layers(features.s).squeeze(1)  # [N]
        magnitude = segment(scalars, geometry.ptr, reduce=self.aggregation)  # [B]
        unknown = torch.full_like(geometry.pos, torch.nan)  # [N, 3]
        return DipoleOutput(unknown[: magnitude.numel()], magnitude, unknown[:, 0])
