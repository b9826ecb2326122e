"""dipolegnn: dipole moments of molecules with PyTorch Geometric.

Importing this package is fast: the modules of the public names below are imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dipolegnn.config import DFTConfig, ModelConfig, TrainConfig, XTBConfig
    from dipolegnn.data import ConformerDataset, DipoleDataModule
    from dipolegnn.evaluation import evaluate
    from dipolegnn.export import export_model
    from dipolegnn.inference.calculator import DipoleCalculator
    from dipolegnn.inference.pipeline import predict_smiles
    from dipolegnn.inference.structures import predict
    from dipolegnn.labels import ASEConfig
    from dipolegnn.models import load_model, save_model
    from dipolegnn.molecules import from_smiles
    from dipolegnn.nn import AtomwiseHead, DipoleHead, DipoleModel, DipoleOutput, PaiNN, SchNet
    from dipolegnn.nn.graph import radius_graph
    from dipolegnn.training.fit import fit

__version__ = "0.2.0"

__all__ = [
    "ASEConfig",
    "AtomwiseHead",
    "ConformerDataset",
    "DFTConfig",
    "DipoleCalculator",
    "DipoleDataModule",
    "DipoleHead",
    "DipoleModel",
    "DipoleOutput",
    "ModelConfig",
    "PaiNN",
    "SchNet",
    "TrainConfig",
    "XTBConfig",
    "__version__",
    "evaluate",
    "export_model",
    "fit",
    "from_smiles",
    "load_model",
    "predict",
    "predict_smiles",
    "radius_graph",
    "save_model",
]

_HOME = {
    "ASEConfig": "dipolegnn.labels",
    "AtomwiseHead": "dipolegnn.nn",
    "ConformerDataset": "dipolegnn.data",
    "DFTConfig": "dipolegnn.config",
    "DipoleCalculator": "dipolegnn.inference.calculator",
    "DipoleDataModule": "dipolegnn.data",
    "DipoleHead": "dipolegnn.nn",
    "DipoleModel": "dipolegnn.nn",
    "DipoleOutput": "dipolegnn.nn",
    "ModelConfig": "dipolegnn.config",
    "PaiNN": "dipolegnn.nn",
    "SchNet": "dipolegnn.nn",
    "TrainConfig": "dipolegnn.config",
    "XTBConfig": "dipolegnn.config",
    "evaluate": "dipolegnn.evaluation",
    "export_model": "dipolegnn.export",
    "fit": "dipolegnn.training",
    "from_smiles": "dipolegnn.molecules",
    "load_model": "dipolegnn.models",
    "predict": "dipolegnn.inference.structures",
    "predict_smiles": "dipolegnn.inference.pipeline",
    "radius_graph": "dipolegnn.nn",
    "save_model": "dipolegnn.models",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dipolegnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
