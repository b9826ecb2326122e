"""All imports from ``torch_geometric``.

PyG 2.8 warns at import if torch-cluster or torch-scatter is installed, and recommends pyg-lib,
which is not on PyPI. dipolegnn calls torch-cluster directly (see ``nn/graph.py``), so the warnings
do not apply. They are suppressed during the import only.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", UserWarning)
    from torch_geometric import EdgeIndex
    from torch_geometric.data import Batch, Data, InMemoryDataset
    from torch_geometric.index import index2ptr
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import MessagePassing
    from torch_geometric.utils import segment

__all__ = [
    "Batch",
    "Data",
    "DataLoader",
    "EdgeIndex",
    "InMemoryDataset",
    "MessagePassing",
    "index2ptr",
    "segment",
]
