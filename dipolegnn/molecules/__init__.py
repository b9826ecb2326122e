"""Conversion of SMILES, SDF, XYZ, extXYZ, ASE ``Atoms`` and RDKit ``Mol`` to and from ``Data``.

Nothing outside this package imports RDKit.
"""

from __future__ import annotations

from dipolegnn.molecules.chemistry import (
    can_turn,
    canonical_smiles,
    count_atoms,
    count_motions,
    from_rdkit,
    from_smiles,
    murcko_scaffold,
    to_rdkit,
)
from dipolegnn.molecules.embedding import embed_smiles
from dipolegnn.molecules.files import read_file, read_text, text_of, write_file
from dipolegnn.molecules.molecule import (
    Failure,
    MoleculeError,
    Molecules,
    failures_text,
    make_data,
    read_failures,
    write_failures,
)
from dipolegnn.molecules.records import SmilesRow, TableColumns
from dipolegnn.molecules.xyz import from_ase, to_ase

__all__ = [
    "Failure",
    "MoleculeError",
    "Molecules",
    "SmilesRow",
    "TableColumns",
    "can_turn",
    "canonical_smiles",
    "count_atoms",
    "count_motions",
    "embed_smiles",
    "failures_text",
    "from_ase",
    "from_rdkit",
    "from_smiles",
    "make_data",
    "murcko_scaffold",
    "read_failures",
    "read_file",
    "read_text",
    "text_of",
    "to_ase",
    "to_rdkit",
    "write_failures",
    "write_file",
]
