"""Which message passing runs: chosen, forced, and told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dipolegnn._pyg import MessagePassing
from dipolegnn.nn import DipoleHead, DipoleModel, PaiNN
from dipolegnn.ops import backend
from tests.nn.models import make_model
from tests.nn.structures import random_molecule


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    backend._missing.cache_clear()
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    yield
    backend._missing.cache_clear()


def test_kernels_run_where_they_can() -> None:
    assert DipoleModel(PaiNN(16), DipoleHead(16)).message_passing == "fused"
    assert DipoleModel(PaiNN(16), DipoleHead(16), "plain").message_passing == "plain"


def test_plain_where_they_cannot() -> None:
    model = DipoleModel(PaiNN(16), DipoleHead(16)).to(torch.bfloat16)
    assert model.message_passing == "plain"
    model.kernels = "fused"
    with pytest.raises(ValueError, match="not possible: the kernels have float32 and float64"):
        _ = model.message_passing


def test_plain_without_numba(no_numba: None) -> None:
    model = make_model("painn", "dipole", kernels="plain")
    data = random_molecule(9, seed=1)
    expected = model(data).dipole
    model.kernels = "auto"
    assert model.message_passing == "plain"
    assert torch.equal(model(data).dipole, expected)


def test_plain_while_an_explainer_looks() -> None:
    model = make_model("painn", "dipole")
    model.kernels = "auto"
    for layer in model.modules():
        if isinstance(layer, MessagePassing):
            layer.explain = True
    assert model.message_passing == "plain"


def test_a_misspelt_choice_is_an_error() -> None:
    with pytest.raises(ValueError, match="auto, fused or plain, got 'fast'"):
        DipoleModel(PaiNN(16), DipoleHead(16), kernels="fast")  # type: ignore[arg-type]
