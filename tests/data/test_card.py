from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dipolegnn.data import About, Card, check_card, read_card, save_dataset, write_card
from dipolegnn.files import sha256_of
from dipolegnn.molecules import Molecules, make_data
from tests.data.samples import sample_molecules

ABOUT = About(
    name="sample",
    description="Five molecules; ångström",
    licence="CC0-1.0",
    seed=7,
    created_by="me",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_dataset(tmp_path, Molecules(sample_molecules(), []), ABOUT, packages=["ase"])
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_the_card_describes_the_data(folder: Path) -> None:
    card = check_card(folder)
    assert card.name == "sample"
    assert card.description == "Five molecules; ångström"
    assert (card.counts.molecules, card.counts.structures, card.counts.failures) == (4, 5, 0)
    assert card.elements == ("H", "He", "O", "Cl")
    assert card.units["dipole"] == "debye"
    assert card.units["energy"] == "kcal/mol"
    assert card.sha256 == sha256_of(folder / "raw" / "molecules.npz")
    assert re.fullmatch(r"\d+\.\d+.*", card.versions["torch"])
    assert {"ase", "rdkit", "python", "dipolegnn"} <= card.versions.keys()


def test_only_fields_that_some_molecule_has_get_a_unit(tmp_path: Path) -> None:
    bare = [make_data([2], [[0, 0, 0]], name="helium")]
    card = save_dataset(tmp_path, Molecules(bare, []), ABOUT)
    assert set(card.units) == {"z", "pos", "charge", "mol_id", "name"}


def test_written_and_read(tmp_path: Path, folder: Path) -> None:
    card = read_card(folder / "card.yaml")
    write_card(tmp_path / "copy.yaml", card)
    assert read_card(tmp_path / "copy.yaml") == card
    assert (tmp_path / "copy.yaml").read_text().startswith("name: sample\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "sha256 is 0000"),
        ({"elements": ["H", "O"]}, "elements is"),
        ({"counts": {"molecules": 4, "structures": 6, "failures": 0}}, "counts is"),
        ({"units": {"z": "atomic number"}}, "units is"),
        ({"sha256": None}, "sha256 is None on the card"),
    ],
)
def test_a_card_that_is_not_true_is_refused(
    folder: Path, changes: dict[str, object], words: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(ValueError, match=words):
        check_card(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"units": {"dipole": "e*bohr"}}, r"dipole.*e\*bohr.*expected.*debye"),
        ({"units": {"spin": "1"}}, "no such field"),
        ({"sha256": "abc"}, "sha256"),
        ({"counts": {"molecules": -1, "structures": 0, "failures": 0}}, "counts.molecules"),
        ({"seed": "seven"}, "seed"),
    ],
)
def test_a_card_that_is_not_valid_is_refused(
    folder: Path, changes: dict[str, object], words: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(ValueError, match=words):
        read_card(folder / "card.yaml")


@pytest.mark.parametrize("text", ["", "just words", "{", "name: x"])
def test_what_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"card.yaml is (no|not)"):
        read_card(tmp_path / "card.yaml")


def test_failures_count(folder: Path) -> None:
    with (folder / "failures.csv").open("a") as file:
        file.write("a.smi,1,C,read,bad,fix\n")
    with pytest.raises(ValueError, match="counts is"):
        check_card(folder)


def test_a_card_can_wait_for_its_data(tmp_path: Path, folder: Path) -> None:
    card: Card = replace(read_card(folder / "card.yaml"), sha256=None, versions={})
    write_card(tmp_path / "waiting.yaml", card)
    assert read_card(tmp_path / "waiting.yaml").sha256 is None
