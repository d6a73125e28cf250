"""What lessons promise: claims that warn instead of stopping the reader, and views that are named for what they are."""

import json
import re
import warnings
from pathlib import Path

import pytest

from ssl_nb.explore import claim
from ssl_nb.runs import lessons

EXPLORE = sorted((Path(__file__).parent.parent / "nbs" / "explore").glob("*.ipynb"))


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_a_claim_prints_its_numbers_or_warns_with_them(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        claim(True, "knn@20 is 0.362")
    assert capsys.readouterr().out == "knn@20 is 0.362\n"
    with pytest.warns(UserWarning, match="does not hold here: knn@20 is 0.266") as caught:
        claim(False, "knn@20 is 0.266")
    assert caught[0].filename == __file__  # the line of the lesson, not that of the function
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", lessons())
def test_the_claims_of_a_committed_lesson_hold(name):
    outputs = [out for cell in cells(lessons()[name], "code") for out in cell["outputs"]]
    said = "".join("".join(out.get("text", "")) for out in outputs if out["output_type"] == "stream")
    assert "does not hold here" not in said
    lines = [line for cell in cells(lessons()[name], "code") for line in cell["source"]]
    claims = [line for line in lines if re.search(r"^\s*claim\(|\b\w+\.claim\(", line)]  # of the lesson, or of a `Study`
    assert claims


@pytest.mark.parametrize("path", EXPLORE, ids=lambda path: path.stem)
def test_views_that_redraw_the_digit_are_named_in_the_first_paragraph(path):
    whole = "\n".join("".join(cell["source"]) for cell in cells(path, "code") + cells(path, "markdown"))
    if "SceneViews" in whole:
        first = "".join(cells(path, "markdown")[0]["source"])
        assert "SceneViews" in first and "redraw" in first and "No ordinary augmentation can do that" in first
