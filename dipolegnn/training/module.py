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
    """Trains a model with the loss of its head, and measures it by the metrics of its head.

    Logs, for ``train``, ``val`` and ``test`` and over whole epochs, the loss and the metrics; of a
    dipole model ``val/loss``, ``val/dipole_mae`` and ``val/dipole_rmse`` of the magnitude in debye,
    ``val/vector_mae`` in debye and ``val/angle`` in degrees. Those of ``train`` are computed while
    the weights change. With several devices they are those of all molecules.

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
        """The cutoff of the model, in angstrom.

        No step moves an atom before the model sees it, so the radius graphs of a data set need
        building only once.
        """
        return self.model.representation.cutoff

    def on_train_epoch_start(self) -> None:
        """Seeds anything random in this epoch by its number, so that a resumed run repeats it."""
        pl.seed_everything(self.config.seed + self.current_epoch, verbose=False)

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """The loss of a batch, such that its gradient is that of the batches of all devices.

        DDP averages the gradients of the devices. For the mean over all labelled molecules, the sum
        of each device has to be divided by the number that a device has on average.
        """
        total, count = self._step("train", batch)
        return total / _mean_over_devices(count.to(total))

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Loss and metrics of a batch."""
        self._step("val", batch)

    def test_step(self, batch: Data, batch_idx: int) -> None:
        """Loss and metrics of a batch."""
        self._step("test", batch)

    def _step(self, stage: str, batch: Data) -> tuple[Tensor, Tensor]:
        """The sum of the losses of the labelled molecules, and their number."""
        dtype = next(self.model.parameters()).dtype
        if batch.pos.dtype != dtype:  # Lightning's precision="64-true" leaves PyG's batches alone.
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
        """AdamW and the schedule of the configuration.

        All parameters decay alike. Biases and embeddings are often left out of it, but at the
        usual lr x weight_decay of 1e-5 a step, a weight loses less than a tenth in 10,000 steps.
        """
        config = self.config
        optimizer = AdamW(
            self.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        # Asking for the total loads the data, which num_training_batches needs.
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
            # Once per epoch, after its validation. Lightning's interval="epoch" would do so after
            # the checkpoint is written, which then lacks that epoch: a resumed run would reduce
            # the rate an epoch late. (It counts steps within the epoch, so this is its last.)
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
    """The mean of a number over the devices that train together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    total = number.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def cosine(step: float, total_steps: float) -> float:
    """Learning rate as a fraction of the peak: half a cosine, from 1 to nearly 0."""
    return 0.5 * (1 + math.cos(math.pi * step / total_steps))


def onecycle(step: int, total_steps: int) -> float:
    """Learning rate as a fraction of the peak: quickly up and slowly down, on two half cosines.

    After Smith and Topin, arXiv:1708.07120, without their cycle of the momentum.
    """
    rise = ONECYCLE_RISE * total_steps
    if step < rise:
        return 1 - (1 - ONECYCLE_START) * cosine(step, rise)
    return cosine(step - rise, total_steps - rise)
