"""Small molecules that the tests of the data package share."""

from __future__ import annotations

import numpy as np
import torch

from dipolegnn._pyg import Data
from dipolegnn.molecules import make_data


def water(mol_id: int = 0) -> Data:
    return make_data(
        [8, 1, 1],
        [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]],
        dipole=[1.1, 1.4, 0],
        atomic_charges=[-0.6, 0.3, 0.3],
        energy=-3185.0,
        mol_id=mol_id,
        smiles="O",
        name="water",
    )


def hydroxide(mol_id: int = 1) -> Data:
    return make_data(
        [8, 1],
        [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0]],
        charge=-1,
        mol_id=mol_id,
        smiles="[OH-]",
        name="hydroxide",
    )


def sample_molecules() -> list[Data]:
    """Water twice, an ion without labels, HCl with a magnitude alone, one atom."""
    turned = water()
    turned.pos = turned.pos[:, [1, 0, 2]]
    hcl = make_data(
        [17, 1], [[0.0, 0.0, 0.0], [1.27, 0.0, 0.0]], dipole_magnitude=1.1, mol_id=2, smiles="Cl"
    )
    helium = make_data([2], [[0.5, 0.0, 0.0]], dipole=[0, 0, 0], mol_id=7, name="helium")
    return [water(), turned, hydroxide(), hcl, helium]


def chain_dataset(molecules: int = 40, seed: int = 3) -> list[Data]:
    """Made-up molecules of different sizes; odd ones in two conformations."""
    rng = np.random.default_rng(seed)
    data = []
    for mol_id in range(molecules):
        atoms = 2 + mol_id % 5
        pos = np.arange(3 * atoms).reshape(atoms, 3) + rng.uniform(-0.2, 0.2, (atoms, 3))
        for conformer in range(1 + mol_id % 2):
            shifted = pos + 0.1 * conformer
            data.append(
                make_data(
                    [6] * atoms,
                    shifted,
                    dipole=rng.normal(size=3),
                    mol_id=mol_id,
                    smiles="C" * atoms,
                )
            )
    return data


def equal(a: Data, b: Data) -> bool:
    """Same fields, bit by bit (NaN equals NaN)."""
    if a.to_dict().keys() != b.to_dict().keys():
        return False
    for field, left in a.to_dict().items():
        right = b[field]
        if isinstance(left, str):
            if left != right:
                return False
        elif left.dtype != right.dtype or not torch.equal(
            left.nan_to_num(nan=1e9), right.nan_to_num(nan=1e9)
        ):
            return False
    return True
