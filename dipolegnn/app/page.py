"""Layout and callbacks of the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dash
import numpy as np
from ase.data import atomic_numbers
from dash import Dash, Input, Output, State, dcc, html
from dash.dcc.express import send_bytes, send_string

from dipolegnn.app.service import (
    MAX_CHARACTERS,
    MAX_CONFORMERS,
    MAX_MOLECULES,
    MAX_STEREOISOMERS,
    TOO_MUCH,
    Request,
    Response,
    Service,
)
from dipolegnn.files import READABLE_TEXT
from dipolegnn.models import DEFAULT, pretrained_names
from dipolegnn.plots import draw_molecule
from dipolegnn.plots.conformers import conformer_plot
from dipolegnn.plots.scene import scene

DOWNLOADS = {".csv": "CSV", ".json": "JSON", ".sdf": "SDF", ".extxyz": "extended XYZ"}

LARGEST = "largest"
"""Value of the choice to keep only the largest fragment of a salt."""

AS_STARTED = "as started"
"""Value that selects the model of ``serve --model``, or the default model for the input."""

EXAMPLE = "CCO ethanol\nCC(=O)Oc1ccccc1C(=O)O aspirin"

Report = Mapping[str, Any]
"""Output of ``dipolegnn predict --json``, or a molecule, conformer or failure in it."""


def make_page(service: Service) -> Dash:
    """The page, as a Flask application in ``page.server``."""
    page = Dash(
        __name__, title="dipolegnn", update_title="dipolegnn ...", prevent_initial_callbacks=True
    )
    page.layout = _layout(service)
    _connect(page, service)
    return page


def _layout(service: Service) -> html.Div:
    readable = html.B(", ".join(READABLE_TEXT))
    levels = service.levels()
    default = {"label": service.model or f"{DEFAULT} (default)", "value": AS_STARTED}
    form = [
        html.Label("SMILES, one per line, optionally followed by a name", htmlFor="smiles"),
        dcc.Textarea(id="smiles", value=EXAMPLE, spellCheck=False, rows=6),
        dcc.Upload(
            html.Div(["Drop or select a file: ", readable, " (maximum 1 MB)"], id="upload-text"),
            id="upload",
            className="upload",
        ),
        html.Label("Conformers per molecule (empty: as many as it needs)", htmlFor="conformers"),
        dcc.Input(
            id="conformers", type="number", placeholder="auto", min=1, max=MAX_CONFORMERS, step=1
        ),
        html.Label("Stereoisomers of a SMILES that leaves them open", htmlFor="stereoisomers"),
        dcc.Input(id="stereoisomers", type="number", value=1, min=1, max=MAX_STEREOISOMERS, step=1),
        dcc.Checklist({LARGEST: "Keep only the largest fragment of a salt"}, id="salts"),
        html.Label("Model", htmlFor="model"),
        dcc.Dropdown([default, *pretrained_names()], AS_STARTED, id="model", clearable=False),
        html.Div(
            [
                html.Label("Level of theory", htmlFor="level"),
                dcc.Dropdown(levels, id="level", placeholder=_default(levels)),
            ],
            id="level-choice",
            hidden=not levels,
        ),
        html.Button("Predict", id="predict", className="go"),
        html.P(
            f"Maximum {MAX_MOLECULES} molecules. All computation is on this machine; "
            "no data is stored.",
            className="small",
        ),
    ]
    colours = {"element": "colour by element", "charge": "colour by charge"}
    choices = [
        dcc.Dropdown(id="molecule", clearable=False),
        dcc.Dropdown(id="conformer", clearable=False),
        dcc.RadioItems(colours, "element", id="colour", inline=True),
    ]
    downloads = [
        html.Button(text, id=f"get-{suffix[1:]}")
        for suffix, text in {**DOWNLOADS, ".png": "picture (PNG)"}.items()
    ]
    shown = [
        html.Div(choices, className="choices"),
        html.Div(id="magnitude", className="magnitude"),
        html.Div(id="details"),
        dcc.Graph(id="scene", className="scene", config={"displayModeBar": False}),
        html.Div(downloads, className="downloads"),
        html.H2("Conformers"),
        html.Div(
            dcc.Graph(id="conformer-plot", className="weights", config={"displayModeBar": False}),
            id="several-conformers",
        ),
        html.Div(id="conformer-table"),
        html.H2("Atoms"),
        html.Div(id="atoms-table"),
    ]
    result = [
        html.Div(id="problem", className="problem", role="alert"),
        html.Div(shown, id="shown", hidden=True),
        html.Div(id="failures"),
    ]
    loading = dcc.Loading(
        html.Div(result, className="result"),
        type="dot",
        color="#b3123f",
        overlay_style={"visibility": "visible", "opacity": 0.4},
    )
    return html.Div(
        [
            html.H1("Dipole moments of molecules"),
            html.Div([html.Div(form, className="form"), loading], className="columns"),
            *(dcc.Store(id=name) for name in ("answer", "files", "dropped")),
            dcc.Download(id="download"),
        ],
        className="page",
    )


# Too large files are not sent: an upload is part of each request until the server accepts one, so
# that all later requests would be refused as well.
_CHECK_SIZE = """
(contents, name) => {
  const idle = window.dash_clientside.no_update;
  if (!contents) return [idle, idle, idle];
  const bytes = (contents.length - contents.indexOf(",") - 1) * 3 / 4;
  return bytes > LIMIT + 2 ? [idle, null, REFUSAL] : [{contents, name}, null, idle];
}
"""


def _default(levels: Sequence[str]) -> str:
    """Text that stands for the default level of theory."""
    return f"{levels[0]} (default)" if levels else ""


def _connect(page: Dash, service: Service) -> None:
    page.clientside_callback(
        _CHECK_SIZE.replace("LIMIT", str(MAX_CHARACTERS)).replace("REFUSAL", json.dumps(TOO_MUCH)),
        Output("dropped", "data"),
        Output("upload", "contents"),
        Output("problem", "children", allow_duplicate=True),
        Input("upload", "contents"),
        State("upload", "filename"),
    )

    @page.callback(
        Output("level", "options"),
        Output("level", "value"),
        Output("level", "placeholder"),
        Output("level-choice", "hidden"),
        Input("model", "value"),
    )
    def choose_model(model: str) -> tuple[Any, ...]:
        levels = service.levels(None if model == AS_STARTED else model)
        return levels, None, _default(levels), not levels

    kept: list[Response] = []

    def example() -> Response:
        """What is shown when the page is opened; computed once."""
        if not kept:
            response = service.ask(Request(smiles=EXAMPLE, conformers="auto"))
            if response.refusal:
                return response
            kept.append(response)
        return kept[0]

    @page.callback(
        Output("answer", "data"),
        Output("files", "data"),
        Output("problem", "children"),
        Output("failures", "children"),
        Output("shown", "hidden"),
        Output("molecule", "options"),
        Output("molecule", "value"),
        Output("dropped", "data", allow_duplicate=True),
        Input("predict", "n_clicks"),
        Input("dropped", "data"),
        State("smiles", "value"),
        State("conformers", "value"),
        State("stereoisomers", "value"),
        State("salts", "value"),
        State("model", "value"),
        State("level", "value"),
        prevent_initial_call="initial_duplicate",  # called when the page is opened, too
    )
    def predict(
        _: int,
        dropped: Mapping[str, str] | None,
        smiles: str | None,
        conformers: Any,
        stereoisomers: Any,
        salts: Sequence[str] | None,
        model: str | None,
        level: str | None,
    ) -> tuple[Any, ...]:
        request = Request(
            smiles=smiles or "",
            conformers="auto" if conformers is None else conformers,
            model=None if model == AS_STARTED else model,
            level=level,
            stereoisomers=1 if stereoisomers is None else stereoisomers,
            largest_fragment=LARGEST in (salts or ()),
        )
        if dash.ctx.triggered_id == "dropped" and dropped is not None:  # only the file is predicted
            try:
                text = _decoded(dropped["contents"])
            except ValueError:
                problem = f"{dropped['name']} is not a text file."
                return None, None, problem, None, True, [], None, None
            request = request._replace(smiles="", file_name=dropped["name"], file_text=text)
        response = example() if dash.ctx.triggered_id is None else service.ask(request)
        if response.refusal:
            return None, None, response.refusal, None, True, [], None, None
        molecules = response.report["molecules"]
        options = [
            {"label": molecule["name"] or molecule["smiles"], "value": number}
            for number, molecule in enumerate(molecules)
        ]
        failed = _failures(response.report["failures"])
        value = 0 if molecules else None
        files = {"contents": response.files, "without_bonds": response.without_bonds}
        return response.report, files, "", failed, not molecules, options, value, None

    @page.callback(
        Output("conformer", "options"),
        Output("conformer", "value"),
        Output("conformer-table", "children"),
        Output("magnitude", "children"),
        Input("molecule", "value"),
        Input("answer", "data"),
    )
    def choose(number: int | None, report: Report | None) -> tuple[Any, ...]:
        molecule = _chosen(number, report)
        if molecule is None or report is None:
            return [], None, None, ""
        options = [
            {"label": f"conformer {k + 1}", "value": k} for k in range(len(molecule["conformers"]))
        ]
        return options, 0, _conformer_table(molecule), _magnitude(molecule, report)

    @page.callback(
        Output("conformer", "value", allow_duplicate=True), Input("conformer-plot", "clickData")
    )
    def choose_point(click: Mapping[str, Any] | None) -> Any:
        return click["points"][0]["pointIndex"] if click else dash.no_update

    @page.callback(
        Output("scene", "figure"),
        Output("details", "children"),
        Output("atoms-table", "children"),
        Output("conformer-plot", "figure"),
        Output("several-conformers", "hidden"),
        Input("molecule", "value"),
        Input("conformer", "value"),
        Input("colour", "value"),
        Input("answer", "data"),
    )
    def show(
        number: int | None, row: int | None, colour: str, report: Report | None
    ) -> tuple[Any, ...]:
        molecule = _chosen(number, report)
        if molecule is None:
            return {}, None, None, {}, True
        conformer = _conformer(molecule, row)
        charges = conformer["charges"] if colour == "charge" else None
        figure = scene(*_drawn(molecule, conformer), charges=charges)
        # The view is kept when the colour changes and reset when the structure changes.
        figure.update_layout(uirevision=f"{molecule['name']} {number} {row}")
        details, atoms = _details(conformer), _atom_table(molecule, conformer)
        several = len(molecule["conformers"]) > 1
        weights = _conformer_plot(molecule, row) if several else {}
        return figure, details, atoms, weights, not several

    @page.callback(
        Output("download", "data", allow_duplicate=True),
        Output("problem", "children", allow_duplicate=True),
        *(Input(f"get-{suffix[1:]}", "n_clicks") for suffix in DOWNLOADS),
        State("files", "data"),
    )
    def download(*arguments: Any) -> tuple[Any, str]:
        files = arguments[-1]
        suffix = f".{str(dash.ctx.triggered_id).removeprefix('get-')}"
        if files is None:
            return dash.no_update, ""
        problem = ""
        if suffix == ".sdf" and files["without_bonds"]:
            problem = (
                "Missing in the SDF file, because their bonds cannot be determined: "
                f"{', '.join(files['without_bonds'])}. The other formats do not need bonds."
            )
        content = files["contents"][suffix]
        if not content:
            return dash.no_update, problem
        return send_string(content, f"dipoles{suffix}", type="text/plain"), problem

    @page.callback(
        Output("download", "data", allow_duplicate=True),
        Input("get-png", "n_clicks"),
        State("molecule", "value"),
        State("conformer", "value"),
        State("answer", "data"),
    )
    def picture(_: int, number: int | None, row: int | None, report: Report | None) -> Any:
        molecule = _chosen(number, report)
        if molecule is None:
            return dash.no_update
        conformer = _conformer(molecule, row)
        figure = draw_molecule(
            *_drawn(molecule, conformer),
            magnitude=conformer["magnitude"],
            half_width=molecule["half_width"],
            title=molecule["name"],
        )
        return send_bytes(figure.savefig, "dipole.png", type="image/png", dpi=200)


def _decoded(contents: str) -> str:
    """Decodes an upload of the form ``data:TYPE;base64,...``.

    Raises:
        ValueError: If the file is not text.
    """
    return base64.b64decode(contents.partition(",")[2], validate=True).decode("utf-8-sig")


def _chosen(number: int | None, report: Report | None) -> Report | None:
    """The selected molecule; None while the selection does not match the current response."""
    if number is None or report is None or number >= len(report["molecules"]):
        return None
    molecule: Report = report["molecules"][number]
    return molecule


def _conformer(molecule: Report, row: int | None) -> Report:
    conformers: Sequence[Report] = molecule["conformers"]
    return conformers[row if row is not None and row < len(conformers) else 0]


def _drawn(molecule: Report, conformer: Report) -> tuple[list[int], Any, Any]:
    numbers = [atomic_numbers[symbol] for symbol in molecule["symbols"]]
    return numbers, conformer["positions"], conformer["dipole"]


def _magnitude(molecule: Report, report: Report) -> list[Any]:
    """Magnitude with error bar, conformers, model and notes."""
    width = molecule["half_width"]
    bar = "" if width is None else f" ± {width:.3f}"
    about = [] if width is None else [f"{100 * report['coverage']:g} % error bar"]
    if len(molecule["conformers"]) > 1:
        about.append(
            f"average over {len(molecule['conformers'])} conformers, "
            f"{molecule['smallest']:.3f} to {molecule['largest']:.3f} D, by energies of "
            f"{molecule['energies']}"
        )
    level = molecule.get("level")
    about.append(f"model {molecule['model']}{f' at {level}' if level else ''}")
    accuracy = report["models"][molecule["model"]]["accuracy"]
    return [
        html.Span(f"|μ| = {molecule['magnitude']:.3f}{bar} D", id="value"),
        html.Span("; ".join([*about, accuracy] if accuracy else about), className="small"),
        *(html.Div(note, className="note") for note in molecule["notes"]),
    ]


def _details(conformer: Report) -> html.Div:
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


def _conformer_plot(molecule: Report, row: int | None) -> Any:
    conformers = molecule["conformers"]
    return conformer_plot(
        *([c[name] for c in conformers] for name in ("energy", "magnitude", "weight")),
        average=molecule["magnitude"],
        half_width=molecule["half_width"],
        selected=row,
    )


def _conformer_table(molecule: Report) -> html.Table:
    rows = []
    for number, conformer in enumerate(molecule["conformers"], start=1):
        energy, vector = conformer["energy"], conformer["dipole"]
        cells = [str(number), "–" if energy is None else f"{energy:.2f}"]
        cells += [f"{conformer['weight']:.3f}", f"{conformer['magnitude']:.3f}"]
        rows.append(cells + (["–"] * 3 if vector is None else [f"{x:.3f}" for x in vector]))
    columns = ["conformer", "energy (kcal/mol)", "weight", "|μ| (D)"]
    return _table([*columns, "μx (D)", "μy (D)", "μz (D)"], rows)


def _atom_table(molecule: Report, conformer: Report) -> html.Table:
    charges = conformer["charges"] or [None] * len(molecule["symbols"])
    atoms = zip(molecule["symbols"], charges, conformer["positions"], strict=True)
    rows = []
    for number, (symbol, charge, position) in enumerate(atoms, start=1):
        cells = [str(number), symbol, "–" if charge is None else f"{charge:+.3f}"]
        rows.append(cells + [f"{x:.4f}" for x in position])
    return _table(["atom", "element", "charge (e)", "x (Å)", "y (Å)", "z (Å)"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> html.Table:
    head = html.Tr([html.Th(column) for column in columns])
    body = [html.Tr([html.Td(cell) for cell in row]) for row in rows]
    return html.Table([html.Thead(head), html.Tbody(body)])


def _failures(failed: Sequence[Report]) -> html.Div | None:
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
