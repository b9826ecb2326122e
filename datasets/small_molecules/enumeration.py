"""Enumeration of small organic molecules by growth.

A molecule is grown from a smaller one by moves that a chemist would recognize: replace
hydrogens by an atom or a group, close a ring, make a single bond a double one, oxidize a
sulfur or a nitrogen. The rules (`rules.py`) exclude molecules that are not stable.
All small molecules are kept; the larger ones are sampled with a seed, and rare combinations
of functional groups have a higher weight than common ones.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rules import Rules

SAMPLE_SIZES = {5: 1000, 6: 1350, 7: 1900, 8: 2800}
"""Molecules drawn, by number of heavy atoms; with fewer, all are kept."""

ORGANIC_SHARE = 0.55
"""Share of the sample that consists of H, C, N and O alone."""

ODD_WEIGHT = 0.5
"""Each rare feature of a molecule (`rules.ODD`) multiplies its weight in the sample by this."""

RING_WEIGHT = 2.0
"""Factor of the weight of rings, as growth finds mostly chains; squared for aromatic ones."""

EXHAUSTIVE_UP_TO = 5
"""Heavy atoms up to which every move is tried, and every molecule without rare features kept."""

PARENTS = 3000
"""Molecules of one size that larger ones are grown from."""

MOVES_PER_PARENT = 12
"""Moves that are tried on a parent, out of all possible ones, where not everything is kept."""

# What valence rules do not reach, and rings that growth atom by atom would find too rarely.
# (Written as text, as a list is one line per entry.)
SEEDS = (  # noqa: SIM905
    "C N O S F Cl [C-]#[O+] N#N N#[N+][O-] O=[O+][O-] O=S=O O=S(=O)=O O=S(F)F O=S(=O)(F)F "
    "O=S(Cl)Cl O=S(=O)(Cl)Cl C[N+](=O)[O-] O[N+](=O)[O-] C[N+]#[C-] C#[N+][O-] C=[N+]=[N-] "
    "CN=[N+]=[N-] FN(F)F FN=NF ON=O COO OC(O)=O NC(=O)O CON=O ClSSCl O=C=C=C=O C1CC1 C1CCC1 "
    "C1CCCC1 C1CCCCC1 C1CCCCCC1 C1CO1 C1CN1 C1CS1 C1COC1 C1CNC1 C1CSC1 "
    "C1CCOC1 C1CCNC1 C1CCSC1 C1COCO1 C1CCC=C1 C1CCC=CC1 C1COCCN1 C1CNCCN1 C1CCOCC1 C1CCNCC1 "
    "C1CCSCC1 C1COCCO1 c1ccoc1 c1cc[nH]c1 c1ccsc1 c1cocn1 "
    "c1c[nH]cn1 c1cscn1 c1cnoc1 c1cn[nH]c1 c1cnsc1 c1nnco1 c1nncs1 c1nc[nH]n1 c1cn[nH]n1 "
    "c1nn[nH]n1 c1ncon1 c1ccccc1 c1ccncc1 c1cncnc1 c1ccnnc1 c1cnccn1 c1ncncn1 O=C1C=CC(=O)C=C1 "
    "O=c1cc[nH]cc1 O=c1cccc[nH]1 O=c1cccco1 O=c1ccocc1 O=C1C=CC(=O)N1 C1=CCC=CC1 "
    "C1C2CC12 C1CC12CC2 C1CC12CO2 C1CC2CC12 C1CC2CC2C1 C1CC2CC2O1 C1CC2NC2C1 C1CC2OC2C1 "
    "C1CC2(C1)CC2 C1CC2(C1)CO2 C1CC2CC1C2 C1CC2CCC12 C1CC2CCC1C2 C1CC2CCC1O2 C1CC2CCN1C2 "
    "C1CC2CCCC2C1 C1CC2CCN2C1 C1CC2(C1)CCC2 C1CC2CCC1CC2 C1C2C=CC1C=C2 CN(C)N=O CO[N+](=O)[O-] "
    "CS(N)(=O)=O COS(C)(=O)=O"
).split()

# Groups that take the place of one, two or three hydrogens; their first atom is attached.
GROUPS = {
    1: (  # noqa: SIM905
        "C C C N O F S Cl C#N C#C C=C C=O OC NC SC CO CN CCl C(=O)O C(=O)N C(C)=O C(=O)OC C(=O)F "
        "C(=O)Cl C(F)F C(F)(F)F N(C)C N=O N=C=O N=C=S SC#N C(=S)N S(C)=O S(C)(=O)=O "
        "[N+](=O)[O-] [N+]#[C-] N=[N+]=[N-]"
    ).split(),
    2: ["C", "C", "N", "O", "O", "S", "NO", "C=O", "[N+]=[N-]"],
    3: ["C", "N"],
}


class _Move(NamedTuple):
    """A change of a molecule: a group on an atom, or one more bond between two atoms."""

    atom: int
    order: int
    other: int | None = None
    group: str = ""


class _Tools(NamedTuple):
    """What every step of the growth needs."""

    rng: np.random.Generator
    rules: Rules
    groups: dict[str, Chem.Mol]
    seeds: dict[str, Chem.Mol]


def enumerate_molecules(seed: int, largest: int = 8) -> list[str]:
    """Canonical SMILES without stereo marks, small molecules first; a function of `seed` alone.

    Args:
        seed: Seed of the moves that are tried and of the sample.
        largest: Heavy atoms of the largest molecules.
    """
    parents: list[str] = []
    kept: list[str] = []
    with rdBase.BlockLogs():  # a move that breaks a valence rule is thrown out, not reported
        tools = _tools(seed)
        for size in range(1, largest + 1):
            found = {s: mol for s, mol in tools.seeds.items() if mol.GetNumHeavyAtoms() == size}
            for smiles in parents:
                _grow(smiles, size, found, tools)
            # At one size bonds are made double and rings are closed, in as many steps as it takes.
            queue = list(found)
            if size > EXHAUSTIVE_UP_TO:
                queue = [queue[k] for k in tools.rng.permutation(len(queue))[:PARENTS]]
            for smiles in queue:  # becomes longer while it is walked through
                new = _grow(smiles, size, found, tools)
                if size <= EXHAUSTIVE_UP_TO:
                    queue += new
            kept += _sample(found, SAMPLE_SIZES.get(size, len(found)), tools)
            if size < largest:
                parents += _sample(found, PARENTS, tools)
        return _merge(kept, _substituted_rings(largest, tools))


def grow_further(parents: list[str], seed: int) -> Iterator[str]:
    """Canonical SMILES of what moves make of molecules, each once and none of `parents`.

    Every move is tried, on one parent after the other in random order and then on what they grew
    into, and nothing is sampled: it is for those who want many molecules, and does not end. The
    rules hold.

    Args:
        parents: Canonical SMILES of molecules that were enumerated.
        seed: Seed of the order.
    """
    seen = set(parents)
    with rdBase.BlockLogs():
        tools = _tools(seed)
        largest_group = max(group.GetNumAtoms() for group in tools.groups.values())
        queue = [parents[k] for k in tools.rng.permutation(len(parents))]
        for smiles in queue:  # becomes longer while it is walked through
            parent = _editable(smiles)
            for grows_by in range(1, largest_group + 1):
                moves = _moves(parent, grows_by, tools.groups)
                for child, _ in _new_children(parent, moves, seen, tools):
                    seen.add(child)
                    queue.append(child)
                    yield child


def _tools(seed: int) -> _Tools:
    """What every step needs."""
    return _Tools(
        np.random.default_rng(seed),
        Rules(),
        {s: _editable(s) for s in (*itertools.chain(*GROUPS.values()), "[O-]")},
        {Chem.MolToSmiles(mol): mol for mol in map(Chem.MolFromSmiles, SEEDS)},
    )


def _merge(molecules: list[str], more: list[str]) -> list[str]:
    """Both lists, each molecule once, small molecules first."""
    size = {smiles: Chem.MolFromSmiles(smiles).GetNumHeavyAtoms() for smiles in molecules + more}
    return sorted(size, key=lambda smiles: size[smiles])  # stable: the order of a size is kept


def _substituted_rings(largest: int, tools: _Tools) -> list[str]:
    """Every aromatic seed with one group on it, so that phenol does not depend on the draw."""
    found: dict[str, None] = {}
    for smiles, seed in tools.seeds.items():
        if not any(atom.GetIsAromatic() for atom in seed.GetAtoms()):
            continue
        ring = _editable(smiles)
        for grows_by in range(1, largest - ring.GetNumAtoms() + 1):
            for move in _moves(ring, grows_by, tools.groups):
                child = _apply(ring, move, tools.groups)
                if child is None:
                    continue
                mol = Chem.MolFromSmiles(child)
                if tools.rules.allow(mol) and tools.rules.oddity(mol) == 0:
                    found[child] = None
    return list(found)


def _grow(smiles: str, size: int, found: dict[str, Chem.Mol], tools: _Tools) -> list[str]:
    """Add the children of a molecule that have `size` heavy atoms to `found`; list the new ones."""
    parent = _editable(smiles)
    moves = list(_moves(parent, size - parent.GetNumAtoms(), tools.groups))
    if size > EXHAUSTIVE_UP_TO:
        moves = [moves[k] for k in tools.rng.permutation(len(moves))[:MOVES_PER_PARENT]]
    new = []
    for child, mol in _new_children(parent, moves, found, tools):
        found[child] = mol
        new.append(child)
    return new


def _new_children(
    parent: Chem.Mol, moves: Iterable[_Move], known: Container[str], tools: _Tools
) -> Iterator[tuple[str, Chem.Mol]]:
    """What the moves make of a molecule, without what is known by then or against the rules."""
    for move in moves:
        child = _apply(parent, move, tools.groups)
        if child is None or child in known:
            continue
        mol = Chem.MolFromSmiles(child)
        if tools.rules.allow(mol):
            yield child, mol


def _editable(smiles: str) -> Chem.Mol:
    """The molecule in one Kekulé structure, with hydrogens that follow from the valences."""
    mol = Chem.MolFromSmiles(smiles)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    for atom in mol.GetAtoms():
        if not atom.GetFormalCharge():
            atom.SetNumExplicitHs(0)
            atom.SetNoImplicit(False)
            atom.SetNumRadicalElectrons(0)
    mol.UpdatePropertyCache()
    return mol


def _moves(mol: Chem.Mol, grows_by: int, groups: dict[str, Chem.Mol]) -> Iterator[_Move]:
    """All moves that make `mol` larger by so many heavy atoms."""
    free = [0 if a.GetFormalCharge() else a.GetTotalNumHs() for a in mol.GetAtoms()]
    if grows_by == 0:
        distance = Chem.GetDistanceMatrix(mol)
        for i, j in itertools.combinations(range(len(free)), 2):
            if free[i] and free[j] and distance[i, j] <= 6:
                yield _Move(i, 1, other=j)
    for order, names in GROUPS.items():
        for name in names:
            if groups[name].GetNumAtoms() == grows_by:
                yield from (_Move(i, order, group=name) for i, n in enumerate(free) if n >= order)
    if grows_by == 1:
        for i, atom in enumerate(mol.GetAtoms()):
            if atom.GetSymbol() == "S" and not free[i] and atom.GetTotalValence() in (2, 4):
                yield _Move(i, 2, group="O")
            if atom.GetSymbol() == "N" and not free[i] and atom.IsInRingSize(6):
                yield _Move(i, 1, group="[O-]")


def _apply(parent: Chem.Mol, move: _Move, groups: dict[str, Chem.Mol]) -> str | None:
    """Canonical SMILES of the molecule after the move; None where RDKit does not accept it."""
    mol = Chem.RWMol(parent)
    other = move.other
    if other is None:
        other = mol.GetNumAtoms()
        mol.InsertMol(groups[move.group])
        if move.group == "[O-]":
            mol.GetAtomWithIdx(move.atom).SetFormalCharge(1)
    bond = mol.GetBondBetweenAtoms(move.atom, other)
    if bond is None:
        mol.AddBond(move.atom, other, Chem.BondType.values[move.order])
    else:
        bond.SetBondType(Chem.BondType.values[int(bond.GetBondTypeAsDouble()) + 1])
    if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    # Read again, because aromaticity and hydrogens of the text are what others will see.
    mol = Chem.MolFromSmiles(Chem.MolToSmiles(mol, isomericSmiles=False))
    if mol is None:
        return None
    return str(Chem.MolToSmiles(mol))


def _sample(found: dict[str, Chem.Mol], count: int, tools: _Tools) -> list[str]:
    """Draw molecules without replacement: rare kinds preferred, and few rare features."""
    if count >= len(found):
        return list(found)
    kinds = {smiles: tools.rules.kind(mol) for smiles, mol in found.items()}
    often = Counter(kinds.values())
    organic = {s: {a.GetSymbol() for a in m.GetAtoms()} <= set("CNO") for s, m in found.items()}
    chosen: set[str] = set()
    for share, wanted in ((ORGANIC_SHARE, True), (1 - ORGANIC_SHARE, False)):
        group = [smiles for smiles in found if organic[smiles] is wanted]
        weight = np.array([_weight(s, found[s], often[kinds[s]], tools) for s in group])
        # Weighted sampling without replacement: the largest u^(1/w), with u uniform
        # (Efraimidis and Spirakis, Inf. Process. Lett. 97, 181 (2006)).
        key = np.log(tools.rng.random(len(group))) / weight
        chosen.update(group[k] for k in np.argsort(-key, kind="stable")[: round(share * count)])
    return [smiles for smiles in found if smiles in chosen]


def _weight(smiles: str, mol: Chem.Mol, often: int, tools: _Tools) -> float:
    """Weight in the sample of a molecule of a kind that occurs so often."""
    oddity = tools.rules.oddity(mol)
    if smiles in tools.seeds or (oddity == 0 and mol.GetNumHeavyAtoms() <= EXHAUSTIVE_UP_TO):
        return math.inf
    rings = 0
    if mol.GetRingInfo().NumRings():
        rings = 2 if any(atom.GetIsAromatic() for atom in mol.GetAtoms()) else 1
    return float(RING_WEIGHT**rings * ODD_WEIGHT**oddity * often**-0.5)
