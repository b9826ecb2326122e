"""Derivatives of the dipole moment with respect to positions: atomic polar tensors."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import atomic_masses
from numpy.typing import NDArray

from dipolegnn._pyg import Data
from dipolegnn.inference.structures import (
    evaluating,
    model_input,
    require_vectors,
    unsupported,
)
from dipolegnn.nn import DipoleModel
from dipolegnn.units import DEBYE_PER_E_ANGSTROM


def polar_tensors(model: DipoleModel, data: Data) -> NDArray[np.float64]:
    r"""Computes the atomic polar tensors of a structure by automatic differentiation.

    .. math:: P_{iab} = \frac{\partial \mu_a}{\partial R_{ib}}

    The sum over the atoms is the total charge times the unit matrix. The dipole vector refers to a
    fixed origin: for ions, the derivative of the centre of mass, the origin of
    :class:`~dipolegnn.DipoleModel`, is corrected for.

    Args:
        model: A model with vectors.
        data: Structure with ``z [N]``, ``pos [N, 3]`` in angstrom and, for ions, ``charge`` in e.

    Returns:
        ``[N, 3, 3]`` in e: atom, component of the dipole, component of the position.

    Raises:
        MoleculeError: If the structure has no atoms or coordinates, or an element beyond 100.
        ValueError: If the model has no vectors.

    Example:
        >>> from dipolegnn import load_model
        >>> from dipolegnn.molecules import from_smiles
        >>> water, = from_smiles("O")
        >>> tensors = polar_tensors(load_model("painn-qm9"), water)
        >>> tensors.shape, bool(abs(tensors.sum(axis=0)).max() < 1e-5)
        ((3, 3, 3), True)

    Source: Person and Newton, J. Chem. Phys. 61, 1040 (1974).
    """
    problem = unsupported(data)
    if problem is not None:
        raise problem
    require_vectors(model)
    weight = next(model.parameters())
    with evaluating(model), torch.enable_grad():
        pos = data.pos.detach().to(weight).requires_grad_()
        charge = 0.0 if data.get("charge") is None else float(data.charge)
        batch = model_input(model, [data])
        batch.pos = pos
        dipole = model(batch).dipole
        rows = [torch.autograd.grad(dipole[0, a], pos, retain_graph=a < 2)[0] for a in range(3)]
    tensors = torch.stack(rows, dim=1).double().cpu().numpy() / DEBYE_PER_E_ANGSTROM
    masses = atomic_masses[data.z.cpu().numpy()]
    shift = charge * masses / masses.sum()
    return np.asarray(tensors + shift[:, None, None] * np.eye(3))
