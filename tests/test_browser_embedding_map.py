"""EmbeddingMap in a real JupyterLab: hover, lasso, search, recolor, morph."""

import json

import pytest
from browser import WAIT, changes, click_panel, drawn, open_and_run, shoot, slide, write_notebook

pytestmark = pytest.mark.xdist_group("browser")

WIDGET = """
import torch
from ssl_nb import data
from ssl_nb.explore.embedding_map import EmbeddingMap
digits = data.load("digits").test
raw = digits["images"].flatten(1).float()
g = torch.Generator().manual_seed(0)
states = {f"noise {s}": raw + 20 * s * torch.randn(raw.shape, generator=g) for s in range(3)}
w = EmbeddingMap(states, digits["images"], digits["labels"], {"ink": raw.mean(1)}, classes=range(10)).wait()
w
"""


def lasso(page, box, inner=0.98):
    "Draw a closed line around most of a map, after a click on the lasso's button."
    x, y, w, h = box["x"], box["y"], box["width"], box["height"]
    corners = [(0.05, 0.05), (inner, 0.05), (inner, inner), (0.05, inner), (0.05, 0.06)]
    places = [(x + a * w, y + b * h) for a, b in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=12)
    page.mouse.up()


def test_hover_lasso_search_recolor_and_morph(lab, page):
    notebook = write_notebook(lab.folder / "map.ipynb", WIDGET)
    kernel = open_and_run(page, lab, notebook)
    canvas = drawn(page)
    assert "trustworthiness@15" in canvas.get_attribute("aria-label")
    page.locator(".ssl-nb-map-caption", has_text="continuity@15").wait_for()

    scatter = page.locator(".jp-OutputArea canvas:not(.ssl-nb-canvas)").first
    scatter.wait_for(timeout=WAIT * 1000)
    scatter.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)  # the points fade in
    shoot(page, "embedding_map")

    # hover: over where the kernel says that a point lies
    box = scatter.bounding_box()
    x, y = kernel.ask("w.scatter.points[100, :2].tolist()")
    side = min(box["width"], box["height"])
    place = box["x"] + box["width"] / 2 + x * side / 2, box["y"] + box["height"] / 2 - y * side / 2

    def hover():
        page.mouse.move(place[0] - 30, place[1])
        page.mouse.move(*place, steps=10)

    changes(page, canvas, hover)
    looked = kernel.ask("w.point")  # that point, or one that lies on it
    page.wait_for_function(
        "([c, text]) => c.getAttribute('aria-label').includes(text)", arg=[canvas.element_handle(), f"Looked at: #{looked},"]
    )
    near = kernel.ask("((w._flat(w.state)[w.point] - w._flat(w.state)[100]).norm() / w.scatter.frame[1]).item()")
    assert near < 0.05

    # a click on a neighbor's picture looks at that one, arrow keys go on
    first = kernel.ask("w.points.nearest(w.state, w.point, 8)[0].tolist()")
    changes(page, canvas, lambda: click_panel(canvas, 1, 0.1, 0.25))
    assert kernel.ask("w.point") == first[0]

    # lasso
    page.get_by_title("lasso", exact=False).first.click()
    lasso(page, scatter.bounding_box())
    chosen = kernel.wait("len(w.chosen)")
    assert chosen > 50 and kernel.ask("len(w.selected())") == chosen
    page.wait_for_function("c => c.getAttribute('aria-label').includes('are selected')", arg=canvas.element_handle())
    shoot(page, "embedding_map_lasso")

    # export
    page.get_by_role("button", name="export CSV").click()
    page.get_by_role("status").get_by_text("points written to").wait_for()
    assert len((lab.folder / "embedding_map.csv").read_text().splitlines()) == chosen + 1

    # search selects, and a search for nothing is told
    search = page.get_by_placeholder("17, or label=7")
    search.fill("label=3")
    search.press("Enter")
    assert kernel.wait("set(w.selected().label) == {3}")
    search.fill("walrus")
    search.press("Enter")
    page.get_by_role("alert").get_by_text("nothing is called 'walrus'").wait_for()
    search.fill("17")
    search.press("Enter")
    assert kernel.wait("w.chosen.tolist() == [17]")
    page.wait_for_function("c => c.getAttribute('aria-label').includes('1 point is selected')", arg=canvas.element_handle())

    # recolor and morph
    page.get_by_label("color", exact=True).select_option("ink")
    assert kernel.wait("w.colors.name == 'ink'")
    before = kernel.ask("w.scatter.points[:3, :2].tolist()")
    slide(page, "state")
    assert kernel.wait("w.state == 'noise 1'")
    assert kernel.ask("w.scatter.points[:3, :2].tolist()") != before and kernel.wait("w.scatter.widget.transition_points")
    slide(page, "state")  # in the middle of the morph
    assert kernel.wait("w.state == 'noise 2'")
    slide(page, "state", "ArrowLeft")
    where = "[...document.querySelectorAll('.jp-OutputArea div')].find(e => e.api?.draw).api.get('points')[7].slice(0, 2)"
    assert kernel.wait("w.state == 'noise 1'")
    wanted = kernel.ask("w.scatter.points[7, :2].tolist()")
    page.wait_for_function(
        f"([x, y]) => {{ const [a, b] = {where}; return Math.abs(a - x) + Math.abs(b - y) < 1e-3; }}", arg=wanted
    )
    page.get_by_label("beside it", exact=True).select_option("noise 2")
    kernel.wait("w.second is not None")
    page.wait_for_timeout(1500)
    shoot(page, "embedding_map_beside")
    assert page.locator(".ssl-nb-map-caption").inner_text().count("trustworthiness@15") == 2
    assert json.loads(canvas.get_attribute("data-places"))
