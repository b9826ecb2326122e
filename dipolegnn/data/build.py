"""Making the folder of a data set: molecules, labels, split and card."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dipolegnn.config import ConformerConfig, DFTConfig, XTBConfig
from dipolegnn.data.card import (
    CARD_FILE,
    FAILURES_FILE,
    INPUTS_FILE,
    MOLECULES_FILE,
    SPLIT_FILE,
    About,
    Card,
    make_card,
    write_card,
)
from dipolegnn.data.splits import Split, SplitConfig, make_split, write_split
from dipolegnn.data.storage import read_packed, write_molecules
from dipolegnn.files import molecule_format, replacing, sha256_of
from dipolegnn.labels import LabelMethod, label_many
from dipolegnn.labels.calculators import engine_version, method_settings
from dipolegnn.molecules import (
    Molecules,
    SmilesRow,
    TableColumns,
    embed_smiles,
    read_file,
    write_failures,
)

JOURNAL_FILE = "labels.jsonl"
"""Finished labels, for resuming; relative to the folder of the data set."""

EMBEDDING = "ETKDGv3, MMFF94s or UFF (RDKit)"
"""Origin of the coordinates of embedded SMILES, as the card states it."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a data set."""

    source: Path | tuple[str, ...]
    """A file of molecules, or SMILES."""
    label: LabelMethod | None = None
    """Method of the reference dipoles; None: those of the source, if any."""
    columns: TableColumns = dataclasses.field(default_factory=TableColumns)
    """Columns, if the source is a table."""
    conformers: ConformerConfig = dataclasses.field(default_factory=ConformerConfig)
    """Embedding of SMILES; structures keep their coordinates."""
    split: SplitConfig | None = None
    """Split; None: at random with 10 % each for validation and test, or no split if there are
    fewer than 3 molecules."""
    about: About | None = None
    """Statements for the card; those left at their default are filled in."""

    def __post_init__(self) -> None:
        if self.label is not None and self.columns.magnitude is not None:
            raise ValueError(
                f"The column {self.columns.magnitude!r} gives reference dipoles, and label would "
                "replace them; leave one of the two out (on the command line: --label none)."
            )

    def inputs(self) -> dict[str, object]:
        """The inputs as JSON values; equal for equal inputs.

        Raises:
            FileNotFoundError: The source is a file that does not exist.
        """
        if isinstance(self.source, Path):
            source = {"file": self.source.name, "sha256": sha256_of(self.source)}
        else:
            digest = hashlib.sha256("\n".join(self.source).encode("utf-8", "surrogatepass"))
            source = {"smiles": str(len(self.source)), "sha256": digest.hexdigest()}
        label = None if self.label is None else method_settings(self.label)
        settings = dataclasses.asdict(dataclasses.replace(self, source=(), label=None))
        # Left out if they are the defaults, as in the data sets of earlier versions.
        later = ("stereoisomers", "largest_fragment")
        for name in ("max_atoms", "embed_time_limit", "embed_memory_limit", *later):
            if getattr(self.conformers, name) == getattr(ConformerConfig, name):
                del settings["conformers"][name]
        return {**settings, "source": source, "label": label}


def build_dataset(
    root: str | Path,
    recipe: Recipe,
    *,
    workers: int = 1,
    progress: bool = False,
    inputs: str | None = None,
) -> tuple[Card, Molecules]:
    """Make a data set from a recipe, replacing one in the folder.

    Finished labels are kept in the folder (``labels.jsonl``) and are not computed again after an
    interruption or with other settings.

    Args:
        root: Folder of the data set.
        recipe: Inputs of the data set.
        workers: Processes that embed and label; the result does not depend on it.
        progress: Show progress bars on standard error.
        inputs: Content of ``inputs.json``; None: no such file.

    Returns:
        The card; the molecules and the failures.

    Raises:
        ImportError: The program that computes the labels is not installed.
        ValueError: Every molecule failed, or the split leaves no training molecules.
    """
    folder, method = Path(root), recipe.label
    if method is not None:
        engine_version(method)  # a missing program is reported before molecules are embedded
    if isinstance(recipe.source, Path):
        found = read_file(
            recipe.source,
            columns=recipe.columns,
            conformers=recipe.conformers,
            workers=workers,
            progress=progress,
        )
    else:
        rows = [SmilesRow(number, smiles) for number, smiles in enumerate(recipe.source, start=1)]
        found = embed_smiles(rows, recipe.conformers, workers=workers, progress=progress)
    _require_some(found, folder)
    if method is not None:
        _split(found, recipe.split)  # an error in it is reported before labels are computed
        folder.mkdir(parents=True, exist_ok=True)
        labelled = label_many(
            found.data,
            method,
            workers=workers,
            progress=progress,
            journal=folder / JOURNAL_FILE,
            source=recipe.source.name if isinstance(recipe.source, Path) else "",
        )
        found = Molecules(labelled.data, found.failures + labelled.failures)
        _require_some(found, folder)
    card = save_dataset(
        folder,
        found,
        _about(recipe, folder),
        split=_split(found, recipe.split),
        packages={XTBConfig: ("tblite",), DFTConfig: ("pyscf",)}.get(type(method), ()),
        inputs=inputs,
    )
    return card, found


def save_dataset(
    root: str | Path,
    molecules: Molecules,
    about: About,
    *,
    split: Split | None = None,
    packages: Sequence[str] = (),
    inputs: str | None = None,
) -> Card:
    """Write the folder of a data set.

    The card, with the SHA-256 of the molecules, is written last, so that an incomplete folder has
    none.

    Args:
        root: The folder; a data set in it is replaced.
        molecules: The molecules and the failures.
        about: Statements for the card.
        split: Training, validation and test structures.
        packages: Packages whose version is listed on the card, in addition to the usual ones.
        inputs: Content of ``inputs.json``; None: no such file.

    Returns:
        The card.

    Raises:
        ValueError: There are no molecules, or the split is one of other molecules.
    """
    folder = Path(root)
    for stale in (INPUTS_FILE, CARD_FILE, SPLIT_FILE, FAILURES_FILE):
        (folder / stale).unlink(missing_ok=True)
    write_molecules(folder / MOLECULES_FILE, molecules.data)
    packed = read_packed(folder / MOLECULES_FILE)
    write_failures(folder / FAILURES_FILE, molecules.failures)
    if split is not None:
        write_split(folder / SPLIT_FILE, split, packed.arrays["mol_id"])
    if inputs is not None:
        with replacing(folder / INPUTS_FILE) as temporary:
            temporary.write_text(inputs, encoding="utf-8")
    card = make_card(
        about,
        packed,
        failures=len(molecules.failures),
        sha256=sha256_of(folder / MOLECULES_FILE),
        packages=packages,
    )
    write_card(folder / CARD_FILE, card)
    return card


def _require_some(molecules: Molecules, folder: Path) -> None:
    if molecules.data:
        return
    if not molecules.failures:
        raise ValueError("Nothing was built: there are no molecules; expected at least one.")
    folder.mkdir(parents=True, exist_ok=True)
    write_failures(folder / FAILURES_FILE, molecules.failures)
    raise ValueError(
        f"Nothing was built: all {len(molecules.failures)} molecules failed, the first with: "
        f"{molecules.failures[0].problem}. See {folder / FAILURES_FILE}."
    )


def _split(molecules: Molecules, config: SplitConfig | None) -> Split | None:
    if config is None:
        if len({int(data.mol_id) for data in molecules.data}) < 3:
            return None
        config = SplitConfig()
    try:
        return make_split(
            molecules.data, config.kind, val=config.val, test=config.test, seed=config.seed
        )
    except ValueError as error:
        raise ValueError(
            f"{error} The options are --split, --val and --test; in Python SplitConfig."
        ) from None


def _about(recipe: Recipe, folder: Path) -> About:
    """Statements of the card: those given, the others from the recipe."""
    source, method = recipe.source, recipe.label
    if isinstance(source, Path):
        name, embedded = source.name, molecule_format(source).smiles
        level, description = f"as stated in {name}", f"Molecules of {name}."
    else:
        name, embedded = "SMILES", True
        level, description = "none: no labels", f"Molecules of a list of {len(source)} SMILES."
    if isinstance(method, XTBConfig):
        level = "GFN2-xTB (tblite)"
    elif isinstance(method, DFTConfig):
        fitted = ", density fitting" if method.density_fit else ""
        level = f"{method.xc}/{method.basis} (PySCF{fitted})"
    elif method is not None:
        level = method.name
    geometry = EMBEDDING if embedded else name
    if method is not None and method.optimize:
        geometry += f"; relaxed with {level}"
    automatic = About(
        name=folder.resolve().name,
        description=description,
        level_of_theory=level,
        geometry=geometry,
        seed=recipe.conformers.conformer_seed if embedded else None,
        created_by="dipolegnn.ConformerDataset",
    )
    if recipe.about is None:
        return automatic
    given = {
        field.name: getattr(recipe.about, field.name)
        for field in dataclasses.fields(About)
        if getattr(recipe.about, field.name) != field.default
    }
    return dataclasses.replace(automatic, **given)
