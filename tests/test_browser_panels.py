"""The base of all widgets, in a real JupyterLab."""
import pytest
from browser import WAIT, changes, click_panel, drawn, open_and_run, shoot, slide, voila, write_notebook

pytestmark = pytest.mark.xdist_group("browser")

WIDGET = """
import numpy as np
from ssl_nb.explore.explorer import *
from ssl_nb.explore.panels import *

class Chess(Explorer):
    def build(self, fail=False):
        if fail: raise ValueError("fail is True; pass False")
        self.height, self.cell = slider("height", 2.0, 0.5, 4.0, unit="m"), (0, 0)
        self.controls = [[self.height, button("break", self.broken)]]
        self.on(self.height)
    def broken(self): raise ValueError("the button was meant to fail; press another")
    def panels(self):
        board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
        x = np.linspace(0, 6, 50)
        return [Panel("wave", [Line(x, self.height.value * np.sin(x), "sine")], "time (s)", "height (m)", ylim=(-4, 4)),
                Panel("board", [Picture(board, grid=(8, 8), cell=self.cell)])]
    def picked(self, panel, x, y, cell):
        self.cell = cell or self.cell
        self.redraw()
    @property
    def alt(self): return f"height {self.height.value:.2f} m, cell {self.cell}"
w = Chess()
w
"""


def test_slider_click_keys_and_still(lab, page):
    notebook = write_notebook(lab.folder / "panels.ipynb", WIDGET, "# A lesson", "Chess(fail=True)")
    kernel = open_and_run(page, lab, notebook)
    canvas = drawn(page)
    assert canvas.get_attribute("aria-label") == "height 2.00 m, cell (0, 0)"
    assert "height 2.05" in changes(page, canvas, lambda: slide(page, "height (m)"))
    assert kernel.ask("w.height.value") == pytest.approx(2.05)

    assert "cell (6, 2)" in changes(page, canvas, lambda: click_panel(canvas, 1, 2.5 / 8, 6.5 / 8))
    assert "cell (6, 3)" in changes(page, canvas, lambda: canvas.press("ArrowRight"))
    assert kernel.ask("list(w.cell)") == [6, 3]

    page.get_by_text("break", exact=True).click()
    page.get_by_role("alert").get_by_text("the button was meant to fail; press another").wait_for()
    page.get_by_role("alert").get_by_text("fail is True; pass False").wait_for()
    assert not page.get_by_text("Traceback").count()
    shoot(page, "panels_jupyterlab")

    # the still lies below, hidden, and follows the last state when the widget is at rest
    still = page.locator(".jp-OutputArea-child:has(> .jp-RenderedImage)").first
    assert still.count() == 1 and not still.is_visible()
    alts = "window.jupyterapp.shell.currentWidget.content.model.cells.get(0).outputs.get(1).toJSON().metadata['image/png'].alt"
    page.wait_for_function(f"{alts}.includes('cell (6, 3)')")


def test_voila_serves_the_page_without_code_and_without_a_network(chromium, page, tmp_path):
    notebook = write_notebook(tmp_path / "page.ipynb", "# A lesson\n\nWith $x_i$.", WIDGET)
    refused, answered = [], []
    page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    page.on("response", lambda response: answered.append(response.url))
    with voila(notebook, tmp_path) as server:
        page.goto(server.url("/"), timeout=WAIT * 1000)
        canvas = drawn(page)
        assert "height 2.05" in changes(page, canvas, lambda: slide(page, "height (m)"))
        assert server.kernel().ask("w.height.value") == pytest.approx(2.05)
        assert page.locator("math").count() == 1 and not page.get_by_text("import numpy").count()
        assert not page.locator(".jp-RenderedImage").first.is_visible()
        shoot(page, "panels_voila")
    # Voila's own template names a server of icons; the page is not allowed to ask it
    assert refused and all(why == "csp" for _, why in refused)
    assert all(url.startswith((server.url("/"), "data:", "blob:")) for url in answered)
