"""The atlas: rows, and the four conditions that a row must meet to work."""

import nbformat
import pytest

from ssl_nb import atlas, methods
from ssl_nb.runs import Claim, Evidence, Gate, judge
from ssl_nb.runs.verdicts import MIME, Conclusion

FAMILIES = {"joint_embedding", "masked_prediction", "alignment", "denoising", "study", "other"}
ours, base = [0.9, 0.91, 0.92, 0.9, 0.93], [0.5, 0.52, 0.51, 0.49, 0.5]


def results(ours=ours, base=base, trained=None):
    gate = Gate("over untrained", trained or ours, base)
    return Conclusion(judge([Evidence(Claim("better"), ours, base, gates=[gate])]))._repr_mimebundle_()[MIME]


def page(*sources, data=None):
    "A notebook of prose (that begins with '%') and code, whose last cell has an output."
    make = nbformat.v4
    cells = [make.new_markdown_cell(s[1:]) if s.startswith("%") else make.new_code_cell(s) for s in sources]
    if data:
        cells.append(make.new_code_cell("1", outputs=[make.new_output("display_data", data)]))
    return make.new_notebook(cells=cells)


def test_every_row_has_a_family_and_says_what_it_is():
    rows = atlas.rows()
    assert len(rows) == 90 and {row.family for row in rows.values()} == FAMILIES
    assert all(getattr(row, name) for row in rows.values() for name in row.__dataclass_fields__)


def test_a_page_lies_in_the_folder_of_its_family_and_exports_a_short_recipe():
    for id, path in atlas.pages().items():
        assert path.parent.name == atlas.rows()[id].family
        assert 0 < atlas.recipe_lines(nbformat.read(path, as_version=4)) <= atlas.LONGEST
        assert methods.card(id).row == id


def test_lines_of_a_recipe():
    recipe = "#| export\nimport torch\n\n# why\ndef f(x):\n    return x  # y"
    assert atlas.recipe_lines(page(recipe, "#| export\nfrom a import b\nc = 1", "not_exported = 1")) == 3


def test_results_are_those_of_the_last_conclusion():
    first, last = results(), results(base=ours, ours=base)
    notebook = page(data={MIME: first})
    notebook.cells += page(data={MIME: last}).cells
    assert [r["difference"] for r in atlas.results_of(notebook)] == [r["difference"] for r in last]
    assert atlas.results_of(page("1 + 1")) == []


@pytest.mark.parametrize("found, why", [
    ([], "no verdict"),
    (results(trained=[0.5, 0.52, 0.5, 0.5, 0.5]), "untrained"),
    (results(ours[:4], base[:4]), "4 seeds"),
    ([{**results()[0], "gates": []}], "no claim has a gate")])  # fmt: skip
def test_what_was_not_judged_does_not_count(found, why):
    assert why in next(iter(atlas._unjudged(found)))


def test_a_claim_that_is_contradicted_counts_as_judged():
    lost = results([0.7, 0.72, 0.71, 0.7, 0.73], [0.9, 0.91, 0.92, 0.9, 0.94], trained=[1.1, 1.2, 1.1, 1.0, 1.1])
    assert lost[0]["verdict"] == "contradicted" and not list(atlas._unjudged(lost))


def test_an_explanation_has_an_equation_shapes_and_a_picture():
    whole = page("%$$x$$\n| symbol | shape |", "#| export\nx = 1", data={"image/png": "a"})
    assert not list(atlas._unexplained(whole))
    for part, why in [(whole.cells[1:], "equation"), (whole.cells[:2], "picture")]:
        assert why in " ".join(atlas._unexplained(nbformat.v4.new_notebook(cells=part)))
    long = page("%$$x$$\n| shape", "#| export\n" + "x = 1\n" * 61, data={"image/png": "a"})
    assert "61 lines" in " ".join(atlas._unexplained(long))


def test_a_row_without_a_page_is_planned_and_an_unknown_one_is_refused():
    planned = next(id for id in atlas.rows() if id not in atlas.pages() and id not in methods.list())
    assert [check.holds for check in atlas.check(planned)] == [False] * 4
    assert atlas.table().loc[planned, "state"] == "planned"
    with pytest.raises(ValueError, match="videomae"):
        atlas.check("video_mae")


def test_a_row_works_only_if_all_four_conditions_hold():
    table = atlas.table()
    assert len(table) == 90 and set(table.state) <= set(atlas.STATES)
    for id, state in table.state.items():
        assert (state == "works") == all(check.holds for check in atlas.check(id))


def test_the_table_is_filtered_by_text():
    assert set(atlas.table(modality="ecg").index) == {"ecg_jepa", "melp", "merl"}
    with pytest.raises(ValueError, match="modality"):
        atlas.table(modalty="ecg")
