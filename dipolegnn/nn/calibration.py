"""Error bars: an uncertainty for each molecule, calibrated on molecules with known errors.

The uncertainty of a molecule is its Mahalanobis distance from the training molecules in the space
of last-layer gradients (last-layer prediction rigidity: Bigi, Chong, Ceriotti, Grasselli, Mach.
Learn.: Sci. Technol. 5, 045018, 2024). A calibration set of molecules that were not used for
training converts the uncertainty to debye (split-conformal prediction: Papadopoulos et al., ECML
2002; Lei et al., J. Am. Stat. Assoc. 113, 1094, 2018). For molecules from the distribution of the
calibration set, 90 % intervals contain 90 % of the references, whatever the quality of the
uncertainties of single molecules. Error bars describe the error of the model relative to its level
of theory at the given geometry. A model that distinguishes levels of theory has a distribution of
errors for each of them. :func:`dipolegnn.fit` uses the validation molecules as calibration set.
They also determine the best epoch, which has a negligible effect on the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from dipolegnn._pyg import Data
from dipolegnn.nn.features import MAX_Z

UNSURE = 0.995
"""A prediction gets a warning if its scale exceeds this quantile of the calibration set."""


def scale_of(distances: Tensor, floor: Tensor) -> Tensor:
    """Scales ``[B]`` from whitened gradients ``[B, P]`` and the smallest scale."""
    return (distances.square().sum(dim=1) + floor.square()).sqrt()


class Calibration(nn.Module):
    """Error bars of a model, saved with the model.

    If the model distinguishes levels of theory, ``floor``, ``scores`` and ``widest`` have a row for
    each of its ``L`` levels. A level that was added later has the first row.

    Args:
        whitening: Inverse Cholesky factor ``[P, P]`` of the covariance of the last-layer gradients
            of the training molecules.
        floor: Smallest scale; a scalar or ``[L]``.
        scores: Errors of calibration molecules, divided by their scales, in debye; ``[n]``, or
            ``[L, n]`` filled up with infinity.
        widest: The quantile :data:`UNSURE` of the scales of the calibration set; a scalar or
            ``[L]``.
        elements: True for the elements of the training molecules, by atomic number.
        sizes: Smallest and largest number of heavy atoms of the training molecules ``[2]``, without
            sizes of fewer than three molecules.
        charges: Total charges of the training molecules.
    """

    whitening: Tensor
    floor: Tensor
    scores: Tensor
    widest: Tensor
    elements: Tensor
    sizes: Tensor
    charges: Tensor

    def __init__(
        self, whitening: Tensor, floor: Tensor, scores: Tensor, widest: Tensor,
        elements: Tensor, sizes: Tensor, charges: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("whitening", whitening)
        self.register_buffer("floor", floor)
        self.register_buffer("scores", scores.sort(dim=-1).values)
        self.register_buffer("widest", widest)
        self.register_buffer("elements", elements)
        self.register_buffer("sizes", sizes)
        self.register_buffer("charges", charges)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Calibration:
        """Creates a calibration from its ``state_dict()``.

        Raises:
            ValueError: If an entry is missing or has the wrong shape or type.
        """
        names = ("whitening", "floor", "scores", "widest", "elements", "sizes", "charges")
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"The calibration lacks {', '.join(missing)}.")
        whitening, floor, scores, widest, elements, sizes, charges = (state[n] for n in names)
        expected = {
            "whitening": (whitening, [whitening.shape[-1:].numel()] * 2, True),
            "floor": (floor, [*scores.shape[:-1]], True),
            "scores": (scores, [*floor.shape, scores.shape[-1:].numel()], True),
            "widest": (widest, [*floor.shape], True),
            "elements": (elements, [MAX_Z + 1], False),
            "sizes": (sizes, [2], False),
            "charges": (charges, [charges.numel()], False),
        }
        wrong = [
            f"{name} is {values.dtype} {list(values.shape)} instead of "
            f"{'floating-point' if floating else 'bool' if name == 'elements' else 'integer'} "
            f"{shape}"
            for name, (values, shape, floating) in expected.items()
            if list(values.shape) != shape
            or values.is_floating_point() != floating
            or values.is_complex()
            or (values.dtype == torch.bool) != (name == "elements")
        ]
        if wrong or floor.dim() > 1:
            raise ValueError(f"The calibration does not fit: {'; '.join(wrong)}.")
        return cls(whitening, floor, scores, widest, elements, sizes, charges)

    def scale(self, sensitivity: Tensor, levels: Tensor | None = None) -> Tensor:
        """Uncertainty of each molecule relative to other molecules.

        Args:
            sensitivity: Last-layer gradients ``[B, P]`` from :meth:`DipoleModel.with_sensitivity`.
            levels: Level of theory of each molecule ``[B]``, an index into the levels of the model;
                None: the first.

        Returns:
            ``[B]``, in an arbitrary unit.
        """
        return scale_of(sensitivity @ self.whitening.T, self._of(self.floor, levels))

    def half_width(self, scale: Tensor, coverage: float, levels: Tensor | None = None) -> Tensor:
        """Half width of the prediction interval.

        Args:
            scale: ``[B]``, from :meth:`scale`.
            coverage: Fraction of references inside the interval, between 0 and 1.
            levels: As for :meth:`scale`.

        Returns:
            ``[B]`` in debye; infinite if the calibration set is too small for the coverage.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, such as 0.9, got {coverage}.")
        quantiles = []
        for row in self.scores.view(self.floor.numel(), -1):
            count = int(row.isfinite().sum())
            rank = math.ceil((count + 1) * coverage)
            quantiles.append(float(row[rank - 1]) if rank <= count else math.inf)
        return scale * self._of(scale.new_tensor(quantiles), levels)

    def _of(self, values: Tensor, levels: Tensor | None) -> Tensor:
        """The value for the level of theory of each molecule, from one value or one per level."""
        values = values.view(-1)
        return values[0] if levels is None else values[levels.where(levels < len(values), 0)]

    def doubts(
        self, molecules: Sequence[Data], scales: Sequence[float], levels: Tensor | None = None
    ) -> list[tuple[str, ...]]:
        """Warnings about molecules outside the training data.

        Args:
            molecules: Molecules with ``z [N]`` and, for ions, ``charge [1]`` in e.
            scales: Uncertainties of the molecules, from :meth:`scale`.
            levels: As for :meth:`scale`.

        Returns:
            The warnings of each molecule.
        """
        # Converted once: each conversion synchronizes with the GPU.
        known = set(self.elements.nonzero().flatten().tolist())
        smallest, largest = self.sizes.tolist()
        charges = set(self.charges.tolist())
        largest_scales = self._of(self.widest, levels).expand(len(molecules)).tolist()
        found = []
        for data, scale, widest in zip(molecules, scales, largest_scales, strict=True):
            numbers = data.z.tolist()
            reasons = []
            strange = sorted(set(numbers) - known)
            if strange:
                symbols = ", ".join(chemical_symbols[z] for z in strange)
                reasons.append(f"the model was not trained on {symbols}: do not rely on it")
            heavy = sum(z > 1 for z in numbers)
            if not smallest <= heavy <= largest:
                atoms = "heavy atom" if heavy == 1 else "heavy atoms"
                reasons.append(
                    f"it has {heavy} {atoms}; the molecules that the model was trained on have "
                    f"{smallest} to {largest}"
                )
            charge = 0 if data.get("charge") is None else round(float(data.charge))
            if charge not in charges:
                reasons.append(f"the model was trained on no molecule of charge {charge:+d} e")
            if scale > widest:
                reasons.append(
                    "the uncertainty of the model is larger than for "
                    f"{100 * UNSURE:g} % of the molecules in its calibration set"
                )
            found.append(tuple(reasons))
        return found
