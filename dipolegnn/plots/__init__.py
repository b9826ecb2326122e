"""Figures: parity plot, learning curve, a molecule with its dipole moment.

Each function returns a matplotlib ``Figure`` that is tied to no window and no global state; save
it with ``figure.savefig("name.png")``.
"""

from dipolegnn.plots.curves import learning_curve, parity_plot
from dipolegnn.plots.molecule import draw_molecule

__all__ = ["draw_molecule", "learning_curve", "parity_plot"]
