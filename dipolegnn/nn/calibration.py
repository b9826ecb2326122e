"""Error bars: how sure a model is of a molecule, and how often it is right to be.

How far a trained model may be off for a molecule is read off the features that reach its last
layer. Those that the training molecules had leave the last layer little freedom, unusual ones leave
it much (last-layer prediction rigidity: Bigi, Chong, Ceriotti, Grasselli, Mach. Learn.: Sci.
Technol. 5, 045018, 2024). How large the errors are in debye comes from molecules that were not
trained on (split-conformal prediction: Papadopoulos et al., ECML 2002; Lei et al., J. Am. Stat.
Assoc. 113, 1094, 2018), with its guarantee: on molecules of the same kind an interval of 90 %
holds for 90 %, whatever the estimate of the single molecule is worth. It is about what the model
learnt: neither about another level of theory, nor about a geometry that was made elsewhere. (The
validation molecules that :func:`dipolegnn.fit` calibrates with have also chosen the epoch, one
number among thousands of errors: the guarantee is as good as exact.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from dipolegnn._pyg import Data

UNSURE = 0.995
"""Molecules less sure than this fraction of the calibration molecules are remarked upon."""


class Calibration(nn.Module):
    """What a model knows about its own errors; it is saved with the model.

    Args:
        whitening: ``[P, P]``: the length of this matrix times a molecule's sensitivity is how far
            it lies from what the training molecules determine.
        floor: Smallest scale, in the same unit.
        scores: Errors of calibration molecules, divided by their scales, ``[n]`` in debye.
        widest: Scale that only few calibration molecules exceed.
        elements: Whether the training molecules had the element, by atomic number.
        sizes: Heavy atoms of the smallest and the largest of them, but for single exceptions.
        charges: Their total charges.
    """

    whitening: Tensor
    floor: Tensor
    scores: Tensor
    widest: Tensor
    elements: Tensor
    sizes: Tensor
    charges: Tensor

    def __init__(
        self,
        whitening: Tensor,
        floor: Tensor,
        scores: Tensor,
        widest: Tensor,
        elements: Tensor,
        sizes: Tensor,
        charges: Tensor,
    ) -> None:
        super().__init__()
        self.register_buffer("whitening", whitening)
        self.register_buffer("floor", floor)
        self.register_buffer("scores", scores.sort().values)
        self.register_buffer("widest", widest)
        self.register_buffer("elements", elements)
        self.register_buffer("sizes", sizes)
        self.register_buffer("charges", charges)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Calibration:
        """The calibration whose ``state_dict()`` this is.

        Raises:
            ValueError: If something of it is missing.
        """
        names = ("whitening", "floor", "scores", "widest", "elements", "sizes", "charges")
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"The calibration lacks {', '.join(missing)}.")
        return cls(*(state[name] for name in names))

    def scale(self, sensitivity: Tensor) -> Tensor:
        """How unsure the model is, relative to other molecules.

        Args:
            sensitivity: ``[B, P]``, from :meth:`DipoleModel.with_sensitivity`.

        Returns:
            ``[B]``, in no unit of its own.
        """
        distance = torch.linalg.vector_norm(sensitivity @ self.whitening.T, dim=1)
        return (distance.square() + self.floor.square()).sqrt()

    def half_width(self, scale: Tensor, coverage: float) -> Tensor:
        """Half the width of an interval around the prediction.

        Args:
            scale: ``[B]``, from :meth:`scale`.
            coverage: How often the truth shall lie inside, between 0 and 1.

        Returns:
            ``[B]`` in debye; infinite if there were too few calibration molecules for such a
            coverage.

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, such as 0.9, got {coverage}.")
        count = self.scores.numel()
        rank = math.ceil((count + 1) * coverage)
        return scale * (self.scores[rank - 1] if rank <= count else math.inf)

    def doubts(self, molecules: Sequence[Data], scales: Sequence[float]) -> list[tuple[str, ...]]:
        """What speaks against each prediction, beyond its interval.

        Args:
            molecules: ``z [N]`` and, of ions, ``charge`` in e.
            scales: Their scales.

        Returns:
            Reasons, for each molecule; none where it is of the kind that was trained on.
        """
        # Read once: on a GPU each look would wait for it.
        known = set(self.elements.nonzero().flatten().tolist())
        smallest, largest = self.sizes.tolist()
        charges, widest = set(self.charges.tolist()), float(self.widest)
        found = []
        for data, scale in zip(molecules, scales, strict=True):
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
                    f"it has {heavy} {atoms}, and hardly any molecule that the model was "
                    f"trained on had fewer than {smallest} or more than {largest}"
                )
            charge = 0 if data.get("charge") is None else round(float(data.charge))
            if charge not in charges:
                reasons.append(f"the model was trained on no molecule of charge {charge:+d} e")
            if scale > widest:
                reasons.append(
                    f"the model is less sure of it than of {100 * UNSURE:g} % of the molecules "
                    "that its error bars come from"
                )
            found.append(tuple(reasons))
        return found
