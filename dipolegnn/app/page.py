"""Layout and callbacks of the page."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dash
from ase.data import atomic_numbers
from dash import Dash, Input, Output, State, dcc, html

from dipolegnn.app import view
from dipolegnn.app.service import MAX_CHARACTERS, MAX_CONFORMERS, MAX_MOLECULES, TOO_MUCH, Service
from dipolegnn.files import READABLE_TEXT
from dipolegnn.models import pretrained_names
from dipolegnn.plots import draw_molecule
from dipolegnn.plots.scene import scene

DOWNLOADS = {".csv": "CSV", ".json": "JSON", ".sdf": "SDF", ".extxyz": "extended XYZ"}

AS_STARTED = "as started"
"""Value that selects the model of ``serve --model``, or the default model for the input."""

EXAMPLE = "CCO ethanol\nCC(=O)Oc1ccccc1C(=O)O aspirin"


def make_page(service: Service) -> Dash:
    """The page, as a Flask application in ``page.server``."""
    page = Dash(
        __name__,
        title="dipolegnn",
        update_title="dipolegnn ...",
        serve_locally=True,
        # Nothing is loaded from the network.
        external_scripts=[],
        external_stylesheets=[],
    )
    page.layout = _layout(service)
    _connect(page, service)
    return page


def _layout(service: Service) -> html.Div:
    return html.Div(
        className="page",
        children=[
            html.H1("Dipole moments of molecules"),
            html.Div(className="columns", children=[_form(service), _result()]),
            dcc.Store(id="answer"),
            dcc.Store(id="files"),
            dcc.Store(id="dropped"),
            dcc.Download(id="download"),
        ],
    )


def _form(service: Service) -> html.Div:
    return html.Div(
        className="form",
        children=[
            html.Label("SMILES, one per line, optionally followed by a name", htmlFor="smiles"),
            dcc.Textarea(id="smiles", value=EXAMPLE, spellCheck=False, rows=6),
            dcc.Upload(
                id="upload",
                className="upload",
                children=html.Div(
                    [
                        "Drop or select a file: ",
                        html.B(", ".join(READABLE_TEXT)),
                        " (maximum 1 MB)",
                    ],
                    id="upload-text",
                ),
            ),
            html.Label("Conformers per molecule", htmlFor="conformers"),
            dcc.Input(id="conformers", type="number", value=1, min=1, max=MAX_CONFORMERS, step=1),
            html.Label("Model", htmlFor="model"),
            dcc.Dropdown(
                id="model",
                options=[
                    {"label": service.model or "automatic (by type of input)", "value": AS_STARTED},
                    *pretrained_names(),
                ],
                value=AS_STARTED,
                clearable=False,
            ),
            html.Button("Predict", id="predict", n_clicks=0, className="go"),
            html.P(
                f"Maximum {MAX_MOLECULES} molecules. All computation is on this machine; "
                "no data is stored.",
                className="small",
            ),
        ],
    )


def _result() -> dcc.Loading:
    return dcc.Loading(
        type="dot",
        color="#b3123f",
        overlay_style={"visibility": "visible", "opacity": 0.4},
        children=html.Div(
            className="result",
            children=[
                html.Div(id="problem", className="problem", role="alert"),
                html.Div(
                    id="shown",
                    hidden=True,
                    children=[
                        html.Div(
                            className="choices",
                            children=[
                                dcc.Dropdown(id="molecule", clearable=False),
                                dcc.Dropdown(id="conformer", clearable=False),
                                dcc.RadioItems(
                                    id="colour",
                                    options={
                                        "element": "colour by element",
                                        "charge": "colour by charge",
                                    },
                                    value="element",
                                    inline=True,
                                ),
                            ],
                        ),
                        html.Div(id="magnitude", className="magnitude"),
                        html.Div(id="details"),
                        dcc.Graph(
                            id="scene",
                            className="scene",
                            config={"displaylogo": False, "displayModeBar": False},
                        ),
                        html.Div(
                            className="downloads",
                            children=[
                                *(
                                    html.Button(text, id=f"get-{suffix[1:]}", n_clicks=0)
                                    for suffix, text in DOWNLOADS.items()
                                ),
                                html.Button("picture (PNG)", id="get-png", n_clicks=0),
                            ],
                        ),
                        html.H2("Conformers"),
                        html.Div(id="conformer-table"),
                        html.H2("Atoms"),
                        html.Div(id="atoms-table"),
                    ],
                ),
                html.Div(id="failures"),
            ],
        ),
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


def _connect(page: Dash, service: Service) -> None:
    page.clientside_callback(
        _CHECK_SIZE.replace("LIMIT", str(MAX_CHARACTERS)).replace("REFUSAL", json.dumps(TOO_MUCH)),
        Output("dropped", "data"),
        Output("upload", "contents"),
        Output("problem", "children", allow_duplicate=True),
        Input("upload", "contents"),
        State("upload", "filename"),
        prevent_initial_call=True,
    )

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
        State("model", "value"),
        prevent_initial_call=True,
    )
    def predict(
        _: int,
        dropped: Mapping[str, str] | None,
        smiles: str | None,
        conformers: Any,
        model: str | None,
    ) -> tuple[Any, ...]:
        uploaded = dash.ctx.triggered_id == "dropped"
        file = dropped if uploaded and dropped is not None else {"name": "", "contents": ""}
        try:
            # After an upload, only the file is predicted.
            response = service.ask(
                smiles="" if uploaded else smiles or "",
                file_name=file["name"],
                file_text=_decoded(file["contents"]),
                conformers=conformers if isinstance(conformers, int) else 0,
                model="" if model in (None, AS_STARTED) else str(model),
            )
            problem = response.refusal
        except UnicodeDecodeError:
            response, problem = None, f"{file['name']} is not a text file."
        if response is None or problem:
            return None, None, problem, None, True, [], None, None
        molecules = response.report["molecules"]
        options = [
            {"label": molecule["name"] or molecule["smiles"], "value": number}
            for number, molecule in enumerate(molecules)
        ]
        failed = view.failures(response.report["failures"])
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
        prevent_initial_call=True,
    )
    def choose(number: int | None, report: Mapping[str, Any] | None) -> tuple[Any, ...]:
        molecule = _chosen(number, report)
        if molecule is None or report is None:
            return [], None, None, ""
        options = [
            {"label": f"conformer {k + 1}", "value": k} for k in range(len(molecule["conformers"]))
        ]
        return options, 0, view.conformer_table(molecule), view.magnitude(molecule, report)

    @page.callback(
        Output("scene", "figure"),
        Output("details", "children"),
        Output("atoms-table", "children"),
        Input("molecule", "value"),
        Input("conformer", "value"),
        Input("colour", "value"),
        Input("answer", "data"),
        prevent_initial_call=True,
    )
    def show(
        number: int | None, row: int | None, colour: str, report: Mapping[str, Any] | None
    ) -> tuple[Any, ...]:
        molecule = _chosen(number, report)
        if molecule is None:
            return {}, None, None
        conformer = _conformer(molecule, row)
        figure = scene(
            _numbers(molecule),
            conformer["positions"],
            conformer["dipole"],
            charges=conformer["charges"] if colour == "charge" else None,
        )
        # The view is kept when the colour changes and reset when the structure changes.
        figure.update_layout(uirevision=f"{molecule['name']} {number} {row}")
        return figure, view.details(conformer), view.atom_table(molecule, conformer)

    for suffix in DOWNLOADS:
        _connect_download(page, suffix)

    @page.callback(
        Output("download", "data", allow_duplicate=True),
        Input("get-png", "n_clicks"),
        State("molecule", "value"),
        State("conformer", "value"),
        State("answer", "data"),
        prevent_initial_call=True,
    )
    def picture(
        _: int, number: int | None, row: int | None, report: Mapping[str, Any] | None
    ) -> Any:
        molecule = _chosen(number, report)
        if molecule is None:
            return dash.no_update
        conformer = _conformer(molecule, row)
        figure = draw_molecule(
            _numbers(molecule),
            conformer["positions"],
            conformer["dipole"],
            magnitude=conformer["magnitude"],
            half_width=molecule["half_width"],
            title=molecule["name"],
        )
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=200)
        content = base64.b64encode(stream.getvalue()).decode("ascii")
        return {"content": content, "base64": True, "filename": "dipole.png", "type": "image/png"}


def _connect_download(page: Dash, suffix: str) -> None:
    @page.callback(
        Output("download", "data", allow_duplicate=True),
        Output("problem", "children", allow_duplicate=True),
        Input(f"get-{suffix[1:]}", "n_clicks"),
        State("files", "data"),
        prevent_initial_call=True,
    )
    def get(_: int, files: Mapping[str, Any] | None) -> Any:
        if files is None:
            return dash.no_update, dash.no_update
        content = files["contents"][suffix]
        without_bonds = files["without_bonds"] if suffix == ".sdf" else []
        problem = (
            ""
            if not without_bonds
            else (
                f"Missing in the {DOWNLOADS[suffix]} file, because their bonds cannot be "
                f"determined: {', '.join(without_bonds)}. The other formats do not need bonds."
            )
        )
        if not content:
            return dash.no_update, problem
        file = {"content": content, "base64": False, "type": "text/plain"}
        return {**file, "filename": f"dipoles{suffix}"}, problem


def _decoded(contents: str) -> str:
    """Decodes an upload of the form ``data:TYPE;base64,...``.

    Raises:
        UnicodeDecodeError: If the file is not text.
    """
    try:
        content = base64.b64decode(contents.partition(",")[2], validate=True)
    except binascii.Error:
        return ""
    return content.decode("utf-8-sig")


def _chosen(number: int | None, report: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The selected molecule; None while the selection does not match the current response."""
    if number is None or report is None or number >= len(report["molecules"]):
        return None
    molecule: Mapping[str, Any] = report["molecules"][number]
    return molecule


def _conformer(molecule: Mapping[str, Any], row: int | None) -> Mapping[str, Any]:
    conformers: Sequence[Mapping[str, Any]] = molecule["conformers"]
    return conformers[row if row is not None and row < len(conformers) else 0]


def _numbers(molecule: Mapping[str, Any]) -> list[int]:
    return [atomic_numbers[symbol] for symbol in molecule["symbols"]]
