"""Makes a pretrained model with error bars from a run on QM9's magnitudes.

Training on magnitudes leaves one sign undetermined, common to the vectors of all molecules. It is
determined by GFN2-xTB dipoles, computed here for molecules of the training part. Directions are
then measured on the test part, against the vectors of ``qm9_dipole.npz``, which were not used in
training. Both use the kind of geometry that the model was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from common import ROOT, data_folder, read_arrays, read_npz
from geometry import from_their_smiles, relax_all
from numpy.typing import NDArray
from rich.progress import track

from dipolegnn._pyg import Batch, Data
from dipolegnn.calibrate import calibrate
from dipolegnn.config import JSON, XTBConfig
from dipolegnn.data import ConformerDataset
from dipolegnn.inference.structures import predict
from dipolegnn.labels import label, xtb_calculator
from dipolegnn.models import load_model, save_model
from dipolegnn.molecules import can_turn
from dipolegnn.nn import DipoleHead, DipoleModel

FILE = "qm9_dipole.npz"

CLEAR_DIPOLE = 1.0
"""Molecules with a GFN2-xTB dipole above this, in debye, determine the sign."""

HAS_DIRECTION = 0.5
"""Directions are measured on molecules with a dipole longer than this, in debye."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Determine the sign of a model, measure its directions, and write it with its provenance."""

    model: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The model.safetensors of a run of experiments/qm9.py."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The file to write: dipolegnn/pretrained/painn-qm9.safetensors."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with qm9_dipole.npz; left out: $DIPOLEGNN_DATA, else ../shared/data."""
    labelled: int = 300
    """Number of training molecules that are labelled with GFN2-xTB."""
    measured: int | None = None
    """Number of test molecules on which directions are measured; None: all."""
    calibrated: int = 10_000
    """Largest number of training and of validation molecules for the calibration of the error bars;
    0: no error bars."""
    smallest: bool = False
    """The model was trained with qm9.py --smallest: include such molecules in the calibration."""


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the model."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    path = data_folder(options.data, FILE) / FILE
    part = read_arrays(path)["split"]
    model = load_model(options.model)
    provenance = model.card.provenance
    if not isinstance(model.head, DipoleHead):
        raise SystemExit(f"{options.model} has no vectors, so there is no sign to settle.")
    data = provenance.get("data")
    geometry = str(data.get("geometry")) if isinstance(data, dict) else ""
    print(f"geometries: {geometry}")

    rows = np.random.default_rng(0).permutation(np.flatnonzero(part == 0))[: options.labelled]
    asked = read_npz(path, number="qm9_index", vectors=False, rows=np.sort(rows)).data
    agree, disagree = votes(model, like_training(asked, geometry))
    if agree and disagree:
        print(f"GFN2-xTB disagrees with itself: {agree} molecules for the sign, {disagree} against")
    if disagree > agree:
        model.head.reverse_()
    print(f"sign: {max(agree, disagree)} of {agree + disagree} molecules agree")

    if options.calibrated:
        training, validation = (
            molecules(path, part, number, options.calibrated) for number in (0, 1)
        )
        training = like_training(training, geometry)
        validation = as_asked(validation, geometry)
        if options.smallest:
            few = list(ConformerDataset(ROOT / "datasets" / "smallest"))
            training = [*training, *like_training(few, geometry)]
        calibrate(model, batches(training), batches(validation))
    rows = np.flatnonzero(part == 2)[: options.measured]
    test = read_npz(path, number="qm9_index", vectors=True, rows=rows).data
    test = [data for data in test if data.dipole.isfinite().all()]
    angles = directions(model, like_training(test, geometry))
    measured: dict[str, JSON] = {
        "molecules": len(angles),
        "median": round(float(np.median(angles)), 3),
        "percentile_95": round(float(np.percentile(angles, 95)), 3),
        "percentile_99": round(float(np.percentile(angles, 99)), 3),
        "wrong_sign": int((angles > 90).sum()),
    }
    print(f"directions of the test part, degrees: {measured}")
    about: dict[str, JSON] = {
        "settled_by": "GFN2-xTB",
        "agree": max(agree, disagree),
        "disagree": min(agree, disagree),
    }
    save_model(
        options.output,
        model,
        {
            **provenance,
            "sign": about,
            "test_directions": measured,
            "error_bars": "from validation molecules of QM9"
            + (", from SMILES, without those that may turn" if geometry == "MMFF94s" else ""),
        },
    )
    print(f"wrote {options.output}")


def molecules(path: Path, part: NDArray[np.int64], number: int, count: int) -> Sequence[Data]:
    """Molecules of a part of the split, drawn at random, with their magnitudes."""
    rows = np.random.default_rng(1).permutation(np.flatnonzero(part == number))[:count]
    return read_npz(path, number="qm9_index", vectors=False, rows=np.sort(rows)).data


def batches(data: Sequence[Data]) -> Iterator[Data]:
    """Batches of a hundred."""
    for start in track(range(0, len(data), 100), "Error bars", transient=True):
        yield Batch.from_data_list(list(data[start : start + 100]))


def like_training(structures: Sequence[Data], geometry: str) -> Sequence[Data]:
    """The molecules at geometries as the model was trained on, without those that have none.

    Vectors still fit, as a relaxed structure is laid upon the original.
    """
    if geometry != "MMFF94s":
        return structures
    found, failures = relax_all(structures)
    print(f"{len(failures)} of {len(structures)} molecules have no such geometry and are left out")
    return [data for data in found if data is not None]


def as_asked(structures: Sequence[Data], geometry: str) -> Sequence[Data]:
    """The molecules at the geometries at which the model is going to be asked about them.

    From a SMILES, for a model of that kind, those left out that may turn: what is embedded may be
    another conformer than the labelled one, which an error bar cannot know, and a remark says.
    """
    if geometry != "MMFF94s":
        return structures
    found = [data for data, _ in from_their_smiles(structures) if not can_turn(data.smiles)]
    print(f"error bars come from {len(found)} molecules that do not turn")
    return found


def votes(model: DipoleModel, structures: Sequence[Data]) -> tuple[int, int]:
    """Numbers of molecules whose GFN2-xTB dipole is parallel and antiparallel to the model's."""
    calculator = xtb_calculator(XTBConfig())
    predictions = predict(model, structures)
    found = []
    for prediction in track(predictions, "GFN2-xTB", transient=True):
        reference = label(prediction.data, calculator).dipole[0].numpy()
        if np.linalg.norm(reference) > CLEAR_DIPOLE:
            found.append(float(reference @ prediction.dipole) > 0)
    return found.count(True), found.count(False)


def directions(model: DipoleModel, structures: Sequence[Data]) -> NDArray[np.float64]:
    """Angles in degrees between predicted and reference dipoles above ``HAS_DIRECTION``."""
    angles = []
    for prediction in predict(model, structures, progress=True):
        reference = prediction.data.dipole[0].numpy().astype(float)
        if np.linalg.norm(reference) > HAS_DIRECTION:
            cross = np.linalg.norm(np.cross(reference, prediction.dipole))
            angles.append(np.degrees(np.arctan2(cross, reference @ prediction.dipole)))
    return np.array(angles)


if __name__ == "__main__":
    main()
