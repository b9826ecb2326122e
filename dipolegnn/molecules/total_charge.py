"""Total charges that a file states under the names of the field, and names that are not used.

A name of a total charge is recognized in any case and with any separator: ``charge``,
``total_charge``, ``net charge``, ``q``, ... There is no such list for dipoles, because the unit is
not known from the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dipolegnn.molecules.molecule import MoleculeError

TOTAL_CHARGE = (
    r"(?:(?:pubchem|total|tot|net|overall|formal|mol|molecule|molecular|system)[ _-]?)*"
    r"(?:charge|chg)(?:[ _-]?(?:total|tot))?(?:[ _-]?\(?e\)?)?"
    r"|q(?:[ _-]?tot(?:al)?)?"
)
"""Pattern of the names of a total charge in e; to be used without regard to case."""

_CHARGE = re.compile(TOTAL_CHARGE, re.IGNORECASE)
_IN_TEXT = re.compile(
    rf"(?<![^\s,;])({TOTAL_CHARGE})\s*[=:]\s*(\"?)([+-]?\d{{1,9}}(?:\.0*)?)\2(?![^\s,;])[,;]?",
    re.IGNORECASE,
)
_LABEL_WORDS = frozenset(
    {"mu", "mux", "muy", "muz", "q", "qs", "dip", "chg", "mulliken", "hirshfeld"}
)


def is_charge_name(name: str) -> bool:
    """True if it is a name of a total charge.

    Example:
        >>> is_charge_name("Total charge"), is_charge_name("q"), is_charge_name("charges")
        (True, True, False)
    """
    return _CHARGE.fullmatch(name.strip()) is not None


def is_like_a_label(name: str) -> bool:
    """True if the name of a value looks like that of a charge or of a dipole.

    Example:
        >>> is_like_a_label("DFT_dipole"), is_like_a_label("mu"), is_like_a_label("multiplicity")
        (True, True, False)
    """
    text = name.lower()
    words = re.findall("[a-z]+", text)
    like = "charge" in text or "dipol" in text or not _LABEL_WORDS.isdisjoint(words)
    return like or is_charge_name(name)


def charges_in(comment: str) -> list[tuple[str, float]]:
    """Names and values of the total charges in the text of a comment line."""
    return [(match[1], float(match[3])) for match in _IN_TEXT.finditer(comment)]


def without_charges(comment: str) -> str:
    """The comment without total charges, white space reduced."""
    return " ".join(_IN_TEXT.sub(" ", comment).split())


def agreed_charge(stated: Sequence[tuple[str, float]]) -> float | None:
    """The total charge of a molecule from all statements of it, or None if there are none.

    Args:
        stated: Where each is stated, and its value in e.

    Raises:
        MoleculeError: Two of them differ.
    """
    if not stated:
        return None
    (first, charge), *others = stated
    for name, other in others:
        if other != charge:
            raise MoleculeError(
                f"Two total charges are stated: {first} = {charge:+g} e and {name} = {other:+g} e",
                remedy="Correct or remove one of the two",
            )
    return charge


def whole_number(text: str) -> int | None:
    """The whole number in a cell or data field, such as ``-1``, ``+1`` or ``1.0``; else None."""
    match = re.fullmatch(r"([+-]?\d{1,9})(?:\.0*)?", text.strip())
    return int(match[1]) if match else None


def unused(names: Iterable[str], kind: str) -> list[str]:
    """Warnings about values that look like a charge or a dipole and are not used.

    Args:
        names: Names of values that are not used.
        kind: What they are names of, such as "column".
    """
    like = [name for name in dict.fromkeys(names) if is_like_a_label(name)]
    return [f"the {kind} {name!r} looks like a charge or a dipole and is not used" for name in like]
