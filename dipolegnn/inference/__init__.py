"""Predictions of structures, SMILES and files of any size, on one machine or several.

Files are streamed, embedded in processes, and resumed after a crash.
"""

from dipolegnn.inference.output import (
    STREAMED,
    JobMismatch,
    OutputInUse,
    failures_path,
    require_apart,
    write_predictions,
)
from dipolegnn.inference.pipeline import (
    BulkResult,
    predict_files,
    predict_list,
    predict_records,
    predict_smiles,
)
from dipolegnn.inference.structures import MoleculePrediction, Prediction, Predictions, predict

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
    "predict_list",
    "predict_records",
    "predict_smiles",
    "require_apart",
    "write_predictions",
]
