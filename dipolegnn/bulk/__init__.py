"""Predictions for files of any size: streamed, in processes, and resumed after a crash."""

from dipolegnn.bulk.formats import STREAMED
from dipolegnn.bulk.parts import (
    JobMismatch,
    OutputInUse,
    failures_path,
    require_apart,
    write_report,
)
from dipolegnn.bulk.run import BulkResult, predict_files

__all__ = [
    "STREAMED",
    "BulkResult",
    "JobMismatch",
    "OutputInUse",
    "failures_path",
    "predict_files",
    "require_apart",
    "write_report",
]
