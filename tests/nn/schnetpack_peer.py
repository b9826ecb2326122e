"""Runs schnetpack's PaiNN on the jobs of a folder; test_painn_parity.py starts it.

It runs in an environment of its own (``make peers``), imports nothing of this project, and
talks through files: each ``<job>.npz`` holds sizes, weights under schnetpack's names and a batch,
and is answered by ``<job>.result.npz``. Everything is in double precision.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data.dataloader


def main(folder: Path) -> None:
    # schnetpack 2.1.1 imports this name for annotations, and torch 2.13 no longer has it.
    if not hasattr(torch.utils.data.dataloader, "T_co"):
        setattr(torch.utils.data.dataloader, "T_co", Any)  # noqa: B010
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as job:
            result = run({name: job[name] for name in job})
        np.savez(path.with_suffix(".result.npz"), **result)


def run(job: dict[str, np.ndarray]) -> dict[str, Any]:
    from schnetpack import properties
    from schnetpack.atomistic import Atomwise, DipoleMoment
    from schnetpack.nn import CosineCutoff, GaussianRBF
    from schnetpack.representation import PaiNN

    hidden, cutoff, head = int(job["hidden"]), float(job["cutoff"]), str(job["head"])
    # Their Gaussians cannot be made under a default precision of 64 bits.
    representation = PaiNN(
        n_atom_basis=hidden,
        n_interactions=int(job["interactions"]),
        radial_basis=GaussianRBF(int(job["num_rbf"]), cutoff),
        cutoff_fn=CosineCutoff(cutoff),
    )
    if head in ("dipole", "charges"):
        output = DipoleMoment(
            hidden,
            predict_magnitude=False,
            return_charges=True,
            correct_charges=True,
            use_vector_representation=head == "dipole",
        )
    else:
        output = Atomwise(hidden, aggregation_mode="avg" if head == "mean" else "sum")
    for prefix, module in (("representation/", representation), ("output/", output)):
        module.double().load_state_dict(
            {k.removeprefix(prefix): torch.tensor(v) for k, v in job.items() if prefix in k}
        )

    pos = torch.tensor(job["pos"], requires_grad=True)
    i, j = torch.tensor(job["idx_i"]), torch.tensor(job["idx_j"])
    inputs = {
        properties.Z: torch.tensor(job["z"]),
        properties.R: pos,
        properties.Rij: pos[j] - pos[i],
        properties.idx_i: i,
        properties.idx_j: j,
        properties.idx_m: torch.tensor(job["idx_m"]),
        properties.n_atoms: torch.tensor(job["idx_m"]).bincount(),
        properties.total_charge: torch.tensor(job["charge"]),
    }
    results = output(representation(inputs))
    value = results[output.model_outputs[0]]
    (gradient,) = torch.autograd.grad((value * torch.tensor(job["weights"])).sum(), pos)
    tensors = {
        "s": results["scalar_representation"],
        "v": results["vector_representation"],
        "value": value,
        "gradient": gradient,
        "parameters": torch.tensor(sum(p.numel() for p in representation.parameters())),
    }
    if head in ("dipole", "charges"):
        tensors["charges"] = results[output.charges_key].squeeze(1)
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
