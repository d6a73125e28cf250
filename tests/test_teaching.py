"""The parts of lessons: predictions, exercises, schematics, frames and reading times."""

import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import pytest

from ssl_nb.teaching import Frames, Predict, check, circle, masked_frame, reveal, similarity_matrix, two_branches
from ssl_nb.teaching.exercises import exercise, expect

DRAWINGS = {
    "two branches": two_branches(predictor=True, stop_gradient=True, teacher=True, loss="a < b & c"),
    "masked frame": masked_frame(hidden=[(0, 0), (1, 2)], target="features of hidden patches", latent=True),
    "similarity": similarity_matrix([[1.0, -0.5], [0.2, 0.9]], rows=["a", "b"], columns=["x", "y"]),
    "circle": circle([0, 90], moves=[10, -10], colors=[0, 1], names=["p", "q"], title="two points"),
    "outcome": reveal(Predict("?", 0, 1), 0.25),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_valid_svg_and_stays_on_its_card(name):
    d = DRAWINGS[name]
    root = ET.fromstring(d.svg)
    assert root.find("{*}title").text == d.alt and d.alt.endswith(".")
    for box in root.findall("{*}rect"):
        x, y, w, h = (float(box.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert 0 <= x and x + w <= d.width and 0 <= y and y + h <= d.height
    for text in root.findall("{*}text"):
        # 0.6 of the size is wider than any letter but m and w
        wide = 0.6 * float(text.get("font-size")) * len(text.text)
        left = float(text.get("x")) - wide * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        assert -2 <= left and left + wide <= d.width + 2, text.text
        assert 0 < float(text.get("y")) < d.height
    assert set(d._repr_mimebundle_()) == {"image/svg+xml", "text/plain"}


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
def test_branches_say_what_they_hold(predictor, stop, teacher):
    d = two_branches(predictor, stop, teacher)
    assert ("predictor q" in d.svg) == ("predictor" in d.alt) == predictor
    assert ("stop-gradient" in d.alt) == stop and len(re.findall('stroke-width="2.4"', d.svg)) == 2 * stop
    assert ("encoder f" in d.svg) and ("teacher f" in d.svg) == teacher


def test_a_prediction_is_kept_and_shown_beside_the_outcome():
    asked = Predict("How many?", 0, 10)
    assert "No prediction" in reveal(asked, 4).alt and "predicted" not in reveal(asked, 4).svg.split("</title>")[1]
    asked.commit(7.0)
    asked.commit(1.0)  # too late
    assert asked.value == 7.0 and "predicted 7" in reveal(asked, 4).svg


def test_the_button_commits_what_the_input_shows():
    number, word = Predict("?", 0, 1), Predict("?", choices=["up", "down"])
    number._input.value = 0.3
    number._commit.click()
    word._commit.click()
    assert number.value == 0.3 and word.value is None  # nothing was chosen
    word._input.value = "down"
    word._commit.click()
    assert word.value == "down" and word._input.disabled
    with pytest.raises(ValueError, match="none of the choices"):
        Predict("?", choices=["up", "down"]).commit("left")


def test_a_question_is_text_on_a_page_without_a_kernel(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    Predict("How many?", 0, 10)._ipython_display_()
    assert shown[0]["text/markdown"] == "**Predict.** How many? (0 to 10)"


@pytest.mark.parametrize("wrong", [{}, {"low": 0}, {"low": 2, "high": 1}, {"low": 0, "high": 1, "choices": ["a"]}])
def test_a_question_without_a_range_is_refused(wrong):
    with pytest.raises(ValueError, match="range|below"):
        Predict("?", **wrong)


@pytest.fixture
def lesson98(monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "ssl_nb.teaching.lesson98", types.ModuleType("lesson98"))

    @exercise("98.1")
    def _(answer):
        expect(answer() == 4, "It should give 4.")


def unwritten(x, y=1): ...


@pytest.mark.parametrize(
    "answer, passed, hint",
    [
        (lambda: 4, True, "right"),
        (lambda: 5, False, "should give 4"),
        (lambda: 1 / 0, False, "raised ZeroDivisionError"),
        (..., False, "no answer"),
        (None, False, "no answer"),
        (unwritten, False, "no answer"),
        (lambda: None, False, "no answer"),
        (3, False, "raised TypeError"),
    ],
)
def test_check_says_whether_an_answer_is_right(lesson98, answer, passed, hint):
    found = check("98.1", answer)
    assert bool(found) == passed and hint in repr(found)


@pytest.mark.parametrize("number", ["98.2", "97.1", "x", ""])
def test_an_exercise_that_does_not_exist_is_named(lesson98, number):
    with pytest.raises(ValueError, match="no exercise"):
        check(number, 1)


def test_frames_show_one_picture_and_close_the_figures():
    plt.close("all")
    figures = {t: plt.figure(figsize=(1, 1)) for t in (0.1, 0.2, 0.5)}
    made = Frames("t", figures, start=1, alt="a & b")._repr_mimebundle_()["text/html"]
    assert not plt.get_fignums()
    root = ET.fromstring(
        re.sub(r"(<img[^>]*?)( hidden)?>", r"\1/>", re.sub(r"(<input[^>]*)>", r"\1/>", made.replace("=>", "= >")))
    )
    assert len(root.findall(".//img")) == 3 and made.count(" hidden>") == 2 and root.find(".//output").text == "0.2"
    assert root.findall(".//img")[0].get("alt") == "a & b (t 0.1)"


def test_a_number_belongs_to_one_module_and_a_notebook_may_define_it_again():
    def test_in(module):
        def test(answer): expect(answer == module, "another module")
        test.__module__ = module
        return test

    for module in ("lesson", "__main__", "__main__", "lesson"):
        exercise("97.1")(test_in(module))
    with pytest.raises(ValueError, match="97.1 has a test already, in lesson"):
        exercise("97.1")(test_in("another lesson"))
