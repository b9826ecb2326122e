"""Reference dipoles from GFN2-xTB (tblite), DFT (PySCF) or any ASE calculator."""

from __future__ import annotations

from dipolegnn.labels.batch import label_many
from dipolegnn.labels.calculators import (
    ASEConfig,
    LabelMethod,
    dft_calculator,
    make_calculator,
    xtb_calculator,
)
from dipolegnn.labels.run import label

__all__ = [
    "ASEConfig",
    "LabelMethod",
    "dft_calculator",
    "label",
    "label_many",
    "make_calculator",
    "xtb_calculator",
]
