"""Graphs and smooth filters that the operators are tested on, and the sums written out plainly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dipolegnn.nn.graph import radius_graph
from dipolegnn.ops import distance_grid

CUTOFF = 4.0
FUNCTIONS = 6


class Example(NamedTuple):
    """Everything that an operator takes, and the coefficients that its filter is made of."""

    pos: Tensor
    edge_index: Tensor
    rowptr: Tensor
    col: Tensor
    coefficients: Tensor
    x: Tensor
    v: Tensor


def filters(dist: Tensor, coefficients: Tensor) -> Tensor:
    """A filter ``[E, C]`` that is smooth and vanishes at the cutoff, as learned ones do."""
    orders = torch.arange(FUNCTIONS, dtype=dist.dtype, device=dist.device)
    width = CUTOFF / (FUNCTIONS - 1)
    basis = torch.exp(-0.5 * (dist.unsqueeze(1) / width - orders).square())
    envelope = 0.5 * (torch.cos(dist * (torch.pi / CUTOFF)) + 1.0)
    return basis @ coefficients * envelope.unsqueeze(1)


def table(coefficients: Tensor) -> Tensor:
    """The same filter on the grid."""
    return filters(distance_grid(CUTOFF, 32 * FUNCTIONS, coefficients), coefficients)


def example(
    channels: int, dtype: torch.dtype, sizes: tuple[int, ...] = (7, 1, 12), parts: int = 3
) -> Example:
    """Molecules of those sizes, one atom of the first one far from all others."""
    generator = torch.Generator().manual_seed(channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    atoms = sum(sizes)
    pos = 1.5 * normal(atoms, 3)
    if atoms:
        pos[0] += 50.0
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    pos = pos.to(dtype)
    edge_index = radius_graph(pos, CUTOFF, batch)
    counts = edge_index[1].bincount(minlength=atoms)
    return Example(
        pos=pos,
        edge_index=edge_index,
        rowptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        col=edge_index[0].contiguous(),
        coefficients=normal(FUNCTIONS, parts * channels).to(dtype),
        x=normal(atoms, parts * channels).to(dtype),
        v=normal(atoms, 3, channels).to(dtype),
    )


def plain_painn_message(example: Example) -> Tensor:
    """PaiNN's message edge by edge, with the filter itself instead of the table."""
    j, i = example.edge_index
    edge_vec = example.pos[j] - example.pos[i]
    dist = edge_vec.norm(dim=1)
    a, b, c = (example.x[j] * filters(dist, example.coefficients)).chunk(3, dim=1)
    unit = (edge_vec / dist.unsqueeze(1)).unsqueeze(2)
    message = torch.cat(
        [a.unsqueeze(1), b.unsqueeze(1) * unit + c.unsqueeze(1) * example.v[j]], dim=1
    )
    out = message.new_zeros(example.x.size(0), *message.shape[1:])
    return out.index_add(0, i, message)


def plain_cfconv(example: Example) -> Tensor:
    """SchNet's convolution edge by edge, with the filter itself instead of the table."""
    j, i = example.edge_index
    dist = (example.pos[j] - example.pos[i]).norm(dim=1)
    return torch.zeros_like(example.x).index_add(
        0, i, example.x[j] * filters(dist, example.coefficients)
    )
