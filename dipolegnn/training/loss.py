"""The loss: on the dipole vector where a molecule has one, else on its magnitude."""

from __future__ import annotations

from torch import Tensor

from dipolegnn._pyg import Data
from dipolegnn.config import TrainConfig
from dipolegnn.nn import DipoleOutput
from dipolegnn.nn.graph import can_check_values


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
        ValueError: If no molecule of a batch on the CPU has a label that the model can learn from.
    """
    losses, labelled = molecule_losses(output, batch, config)
    return losses.sum() / labelled.sum()


def molecule_losses(
    output: DipoleOutput, batch: Data, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """The loss of each molecule ``[B]``, 0 without a label, and which have one ``[B]``.

    Nothing here has a size that depends on the labels, so that nothing waits for a GPU; on one, a
    batch without any label shows as a loss that is not a number. See :func:`dipole_loss`.
    """
    labelled = batch.dipole_magnitude.isfinite()  # [B]
    # Filled before subtracting: a NaN that is masked afterwards comes back in the gradient.
    error = output.magnitude - batch.dipole_magnitude.where(labelled, 0.0)
    squared = error.square()
    if output.dipole is not None:
        has_vector = batch.dipole.isfinite().all(dim=1)  # [B]
        difference = output.dipole - batch.dipole.where(has_vector.unsqueeze(1), 0.0)
        squared = difference.square().sum(dim=1).where(has_vector, squared)
        labelled = labelled | has_vector
    if can_check_values(labelled) and not bool(labelled.any()):
        kind = "magnitude" if output.dipole is None else "vector or magnitude"
        raise ValueError(
            f"No molecule of this batch has a dipole {kind} (mol_id {batch.mol_id.tolist()}). "
            "Label the molecules, or leave those without a label out of the split."
        )
    return _of_squared_error(squared, config).where(labelled, 0.0), labelled


def _of_squared_error(squared: Tensor, config: TrainConfig) -> Tensor:
    if config.loss == "mse":
        return squared
    beta = config.huber_beta if config.loss == "huber" else 0.0
    far = squared > beta**2
    # The root only ever sees what is used of it: its gradient is infinite at 0.
    linear = squared.where(far, 1.0).sqrt() - beta / 2
    near = squared / (2 * beta) if beta > 0 else squared
    return linear.where(far, near)
