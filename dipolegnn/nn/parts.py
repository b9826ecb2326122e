"""Base classes of the two parts of a model: representation and head.

A part defines its configuration; a head also defines its outputs, labels, loss and metrics.
Saving, training, export and the commands use only these definitions, so that a new part needs no
change elsewhere.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from dipolegnn._pyg import Data
from dipolegnn.config import JSON, TrainConfig
from dipolegnn.nn.graph import RadiusGraph, can_check_values
from dipolegnn.nn.scatter import spread

Edges = Tensor | RadiusGraph
"""``edge_index [2, E]`` for plain PyTorch, or a ``RadiusGraph``, which allows fused kernels."""

P = TypeVar("P", bound="Part")


class Part(nn.Module, ABC):
    """A part of a model that can be saved and rebuilt.

    A subclass stores every argument of its constructor in an attribute of the same name, as
    scikit-learn estimators do. The arguments must be JSON values (numbers, strings, lists).
    """

    @property
    def config(self) -> dict[str, JSON]:
        """Arguments of the constructor, by name.

        Raises:
            TypeError: If the part does not store one of them.
        """
        for name in self.settings():
            if not hasattr(self, name):
                raise TypeError(
                    f"{type(self).__name__} has the argument {name} and no attribute of that name, "
                    "so it cannot be saved. Add it in the constructor: self."
                    f"{name} = {name}"
                )
        return {name: getattr(self, name) for name in self.settings()}

    @classmethod
    def settings(cls) -> Mapping[str, inspect.Parameter]:
        """Parameters of the constructor, by name."""
        parameters = inspect.signature(cls).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(
                    f"{cls.__name__} takes {parameter}: its configuration is not known from its "
                    "signature. Name each argument."
                )
        return {parameter.name: parameter for parameter in parameters}

    @classmethod
    def from_config(cls: type[P], config: Mapping[str, Any]) -> P:
        """Builds a part with new weights from a value of :attr:`config`.

        Raises:
            ValueError: If an argument is missing, unknown or out of range.
        """
        known = cls.settings()
        unknown = sorted(config.keys() - known.keys())
        missing = [
            name
            for name, parameter in known.items()
            if parameter.default is parameter.empty and name not in config
        ]
        if unknown or missing:
            problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {missing[0]}"
            raise ValueError(
                f"{cls.__name__} has the settings {', '.join(known)}; {problem}. A newer version "
                "of dipolegnn or of the class may have others."
            )
        try:
            return cls(**config)
        except TypeError as error:  # a text where a number belongs
            raise ValueError(
                f"{cls.__name__} cannot be made from {dict(config)}: {error}."
            ) from error

    def reset_parameters(self) -> None:
        """Draws new weights for all layers, as in the constructor."""
        for layer in self.modules():
            reset = getattr(layer, "reset_parameters", None)
            if layer is not self and callable(reset):
                reset()


class AtomFeatures(NamedTuple):
    """Features of each atom, as a representation returns them.

    Attributes:
        s: Scalar features ``[N, F]``, unchanged by rotation.
        v: Vector features ``[N, 3, F]``, which rotate with the molecule; None where the
            representation has none (SchNet).
    """

    s: Tensor
    v: Tensor | None


class Geometry(NamedTuple):
    """Atoms, molecules and charges of a batch, as a head gets them.

    A fragment is a part of a molecule without bonds to the rest, such as an ion of an ion pair. A
    molecule without separate parts is one fragment.

    Attributes:
        pos: Positions ``[N, 3]`` in angstrom, relative to the centre of mass of the molecule.
        ptr: First atom of each molecule, and N: ``[B + 1]``.
        charge: Total charge of each molecule ``[B]`` in e.
        fragment: Number of the fragment of each atom ``[N]``, unique in the batch and below N.
        fragment_charge: Total charge of the fragment of each atom ``[N]`` in e.
    """

    pos: Tensor
    ptr: Tensor
    charge: Tensor
    fragment: Tensor
    fragment_charge: Tensor

    @classmethod
    def of(
        cls,
        pos: Tensor,
        ptr: Tensor,
        charge: Tensor,
        fragment: Tensor | None = None,
        fragment_charge: Tensor | None = None,
    ) -> Geometry:
        """Completes the fields of molecules of one fragment each.

        Args:
            pos: Positions ``[N, 3]`` in angstrom.
            ptr: First atom of each molecule, and N: ``[B + 1]``.
            charge: Total charge of each molecule ``[B]`` in e.
            fragment: Number of the fragment of each atom ``[N]``, from 0 in each molecule.
            fragment_charge: Total charge of the fragment of each atom ``[N]`` in e.
        """
        atoms = pos.size(0)
        # Fragments are numbered by the place of an atom: unique without counting them, which would
        # synchronize with a GPU.
        first = spread(ptr[:-1], ptr, atoms)
        return cls(
            pos,
            ptr,
            charge,
            first if fragment is None else first + fragment,
            spread(charge, ptr, atoms) if fragment_charge is None else fragment_charge,
        )


class Representation(Part):
    """Computes features of each atom from its neighbourhood.

    A subclass sets ``hidden_channels`` and ``cutoff`` and implements :meth:`forward`.
    """

    has_vectors: ClassVar[bool] = False
    """True if ``v`` is returned."""
    hidden_channels: int
    """Width F of the features."""
    cutoff: float
    """Cutoff radius of the graph in angstrom."""
    levels: Sequence[str] = ()
    """Levels of theory that the representation distinguishes, the default first. If there are any,
    ``forward`` has a fourth argument: the level of each atom ``[N]``, an index into this list;
    None for the first."""

    @abstractmethod
    def forward(self, z: Tensor, pos: Tensor, edge_index: Edges) -> AtomFeatures:
        """Computes the features.

        Args:
            z: Atomic numbers ``[N]``.
            pos: Positions ``[N, 3]`` in angstrom.
            edge_index: ``[2, E]``: row 0 sources j, row 1 targets i.

        Returns:
            ``s [N, F]``, and ``v [N, 3, F]`` or None.
        """

    def why_not_fused(self) -> str | None:
        """Reason why fused kernels cannot run; None if ``forward`` can use a ``RadiusGraph``."""
        return f"{type(self).__name__} has no kernels"

    def fused_pays(self, num_edges: int) -> bool:
        """True if the fused kernels are expected to be faster for this number of edges."""
        return True


class OutputField(NamedTuple):
    """An output of a head.

    Attributes:
        shape: Dimensions: ``"N"`` atoms, ``"B"`` molecules.
        unit: Unit.
    """

    shape: tuple[str | int, ...]
    unit: str


class HeadMetric(NamedTuple):
    """A metric of a head, computed on training, validation and test molecules.

    Attributes:
        error: Function of predictions and labels that returns the error of each molecule ``[B]``,
            NaN for molecules without a label.
        target: Name of the target in :meth:`Head.targets`.
        text: Format for printing, with the unit: ``"MAE {:.4f} D"``.
        unit: Unit in files.
        root: True to take the square root of the mean.
    """

    error: Callable[[Tensor, Tensor], Tensor]
    target: str
    text: str
    unit: str
    root: bool = False


class Target(NamedTuple):
    """A predicted quantity and its label.

    Attributes:
        predicted: Predictions ``[B, ...]``.
        reference: Labels of the same shape; NaN for molecules without a label.
    """

    predicted: Tensor
    reference: Tensor


Output = TypeVar("Output", bound=tuple[Any, ...])
"""Named tuple that a head returns."""


class Head(Part, Generic[Output]):
    """Predicts a property of each molecule from the features of its atoms.

    A subclass sets ``hidden_channels``, defines ``outputs`` and ``metrics``, and implements
    :meth:`forward` and :meth:`targets`. The default loss uses the first target.
    """

    hidden_channels: int
    """Width F of the input features."""
    outputs: ClassVar[Mapping[str, OutputField]]
    """Fields of the named tuple that ``forward`` returns."""
    metrics: ClassVar[Mapping[str, HeadMetric]]
    """Metrics by name, as in ``val/dipole_mae``; the first is shown during training."""
    compares_conformers: ClassVar[bool] = False
    """True if training batches should contain the conformers of a molecule together."""

    @abstractmethod
    def forward(self, features: AtomFeatures, geometry: Geometry) -> Output:
        """Predicts the property.

        Args:
            features: Features of the atoms.
            geometry: Positions, molecules and charges of the batch.
        """

    @abstractmethod
    def targets(self, output: Output, batch: Data) -> Mapping[str, Target]:
        """Returns pairs of predictions and labels of a batch by name; see :func:`label`."""

    def losses(self, output: Output, batch: Data, config: TrainConfig) -> tuple[Tensor, Tensor]:
        r"""Computes the loss of each molecule from the norm of the error of the first target.

        Args:
            output: Output of the head for the batch.
            batch: A batch with labels.
            config: Kind of loss; its ``huber_beta`` is in the unit of the target.

        Returns:
            Losses ``[B]``, 0 without a label, and whether each molecule has a label ``[B]``.

        Raises:
            ValueError: If no molecule of a batch on the CPU has a label.
        """
        kind, target = next(iter(self.targets(output, batch).items()))
        reference = target.reference.reshape(target.reference.size(0), -1)  # [B, D]
        labelled = reference.isfinite().all(dim=1)  # [B]
        require_label(labelled, batch, kind)
        # Fill before subtracting: masking a NaN afterwards leaves a NaN gradient.
        filled = reference.where(labelled.unsqueeze(1), 0.0)
        squared = (target.predicted.reshape(filled.shape) - filled).square().sum(dim=1)
        return loss_of_error(squared, config).where(labelled, 0.0), labelled

    def fitted_to(self, representation: Representation) -> Head[Output]:
        """Returns this head, or a new one adapted to the representation.

        Raises:
            ValueError: If head and representation are incompatible.
        """
        return self


def label(batch: Data, field: str, shape: str) -> Tensor:
    """Returns a label field of a batch.

    Args:
        batch: The batch.
        field: Name of the field.
        shape: Shape of the field, for the error message.

    Raises:
        ValueError: If the batch does not have the field.
    """
    found = batch.get(field)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"The head is trained on the field {field} {shape} of each Data, and the data set has "
            f"{', '.join(sorted(batch.keys()))}. Add it, NaN where a molecule has no label."
        )
    return found


def require_label(labelled: Tensor, batch: Data, kind: str) -> None:
    """Raises an error for a batch on the CPU without labels; on a GPU the loss is NaN.

    Raises:
        ValueError: If no molecule has a label.
    """
    if can_check_values(labelled) and not bool(labelled.any()):
        numbers = batch.get("mol_id")
        named = "" if numbers is None else f" (mol_id {numbers.tolist()})"
        raise ValueError(
            f"No molecule of this batch has a {kind}{named}. Label the molecules, or leave those "
            "without a label out of the split."
        )


def loss_of_error(squared: Tensor, config: TrainConfig) -> Tensor:
    r"""Loss of an error e, given its square.

    ======  ==================================================================
    mse     :math:`e^2`
    l1      :math:`|e|`
    huber   :math:`e^2 / 2\beta` where :math:`|e| < \beta`, else :math:`|e| - \beta / 2`
    ======  ==================================================================

    Args:
        squared: Squared errors ``[B]``. For a vector or tensor, the squared norm of the error: a
            loss of single components would depend on the orientation of the molecule.
        config: Kind of loss, and beta of the Huber loss in the unit of the error.

    Returns:
        Losses ``[B]``.
    """
    if config.loss == "mse":
        return squared
    beta = config.huber_beta if config.loss == "huber" else 0.0
    far = squared > beta**2
    # The square root is taken only where it is used: its gradient is infinite at 0.
    linear = squared.where(far, 1.0).sqrt() - beta / 2
    near = squared / (2 * beta) if beta > 0 else squared
    return linear.where(far, near)
