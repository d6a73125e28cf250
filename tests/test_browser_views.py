"""The views gallery in a real JupyterLab: sliders redraw, a preset brings its own sliders, training does not block."""

import pytest
from browser import changes, drawn, open_and_run, shoot, slide, write_notebook

pytestmark = pytest.mark.xdist_group("browser")

CELL = """
from ssl_nb import data
from ssl_nb.explore import ViewsGallery
w = ViewsGallery(data.load("scenes", channels=3, n_train=256, n_test=128), steps=30)
w
"""


def test_sliders_presets_and_training(lab, page):
    kernel = open_and_run(page, lab, write_notebook(lab.folder / "views.ipynb", CELL))
    canvas = drawn(page)
    before = canvas.screenshot()
    assert "gray 0.22" in changes(page, canvas, lambda: slide(page, "gray (chance)"))
    assert kernel.ask("w.values()['gray']") == pytest.approx(0.22)
    assert "gray 0.6" in changes(page, canvas, lambda: slide(page, "gray (chance)", "PageUp", 4)) or kernel.wait(
        "w.values()['gray'] > 0.5"
    )
    assert canvas.screenshot() != before

    page.locator(".widget-dropdown select").first.select_option("scenes")
    page.get_by_text("same background").wait_for()
    page.locator(".widget-checkbox", has_text="same background").locator("input").check()
    assert kernel.wait("w.values()['shared background']")

    page.get_by_role("button", name="train under these views").click()
    assert kernel.ask("1 + 1") == 2  # the kernel answers while a thread trains
    kernel.wait("len(w.readings) == 2")
    assert "linear probe reads" in changes(page, canvas, lambda: slide(page, "contrast"))
    shoot(page, "views_jupyterlab")
