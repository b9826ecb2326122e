"""PaiNN and the heads against the installed peer schnetpack, by weight transfer.

``make peers`` installs it; ``DIPOLEGNN_PEERS`` may name the Python of another environment that
has it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peers import schnetpack_weights

from dipolegnn._pyg import Batch
from dipolegnn.nn import AtomwiseHead, DipoleHead, DipoleModel, Geometry, PaiNN
from dipolegnn.nn.graph import radius_graph
from dipolegnn.units import DEBYE_PER_E_ANGSTROM
from tests.nn.models import randomize
from tests.nn.structures import chiral, molecule, random_molecule

PARITY = 1e-12
"""Relative to the largest number: both sides are in double precision."""

WEIGHTS = np.array([0.3, -0.5, 0.8])
"""Of the components of the dipole, for one gradient."""

Arrays = dict[str, np.ndarray]


class Sizes(NamedTuple):
    hidden: int
    interactions: int
    num_rbf: int
    cutoff: float


CASES = {
    "dipole": Sizes(128, 3, 20, 5.0),  # the default
    "charges": Sizes(32, 2, 7, 3.7),
    "sum": Sizes(128, 7, 17, 6.0),  # the original users' recipe
    "mean": Sizes(10, 1, 5, 4.0),
}
"""Sizes of the model that is tried with each head."""

GAIN = 0.35
"""Of the random weights; seven interactions of more would take the features to 1e60."""


def make_model(head: str) -> DipoleModel:
    sizes = CASES[head]
    if head in ("sum", "mean"):
        last: DipoleHead | AtomwiseHead = AtomwiseHead(
            sizes.hidden, "sum" if head == "sum" else "mean"
        )
    else:
        last = DipoleHead(sizes.hidden, atomic_dipoles=head == "dipole")
    model = DipoleModel(PaiNN(*sizes), last)
    randomize(model, seed=11, gain=GAIN)
    return model.double()


def make_batch() -> Batch:
    molecules = [
        random_molecule(12, seed=1),
        random_molecule(50, seed=2),  # more than 32 neighbours
        random_molecule(7, seed=3, charge=-1.0),
        molecule([8], [[1.0, 2.0, 3.0]], charge=2.0),
        chiral(),
    ]
    return Batch.from_data_list(molecules)


@pytest.fixture(scope="module")
def peer(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arrays]:
    """What schnetpack makes of the batch, with each head."""
    named = os.environ.get("DIPOLEGNN_PEERS")
    python = Path(named) if named else project_root / ".venv-peers" / "bin" / "python"
    ready = python if named else project_root / ".venv-peers" / "complete"
    if not ready.exists():
        pytest.skip(f"schnetpack is not installed: no {ready} (make peers, or set DIPOLEGNN_PEERS)")
    folder = tmp_path_factory.mktemp("schnetpack")
    batch = make_batch()
    for head, sizes in CASES.items():
        edges = radius_graph(batch.pos, sizes.cutoff, batch.batch).numpy()
        job: dict[str, Any] = {
            "head": head,
            **sizes._asdict(),
            **{name: w.numpy() for name, w in schnetpack_weights(make_model(head)).items()},
            "weights": WEIGHTS if head in ("dipole", "charges") else 1.0,
            "z": batch.z.numpy(),
            "pos": batch.pos.numpy(),
            "charge": batch.charge.numpy(),
            "idx_j": edges[0],
            "idx_i": edges[1],
            "idx_m": batch.batch.numpy(),
        }
        np.savez(folder / f"{head}.npz", **job)
    script = Path(__file__).with_name("schnetpack_peer.py")
    done = subprocess.run(
        [str(python), str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{python} {script} failed:\n{done.stderr}"
    results = {}
    for head in CASES:
        with np.load(folder / f"{head}.result.npz") as result:
            results[head] = {name: result[name] for name in result}
    return results


def assert_parity(actual: torch.Tensor, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    assert actual.shape == expected.shape
    assert 1e-3 < scale < 1e6
    assert np.abs(actual.detach().numpy() - expected).max() < PARITY * scale


@pytest.mark.parametrize("head", CASES)
def test_schnetpack(peer: dict[str, Arrays], head: str) -> None:
    expected, model, batch = peer[head], make_model(head), make_batch()
    pos = batch.pos.requires_grad_()
    edges = radius_graph(pos, CASES[head].cutoff, batch.batch)
    features = model.representation(batch.z, pos, edges)
    assert features.v is not None
    assert_parity(features.s, expected["s"])
    assert_parity(features.v, expected["v"])

    output = model.head(features, Geometry.of(pos, batch.ptr, batch.charge))
    if bool(output.dipole.isnan().all()):
        assert_parity(output.magnitude, expected["value"])
        (gradient,) = torch.autograd.grad(output.magnitude.sum(), pos)
    else:
        e_angstrom = output.dipole / DEBYE_PER_E_ANGSTROM
        assert_parity(e_angstrom, expected["value"])
        assert_parity(output.charges, expected["charges"])
        (gradient,) = torch.autograd.grad((e_angstrom * torch.tensor(WEIGHTS)).sum(), pos)
    assert_parity(gradient, expected["gradient"])


def test_number_of_parameters(peer: dict[str, Arrays]) -> None:
    """Ours has one more row in the embedding, that of element 100."""
    ours = sum(p.numel() for p in PaiNN(128, 3, 20, 5.0).parameters())
    assert int(peer["dipole"]["parameters"]) == ours - 128
