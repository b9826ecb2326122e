"""A representation and a head make a dipole model."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from ase.data import atomic_masses
from torch import Tensor, nn

from dipolegnn._pyg import Data
from dipolegnn.config import ModelConfig
from dipolegnn.nn.calibration import Calibration
from dipolegnn.nn.features import MAX_Z, AtomFeatures
from dipolegnn.nn.graph import RadiusGraph
from dipolegnn.nn.heads import AtomwiseHead, DipoleHead, DipoleOutput
from dipolegnn.nn.painn import PaiNN
from dipolegnn.nn.scatter import segment, spread
from dipolegnn.nn.schnet import SchNet
from dipolegnn.ops import why_not_fused


class HeadInput(NamedTuple):
    """What a head is called with; see :class:`DipoleHead`."""

    features: AtomFeatures
    pos: Tensor
    ptr: Tensor
    charge: Tensor


class DipoleModel(nn.Module):
    """Dipole moments of a batch of molecules.

    The model builds its own radius graph, with the cutoff of its representation. The dipole of an
    ion refers to the centre of mass (standard atomic weights).

    Args:
        representation: A network ``(z, pos, edge_index) -> AtomFeatures`` with the attributes
            ``hidden_channels``, ``cutoff`` and ``has_vectors``.
        head: What makes a dipole out of the features. A :class:`DipoleHead` that leaves
            ``atomic_dipoles`` open is replaced by one without them if the representation has no
            vectors; make optimizers from the parameters of the model, not of that head.
        kernels: Which message passing runs: the fused kernels, plain PyTorch, or, with ``auto``,
            the kernels wherever they can. Both compute the same. An attribute of the same name
            changes it later; :attr:`message_passing` tells what runs.

    Raises:
        ValueError: If the two do not fit together.

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

    masses: Tensor
    calibration: Calibration | None
    """Its error bars, once :func:`dipolegnn.calibrate.calibrate` has made them."""

    def __init__(
        self,
        representation: PaiNN | SchNet,
        head: DipoleHead | AtomwiseHead,
        kernels: Literal["auto", "fused", "plain"] = "auto",
    ) -> None:
        super().__init__()
        name = type(representation).__name__
        if representation.hidden_channels != head.hidden_channels:
            raise ValueError(
                f"{name} has hidden_channels={representation.hidden_channels} and "
                f"{type(head).__name__} expects {head.hidden_channels}; give both the same."
            )
        if isinstance(head, DipoleHead):
            head = head.fitted_to(name, representation.has_vectors)
        self.representation = representation
        self.head = head
        _check_kernels(kernels)
        self.kernels = kernels
        self.calibration = None
        self.register_buffer("masses", _standard_masses(), persistent=False)

    def forward(self, batch: Data) -> DipoleOutput:
        """Predicts the dipole moments of a batch.

        Args:
            batch: A PyG ``Batch`` or one ``Data`` with ``z [N]`` and ``pos [N, 3]`` in angstrom;
                ``charge [B]`` in e if there are ions. A :class:`~dipolegnn.nn.graph.RadiusGraph` in
                ``radius_graph`` is used if it has the cutoff of the model and belongs to these
                positions; otherwise the graph is built here.

        Returns:
            ``dipole [B, 3]`` in debye, ``magnitude [B]`` in debye, ``charges [N]`` in e.

        Raises:
            ValueError: If ``z`` or ``pos`` is missing or holds what the model does not know, or if
                ``kernels`` asks for what cannot run.
        """
        output: DipoleOutput = self.head(*self._describe(batch))
        return output

    def with_sensitivity(self, batch: Data) -> tuple[DipoleOutput, Tensor]:
        """Predicts, and tells how much each molecule hangs on the last layer.

        Args:
            batch: As for :meth:`forward`; in ``ptr`` or ``batch`` it says which atoms are whose.

        Returns:
            What :meth:`forward` returns, without a gradient, and the derivatives of each magnitude
            with respect to the weights of the last layer, ``[B, P]``.

        Raises:
            ValueError: As :meth:`forward`.
        """
        with torch.no_grad():
            given = self._describe(batch)
        caught: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            caught.extend((inputs[0].detach(), output.detach().requires_grad_()))
            return caught[1]

        handle = self.head.last_layer.register_forward_hook(catch)
        try:
            with torch.enable_grad():
                output = self.head(*given)
                (slope,) = torch.autograd.grad(output.magnitude.sum(), caught[1])  # [N, O]
        finally:
            handle.remove()
        inputs = torch.cat([caught[0], torch.ones_like(caught[0][:, :1])], dim=1)  # and the bias
        per_atom = slope.unsqueeze(2) * inputs.unsqueeze(1)  # [N, O, H + 1]
        sensitivity = segment(per_atom.flatten(1), given.ptr)
        detached = DipoleOutput(
            None if output.dipole is None else output.dipole.detach(),
            output.magnitude.detach(),
            None if output.charges is None else output.charges.detach(),
        )
        return detached, sensitivity

    def _describe(self, batch: Data) -> HeadInput:
        """What the head is given for a batch."""
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
        fused = self._pays(graph.edge_index) and self.message_passing == "fused"
        features = self.representation(z, pos, graph if fused else graph.edge_index)
        centered = pos - self._centers_of_mass(z, pos, ptr)
        return HeadInput(features, centered, ptr, charge.view(-1).to(dtype))

    def _graph(self, batch: Data, index: Tensor | None) -> RadiusGraph:
        """The radius graph, with the cutoff of the representation."""
        kept, cutoff = batch.get("radius_graph"), self.representation.cutoff
        if isinstance(kept, RadiusGraph) and kept.cutoff == cutoff and kept.is_of(batch.pos, index):
            return kept
        return RadiusGraph.of(batch.pos, cutoff, index)

    def _pays(self, edge_index: Tensor) -> bool:
        """Whether tabulating the filters is less work than evaluating them at every edge.

        It is not for a training step with fewer edges than the table has rows. Without gradients
        the table is made once and kept.
        """
        if self.kernels == "fused" or not isinstance(self.representation, PaiNN | SchNet):
            return True
        training = torch.is_grad_enabled() and self.representation.embedding.weight.requires_grad
        return not training or edge_index.size(1) > self.representation.radial.rbf.intervals

    @property
    def message_passing(self) -> Literal["fused", "plain"]:
        """What the next batch will run through, where the weights are now.

        With ``auto``, a training step of one or two small molecules runs through plain PyTorch in
        any case, which is then faster.

        Raises:
            ValueError: If ``kernels`` is none of its values, or is ``"fused"`` where the kernels
                cannot run.
        """
        _check_kernels(self.kernels)
        if self.kernels == "plain":
            return "plain"
        reason = self._why_not_fused()
        if reason is None:
            return "fused"
        if self.kernels == "fused":
            raise ValueError(f"kernels='fused' is not possible: {reason}. Take 'auto' or 'plain'.")
        return "plain"

    def _why_not_fused(self) -> str | None:
        if not isinstance(self.representation, PaiNN | SchNet):
            return f"{type(self.representation).__name__} has no kernels"
        if any(layer.explain for layer in self.representation.interactions):
            return "an explainer looks at the messages, which the kernels never write down"
        if torch.compiler.is_compiling():
            return "torch.compile traces the plain message passing"
        weight = self.representation.embedding.weight
        return why_not_fused(weight.device, weight.dtype)

    def _centers_of_mass(self, z: Tensor, pos: Tensor, ptr: Tensor) -> Tensor:
        """The centre of mass of its molecule, for each atom ``[N, 3]``."""
        mass = self.masses[z].unsqueeze(1)
        centers = segment(mass * pos, ptr) / segment(mass, ptr)
        return spread(centers, ptr, z.numel())

    @property
    def config(self) -> ModelConfig:
        """The architecture, from which :func:`build_model` makes the same model again.

        Raises:
            TypeError: If the representation or the head is not one of this package's.
        """
        representation, head = self.representation, self.head
        if type(representation) not in (PaiNN, SchNet) or type(head) not in (
            DipoleHead,
            AtomwiseHead,
        ):
            raise TypeError(
                "Only PaiNN or SchNet with DipoleHead or AtomwiseHead has a configuration that "
                f"can be saved; this model has {type(representation).__name__} and "
                f"{type(head).__name__}. Save its state_dict() beside the code that builds it."
            )
        common = ModelConfig(
            representation="painn" if isinstance(representation, PaiNN) else "schnet",
            hidden_channels=representation.hidden_channels,
            num_interactions=representation.num_interactions,
            num_rbf=representation.num_rbf,
            cutoff=representation.cutoff,
            radial_basis=representation.radial_basis,
        )
        if isinstance(head, AtomwiseHead):
            return replace(common, head="atomwise", atomwise_aggregation=head.aggregation)
        if representation.has_vectors and head.atomic_dipoles is False:
            return replace(common, head="charges")
        return common


def build_model(config: ModelConfig) -> DipoleModel:
    """Makes the model that a configuration describes, with fresh weights."""
    kind = PaiNN if config.representation == "painn" else SchNet
    representation = kind(
        hidden_channels=config.hidden_channels,
        num_interactions=config.num_interactions,
        num_rbf=config.num_rbf,
        cutoff=config.cutoff,
        radial_basis=config.radial_basis,
    )
    if config.head == "atomwise":
        head: DipoleHead | AtomwiseHead = AtomwiseHead(
            config.hidden_channels, config.atomwise_aggregation
        )
    else:
        head = DipoleHead(
            config.hidden_channels, atomic_dipoles=False if config.head == "charges" else None
        )
    return DipoleModel(representation, head)


def _check_kernels(kernels: str) -> None:
    if kernels not in ("auto", "fused", "plain"):
        raise ValueError(f"kernels must be auto, fused or plain, got {kernels!r}.")


def _standard_masses() -> Tensor:
    """Standard atomic weights by atomic number, up to the last element of the embedding."""
    return torch.tensor(atomic_masses[: MAX_Z + 1], dtype=torch.get_default_dtype())


def _molecule_pointers(z: Tensor, index: Tensor | None, ptr: Tensor | None) -> Tensor:
    """First atom of each molecule, and the number of atoms: ``[B + 1]``."""
    if ptr is not None:
        return ptr
    if index is None:
        return torch.tensor([0, z.numel()], device=z.device)
    counts = index.bincount()
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
