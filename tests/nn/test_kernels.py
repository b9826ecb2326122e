"""Which message passing runs: chosen, forced, and told."""

from __future__ import annotations

import pytest
import torch

from dipolegnn._pyg import MessagePassing
from dipolegnn.nn import DipoleHead, DipoleModel, PaiNN
from dipolegnn.ops import backend, painn_message
from tests.nn.models import make_model
from tests.nn.structures import random_molecule
from tests.ops.examples import CUTOFF, example, table
from tests.tolerances import assert_close


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_INSTALLED", {})
    monkeypatch.setattr(backend, "find_spec", lambda name: None)


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


@pytest.mark.parametrize("representation", ["painn", "schnet"])
def test_under_autocast(representation: str) -> None:
    """Half-precision matrix products hand over to kernels in single precision."""
    model = make_model(representation, "dipole", torch.float32)
    data = random_molecule(9, seed=1, dtype=torch.float32)
    expected = model(data).dipole.detach()
    with torch.autocast("cpu", torch.bfloat16):
        dipole = model(data).dipole
    assert dipole.dtype == torch.float32
    assert not torch.equal(dipole, expected)
    assert torch.allclose(dipole, expected, rtol=0, atol=0.03 * float(expected.abs().max()))
    dipole.sum().backward()
    assert all(w.grad is not None for w in model.representation.parameters())


# Dynamo looks at attributes that warn.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("representation", ["painn", "schnet"])
def test_compiled(representation: str) -> None:
    """torch.compile goes through the whole model, by the plain path."""
    # Tracing takes seconds for each interaction.
    model = make_model(representation, "dipole", torch.float64, num_interactions=2)
    model.kernels = "auto"
    compiled = torch.compile(model, backend="aot_eager")
    for atoms in (9, 12):
        data = random_molecule(atoms, seed=1)
        expected = model(data).dipole
        dipole = compiled(data).dipole
        assert_close(dipole, expected, torch.float64)
        weight = dict(model.named_parameters())["representation.embedding.weight"]
        (wanted,) = torch.autograd.grad(expected.sum(), weight)
        (got,) = torch.autograd.grad(dipole.sum(), weight)
        assert_close(got, wanted, torch.float64)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_operators_can_be_compiled(dynamic: bool) -> None:
    """Without a break in the graph, and with sizes that change."""
    message = torch.compile(painn_message, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for sizes in ((5, 4), (7,)):
        g = example(4, torch.float64, sizes)
        given = (g.x, g.v, table(g.coefficients), g.pos, g.rowptr, g.col, CUTOFF)
        for got, expected in zip(message(*given), painn_message(*given), strict=True):
            assert_close(got, expected, torch.float64)


def test_a_misspelt_choice_is_an_error() -> None:
    with pytest.raises(ValueError, match="auto, fused or plain, got 'fast'"):
        DipoleModel(PaiNN(16), DipoleHead(16), kernels="fast")  # type: ignore[arg-type]
