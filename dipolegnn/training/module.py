"""The LightningModule: loss, metrics, optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import (
    LRSchedulerConfigType,
    OptimizerLRSchedulerConfig,
)
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torchmetrics import Metric

from dipolegnn._pyg import Data
from dipolegnn.config import TrainConfig
from dipolegnn.metrics import MeanError, MeanLoss
from dipolegnn.nn import PropertyModel

ONECYCLE_START = 1 / 25
"""One-cycle schedule: first learning rate, as a fraction of the peak."""

ONECYCLE_RISE = 0.1
"""One-cycle schedule: fraction of all steps until the peak."""


class DipoleModule(pl.LightningModule):
    """LightningModule that trains a model with the loss and the metrics of its head.

    Logs loss and metrics of each epoch for ``train``, ``val`` and ``test``; for a dipole model
    ``val/loss``, ``val/dipole_mae`` and ``val/dipole_rmse`` of the magnitude in debye,
    ``val/vector_mae`` in debye and ``val/angle`` in degrees. The metrics of ``train`` are computed
    while the weights change. With several devices, metrics cover the molecules of all devices.

    Args:
        model: The model to train.
        config: The recipe.
    """

    def __init__(self, model: PropertyModel[Any], config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.measured = nn.ModuleDict(
            {
                f"{stage}_stage": nn.ModuleDict(
                    {
                        "loss": MeanLoss(),
                        **{
                            name: MeanError(m.error, m.root)
                            for name, m in model.head.metrics.items()
                        },
                    }
                )
                for stage in ("train", "val", "test")
            }
        )

    @property
    def cutoff_of_graphs(self) -> float:
        """Cutoff of the model in angstrom, with which the data module can cache radius graphs.

        Positions are not changed during training, so that each graph is built only once.
        """
        return self.model.representation.cutoff

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that a checkpoint has the weights of this model.

        Raises:
            ValueError: If weights are missing or unknown, or have other shapes.
        """
        own, stored = self.state_dict(), checkpoint["state_dict"]
        wrong = sorted(
            name
            for name in own.keys() | stored.keys()
            if getattr(own.get(name), "shape", None) != getattr(stored.get(name), "shape", None)
        )
        if wrong:
            raise ValueError(
                f"The checkpoint does not fit the model: {len(wrong)} of its {len(stored)} weights "
                f"are missing, unknown or of another shape ({', '.join(wrong[:3])}). The checkpoint"
                " is damaged or that of another run: restore it from a copy, or choose another "
                "folder for a new run."
            )

    def on_train_epoch_start(self) -> None:
        """Seeds the epoch by its number, so that a resumed run is reproducible."""
        pl.seed_everything(self.config.seed + self.current_epoch, verbose=False)

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """Computes the loss of a batch.

        DDP averages the gradients of the devices. For the gradient of the mean over all labelled
        molecules, the sum of losses of each device is divided by the mean number of labelled
        molecules per device.
        """
        total, count = self._step("train", batch)
        return total / _mean_over_devices(count.to(total))

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Computes loss and metrics of a batch."""
        self._step("val", batch)

    def test_step(self, batch: Data, batch_idx: int) -> None:
        """Computes loss and metrics of a batch."""
        self._step("test", batch)

    def _step(self, stage: str, batch: Data) -> tuple[Tensor, Tensor]:
        """Returns the sum of losses and the number of labelled molecules."""
        dtype = next(self.model.parameters()).dtype
        if batch.pos.dtype != dtype:  # Lightning's precision="64-true" does not convert batches.
            batch = batch.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
        output = self.model(batch)
        head = self.model.head
        losses, labelled = head.losses(output, batch, self.config)
        targets = head.targets(output, batch)
        measured = self.measured[f"{stage}_stage"]
        assert isinstance(measured, nn.ModuleDict)
        for name, metric in measured.items():
            assert isinstance(metric, Metric)
            if name == "loss":
                metric.update(losses, labelled)
            elif head.metrics[name].target in targets:
                metric.update(*targets[head.metrics[name].target])
            self.log(
                f"{stage}/{name}", metric, on_step=False, on_epoch=True, batch_size=losses.numel()
            )
        return losses.sum(), labelled.sum()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Creates AdamW and the schedule of the configuration.

        Weight decay applies to all parameters, including biases and embeddings. At the usual
        lr x weight_decay of 1e-5 per step, a weight decays by less than a tenth in 10,000 steps.
        """
        config = self.config
        optimizer = AdamW(
            self.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        # This also loads the data, which num_training_batches needs.
        total_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": self._schedule(optimizer, total_steps)}

    def _schedule(self, optimizer: Optimizer, total_steps: int) -> LRSchedulerConfigType:
        config = self.config
        if config.scheduler == "plateau":
            plateau = ReduceLROnPlateau(
                optimizer,
                factor=config.plateau_factor,
                patience=config.plateau_patience,
                cooldown=config.plateau_cooldown,
            )
            # One step of the scheduler per epoch, after its validation. With interval="epoch",
            # Lightning would do so after saving the checkpoint, and a resumed run would reduce the
            # learning rate one epoch late. (frequency counts steps within the epoch.)
            return LRSchedulerConfigType(
                scheduler=plateau,
                monitor="val/loss",
                interval="step",
                frequency=int(self.trainer.num_training_batches),
                name="lr",
            )
        shape = cosine if config.scheduler == "cosine" else onecycle
        return LRSchedulerConfigType(
            scheduler=LambdaLR(optimizer, lambda step: shape(step, total_steps)),
            interval="step",
            name="lr",
        )


def _mean_over_devices(number: Tensor) -> Tensor:
    """Mean of a number over all devices."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    total = number.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def cosine(step: float, total_steps: float) -> float:
    """Cosine schedule: learning rate as a fraction of the peak, from 1 to nearly 0."""
    return 0.5 * (1 + math.cos(math.pi * step / total_steps))


def onecycle(step: int, total_steps: int) -> float:
    """One-cycle schedule: learning rate as a fraction of the peak, by two half cosines.

    After Smith and Topin, arXiv:1708.07120, without the cycle of the momentum.
    """
    rise = ONECYCLE_RISE * total_steps
    if step < rise:
        return 1 - (1 - ONECYCLE_START) * cosine(step, rise)
    return cosine(step - rise, total_steps - rise)
