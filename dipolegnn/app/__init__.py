"""Local web page that predicts and shows dipole moments of SMILES and files."""
