"""An extension of griffe: the Sphinx markup in docstrings becomes Markdown and MathML."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":(?:class|func|meth|mod):`~?(?:[\w.]*\.)?(\w+)`")
MATH = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*| *(?=\n\1 +\S)))*)", re.MULTILINE)


def markdown(text: str) -> str:
    """A docstring with ``:class:`` and ``.. math::`` replaced by what a browser shows offline."""

    def block(match: re.Match[str]) -> str:
        equation = " ".join(textwrap.dedent(match[2]).split())
        return f"{match[1]}<p>{convert(equation, display='block')}</p>"

    return MATH.sub(block, ROLE.sub(r"`\1`", text).replace("``", "`"))


class Markdown(griffe.Extension):
    """Rewrites each docstring once it is found."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
