"""Panels: what the browser is told and what matplotlib draws are the same; errors are messages; long work does not block."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ssl_nb.explore import panels
from ssl_nb.explore.explorer import Explorer, button, choice, slider, switch
from ssl_nb.explore.panels import Bars, Canvas, Dots, Label, Line, Panel, Picture, _frame, still
from ssl_nb.figures import PALETTE

STEPS = torch.arange(1, 51)
PANELS = {
    "lines": Panel("lines", [Line(STEPS, 1 / STEPS, "a"), Line(STEPS, STEPS**0.5, "b", 1, dash=True)], "step", "loss", log="y"),
    "both logs": Panel("both logs", [Line(STEPS, STEPS**2.0, color="#123456")], "n", "time (s)", log="xy"),
    "dots": Panel("dots", [Dots(torch.randn(40), torch.randn(40), torch.arange(40), 5.0)], equal=True),
    "bars": Panel("bars", [Bars([0, 1, 2], [3, 1, 2], 2, "counts")], "class", "points", xticks=["x", "y", "z"]),
    "picture": Panel("picture", [Picture(torch.randint(0, 256, (6, 9, 3)), grid=(2, 3), cell=(1, 1)), Label(3, 3, "here")]),
    "limits": Panel("limits", [Line([0, 1], [0, 1])], xlim=(-2, 5), ylim=(0, 9)),
    "empty": Panel("empty"),
    "gaps": Panel("gaps", [Line([0, 1, 2, 3], [1.0, float("nan"), float("inf"), 2.0])]),
}


@pytest.mark.parametrize("name", PANELS)
def test_canvas_and_still_agree_on_axes_and_words(name):
    told, drawn = _frame(PANELS[name]), still([PANELS[name]]).axes[0]
    assert told["xlim"] == pytest.approx(drawn.get_xlim()) and told["ylim"] == pytest.approx(drawn.get_ylim())
    assert all(np.isfinite(told["xlim"] + told["ylim"]))
    assert (told["x"], told["y"], told["title"]) == (drawn.get_xlabel(), drawn.get_ylabel(), drawn.get_title(loc="left"))
    assert ("x" in told["log"], "y" in told["log"]) == (drawn.get_xscale() == "log", drawn.get_yscale() == "log")


def test_canvas_and_still_agree_on_marks():
    told = {name: _frame(panel)["marks"] for name, panel in PANELS.items()}
    drawn = {name: still([panel]).axes[0] for name, panel in PANELS.items()}
    for mark, line in zip(told["lines"], drawn["lines"].lines, strict=True):
        assert mark["color"] == line.get_color() and mark["dash"] == (line.get_linestyle() == "--")
        assert np.allclose(np.frombuffer(mark["y"], np.float32), line.get_ydata())
    [dots] = told["dots"]
    colors = [to_hex(c).upper() for c in drawn["dots"].collections[0].get_facecolors()]
    assert [dots["color"][i].upper() for i in np.frombuffer(dots["index"], np.uint16)] == colors
    assert np.frombuffer(told["bars"][0]["height"], np.float32).tolist() == [bar.get_height() for bar in drawn["bars"].patches]
    pixels = np.frombuffer(told["picture"][0]["pixels"], np.uint8).reshape(6, 9, 4)
    assert (pixels == drawn["picture"].images[0].get_array()).all()


def test_dots_take_any_kind_of_color():
    rgb = np.array([[255, 0, 0], [0, 0, 255], [255, 0, 0]], np.uint8)
    [mark] = _frame(Panel("", [Dots([0, 1, 2], [0, 1, 2], rgb, np.array([1, 2, 3]))]))["marks"]
    assert [mark["color"][i] for i in np.frombuffer(mark["index"], np.uint16)] == ["#ff0000", "#0000ff", "#ff0000"]
    assert np.frombuffer(mark["sizes"], np.float32).tolist() == [1, 2, 3]
    [mark] = _frame(Panel("", [Dots([0], [0], 9)]))["marks"]
    assert mark["color"] == [PALETTE[1]] and mark["index"] is None


def test_the_browser_loads_the_files_beside_the_module():
    folder = Path(panels.__file__).parent
    for name, trait in (("canvas.js", "_esm"), ("canvas.css", "_css")):
        assert getattr(Canvas(), trait) == (folder / name).read_text()


def test_a_slow_browser_gets_the_newest_frame_and_not_the_queue():
    canvas = Canvas()
    canvas.show([PANELS["lines"]])
    canvas.drawn = 1
    for _ in range(50):
        canvas.show([PANELS["lines"]])
    assert canvas.frame["count"] <= 3
    canvas.drawn = canvas.frame["count"]
    assert canvas.frame["count"] == 51


def test_a_still_is_a_small_png():
    png = still(list(PANELS.values()))._repr_png_()
    assert png.startswith(b"\x89PNG") and len(png) < 100_000


def test_a_still_stays_small_after_pyplot_was_used():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.core.pylabtools import select_figure_formats
    from IPython.utils.capture import capture_output
    from PIL import Image

    shell, made = InteractiveShell.instance(), still(list(PANELS.values()))
    select_figure_formats(shell, {"png"})  # what the backend of a notebook does at the first figure
    with capture_output() as shown:
        shell.display_formatter.format(made)
    assert Image.open(io.BytesIO(shown.outputs[0].data["image/png"])).mode == "P"


class Toy(Explorer):
    def build(self, high=10):
        if high < 1:
            raise ValueError(f"high is {high}; give 1 or more")
        self.number, self.kind, self.on_off = slider("number", 1, 0, high), choice("kind", ["a", "b"]), switch("flag")
        self.controls = [[self.number, self.kind], self.on_off, button("fail", self.fail)]
        self.on(self.number, self.kind, self.on_off)

    def fail(self):
        raise ValueError("this <button> fails; press another")

    def panels(self):
        if self.number.value == 7:
            raise RuntimeError("seven")
        return [Panel(self.kind.value, [Line([0, 1], [0, self.number.value])])]

    @property
    def alt(self):
        return f"{self.number.value} {self.kind.value}"


def test_controls_redraw_and_errors_are_messages_that_go_away():
    toy = Toy()
    toy.number.value = 3
    assert toy.canvas.frame["alt"] == "3 a" and toy.error is None
    toy.children[2].click()
    assert toy.error == "this <button> fails; press another"
    assert "&lt;button&gt;" in toy._said.value and 'role="alert"' in toy._said.value  # a text, never markup
    toy.number.value = 7
    assert toy.error == "RuntimeError: seven"
    toy.number.value = 4
    assert toy.error is None and toy.canvas.frame["alt"] == "4 a"


@pytest.mark.parametrize("wrong, says", [(dict(high=0), "high is 0"), (dict(hihg=2), "hihg")])
def test_wrong_arguments_are_a_message_in_the_place_of_the_widget(wrong, says):
    toy = Toy(**wrong)
    assert says in toy.error and toy.children == (toy._said,)


def test_an_error_in_a_thread_is_a_message():
    toy = Toy()
    toy.background(toy.fail).join(10)
    assert toy.error == "this <button> fails; press another"


def test_many_threads_may_redraw():
    toy = Toy(high=1000)

    def turn(start):
        for i in range(start, 200, 4):
            if i != 7:
                toy.number.value = i

    threads = [threading.Thread(target=turn, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    toy.redraw()
    assert toy.error is None and toy.canvas.frame["alt"] == toy.alt


@pytest.mark.parametrize("value, low, high", [(2.0, 0.5, 4.0), (0.2, 0.0, 1.0), (20.0, 0.0, 180.0), (0.7, 0.0, 1.0)])
def test_the_value_of_a_slider_lies_on_its_grid(value, low, high):
    made = slider("x", value, low, high)  # or a browser would move it, and the kernel would hear of a change
    steps = (value - made.min) / made.step
    assert steps == pytest.approx(round(steps), abs=1e-9) and 20 <= (high - low) / made.step <= 130


def test_every_control_has_a_tooltip_and_a_label():
    made = [slider("t", 1, 0, 5, unit="s"), slider("t", 0.1, 0.01, 1, log=True), choice("c", [1, 2]), switch("s"), button("b")]
    for control in made:
        assert control.description and control.tooltip


def test_a_picture_of_another_shape_is_refused_with_the_mend():
    with pytest.raises(ValueError, match="channels last"):
        _frame(Panel("", [Picture(np.zeros((3, 4, 5)))]))
