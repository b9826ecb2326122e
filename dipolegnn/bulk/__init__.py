"""Predictions for files of any size: streamed, in processes, and resumed after a crash."""

from dipolegnn.bulk.parts import TABLES_OUT, JobMismatch, failures_path, write_table
from dipolegnn.bulk.run import BulkResult, predict_files

__all__ = [
    "TABLES_OUT",
    "BulkResult",
    "JobMismatch",
    "failures_path",
    "predict_files",
    "write_table",
]
