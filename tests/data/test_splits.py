from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from dipolegnn._pyg import Data
from dipolegnn.data.splits import (
    Split,
    SplitKind,
    make_split,
    random_split,
    read_split,
    write_split,
)
from tests.data.samples import chain_dataset

# 60 molecules, the third, sixth, ... of them in three conformations, shuffled.
MOL_ID = np.random.default_rng(1).permutation(
    np.concatenate([np.arange(100, 160), np.arange(100, 160, 3), np.arange(100, 160, 3)])
)
SIZES = (MOL_ID * 7919) % 23 + 1
# Five ring systems of different popularity, and acyclic molecules.
RINGS = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCOC1", "c1ccoc1"]
SMILES = [
    "C" * (m % 4 + 1) + RINGS[min(m % 7, 4)] if m % 2 else "C" * (m - 98) for m in MOL_ID.tolist()
]


def structures(mol_id: Iterable[int], sizes: Iterable[int], smiles: Iterable[str]) -> list[Data]:
    return [
        Data(mol_id=torch.tensor([m]), z=torch.ones(n), smiles=text)
        for m, n, text in zip(mol_id, sizes, smiles, strict=True)
    ]


MOLECULES = structures(MOL_ID.tolist(), SIZES.tolist(), SMILES)
KINDS: tuple[SplitKind, ...] = ("random", "size", "scaffold")


def every_split(seed: int) -> list[Split]:
    return [make_split(MOLECULES, kind, val=0.2, test=0.25, seed=seed) for kind in KINDS]


def molecules_of(split: Split) -> list[set[int]]:
    return [set(MOL_ID[part.numpy()].tolist()) for part in (split.train, split.val, split.test)]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_parts_are_disjoint_in_molecules_and_complete_in_structures(kind: int) -> None:
    split = every_split(seed=4)[kind]
    together = torch.cat([split.train, split.val, split.test])
    assert sorted(together.tolist()) == list(range(len(MOL_ID)))
    train, val, test = molecules_of(split)
    assert not train & val
    assert not train & test
    assert not val & test
    assert (len(train), len(val), len(test)) == (33, 12, 15)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_seed_decides_and_nothing_else(kind: int) -> None:
    first, again, other = every_split(4)[kind], every_split(4)[kind], every_split(5)[kind]
    assert torch.equal(first.test, again.test)
    assert torch.equal(first.val, again.val)
    assert not torch.equal(first.test, other.test) or not torch.equal(first.val, other.val)


def test_the_draw_does_not_depend_on_the_order_of_the_structures() -> None:
    reverse = random_split(MOL_ID[::-1].copy(), val=0.2, test=0.25, seed=4)
    assert set(MOL_ID[::-1][reverse.test.numpy()].tolist()) == molecules_of(every_split(4)[0])[2]


def test_by_size_each_part_is_larger_than_the_one_before() -> None:
    split = every_split(0)[1]
    largest_in_train = SIZES[split.train.numpy()].max()
    assert largest_in_train <= SIZES[split.val.numpy()].min()
    assert SIZES[split.val.numpy()].max() <= SIZES[split.test.numpy()].min()
    assert largest_in_train < SIZES[split.test.numpy()].min()


def test_a_ring_system_is_in_one_part_and_acyclic_molecules_are_in_all() -> None:
    split = every_split(0)[2]
    parts = [
        {SMILES[i].lstrip("C") for i in part.tolist() if "1" in SMILES[i]}
        for part in (split.train, split.val, split.test)
    ]
    # "CC1CCCCC1" loses its ring's C in lstrip too; what is left still tells the rings apart.
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    for part in (split.train, split.val, split.test):
        assert any("1" not in SMILES[i] for i in part.tolist())


def test_scaffolds_too_common_for_any_part_are_an_error() -> None:
    with pytest.raises(ValueError, match="No scaffold fits into the test part of 2 of 20"):
        make_split(structures(range(20), [1] * 20, ["Cc1ccccc1"] * 20), "scaffold")


def test_a_missing_smiles_is_named() -> None:
    molecules = structures([4, 5, 6, 7], [1] * 4, ["C", "", "CC", "CCC"])
    with pytest.raises(ValueError, match=r"Molecule 5 \(structure 1\) has no SMILES"):
        make_split(molecules, "scaffold", val=0, test=1)


def test_sizes_as_counts_and_none_at_all() -> None:
    split = random_split(range(10), val=0, test=3)
    assert [len(part) for part in (split.train, split.val, split.test)] == [7, 0, 3]
    everything = random_split(range(10), val=0.0, test=0.0)
    assert len(everything.train) == 10
    # A fraction asks for at least one molecule.
    assert len(random_split(range(5), val=0.05, test=0.05).test) == 1


@pytest.mark.parametrize(
    ("val", "test", "words"),
    [
        (5, 5, "Nothing is left to train on: 5 validation and 5 test molecules out of 10"),
        (-1, 2, "val must be"),
        (0.1, 1.5, r"test must be a fraction in \[0, 1\)"),
    ],
)
def test_impossible_sizes(val: float, test: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        random_split(range(10), val=val, test=test)


def test_overlapping_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="in two parts"):
        Split(torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([2]))


@pytest.mark.parametrize("kind", KINDS)
def test_make_split_takes_molecules(kind: SplitKind) -> None:
    molecules = chain_dataset()
    split = make_split(molecules, kind, val=0.2, test=0.2, seed=1)
    mol_ids = [
        {int(molecules[i].mol_id) for i in part.tolist()} for part in (split.val, split.test)
    ]
    assert [len(part) for part in mol_ids] == [8, 8]
    with pytest.raises(ValueError, match="Unknown kind of split 'cluster'"):
        make_split(molecules, "cluster")  # type: ignore[arg-type]


def test_written_and_read(tmp_path: Path) -> None:
    split = every_split(2)[0]
    write_split(tmp_path / "split.csv", split, MOL_ID)
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert lines[0] == "mol_id,split"
    assert len(lines) == 61
    assert lines[1].split(",")[0] == "100"
    back = read_split(tmp_path / "split.csv", MOL_ID)
    assert torch.equal(back.train, split.train)
    assert torch.equal(back.val, split.val)
    assert torch.equal(back.test, split.test)


def test_a_split_that_tears_conformers_apart_is_not_written(tmp_path: Path) -> None:
    torn = Split(torch.tensor([0, 2]), torch.tensor([1]), torch.tensor([3]))
    with pytest.raises(ValueError, match="Molecule 8 has structures in train and in val"):
        write_split(tmp_path / "split.csv", torn, [8, 8, 9, 10])
    short = Split(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="covers 3 of 4"):
        write_split(tmp_path / "split.csv", short, [8, 8, 9, 10])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mol,part\n1,train\n", "expected the columns mol_id,split, got mol,part"),
        ("", "got none"),
        ("mol_id,split\n1,train\n1,test\n", "line 3: 1,test; expected .* each once"),
        ("mol_id,split\n1,training\n", "1,training; .* one of train, val, test"),
        ("mol_id,split\n1,train\n", r"1 molecules are not in it \(the first is 2\)"),
        ("mol_id,split\n1,train\n2,val\n3,test\n", r"it has 1 that the data set has not"),
    ],
)
def test_what_is_no_split_of_these_molecules_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_split(path, [1, 2, 1])


def test_a_thinned_data_set_needs_only_its_own_molecules(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("mol_id,split\n1,train\n2,val\n3,test\n")
    split = read_split(path, [3, 1], thinned=True)
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([1], [], [0])
