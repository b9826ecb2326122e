"""The loss: on the dipole vector where a molecule has one, else on its magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from dipolegnn._pyg import Data
from dipolegnn.config import TrainConfig
from dipolegnn.nn import DipoleOutput


def dipole_loss(output: DipoleOutput, batch: Data, config: TrainConfig) -> Tensor:
    r"""Mean over the labelled molecules of the loss of their error e.

    e is the length of the error vector, :math:`|\mu - \mu_0|`, of a molecule that has a dipole
    vector, and the error of the magnitude, :math:`|\mu| - |\mu_0|`, of one that has only that (or
    when the model makes no vectors). In terms of e,

    ======  ==================================================================
    mse     :math:`e^2`
    l1      :math:`|e|`
    huber   :math:`e^2 / 2\beta` where :math:`|e| < \beta`, else :math:`|e| - \beta / 2`
    ======  ==================================================================

    L1 and Huber take the length of the error vector and not its components one by one: that would
    depend on how the molecule is turned.

    Args:
        output: What the model predicts for the batch.
        batch: A batch with ``dipole [B, 3]`` and ``dipole_magnitude [B]`` in debye, NaN where
            unknown.
        config: Kind of loss, and beta of the Huber loss in debye.

    Returns:
        The loss, a scalar: debye squared for mse, else debye.

    Raises:
        ValueError: If no molecule of the batch has a label that the model can learn from.
    """
    return molecule_losses(output, batch, config).mean()


def molecule_losses(output: DipoleOutput, batch: Data, config: TrainConfig) -> Tensor:
    """The loss of each labelled molecule, those with a vector first; see :func:`dipole_loss`."""
    squared = []
    remaining = batch.dipole_magnitude.isfinite()  # [B]
    if output.dipole is not None:
        has_vector = batch.dipole.isfinite().all(dim=1)  # [B]
        remaining = remaining & ~has_vector
        # Picked out before subtracting: a NaN that is only masked comes back in the gradient.
        error = output.dipole[has_vector] - batch.dipole[has_vector]
        squared.append(error.square().sum(dim=1))
    error = output.magnitude[remaining] - batch.dipole_magnitude[remaining]
    squared.append(error.square())
    losses = _of_squared_error(torch.cat(squared), config)
    if losses.numel() == 0:
        kind = "magnitude" if output.dipole is None else "vector or magnitude"
        raise ValueError(
            f"No molecule of this batch has a dipole {kind} (mol_id {batch.mol_id.tolist()}). "
            "Label the molecules, or leave those without a label out of the split."
        )
    return losses


def _of_squared_error(squared: Tensor, config: TrainConfig) -> Tensor:
    if config.loss == "mse":
        return squared
    beta = config.huber_beta if config.loss == "huber" else 0.0
    far = squared > beta**2
    # The root only ever sees what is used of it: its gradient is infinite at 0.
    linear = squared.where(far, 1.0).sqrt() - beta / 2
    near = squared / (2 * beta) if beta > 0 else squared
    return linear.where(far, near)
