"""CollapseLab in a real JupyterLab: presets, start, knobs while it trains, pause, reset."""
import pytest
from browser import changes, drawn, open_and_run, shoot, slide, write_notebook

pytestmark = pytest.mark.xdist_group("browser")

CELL = """
from ssl_nb.explore import CollapseLab
w = CollapseLab()
w
"""


def test_train_turn_pause_and_reset(lab, page):
    kernel = open_and_run(page, lab, write_notebook(lab.folder / "collapse.ipynb", CELL))
    canvas = drawn(page)
    assert "Run B (simsiam, no stop-gradient) at step 0" in canvas.get_attribute("aria-label")

    def button(name):  # by its text: an icon is part of its accessible name
        return page.locator("button.jupyter-button", has_text=name)

    page.get_by_text("as if all were well").wait_for()  # what to watch
    before = canvas.screenshot()
    assert "at step 5" in changes(page, canvas, button("step").click)
    assert canvas.screenshot() != before

    assert kernel.ask("w.runs[0].settings.lambda_") == 5e-3  # rounded by its slider, it would be 5.01e-3

    button("start").click()
    kernel.wait("w.running and w.runs[1].steps > 60")  # the kernel answers while a thread trains
    assert button("start").is_disabled() and not button("pause").is_disabled()
    slide(page, "view strength")
    assert kernel.wait("w.runs[0].settings.strength > 0.5")
    assert kernel.ask("w.running")
    page.wait_for_function("c => /step [1-9][0-9][0-9]/.test(c.getAttribute('aria-label'))", arg=canvas.element_handle(),
                           timeout=120_000)
    kernel.wait("w.runs[1].measures.spread < 0.15")
    button("pause").click()
    kernel.wait("not w.running and not w._thread.is_alive()")
    steps = kernel.ask("[run.steps for run in w.runs]")
    assert steps[0] == steps[1] and kernel.ask("[run.steps for run in w.runs]") == steps
    assert kernel.ask("w.runs[1].measures.spread < w.runs[0].measures.spread / 3")
    page.get_by_text("against 1/sqrt(d) = .125").first.wait_for()
    shoot(page, "collapse_jupyterlab")

    # what a method has not is off, and says why
    temperature = page.locator(".widget-slider", has_text="temperature")
    assert temperature.locator("[disabled]").count()
    assert kernel.ask("w.knobs['temperature'].tooltip") == "off: simsiam has no temperature; simclr and moco have"
    page.locator(".widget-dropdown", has_text="method").locator("select").first.select_option("simclr")
    kernel.wait("w.runs[0].settings.method == 'simclr' and not w.knobs['temperature'].disabled")

    # the sphere, turned by a slider
    page.locator(".widget-dropdown", has_text="knobs of").locator("select").select_option("both")
    page.locator(".widget-dropdown", has_text="embedding width").locator("select").select_option("3")
    kernel.wait("[run.measures.dim for run in w.runs] == [3, 3]")
    kernel.wait("w.canvas.drawn == w.canvas.count")
    before = canvas.screenshot()
    slide(page, "turn (degrees)", "PageUp", 6)
    kernel.wait("w.turn.value > 20 and w.canvas.drawn == w.canvas.count")
    assert canvas.screenshot() != before
    shoot(page, "collapse_sphere")

    page.locator(".widget-dropdown", has_text="preset").locator("select").select_option("eigenspaces")
    page.wait_for_function("c => c.getAttribute('aria-label').includes('byol, linear predictor) at step 0')",
                           arg=canvas.element_handle())
    button("start").click()
    kernel.wait("w.runs[0].steps > 20")
    button("reset").click()
    kernel.wait("w.running")
    button("pause").click()
    kernel.wait("not w._thread.is_alive()")
    assert kernel.ask("w.error is None and w.message == ''")
    assert not page.get_by_text("Traceback").count()
