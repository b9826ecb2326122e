"""Rules of the data set: SMARTS patterns that exclude and that classify molecules."""

from __future__ import annotations

from collections import Counter

from rdkit import Chem

SMALL = 3
"""Molecules of up to so many heavy atoms are only held against the first set of rules."""

# Left out at any size: impossible or too strained.
IMPOSSIBLE = {
    "quadruple bond": "*$*",
    "triple bond in a ring": "*#@*",
    "allene in a ring": "*=@*=@*",
    "cumulene": "*=*=*=*",
    "antiaromatic three-ring": "[N,O,S]1*=*1",
    "aromatic small ring with a heteroatom": "[n,o,s;r3,r4]",
    "cyclobutadiene": "*1=**=*1",
    "double bond inside a small ring of a ring system": "[r3,r4;R2]=,:@*",
    "sulfur beside a heteroatom in a three-ring": "[S;r3]@[N,O,S]",
    "atom of three rings, one of them small": "[r3,r4;R3]",
    "three heteroatoms in a row": "[N,O;+0]~[N,O;+0]~[N,O;+0]",
    "chain of three sulfurs": "S~S~S",
    "double bond of divalent sulfur to a heteroatom": "[Sv2]=[!#6]",
    "oxidized sulfur with a double bond to something else than O": "[Sv4,Sv6]=[!O]",
    "hydrogen on oxidized sulfur": "[Sv4,Sv6;!H0]",
    "oxidized sulfur in a small ring": "[Sv4,Sv6;r3,r4]",
    "oxidized sulfur beside two heteroatoms in a row": "[Sv4,Sv6]-[N,O,S]-,=[N,O,S,F,Cl]",
    "charged groups on one atom": "[+]~[!+]~[+]",
    "isocyanide on a heteroatom": "[!#6][N+]#[C-]",
    "nitrile oxide on a heteroatom": "[!#6]C#[N+][O-]",
    "azide or diazo on a heteroatom": "[!#6;+0]-[#6,#7;+0]=[N+]=[N-]",
    "azide on an unsaturated nitrogen": "[#7]=[#6]N=[N+]=[N-]",
    "nitro on sulfur or halogen": "[S,F,Cl][N+](=O)[O-]",
    "halogen on an atom beside a heteroatom": "[F,Cl][N,O,Sv2]-,=[N,O,S,Cl]",
    "sulfur chain with hydrogen": "[OH,SH,NH2,NH1][Sv2][OH,SH,NH2,NH1,F,Cl]",
    "radical pair": "[O,S;D1]=[O,S;D1]",
}

# Left out of molecules with more than `SMALL` heavy atoms: real, but short-lived.
SHORT_LIVED = {
    "halogen on a heteroatom": "[F,Cl][N,O,Sv2]",
    "peroxide": "OO",
    "nitro on a heteroatom": "[N,O][N+](=O)[O-]",
    "enol, imidic acid": "[OH][#6;!a]=[#6,#7]",
    "enethiol, thioacid": "[SH][#6;!a]=[#6,#7,#16]",
    "hydroxylated or aminated triple bond": "[OH,SH,NH1,NH2][#6]#[#6]",
    "triple bond to OH, SH, F": "[OH,F][#6]#*",
    "two OH, SH, NH on one carbon": "[OH,SH,NH2,NH1][CX4][OH,SH,NH2]",
    "halogen beside OH, SH or amine": "[F,Cl][CX4][OH,SH,N]",
    "heteroatoms in a row": "[N,O,S;!a;+0]-[N,O,Sv2;!a;+0]~[N,O,S;!a;+0]",
    "nitroso beside hydrogen": "O=[N+0][C;!H0;!a]",
    "nitroso on a double bond": "O=[N+0][#6;!a]=,#*",
    "carbamic or carbonic acid": "[OH]C(=[O,S])[N,O,F,Cl,S]",
    "diazene": "[NH]=N",
    "sulfenic acid, thiohydroxylamine": "[$([OH,NH2,NH1][Sv2]),$([SH][#7,O,S])]",
    "acyl halide beside NH, OH or SH": "[F,Cl]C(=[O,S,N])[NH2,NH1,OH,SH]",
    "thioaldehyde": "[CH1,CH2]=[SX1]",
    "imine without carbon on N, not an amidine": "[NH]=[CH2,$([CH]([#6])),$([CH][!N])]",
    "cumulated double bonds on a heteroatom": "[N,O,S,F,Cl][#6]=[#6]=*",
    "cumulated double bonds out of a ring": "[R]=*=*",
    "N-heteroatom of an isocyanate": "[N,O,S,F,Cl]N=C=*",
    "double bond on nitrogen to sulfur or halogen": "C=N[S,F,Cl]",
    "two heteroatoms in a three-ring": "[N,O,S;r3]@-[N,O,S;r3]",
    "two heteroatoms in a four-ring": "[!#6;r4]@[!#6;r4]",
    "two heteroatoms across a four-ring": "[!#6;r4]1*[!#6]*1",
    "heteroatom of two small rings": "[!#6;r3,r4;R2]",
    "double bond beside the heteroatom of a three-ring": "[C;r3](=*)@[N,O,S;r3]",
    "heteroatom on a three-ring with a heteroatom": "[!#6;!r3]-[*;r3]@[N,O,S;r3]",
    "halogen, heteroatom on nitrogen of a three-ring": "[N;r3]-[!#6]",
    "two double bonds of a three-ring": "*=[r3]@[r3]=*",
    "cyanate beside a double bond": "N#CO[#6]=,#*",
    "two weak bonds": "[N,O,S;!a;+0]-[N,O,S;!a;+0]~[#6]~[N,O,S;!a;+0]-[N,O,S;!a;+0]",
}

# Possible, but rare in the laboratory: each occurrence lowers the weight in the sample.
ODD = (  # noqa: SIM905 - a list is one line per entry
    "*~1~*~*~1 *~1~*~*~*~1 [N;!a;+0]-[N;!a;+0] [N;!a;+0]-[O;!a;+0] S-S [Sv2]-[N,O] *=[C,N]=* "
    "[NX3,O,S;!$(*-C=[O,S,N])][CX4][NX3,S] [N,O,S]C#* [OX1]=[N+0] [NH]=C [CX3]=[SX1] [C-] [C-] "
    "C#[N+][O-] C#[N+][O-] C=[N+]=[N-] [Cl,F,S]C=N [NX3;!$(NC=[O,S])]C=C O[CX4;H0]O C=N[!#6] "
    "C=[N;!a]C#* [F,Cl][#6]#* [SH] [CH2]=N"
).split()

# Functional groups, rings and elements; their combination is the kind of the molecule.
KINDS = (  # noqa: SIM905
    "[OH][CX4,c] [CX4]O[#6] [CX3;H1](=O)[#6] [#6]C(=O)[#6] C(=O)[OH] C(=O)O[#6] C(=O)N C#N C=N "
    "[NX3;!$(N-*=[O,S,N])] [SH] [#6][Sv2][#6] C=[Sv2] [Sv4]=O [Sv6](=O)=O [N+](=O)[O-] N=O N=N "
    "[N-] C=C C#C C=C=* c1ccccc1 [n;r6] [o] [n;r5] [s] [r3] [r4] [r5;!a] [r6;!a] F Cl [#7]-[#8] "
    "[#7]-[#7] [#8]-[#6]-[#8]"
).split()


class Rules:
    """The compiled patterns."""

    def __init__(self) -> None:
        self._impossible = [Chem.MolFromSmarts(s) for s in IMPOSSIBLE.values()]
        self._short_lived = [Chem.MolFromSmarts(s) for s in SHORT_LIVED.values()]
        self._kinds = [Chem.MolFromSmarts(s) for s in KINDS]
        self._odd = [Chem.MolFromSmarts(s) for s in ODD]

    def allow(self, mol: Chem.Mol) -> bool:
        """Whether a sanitized molecule may be in the data set."""
        small = mol.GetNumHeavyAtoms() <= SMALL
        if not small:
            count = Counter(atom.GetSymbol() for atom in mol.GetAtoms())
            if (
                count["N"] + count["O"] + count["S"] > count["C"] + 1
                or count["F"] + count["Cl"] > 6
            ):
                return False
            if sum(atom.GetFormalCharge() > 0 for atom in mol.GetAtoms()) > 1:
                return False
        if _has_bridgehead_double_bond(mol):
            return False
        rules = self._impossible if small else self._impossible + self._short_lived
        return not any(mol.HasSubstructMatch(rule) for rule in rules)

    def kind(self, mol: Chem.Mol) -> tuple[bool, ...]:
        """The functional groups, rings and elements of a molecule."""
        return tuple(mol.HasSubstructMatch(kind) for kind in self._kinds)

    def oddity(self, mol: Chem.Mol) -> int:
        """Number of rare features."""
        return sum(len(mol.GetSubstructMatches(odd)) for odd in self._odd)


def _has_bridgehead_double_bond(mol: Chem.Mol) -> bool:
    """Bredt's rule: an atom where two rings that share three atoms or more meet stays sp3."""
    rings = [set(ring) for ring in mol.GetRingInfo().AtomRings()]
    bridged: set[int] = set()
    for k, ring in enumerate(rings):
        for other in rings[:k]:
            if len(ring & other) > 2:
                bridged |= ring & other
    return any(
        bond.GetBondTypeAsDouble() > 1 and bond.IsInRing()
        for i in bridged
        for bond in mol.GetAtomWithIdx(i).GetBonds()
    )
