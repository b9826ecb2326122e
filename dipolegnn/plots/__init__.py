"""Figures: parity plot, errors by group, learning curve, a molecule with its dipole moment.

Each function returns a matplotlib ``Figure`` without a window and without global state (no pyplot).
Save it with ``figure.savefig("name.png")``.
"""

from dipolegnn.plots.curves import error_bars, learning_curve, parity_plot
from dipolegnn.plots.molecule import draw_molecule

__all__ = ["draw_molecule", "error_bars", "learning_curve", "parity_plot"]
