"""A model: a representation and a head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import torch
from ase.data import atomic_masses
from torch import Tensor, nn

from dipolegnn._pyg import Data
from dipolegnn.config import JSON, ModelConfig
from dipolegnn.nn.calibration import Calibration
from dipolegnn.nn.card import ModelCard
from dipolegnn.nn.features import MAX_Z
from dipolegnn.nn.graph import RadiusGraph
from dipolegnn.nn.heads import BaseDipoleHead, DipoleOutput
from dipolegnn.nn.parts import AtomFeatures, Geometry, Head, Output, Part, Representation
from dipolegnn.nn.scatter import segment, spread

ModelDescription: TypeAlias = dict[str, dict[str, JSON]]
"""Class and arguments of the parts: ``{"representation": {"class": "PaiNN"}, "head": ...}``."""


FROM_FORCE_FIELD = " from MMFF94s geometry"
"""End of the name of a level of theory for structures at geometries of a force field.

At such a level, a model predicts the dipole moment of the relaxed molecule from a structure as
molecules from SMILES have it.
"""


class PropertyModel(nn.Module, Generic[Output]):
    """A representation and a head that predict a property of each molecule of a batch.

    The model builds its own radius graph, with the cutoff of its representation.

    Args:
        representation: Computes the features of each atom.
        head: Predicts the property from the features. A :class:`~dipolegnn.DipoleHead` with
            ``atomic_dipoles=None`` is replaced by a head without them if the representation has no
            vectors; therefore create optimizers from the parameters of the model.
        kernels: Implementation of message passing: ``"fused"`` kernels, ``"plain"`` PyTorch, or
            ``"auto"``, which uses the kernels if they are available. The results are the same. The
            attribute ``kernels`` can be changed later; see :attr:`message_passing`.

    Raises:
        TypeError: If a part is not a :class:`~dipolegnn.nn.Representation` or
            :class:`~dipolegnn.nn.Head`.
        ValueError: If the two have different ``hidden_channels`` or are otherwise incompatible.
    """

    masses: Tensor
    card: ModelCard
    """Name and provenance of the model, if it was loaded from a file."""

    def __init__(
        self,
        representation: Representation,
        head: Head[Output],
        kernels: Literal["auto", "fused", "plain"] = "auto",
    ) -> None:
        super().__init__()
        for part, kind in ((representation, Representation), (head, Head)):
            if not isinstance(part, kind):
                raise TypeError(
                    f"The {kind.__name__.lower()} must be a dipolegnn.nn.{kind.__name__}, got "
                    f"{type(part).__name__}. Derive the class from it."
                )
        name = type(representation).__name__
        if representation.hidden_channels != head.hidden_channels:
            raise ValueError(
                f"{name} has hidden_channels={representation.hidden_channels} and "
                f"{type(head).__name__} expects {head.hidden_channels}; give both the same."
            )
        self.representation = representation
        self.head = head.fitted_to(representation)
        _check_kernels(kernels)
        self.kernels = kernels
        self.card = ModelCard()
        self.register_buffer("masses", _standard_masses(), persistent=False)

    @property
    def config(self) -> ModelDescription:
        """Class and arguments of both parts, from which :func:`build_model` rebuilds the model.

        Raises:
            TypeError: If a part does not store an argument of its constructor.
        """
        parts: dict[str, Part] = {"representation": self.representation, "head": self.head}
        return {name: {"class": type(part).__name__, **part.config} for name, part in parts.items()}

    @property
    def levels(self) -> list[str]:
        """Levels of theory to choose from, the default first; empty: they are not distinguished."""
        return [name for name in self.representation.levels if not name.endswith(FROM_FORCE_FIELD)]

    def level_named(self, name: str | None, embedded: bool = False) -> str:
        """Returns the level of theory of this name, or the first one for None or an empty name.

        The result is empty if the model does not distinguish levels.

        Args:
            name: Name of the level.
            embedded: True for structures that were embedded from SMILES. If the model was trained
                on such geometries, the result is the level with :data:`FROM_FORCE_FIELD`.

        Raises:
            ValueError: If the model has no such level.
        """
        levels = self.representation.levels
        if not name and not levels:
            return ""
        name = name or levels[0]
        if name in levels:
            of_force_field = f"{name}{FROM_FORCE_FIELD}"
            return of_force_field if embedded and of_force_field in levels else name
        model = f"The model {self.card.name}" if self.card.name else "The model"
        if levels:
            raise ValueError(
                f"{model} has no level of theory {name!r}; it has {', '.join(self.levels)}. "
                "Choose one of them, or train the model on data of the other level."
            )
        trained = self.card.get("data", "level_of_theory")
        raise ValueError(
            f"{model} has no levels of theory to choose from, got {name!r}; it predicts for the "
            f"level of its training data{f' ({trained})' if trained else ''}. Omit the level, or "
            "use a model that was trained on several levels."
        )

    def level_places(self, names: Sequence[str | None]) -> list[int]:
        """Indices of levels of theory; 0 if the model does not distinguish levels.

        Raises:
            ValueError: As :meth:`level_named`.
        """
        levels = list(self.representation.levels)
        return [levels.index(self.level_named(name)) if levels else 0 for name in names]

    def reset_parameters(self) -> None:
        """Draws new weights and clears the card."""
        self.representation.reset_parameters()
        self.head.reset_parameters()
        self.card = ModelCard()

    def forward(self, batch: Data) -> Output:
        """Predicts the property for a batch.

        Args:
            batch: A PyG ``Batch`` or ``Data`` with ``z [N]``, ``pos [N, 3]`` in angstrom and, for
                ions, ``charge [B]`` in e. Optional: the fragment of each atom, ``fragment [N]``,
                and its charge in e, ``fragment_charge [N]``; in ``level``, the name of the level of
                theory of each molecule or of all, by default the first level of the model. A
                :class:`~dipolegnn.nn.graph.RadiusGraph` in ``radius_graph`` is used if it was built
                from these positions with the cutoff of the model; otherwise the graph is built.

        Returns:
            Output of the head.

        Raises:
            ValueError: If ``z`` or ``pos`` is missing or has the wrong shape, type or elements, or
                if ``kernels="fused"`` is not possible.
        """
        output: Output = self.head(*self._describe(batch))
        return output

    def _describe(self, batch: Data) -> tuple[AtomFeatures, Geometry]:
        """Computes the arguments of the head for a batch."""
        z, pos = batch.get("z"), batch.get("pos")
        if z is None or pos is None:
            raise ValueError(
                f"A batch needs z [N] and pos [N, 3], got the fields {sorted(batch.keys())}."
            )
        dtype = next(self.head.parameters()).dtype
        if pos.dtype != dtype:
            raise ValueError(
                f"The positions are {pos.dtype} and the model is {dtype}; convert one of them "
                "with .to()."
            )
        index = batch.batch if isinstance(batch.batch, Tensor) else None
        ptr = _molecule_pointers(z, index, batch.get("ptr"))
        charge = batch.get("charge")
        if charge is None:
            charge = pos.new_zeros(ptr.numel() - 1)
        if charge.numel() != ptr.numel() - 1:
            raise ValueError(
                f"charge must have one entry per molecule [{ptr.numel() - 1}], got "
                f"{list(charge.shape)}."
            )
        graph = self._graph(batch, index)
        pays = self.kernels == "fused" or self.representation.fused_pays(graph.edge_index.size(1))
        fused = pays and self.message_passing == "fused"
        edges = graph if fused else graph.edge_index
        if self.representation.levels:
            features = self.representation(z, pos, edges, self._level(batch, ptr))
        else:
            features = self.representation(z, pos, edges)
        geometry = Geometry.of(
            pos - self._centers_of_mass(z, pos, ptr),
            ptr,
            charge.view(-1).to(dtype),
            *_fragments(batch, z, dtype),
        )
        return features, geometry

    def _level(self, batch: Data, ptr: Tensor) -> Tensor | None:
        """Level of theory of each atom ``[N]``; None: the first for all."""
        names = batch.get("level")
        if names is None:
            return None
        if isinstance(names, str):
            return torch.full_like(batch.z, self.level_places([names])[0])
        if len(names) != ptr.numel() - 1:
            raise ValueError(
                f"level must have one entry per molecule ({ptr.numel() - 1}), got {len(names)}."
            )
        places = torch.tensor(self.level_places(names))
        return spread(places.to(ptr.device, non_blocking=True), ptr, batch.num_nodes or 0)

    def _graph(self, batch: Data, index: Tensor | None) -> RadiusGraph:
        """The radius graph, with the cutoff of the representation."""
        kept, cutoff = batch.get("radius_graph"), self.representation.cutoff
        if isinstance(kept, RadiusGraph) and kept.cutoff == cutoff and kept.is_of(batch.pos, index):
            return kept
        return RadiusGraph.of(batch.pos, cutoff, index)

    @property
    def message_passing(self) -> Literal["fused", "plain"]:
        """Implementation of message passing for the current device and precision of the weights.

        With ``kernels="auto"``, a training step of one or two small molecules uses plain PyTorch in
        any case, which is faster there.

        Raises:
            ValueError: If ``kernels`` has another value, or is ``"fused"`` and the kernels cannot
                run.
        """
        _check_kernels(self.kernels)
        if self.kernels == "plain":
            return "plain"
        reason = self.representation.why_not_fused()
        if reason is None:
            return "fused"
        if self.kernels == "fused":
            raise ValueError(f"kernels='fused' is not possible: {reason}. Use 'auto' or 'plain'.")
        return "plain"

    def _centers_of_mass(self, z: Tensor, pos: Tensor, ptr: Tensor) -> Tensor:
        """Centre of mass of the molecule of each atom ``[N, 3]``."""
        mass = self.masses[z].unsqueeze(1)
        centers = segment(mass * pos, ptr) / segment(mass, ptr)
        return spread(centers, ptr, z.numel())


class DipoleModel(PropertyModel[DipoleOutput]):
    """Predicts dipole moments of a batch of molecules.

    Returns ``dipole [B, 3]`` in debye, ``magnitude [B]`` in debye and ``charges [N]`` in e. The
    origin of the dipole of an ion is the centre of mass (standard atomic weights). Arguments and
    errors are those of :class:`~dipolegnn.nn.PropertyModel`.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from dipolegnn import DipoleHead, DipoleModel, PaiNN
        >>> model = DipoleModel(PaiNN(hidden_channels=32), DipoleHead(32))
        >>> pos = torch.tensor([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
        >>> water = Data(z=torch.tensor([8, 1, 1]), pos=pos)
        >>> out = model(water)
        >>> out.dipole.shape, bool(out.charges.sum().abs() < 1e-5)
        (torch.Size([1, 3]), True)
    """

    head: BaseDipoleHead
    calibration: Calibration | None
    """Error bars, set by :func:`dipolegnn.calibrate.calibrate`."""

    def __init__(
        self,
        representation: Representation,
        head: BaseDipoleHead,
        kernels: Literal["auto", "fused", "plain"] = "auto",
    ) -> None:
        super().__init__(representation, head, kernels)
        if not isinstance(head, BaseDipoleHead):
            raise TypeError(
                f"{type(head).__name__} does not predict dipole moments; use "
                "dipolegnn.nn.PropertyModel, or derive the head from dipolegnn.nn.BaseDipoleHead."
            )
        self.calibration = None

    def reset_parameters(self) -> None:
        """Draws new weights and removes the error bars."""
        super().reset_parameters()
        self.calibration = None

    def with_sensitivity(self, batch: Data) -> tuple[DipoleOutput, Tensor]:
        """Predicts dipoles and computes last-layer gradients.

        Args:
            batch: As for :meth:`forward`.

        Returns:
            The output of :meth:`forward`, detached, and the gradients of each magnitude with
            respect to the weights of the last layer, ``[B, P]``.

        Raises:
            ValueError: As :meth:`forward`, or if the head has no ``last_layer``.
        """
        last_layer = self.head.last_layer
        if last_layer is None:
            raise ValueError(
                f"{type(self.head).__name__} defines no last_layer, which error bars require."
            )
        with torch.no_grad():
            features, geometry = self._describe(batch)
        caught: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            caught.extend((inputs[0].detach(), output.detach().requires_grad_()))
            return caught[1]

        handle = last_layer.register_forward_hook(catch)
        try:
            with torch.enable_grad():
                output = self.head(features, geometry)
                (slope,) = torch.autograd.grad(output.magnitude.sum(), caught[1])  # [N, O]
        finally:
            handle.remove()
        inputs = torch.cat([caught[0], torch.ones_like(caught[0][:, :1])], dim=1)  # and the bias
        per_atom = slope.unsqueeze(2) * inputs.unsqueeze(1)  # [N, O, H + 1]
        sensitivity = segment(per_atom.flatten(1), geometry.ptr)
        return DipoleOutput(*(values.detach() for values in output)), sensitivity


Model = TypeVar("Model", bound=PropertyModel[Any])

_LEVELS = "level_embedding.weight"
"""Name of the embedding of levels of theory among the weights of a representation."""


def with_levels(model: Model, levels: Sequence[str], first: str = "") -> Model:
    """Returns a copy of a model with further levels of theory.

    The predictions for the levels of the model are unchanged; a new level starts as its first.

    Args:
        model: The model.
        levels: Levels of theory; those that the model already has are ignored.
        first: Name of the level of a model without levels.

    Raises:
        ValueError: If the representation does not support levels.
    """
    known = list(model.representation.levels) or [first]
    names = list(dict.fromkeys([*known, *levels]))
    kind = type(model.representation)
    if "levels" not in kind.settings():
        raise ValueError(
            f"{kind.__name__} does not support several levels of theory; use PaiNN or SchNet."
        )
    representation = kind.from_config({**model.representation.config, "levels": names})
    extended = deepcopy(model)
    extended.representation = representation.to(next(model.parameters()))
    state = model.representation.state_dict()
    rows = extended.representation.get_parameter(_LEVELS).detach().clone()
    old = state.get(_LEVELS, rows[:1])
    rows[: len(old)] = old
    rows[len(old) :] = old[0]
    extended.representation.load_state_dict({**state, _LEVELS: rows})
    return extended


def describe(config: ModelConfig) -> ModelDescription:
    """Class and arguments of the parts, from the options of the commands.

    Files of version 0.1 contain these options instead of the parts.

    Raises:
        ValueError: If a part is unknown or does not have one of the given options.
    """
    representation = _part_class(config.representation, Representation, "", ())
    settings: dict[str, JSON] = {"class": representation.__name__}
    for option in fields(ModelConfig):
        if option.name in ("representation", "head", "atomwise_aggregation", "charge_weights"):
            continue
        value = getattr(config, option.name)
        if option.name in representation.settings():
            settings[option.name] = list(value) if isinstance(value, tuple) else value
        elif value != option.default:
            raise ValueError(f"{representation.__name__} has no {option.name}, got {value!r}.")
    name = "dipole" if config.head == "charges" else config.head
    head = _part_class(name, Head, "Head", ())
    head_settings: dict[str, JSON] = {"class": head.__name__}
    further = {
        "hidden_channels": config.hidden_channels,
        "aggregation": config.atomwise_aggregation,
        "charge_weights": config.charge_weights,
        # SchNet has no vectors.
        "atomic_dipoles": None
        if config.head != "charges" and representation.has_vectors
        else False,
    }
    head_settings.update((k, value) for k, value in further.items() if k in head.settings())
    return {"representation": settings, "head": head_settings}


def options(description: Mapping[str, Mapping[str, JSON]]) -> ModelConfig:
    """The options of the commands that stand for these parts: the inverse of :func:`describe`.

    Raises:
        ValueError: If no options do.
    """
    representation, head = (
        dict(description.get(part) or {}) for part in ("representation", "head")
    )
    known = {option.name for option in fields(ModelConfig)}
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in representation.items()
        if name in known
    }
    found["representation"] = str(representation.get("class")).lower()
    found["atomwise_aggregation"] = head.get("aggregation", ModelConfig.atomwise_aggregation)
    found["charge_weights"] = head.get("charge_weights", ModelConfig.charge_weights)
    for name in (str(head.get("class")).lower().removesuffix("head"), "charges"):
        config = ModelConfig(**found, head=name)
        if describe(config) == description:
            return config
    raise ValueError(
        f"The options of the commands cannot state this model: {description}. Use it with --start, "
        "or train it from Python."
    )


def build_model(
    config: ModelConfig | Mapping[str, Mapping[str, JSON]], parts: Sequence[type[Part]] = ()
) -> Any:
    """Builds a model from its configuration, with new weights.

    Args:
        config: The options of the commands, or a value of :attr:`PropertyModel.config`.
        parts: Classes of representations and heads that are not in ``dipolegnn.nn``.

    Returns:
        A :class:`DipoleModel`, or a :class:`PropertyModel` if the head predicts another property.

    Raises:
        ValueError: If a part is unknown or its arguments are invalid.
    """
    described = describe(config) if isinstance(config, ModelConfig) else config
    made: dict[str, Any] = {}
    kinds: dict[str, tuple[type[Any], str]] = {
        "representation": (Representation, ""),
        "head": (Head, "Head"),
    }
    for name, (kind, suffix) in kinds.items():
        settings = dict(described.get(name) or {})
        part = _part_class(str(settings.pop("class", None)), kind, suffix, parts)
        made[name] = part.from_config(settings)
    model = DipoleModel if isinstance(made["head"], BaseDipoleHead) else PropertyModel
    return model(made["representation"], made["head"])


def _part_class(name: str, kind: type[Any], suffix: str, parts: Sequence[type[Part]]) -> type[Any]:
    """Finds a class of this package or of ``parts`` by its name.

    The case of the name is ignored; the suffix may be missing.
    """
    package = __name__.rpartition(".")[0]
    own = [one for one in _subclasses(kind) if one.__module__.startswith(f"{package}.")]
    known = {
        one.__name__: one
        for one in (*own, *parts)
        if issubclass(one, kind) and not inspect.isabstract(one)
    }
    for wanted in (name, name + suffix):
        for found in known:
            if found.lower() == wanted.lower():
                return known[found]
    raise ValueError(
        f"There is no {kind.__name__.lower()} {name!r} among {', '.join(sorted(known))}. If it is "
        "a class of your own, give it: load_model(..., parts=[TheClass])."
    )


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    direct = kind.__subclasses__()
    return [*direct, *(further for one in direct for further in _subclasses(one))]


def _check_kernels(kernels: str) -> None:
    if kernels not in ("auto", "fused", "plain"):
        raise ValueError(f"kernels must be auto, fused or plain, got {kernels!r}.")


def _standard_masses() -> Tensor:
    """Standard atomic weights by atomic number, up to the last element of the embedding."""
    return torch.tensor(atomic_masses[: MAX_Z + 1], dtype=torch.get_default_dtype())


def _fragments(batch: Data, z: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Fragment of each atom ``[N]`` and its charge ``[N]``, if the batch has them."""
    fragment, charge = batch.get("fragment"), batch.get("fragment_charge")
    if (fragment is None) != (charge is None):
        given, other = ("fragment", "fragment_charge")[:: 1 if charge is None else -1]
        raise ValueError(
            f"The batch has {given} [N] and no {other} [N]; give both, or neither for molecules "
            "of one fragment."
        )
    if fragment is None or charge is None:
        return None, None
    for name, values in (("fragment", fragment), ("fragment_charge", charge)):
        if values.shape != z.shape:
            raise ValueError(
                f"{name} must have one entry per atom [{z.numel()}], got {list(values.shape)}."
            )
    return fragment, charge.to(dtype)


def _molecule_pointers(z: Tensor, index: Tensor | None, ptr: Tensor | None) -> Tensor:
    """First atom of each molecule, and the number of atoms: ``[B + 1]``."""
    if ptr is not None:
        return ptr
    if index is None:
        return torch.tensor([0, z.numel()], device=z.device)
    counts = index.bincount()
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
