"""Other implementations of the same networks, with weights transferred from dipolegnn.

``make peers`` installs schnetpack 2.1.1 in ``.venv-peers``, from where it, this package and
torch_geometric can all be imported.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dipolegnn._pyg import Data
from dipolegnn.nn import AtomwiseHead, DipoleModel, SchNet
from dipolegnn.nn.graph import radius_graph
from dipolegnn.units import DEBYE_PER_E_ANGSTROM


def schnetpack_weights(model: DipoleModel) -> dict[str, Tensor]:
    """Our weights under schnetpack's names; the differences in layout are all here."""
    body: Any = model.representation
    width = body.cutoff / (body.num_rbf - 1)
    ours = {name: weight.detach() for name, weight in model.state_dict().items()}
    orders = torch.arange(body.num_rbf, dtype=body.embedding.weight.dtype)
    theirs = {
        # schnetpack has rows 0 to 99, dipolegnn 0 to 100.
        "representation/embedding.weight": ours["representation.embedding.weight"][:100],
        # schnetpack rounds these to single precision.
        "representation/radial_basis.offsets": orders * width,
        "representation/radial_basis.widths": torch.full_like(orders, width),
        "representation/cutoff_fn.cutoff": orders.new_tensor([body.cutoff]),
    }
    if not isinstance(body, SchNet):
        filters = [f"representation.interactions.{t}.filter" for t in range(body.num_interactions)]
        for part in ("weight", "bias"):  # one big filter network, sliced per interaction
            theirs[f"representation/filter_net.{part}"] = torch.cat(
                [ours[f"{name}.{part}"] for name in filters]
            )
    # In schnetpack activations are not layers: layers 0 and 2 become 0 and 1.
    into = "representation"
    for name, weight in ours.items():
        match name.split("."):
            case [_, "interactions", t, "in_layer", "weight"]:
                theirs[f"{into}/interactions.{t}.in2f.weight"] = weight
            case [_, "interactions", t, "out_layers", n, part]:
                theirs[f"{into}/interactions.{t}.f2out.{int(n) // 2}.{part}"] = weight
            case [_, "interactions", t, "filter", n, part]:
                theirs[f"{into}/interactions.{t}.filter_network.{int(n) // 2}.{part}"] = weight
            case [_, "interactions", t, "phi", n, part]:
                net = f"{into}/interactions.{t}.interatomic_context_net"
                theirs[f"{net}.{int(n) // 2}.{part}"] = weight
            case [_, "mixings", t, "psi", n, part]:
                net = f"{into}/mixing.{t}.intraatomic_context_net"
                theirs[f"{net}.{int(n) // 2}.{part}"] = weight
            case [_, "mixings", t, "vectors", "weight"]:
                theirs[f"{into}/mixing.{t}.mu_channel_mix.weight"] = weight
            case ["head", "blocks", block, "vectors", "weight"]:
                theirs[f"output/outnet.{block}.mix_vectors.weight"] = weight
            case ["head", "blocks", block, "scalars", n, part]:
                theirs[f"output/outnet.{block}.scalar_net.{int(n) // 2}.{part}"] = weight
            case ["head", _, n, part]:
                theirs[f"output/outnet.{int(n) // 2}.{part}"] = weight
    return theirs


class SchnetpackPeer(nn.Module):
    """schnetpack's PaiNN or SchNet with the head of one of our models, and its weights.

    Its neighbour list is made by its data loader; here it is handed over ready made, so that the
    time for it does not count, as it does for ours.
    """

    def __init__(self, model: DipoleModel) -> None:
        super().__init__()
        import torch.utils.data.dataloader as loader

        # schnetpack 2.1.1 imports this name for annotations, and torch 2.13 no longer has it.
        if not hasattr(loader, "T_co"):
            setattr(loader, "T_co", Any)  # noqa: B010 (mypy refuses the plain assignment)
        from schnetpack import representation
        from schnetpack.atomistic import Atomwise, DipoleMoment, PairwiseDistances
        from schnetpack.nn import CosineCutoff, GaussianRBF

        body: Any = model.representation
        kind = representation.SchNet if isinstance(body, SchNet) else representation.PaiNN
        self.distances = PairwiseDistances()
        self.representation = kind(
            n_atom_basis=body.hidden_channels,
            n_interactions=body.num_interactions,
            radial_basis=GaussianRBF(body.num_rbf, body.cutoff),
            cutoff_fn=CosineCutoff(body.cutoff),
        )
        self.dipole = not isinstance(model.head, AtomwiseHead)
        if self.dipole:
            self.output = DipoleMoment(
                body.hidden_channels,
                predict_magnitude=True,
                use_vector_representation=body.has_vectors,
                dipole_key="y",
            )
        else:
            self.output = Atomwise(body.hidden_channels, output_key="y")
        for prefix, module in (
            ("representation/", self.representation),
            ("output/", self.output),
        ):
            module.load_state_dict(
                {
                    name.removeprefix(prefix): weight
                    for name, weight in schnetpack_weights(model).items()
                    if name.startswith(prefix)
                }
            )

    @staticmethod
    def prepare(batch: Data, cutoff: float) -> dict[str, Tensor]:
        """A batch in schnetpack's form."""
        j, i = radius_graph(batch.pos, cutoff, batch.batch)
        return {
            "_atomic_numbers": batch.z,
            "_positions": batch.pos,
            "_idx_i": i,
            "_idx_j": j,
            "_offsets": batch.pos.new_zeros(i.numel(), 3),
            "_idx_m": batch.batch,
            "_n_atoms": batch.batch.bincount(),
            "_total_charge": batch.pos.new_zeros(int(batch.batch.max()) + 1),
        }

    def forward(self, prepared: dict[str, Tensor]) -> Tensor:
        """Magnitudes ``[B]`` in debye."""
        results = self.output(self.representation(self.distances(dict(prepared))))
        magnitude: Tensor = results["y"]
        return DEBYE_PER_E_ANGSTROM * magnitude if self.dipole else magnitude


class PyGSchNetPeer(nn.Module):
    """torch_geometric's SchNet with the weights of one of our models with an atomwise sum.

    It gets our radius graph, because its own needs pyg-lib; the time for it counts for both.
    """

    def __init__(self, model: DipoleModel) -> None:
        super().__init__()
        from torch_geometric.nn.models import SchNet as PyGSchNet

        body: Any = model.representation

        def graph(pos: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            edges = radius_graph(pos, body.cutoff, index)
            return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=1)

        self.net = PyGSchNet(
            hidden_channels=body.hidden_channels,
            num_filters=body.hidden_channels,
            num_interactions=body.num_interactions,
            num_gaussians=body.num_rbf,
            cutoff=body.cutoff,
            interaction_graph=graph,
        )
        self.net.act = nn.SiLU()  # the activation of our readout
        dtype = body.embedding.weight.dtype
        self.net.to(dtype)
        width = body.cutoff / (body.num_rbf - 1)
        weights = {
            "embedding.weight": body.embedding.weight[:100],
            "distance_expansion.offset": width * torch.arange(body.num_rbf, dtype=dtype),
        }
        names = {
            "filter.0": "mlp.0",
            "filter.2": "mlp.2",
            "in_layer": "conv.lin1",
            "out_layers.0": "conv.lin2",
            "out_layers.2": "lin",
        }
        for name, weight in model.state_dict().items():
            match name.split("."):
                case [_, "interactions", t, *layer, part]:
                    inside = ".".join(layer)
                    weights[f"interactions.{t}.{names[inside]}.{part}"] = weight
                    if layer[0] == "filter":  # they hold the filter network twice
                        weights[f"interactions.{t}.conv.nn.{layer[1]}.{part}"] = weight
                case ["head", "layers", n, part]:
                    weights[f"lin{int(n) // 2 + 1}.{part}"] = weight
        self.net.load_state_dict(weights)
        # PyG rounds this to single precision.
        self.net.distance_expansion.coeff = -0.5 / width**2
        for module in self.net.modules():
            if hasattr(module, "shift"):
                module.shift = math.log(2.0)

    @staticmethod
    def prepare(batch: Data, cutoff: float) -> Data:
        """A batch as it is."""
        del cutoff
        return batch

    def forward(self, batch: Data) -> Tensor:
        """Magnitudes ``[B]`` in debye."""
        magnitude: Tensor = self.net(batch.z, batch.pos, batch.batch).squeeze(1)
        return magnitude
