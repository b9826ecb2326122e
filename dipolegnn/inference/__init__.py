"""Predictions of structures, SMILES and files of any size, on one machine or several.

Files are streamed, embedded in processes, and resumed after a crash.
"""

from dipolegnn.inference.files import BulkResult, predict_files
from dipolegnn.inference.formats import STREAMED
from dipolegnn.inference.output import (
    JobMismatch,
    OutputInUse,
    failures_path,
    require_apart,
    write_report,
)
from dipolegnn.inference.result import MoleculePrediction, Prediction
from dipolegnn.inference.structures import Predictions, predict, predict_smiles

__all__ = [
    "STREAMED",
    "BulkResult",
    "JobMismatch",
    "MoleculePrediction",
    "OutputInUse",
    "Prediction",
    "Predictions",
    "failures_path",
    "predict",
    "predict_files",
    "predict_smiles",
    "require_apart",
    "write_report",
]
