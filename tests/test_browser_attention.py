"""AttentionMap in a real JupyterLab and a real Voila: sliders, a click on a patch, arrow keys, a click on a head."""

import pytest
from browser import WAIT, changes, click_panel, drawn, open_and_run, shoot, slide, voila, write_notebook

pytestmark = pytest.mark.xdist_group("browser")

WIDGET = """
import torch
from ssl_nb import data, encoders
from ssl_nb.explore import AttentionMap

torch.manual_seed(0)
scenes = data.load("scenes", n_train=16, n_test=16)
images, masks = scenes.test["images"], scenes.test["masks"]
vit = encoders.create("vit", in_chans=1, img_size=24, embed_dim=32, depth=3, mean=scenes.spec.mean, std=scenes.spec.std)
with torch.no_grad():
    for block in vit.backbone.blocks: block.attn.qkv.weight.mul_(20)  # so that heads differ
w = AttentionMap(vit, images, masks, image=2)
w
"""
WRONG = "AttentionMap(encoders.create('convnet', in_chans=1, img_size=24), images)"


def test_sliders_clicks_and_keys(lab, page):
    notebook = write_notebook(lab.folder / "attention.ipynb", WIDGET, WRONG)
    kernel = open_and_run(page, lab, notebook)
    canvas = drawn(page)
    first = canvas.get_attribute("aria-label")
    assert first.startswith("Image 2.") and "class token" in first and "layer 2" in first and "Jaccard" in first

    assert "layer 1" in changes(page, canvas, lambda: slide(page, "layer", "ArrowLeft"))
    assert kernel.ask("w.layer.value") == 1
    assert "hold 59 %" in changes(page, canvas, lambda: slide(page, "mass kept", "ArrowLeft"))
    assert changes(page, canvas, lambda: slide(page, "image")).startswith("Image 3.")

    # a click on row 1, column 6 of the image: now that patch asks
    assert "patch (1, 6) looks most" in changes(page, canvas, lambda: click_panel(canvas, 0, 6.5 / 8, 1.5 / 8))
    assert kernel.ask("[list(w.patch), w.whole.value]") == [[1, 6], False]
    assert "patch (2, 6)" in changes(page, canvas, lambda: canvas.press("ArrowDown"))
    assert kernel.ask("torch.equal(w.state()['map'], w.state()['look'].map(1, 'mean', (2, 6)))")

    # the four heads are tiles of the third panel: the lower right one is head 3
    assert "head 3" in changes(page, canvas, lambda: click_panel(canvas, 2, 0.75, 0.75))
    assert kernel.ask("w.head.value") == 3
    shoot(page, "attention_jupyterlab")

    assert "class token" in changes(page, canvas, lambda: page.get_by_label("class token").check())
    page.get_by_role("alert").get_by_text("ByobNet has no attention layers to read").wait_for()
    assert not page.get_by_text("Traceback").count()

    alts = "window.jupyterapp.shell.currentWidget.content.model.cells.get(0).outputs.get(1).toJSON().metadata['image/png'].alt"
    page.wait_for_function(f"{alts}.includes('head 3: class token')")  # the still follows the last state


def test_two_encoders_on_a_page_of_voila(chromium, page, tmp_path):
    pair = WIDGET.replace(
        "image=2)",
        "image=2, second=encoders.create('vit', in_chans=1, img_size=24, patch_size=6, depth=1), names=('fine', 'coarse'))",
    )
    with voila(write_notebook(tmp_path / "attention.ipynb", "# Two networks", pair), tmp_path) as server:
        page.goto(server.url("/"), timeout=WAIT * 1000)
        canvas = drawn(page)
        text = changes(page, canvas, lambda: click_panel(canvas, 2, 3.5 / 4, 0.5 / 4))  # row 0, column 3 of the coarse grid
        assert "coarse, layer 0, mean of heads: patch (0, 3)" in text and "fine, layer 2, mean of heads: patch (1, 7)" in text
        assert "rollout" in changes(page, canvas, lambda: page.get_by_label("show").select_option("rollout"))
        assert not page.get_by_text("import torch").count()
        shoot(page, "attention_voila")
