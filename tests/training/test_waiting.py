"""A training step asks for nothing that would make the CPU wait for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dipolegnn import config, ops
from dipolegnn._pyg import Batch
from dipolegnn.data import ConformerDataset
from dipolegnn.data.datamodule import PackedBatches
from dipolegnn.nn import build_model
from dipolegnn.training import DipoleModule
from tests.ops.examples import CUTOFF, example, table

WAITING = {
    "aten::_local_scalar_dense",  # .item(), bool(), int()
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
}
"""Operators whose result, or whose size, is known only when a GPU has computed it."""


class Waiting(TorchDispatchMode):
    """Writes down each operator that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        masks = name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        unknown = name == "aten::repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or masks or unknown:
            self.found.append(func.name())
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that look at numbers are made on the CPU alone."""
    for module in ("nn.graph", "nn.filters", "nn.features", "nn.parts"):
        monkeypatch.setattr(f"dipolegnn.{module}.can_check_values", lambda tensor: False)


def test_the_check_finds_what_waits() -> None:
    numbers = torch.arange(4)
    for waits in (
        lambda: int(numbers.sum()),
        lambda: numbers[numbers > 1],
        lambda: numbers.repeat_interleave(numbers),
        lambda: bool((numbers > 7).any()),
    ):
        with Waiting() as mode:
            waits()
        assert mode.found


@pytest.mark.parametrize("representation", ["painn", "schnet"])
@pytest.mark.parametrize("head", ["dipole", "charges", "atomwise"])
def test_a_step_from_batch_to_new_weights(
    project_root: Path, representation: Any, head: Any
) -> None:
    dataset = ConformerDataset(project_root / "datasets" / "small_molecules")
    model = build_model(
        config.ModelConfig(
            representation=representation, head=head, hidden_channels=16, num_interactions=2
        )
    )
    module = DipoleModule(model, config.TrainConfig())
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    packed = PackedBatches(dataset[torch.arange(40)], cutoff=module.cutoff_of_graphs)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)

    def step(batch: Batch) -> None:
        loss = module.training_step(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()

    step(packed[list(range(20))])  # makes what is made once
    before = [weight.detach().clone() for weight in module.parameters()]
    assert model.message_passing == "fused"
    batch = packed[list(range(20, 40))]
    with Waiting() as mode:
        step(batch)
    assert mode.found == []
    pairs = zip(before, module.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


def test_what_surrounds_the_gpu_kernels() -> None:
    """Their buffers and the order of the edges; the kernels themselves cannot wait."""
    pytest.importorskip("triton", reason="Triton is not installed (extra dev, Linux)")
    from dipolegnn.ops.gpu.launch import cut_into_chunks

    given = example(4, torch.float32)
    filters = table(given.coefficients)
    with Waiting() as mode:
        cut_into_chunks(filters, given.pos, given.rowptr, given.col, CUTOFF, 4)
    assert mode.found == []
    assert ops.why_not_fused(given.pos.device, given.pos.dtype) is None
