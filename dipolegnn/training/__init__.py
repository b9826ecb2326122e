"""Training: the LightningModule, and ``fit()``, the recipe from data to a saved model."""

from dipolegnn.training.callbacks import TrainingDiverged, WarmedUpEMA
from dipolegnn.training.fit import TrainingInterrupted, fit
from dipolegnn.training.module import DipoleModule
from dipolegnn.training.processes import FirstProcessFailed, is_first_process
from dipolegnn.training.run_folder import FitResult, RunFolder, read_history

__all__ = [
    "DipoleModule",
    "FirstProcessFailed",
    "FitResult",
    "RunFolder",
    "TrainingDiverged",
    "TrainingInterrupted",
    "WarmedUpEMA",
    "fit",
    "is_first_process",
    "read_history",
]
