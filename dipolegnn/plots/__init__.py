"""Figures: parity plot, errors by group, learning curve, a molecule with its dipole moment.

Each function returns a matplotlib ``Figure`` that is tied to no window and no global state; save
it with ``figure.savefig("name.png")``.
"""

from dipolegnn.plots.curves import learning_curve, parity_plot
from dipolegnn.plots.errors import error_bars
from dipolegnn.plots.molecule import draw_molecule

__all__ = ["draw_molecule", "error_bars", "learning_curve", "parity_plot"]
