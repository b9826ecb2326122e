"""A model as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes

from dipolegnn.inference.structures import predict, require_vectors
from dipolegnn.models import DEFAULT, load_model, unknown_elements
from dipolegnn.molecules import from_ase
from dipolegnn.molecules.total_charge import is_charge_name
from dipolegnn.nn import DipoleModel
from dipolegnn.units import DEBYE_PER_E_ANGSTROM, centre_of_mass, move_origin


class DipoleCalculator(Calculator):
    """ASE calculator of dipole moment and charges, with other properties from another calculator.

    In ASE's units: ``dipole`` in e·angstrom, ``charges`` in e. The total charge is
    ``atoms.info["charge"]`` (or another name that ``from_ase`` reads), else the sum of the initial
    charges.

    The dipole of an ion depends on the origin. Here, as in all ASE calculators, it is the origin of
    the coordinates; elsewhere in dipolegnn (commands, ``predict``, labels) it is the centre of
    mass. :func:`dipolegnn.units.move_origin` converts. The dipole of a neutral molecule is the same
    for both.

    Args:
        model: A model with vectors, or the name of a pretrained model.
        others: Calculator of all other properties, such as energy and forces (molecular dynamics).
        level: Level of theory, one of ``model.levels``; None: the first of them.

    Raises:
        FileNotFoundError: If there is no model of that name.
        ValueError: If the model does not have the level.

    Example:
        >>> import numpy as np
        >>> from ase.build import molecule
        >>> atoms = molecule("CH3CHO")
        >>> atoms.calc = DipoleCalculator("painn-qm9")
        >>> round(float(np.linalg.norm(atoms.get_dipole_moment())), 1)  # e·angstrom
        0.5
    """

    def __init__(
        self,
        model: DipoleModel | str = DEFAULT,
        others: BaseCalculator | None = None,
        level: str | None = None,
    ) -> None:
        super().__init__()
        self.model = load_model(model) if isinstance(model, str) else model
        self.level = self.model.level_named(level)
        self.others = others
        theirs = () if others is None else others.implemented_properties
        self.implemented_properties = list(dict.fromkeys(("dipole", "charges", *theirs)))

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Returns what has changed since the last calculation, including the charge.

        Args:
            atoms: The structure.
            tol: Tolerance of the comparison.
        """
        changes: list[str] = super().check_state(atoms, tol)
        if self.atoms is not None and _stated_charges(self.atoms) != _stated_charges(atoms):
            changes.append("charge")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("dipole",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Computes the requested properties and stores them in ``results``.

        Raises:
            MoleculeError: If the structure is periodic, or has an element that a pretrained model
                was not trained on.
            ValueError: If the model has no vectors.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        wanted = set(properties)
        if wanted & {"dipole", "charges"}:
            self._from_model(self.atoms)
        for name in sorted(wanted - {"dipole", "charges"}):
            if self.others is not None:
                self.results[name] = self.others.get_property(name, self.atoms)

    def _from_model(self, atoms: Atoms) -> None:
        bare = atoms.copy()  # without the calculator, whose results would be read as labels
        data = from_ase(bare)
        problem = unknown_elements(self.model, data)
        if problem is not None:
            raise problem
        require_vectors(self.model)
        (prediction,) = predict(self.model, [data], level=self.level or None)
        centre = centre_of_mass(atoms.numbers, atoms.positions)
        dipole = prediction.dipole / DEBYE_PER_E_ANGSTROM  # [3] about the centre of mass
        self.results["dipole"] = move_origin(dipole, float(data.charge), -centre)
        self.results["charges"] = prediction.charges


def _stated_charges(atoms: Atoms) -> dict[str, object]:
    """Total charges in ``info``, under any of the names that :func:`from_ase` reads."""
    return {
        str(key): np.asarray(value).tolist()
        for key, value in atoms.info.items()
        if is_charge_name(str(key))
    }
