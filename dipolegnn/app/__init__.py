"""A local web page: SMILES or a file in; the molecule, its dipole moment and tables out."""
