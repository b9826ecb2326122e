"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class WarmedUpEMA(WeightAveraging):
    r"""Moving average of the weights with a warm-up, for validation and for the saved model.

    .. math::
        \bar w_t = d_t \bar w_{t-1} + (1 - d_t)\, w_t, \qquad
        d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    The base class, Lightning's ``WeightAveraging`` (2.6.6), validates with the average, stores the
    average in ``state_dict`` of a checkpoint and the current weights in ``current_model_state``,
    and restores both. Differences from Lightning's ``EMAWeightAveraging``:

    - ``EMAWeightAveraging`` has no warm-up. Its average starts with the weights after the first
      step; with a decay of 0.999 their share is still 90 % after 100 steps and 37 % after 1,000.
      (Validation loss of a toy model after 100 steps: 0.011 without an average, 3.9 with
      Lightning's, 0.012 with this one.)
    - It averages buffers with ``d * a + (1 - d) * b``, whose rounding changes constants (centres of
      a radial basis, atomic weights). Here buffers are copied.

    Limitations of both:

    - The copy for the average is made before Lightning converts the module to
      ``precision="64-true"``. The copy would stay in float32 and round the weights at each
      validation; therefore ``fit`` converts the model first.
    - A trainer that has fitted and then loads a checkpoint to validate or test
      (``ckpt_path="best"``) uses the current weights, not their average. Evaluate with a trainer
      without this callback, as ``fit`` does.

    Args:
        decay: Decay d per step after the warm-up, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

    def _average(
        self, averages: Sequence[Tensor], weights: Sequence[Tensor], num_averaged: Tensor
    ) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(
                list(averages), list(weights), 1 - warmed_up_decay(self.decay, int(num_averaged))
            )


def warmed_up_decay(decay: float, step: int) -> float:
    """Decay at a step, which increases from 0.1 to ``decay``."""
    return min(decay, (1 + step) / (10 + step))
