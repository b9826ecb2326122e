"""The page in a real browser: Chromium without a screen."""

from __future__ import annotations

import csv
import io
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("dash", reason="dash is not installed (extra app)")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import waitress.server
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dipolegnn.cli import main
from dipolegnn.models import DEFAULT, save_model
from dipolegnn.molecules import from_smiles, read_text, text_of
from tests.cli.helpers import assert_message
from tests.inference.test_levels import new_model

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)

ARGUMENTS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    # WebGL without a graphics card.
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
]

PATIENCE_MS = 120_000
"""The first answer waits for torch to be imported, on a machine that does other work."""

expect.set_options(timeout=PATIENCE_MS)

# One browser and one server: all tests in one process.
pytestmark = pytest.mark.xdist_group("page")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


class Served:
    """``dipolegnn serve``: one process for all tests, started again after it was ended."""

    def __init__(self, *options: str) -> None:
        self.options = options
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.process is not None:
            return
        command = [sys.executable, "-m", "dipolegnn", "serve", "--port", "0", *self.options]
        environment = {k: v for k, v in os.environ.items() if k != "DIPOLEGNN_MODEL"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        self.address = line.split()[0]

    def kill(self) -> None:
        """End it, as when its machine is short of memory."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.kill()


@pytest.fixture
def address(served: Served) -> str:
    served.start()
    return served.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as tool:
        launched = tool.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1240, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    asked: list[str] = []
    broken: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: broken.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#predict")
    yield opened
    # No request leaves the machine, and no script fails.
    elsewhere = [url for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")]
    assert {urlsplit(url).netloc for url in elsewhere} == {urlsplit(address).netloc}
    assert broken == []
    context.close()


def ask(page: Page, smiles: str) -> None:
    page.fill("#smiles", smiles)
    page.click("#predict")


def shown(page: Page, text: str) -> None:
    expect(page.locator("#magnitude")).to_contain_text(text)


@needs_browser
def test_an_example_is_shown_when_the_page_is_opened(page: Page) -> None:
    shown(page, f"model {DEFAULT}")
    expect(page.locator("#atoms-table tbody tr")).to_have_count(9)  # ethanol, the first of two
    expect(page.locator("#scene canvas").first).to_be_visible()
    page.click("#molecule")
    expect(page.get_by_text("aspirin", exact=True).last).to_be_visible()
    assert page.inner_text("#problem") == ""


@needs_browser
def test_a_smiles_becomes_a_number_and_an_arrow(page: Page, tmp_path: Path) -> None:
    ask(page, "CC(C)=O acetone\nCCCO propanol")
    shown(page, "|μ| = 2.")
    assert "± " in page.inner_text("#value")
    assert f"model {DEFAULT}" in page.inner_text("#magnitude")
    expect(page.locator("#atoms-table tbody tr")).to_have_count(10)
    expect(page.locator("#scene canvas").first).to_be_visible()
    meshes = "document.querySelector('#scene .js-plotly-plot').data"
    page.wait_for_function(f"{meshes}.length === 3")
    assert page.evaluate(f"{meshes}[2].text[0]").startswith("μ, 2.")  # the arrow
    assert page.evaluate(f"{meshes}[0].intensity") is None

    page.get_by_text("by charge").click()
    page.wait_for_function(f"{meshes}[0].intensity")
    picture = page.locator("#scene.dash-graph").screenshot(path=str(tmp_path / "scene.png"))
    assert len(picture) > 8000  # something is drawn

    page.click("#molecule")
    page.get_by_text("propanol", exact=True).last.click()
    expect(page.locator("#atoms-table tbody tr")).to_have_count(12)


@needs_browser
def test_conformers_can_be_selected(page: Page) -> None:
    page.fill("#conformers", "4")
    ask(page, "CCCO")
    shown(page, "average over")
    expect(page.locator("#conformer-table tbody tr").nth(1)).to_be_visible()
    expect(page.locator("#details")).to_contain_text("This conformer")
    before = page.inner_text("#details")
    page.click("#conformer")
    page.get_by_text("conformer 2", exact=True).last.click()
    expect(page.locator("#details")).not_to_have_text(before)


@needs_browser
def test_conformers_are_plotted_and_a_point_selects_one(page: Page) -> None:
    ask(page, "CCCO propanol\nO water")
    points = page.locator("#conformer-plot .scatterlayer .point")
    expect(points.nth(1)).to_be_visible()
    expect(page.locator("#conformer-table tbody tr")).to_have_count(points.count())
    expect(page.locator("#conformer-plot")).to_contain_text("average")
    page.locator("#conformer-plot").scroll_into_view_if_needed()
    before = page.inner_text("#details")
    place = points.last.bounding_box()
    assert place is not None
    page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    expect(page.locator("#details")).not_to_have_text(before)
    # A rigid molecule has nothing to plot.
    page.click("#molecule")
    page.get_by_text("water", exact=True).last.click()
    expect(page.locator("#conformer-plot")).to_be_hidden()


@needs_browser
def test_stereoisomers_and_salts(page: Page) -> None:
    page.fill("#stereoisomers", "2")
    page.get_by_text("Keep only the largest fragment of a salt").click()
    ask(page, "ClC=CCl\n[Na+].CC(=O)[O-] acetate")
    shown(page, "does not define the double bond C2=C3")
    page.click("#molecule")
    for isomer in ("Cl/C=C/Cl", r"Cl/C=C\Cl"):
        expect(page.get_by_text(isomer, exact=True).last).to_be_visible()
    page.get_by_text("acetate", exact=True).last.click()
    shown(page, "left out: [Na+]")
    assert page.inner_text("#failures") == ""


@needs_browser
def test_another_model_can_be_chosen(page: Page) -> None:
    page.click("#model")
    page.get_by_text("painn-qm9", exact=True).last.click()
    ask(page, "CCl chloromethane")
    expect(page.locator("#failures")).to_contain_text("Use the model painn-organic")
    page.click("#model")
    page.get_by_text("painn-xtb", exact=True).last.click()
    page.click("#predict")
    shown(page, "model painn-xtb")
    expect(page.locator("#failures")).to_be_empty()
    expect(page.locator("#conformer-table tbody td")).to_have_count(7)


@needs_browser
def test_a_level_of_theory_can_be_chosen(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, new_model(), {})
    served = Served("--model", str(path))
    served.start()
    opened = browser.new_page()
    opened.goto(served.address)
    expect(opened.locator("#level-choice")).to_contain_text("DFT (default)")
    ask(opened, "O")
    shown(opened, "at DFT")
    opened.click("#level")
    opened.get_by_text("xTB", exact=True).last.click()
    opened.click("#predict")
    shown(opened, "at xTB")
    opened.click("#model")  # a model without levels has no choice
    opened.get_by_text("painn-xtb", exact=True).last.click()
    expect(opened.locator("#level-choice")).to_be_hidden()
    opened.click("#predict")
    shown(opened, "model painn-xtb")
    opened.close()
    served.kill()


@needs_browser
def test_a_bad_smiles_is_explained(page: Page) -> None:
    ask(page, "C1CC\nO")
    shown(page, "|μ|")
    expect(page.locator("#failures")).to_contain_text("Not a valid SMILES")
    ask(page, "")
    expect(page.locator("#problem")).to_contain_text("Type or paste a SMILES")
    ask(page, "<script>alert(1)</script>")
    expect(page.locator("#failures")).to_contain_text("Not a valid SMILES")
    assert "Traceback" not in page.content()


@needs_browser
def test_upload_and_downloads(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "mine.xyz"
    formaldehyde = text_of(from_smiles("C=O", name="formaldehyde"), ".xyz")
    path.write_text(f"{formaldehyde}3\nno bonds\nC 0 0 0\nH 0 0 2.2\nH 2.2 0 0\n", encoding="utf-8")
    page.set_input_files("#upload input[type=file]", str(path))
    shown(page, f"model {DEFAULT}")

    def download(button: str) -> bytes:
        with page.expect_download() as waiting:
            page.click(button)
        return Path(waiting.value.path()).read_bytes()

    row, _ = csv.DictReader(io.StringIO(download("#get-csv").decode("utf-8")))
    assert row["name"] == "formaldehyde"
    assert float(row["magnitude_D"]) == pytest.approx(2.2, abs=0.4)
    (data,) = read_text(download("#get-sdf").decode("utf-8"), "x.sdf").data
    assert float(data.dipole.norm()) == pytest.approx(float(row["magnitude_D"]), abs=1e-3)
    expect(page.locator("#problem")).to_contain_text(
        "Missing in the SDF file, because their bonds cannot"
    )
    expect(page.locator("#problem")).to_contain_text("no bonds")
    assert len(read_text(download("#get-extxyz").decode("utf-8"), "x.extxyz").data) == 2
    expect(page.locator("#problem")).to_be_empty()
    assert b'"units"' in download("#get-json")
    assert download("#get-png").startswith(b"\x89PNG")

    path = tmp_path / "wrong.sdf"
    path.write_bytes(b"\xff\xfe\x00\x01")
    page.set_input_files("#upload input[type=file]", str(path))
    expect(page.locator("#problem")).to_contain_text("wrong.sdf is not a text file")


@needs_browser
def test_a_file_that_is_too_large(page: Page, tmp_path: Path) -> None:
    for characters in (1_000_010, 40_000_000):
        ask(page, "")
        expect(page.locator("#problem")).to_contain_text("Type or paste a SMILES")
        path = tmp_path / f"{characters}.smi"
        path.write_text("C" * characters, encoding="utf-8")
        page.set_input_files("#upload input[type=file]", str(path))
        expect(page.locator("#problem")).to_contain_text("at most 1,000,000 characters")
    ask(page, "O")  # nothing of it is left
    shown(page, "|μ| = 1.")
    expect(page.locator("#problem")).to_be_empty()


@needs_browser
def test_a_request_that_the_server_refuses(page: Page) -> None:
    # The next request is as long as if this were typed; to lay out so long a text takes a browser
    # half a minute.
    page.evaluate("""() => {
        const send = window.fetch;
        window.fetch = (url, options) => {
            window.fetch = send;
            return send(url, {...options, body: 'C'.repeat(21e6)});
        };
    }""")
    page.click("#predict")
    expect(page.locator("#unanswered")).to_contain_text("at most 1,000,000 characters")
    ask(page, "O")
    shown(page, "|μ| = 1.")
    expect(page.locator("#unanswered")).to_be_hidden()


def status(address: str, host: str | None = None, body: bytes | None = None) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"} | ({} if host is None else {"Host": host})
    request = urllib.request.Request(address, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode("utf-8")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode("utf-8")


def test_the_page_is_for_this_machine_and_shows_no_traceback(address: str) -> None:
    assert status(address)[0] == 200
    code, text = status(address, host="evil.example")
    assert (code, text) == (403, "This page is for this machine only.")
    code, text = status(f"{address}_dash-update-component", body=b"{}")
    assert code >= 400
    assert "Traceback" not in text
    code, text = status(f"{address}_dash-update-component", body=b" " * 21_000_000)
    assert code == 413
    assert "at most 1,000,000 characters" in text
    port = int(urlsplit(address).port or 0)
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", port))


@contextmanager
def serving_here(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[list[str]]:
    """``dipolegnn serve`` in a thread, and the lines that it prints; without the first question,
    which would start a process that imports everything.
    """
    made: queue.Queue[Any] = queue.Queue()

    def create_server(*arguments: Any, **options: Any) -> Any:
        server = waitress.server.create_server(*arguments, **options)
        made.put(server)
        return server

    monkeypatch.setattr("dipolegnn.app.server.create_server", create_server)
    monkeypatch.setattr("dipolegnn.app.server.Service.ask", lambda *_: None)
    thread = threading.Thread(target=main, args=(["serve", "--host", host, "--port", "0"],))
    thread.start()
    server = made.get(timeout=60)
    status(f"http://{f'[{host}]' if ':' in host else host}:{server.effective_port}/")
    yield capsys.readouterr().out.splitlines()
    server.trigger.pull_trigger(server.close)  # in the thread that waits for requests
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
@pytest.mark.parametrize(
    ("host", "shown", "notes"),
    [("::1", "[::1]", []), ("0.0.0.0", "0.0.0.0", ["can use the page"])],
)
def test_other_addresses(
    host: str,
    shown: str,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving_here(host, monkeypatch, capsys) as (line, *others):
        assert line.startswith(f"http://{shown}:"), line
        assert len(others) == len(notes)
        assert all(note in other for note, other in zip(notes, others, strict=True))
        assert status(line.split()[0])[0] == 200


def test_serve_refuses(capsys: pytest.CaptureFixture[str], address: str) -> None:
    port = str(urlsplit(address).port)
    assert main(["serve", "--port", port]) == 2
    assert_message(capsys, f"Port {port} is in use")
    assert main(["serve", "--port", "70000"]) == 2
    assert_message(capsys, "--port must be between 0 and 65535, got 70000")
    assert main(["serve", "--model", "nowhere"]) == 2
    assert_message(capsys, "There is no model nowhere.")


@needs_browser
def test_the_page_reports_that_the_server_has_ended(browser: Browser, served: Served) -> None:
    served.start()
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(served.address)
    opened.wait_for_selector("#predict")
    served.kill()
    opened.click("#predict")
    expect(opened.locator("#unanswered")).to_contain_text("(dipolegnn serve) has ended")
    context.close()
