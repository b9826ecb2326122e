"""Values, notes and tables of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dash import html


def magnitude(molecule: Mapping[str, Any], report: Mapping[str, Any]) -> list[Any]:
    """Magnitude with error bar, conformers, model and notes."""
    width = molecule["half_width"]
    several = len(molecule["conformers"]) > 1
    bar = "" if width is None else f" ± {width:.3f}"
    lines: list[Any] = [html.Span(f"|μ| = {molecule['magnitude']:.3f}{bar} D", id="value")]
    about = [f"{100 * report['coverage']:g} % error bar"] if width is not None else []
    if several:
        about.append(
            f"average over {len(molecule['conformers'])} conformers, "
            f"{molecule['smallest']:.3f} to {molecule['largest']:.3f} D"
        )
    about.append(f"model {molecule['model']}")
    accuracy = report["models"][molecule["model"]]["accuracy"]
    lines.append(html.Span("; ".join([*about, accuracy] if accuracy else about), className="small"))
    lines += [html.Div(note, className="note") for note in molecule["notes"]]
    return lines


def details(conformer: Mapping[str, Any]) -> html.Div:
    """The vector of a conformer."""
    vector = conformer["dipole"]
    if vector is None:
        return html.Div("The model predicts the magnitude only.")
    x, y, z = vector
    length = float(np.linalg.norm(vector))
    return html.Div(
        f"This conformer: |μ| = {length:.3f} D, μ = ({x:.3f}, {y:.3f}, {z:.3f}) D, in the frame of "
        "the coordinates below. The arrow points from – to +.",
        className="small",
    )


def conformer_table(molecule: Mapping[str, Any]) -> html.Table:
    """Energies, weights and dipole moments of the conformers."""
    rows = []
    for number, conformer in enumerate(molecule["conformers"], start=1):
        energy, vector = conformer["energy"], conformer["dipole"]
        rows.append(
            [
                str(number),
                "–" if energy is None else f"{energy:.2f}",
                f"{conformer['weight']:.3f}",
                f"{conformer['magnitude']:.3f}",
                *(["–"] * 3 if vector is None else [f"{x:.3f}" for x in vector]),
            ]
        )
    columns = ["conformer", "energy (kcal/mol)", "weight", "|μ| (D)"]
    return _table([*columns, "μx (D)", "μy (D)", "μz (D)"], rows)


def atom_table(molecule: Mapping[str, Any], conformer: Mapping[str, Any]) -> html.Table:
    """Charges and positions of the atoms of a conformer."""
    charges = conformer["charges"] or [None] * len(molecule["symbols"])
    atoms = zip(molecule["symbols"], charges, conformer["positions"], strict=True)
    rows = [
        [
            str(number),
            symbol,
            "–" if charge is None else f"{charge:+.3f}",
            *(f"{x:.4f}" for x in position),
        ]
        for number, (symbol, charge, position) in enumerate(atoms, start=1)
    ]
    return _table(["atom", "element", "charge (e)", "x (Å)", "y (Å)", "z (Å)"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> html.Table:
    return html.Table(
        [
            html.Thead(html.Tr([html.Th(column) for column in columns])),
            html.Tbody([html.Tr([html.Td(cell) for cell in row]) for row in rows]),
        ]
    )


def failures(failed: Sequence[Mapping[str, Any]]) -> html.Div | None:
    """Molecules that could not be predicted, and why; None if there are none."""
    if not failed:
        return None
    lines = [
        html.Li(
            f"{failure['molecule'] or 'row ' + str(failure['row'])}: {failure['problem']}. "
            f"{failure['remedy']}."
        )
        for failure in failed
    ]
    return html.Div([html.H2("Failed molecules"), html.Ul(lines)], className="failed")
