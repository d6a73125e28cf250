"""Every figure of the README and of the page about speed stands in the committed outputs of the notebook that it names."""

import ast
import re
from bisect import bisect_left, bisect_right
from functools import lru_cache
from html import unescape
from pathlib import Path

import nbformat
import pytest

from ssl_nb.runs import find

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
NAMED = {p.stem: p for p in (ROOT / "nbs" / "reproductions").glob("*.ipynb")}
NAMED = {p.stem: p for p in (ROOT / "nbs" / "atlas").glob("*/*.ipynb")} | NAMED
NAMED |= {f"benchmarks/{p.stem}": p for p in (ROOT / "nbs" / "benchmarks").glob("*.ipynb")}
# what these columns say is no result
TEXT_COLUMNS = ("claim", "what", "protocol", "verdict", "command", "notebook", "question", "run time", "no.", "reading")

# 1,860 or .828 or -1.03e-4, but not the numbers in names such as knn@20, CIFAR-10 or avx2
NUMBER = re.compile(r"(?<![\w@.,-])([+-]?)((?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)(e[+-]?\d+)?(?![\w@])(?!\.\d)")


def numbers(text):
    "(value, half a unit of its last digit) of every number in a text; trailing zeros of an integer are not digits."
    for sign, digits, power in NUMBER.findall(text):
        if not digits:
            continue
        scale = 10.0 ** int(power[1:]) if power else 1.0
        plain = digits.replace(",", "")
        _, _, decimals = plain.partition(".")
        rounded = 10.0 ** -len(decimals) if decimals else 10.0 ** (len(plain) - len(plain.rstrip("0")) if plain.strip("0") else 0)
        yield float(sign + plain) * scale, rounded / 2 * scale


@lru_cache
def output_numbers(path):
    "The numbers in each line of the outputs of a notebook, sorted; a row of a table is a line."
    lines = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            for text in texts:
                text = text.replace("\n", " ").replace("</tr>", "\n") if "<tr" in text else text
                bare = unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.S)).replace("\u2212", "-")
                lines += [sorted({value for value, _ in numbers(line)}) for line in bare.splitlines()]
    return lines


def is_one_of(value, half, known):
    "Whether one of the known numbers rounds to this one; a unit may be a thousandth (ms, s) or a percentage."
    half *= 1 + 1e-6
    return any(
        bisect_left(known, (value - half) / factor) < bisect_right(known, (value + half) / factor)
        for factor in (1, 1e3, 1e-3, 100)
    )


def stands_in(text, path):
    "Whether one line of the outputs has every number of a text."
    return any(all(is_one_of(*number, line) for number in numbers(text)) for line in output_numbers(path))


def together(cell):
    "The parts of a cell whose numbers belong to one line of the outputs: a figure with its interval, or a figure alone."
    figure = r"[+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?"
    return [m[0] for m in re.finditer(rf"{NUMBER.pattern}(?: \[{figure}, {figure}\])?", cell) if any(numbers(m[0]))]


def sections(text):
    "(prose, tables) of each section; a table is its heading cells and its rows of cells."
    for part in re.split(r"^#+ .*$", text, flags=re.M):
        lines = part.splitlines()
        rows = [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
        prose = "\n".join(line for line in lines if not line.startswith("|"))
        if rows:
            heads = [i for i, row in enumerate(rows) if set("".join(row)) <= set("-: ")]
            bounds = [i - 1 for i in heads] + [len(rows)]
            yield prose, [(rows[a], rows[a + 2 : b]) for a, b in zip(bounds, bounds[1:], strict=False)]


def named_in(text):
    "The notebooks that a text names as `ssl_nb reproduce NAME`, as a link, or as `NAME` in backticks."
    words = re.findall(r"ssl_nb reproduce ([\w/]+)", text) + re.findall(r"`([\w/]+)`", text)
    linked = [ROOT / link for link in re.findall(r"\]\((nbs/[\w/]+\.ipynb)\)", text)]
    return list(dict.fromkeys([NAMED[w] for w in words if w in NAMED] + linked))


def figures(readme):
    "(row, cell, notebooks) of every cell with figures. 'the same' is the notebook of the row above."
    for prose, tables in sections(readme):
        for head, rows in tables:
            above = named_in(prose)
            for row in rows:
                own = named_in(" ".join(row))
                above = own or above
                for title, cell in zip(head, row, strict=True):
                    cell = re.sub(r"\(?aim:?[^);]*\)?|`[^`]*`|\]\([^)]*\)", " ", cell)
                    if above and not title.startswith(TEXT_COLUMNS) and any(numbers(cell)):
                        yield row[0], cell, tuple(above)


def told():
    "The README and the page about speed, with links as seen from the top."
    page = nbformat.read(ROOT / "nbs" / "speed.ipynb", as_version=4)
    linked = re.sub(r"\]\((?=\w+/)", "](nbs/", "\n\n".join(cell.source for cell in page.cells))
    return (ROOT / "README.md").read_text(encoding="utf-8") + "\n\n" + linked


FIGURES = list(figures(told()))


def test_the_readme_has_figures_to_check():
    assert len(FIGURES) >= 20 and len({n for _, _, named in FIGURES for n in named}) >= 3


@pytest.mark.parametrize("row, cell, named", FIGURES, ids=[f"{i}-{row[:40]}" for i, (row, _, _) in enumerate(FIGURES)])
def test_a_figure_of_the_readme_is_in_the_outputs(row, cell, named):
    missing = [text for text in together(cell) if not any(stands_in(text, path) for path in named)]
    assert not missing, f"{row!r}: {', '.join(missing)} of {cell!r} in no output of {', '.join(p.stem for p in named)}"


def test_the_check_reads_figures_and_finds_those_that_are_wrong(tmp_path):
    text = "+.203 [-.181, .227], 1,860 images/s, knn@20, CIFAR-10, 1e-3"
    assert [v for v, _ in numbers(text)] == [0.203, -0.181, 0.227, 1860, 0.001]
    table = "## A\n`first_run`\n\n| claim 7 | ours | aim |\n|---|---|---|\n| SimCLR 3 | .828 (aim 10) | x |\n| b | none | `4` |"
    [(row, cell, [path])] = figures(table)
    assert row == "SimCLR 3" and [v for v, _ in numbers(cell)] == [0.828] and path.stem == "first_run"
    outputs = [nbformat.v4.new_output("stream", text="1,863.2 images/s"),
               nbformat.v4.new_output("display_data", data={"text/html": "<td style='x: 77'>0.8276</td><td>0.02305 s</td>"})]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=outputs)])
    nbformat.write(made, tmp_path / "made.ipynb")
    true = (".828", "1,860", "1863", "23 ms", "82.8 %", ".828 [.023, 23]")
    wrong = (".83 or .827", ".8277", "1,870", "77", "24 ms", "1,863 [.828, 23]")
    assert all(stands_in(text, tmp_path / "made.ipynb") for text in true)
    assert not any(stands_in(text, tmp_path / "made.ipynb") for text in wrong)
    assert together("+.20 [-.18, .22], 1,860 images/s, 9.1 [8e-3, 10] times") == ["+.20 [-.18, .22]", "1,860", "9.1 [8e-3, 10]"]


# --- the page of results is made from the pages that it lists


def test_the_results_are_those_of_the_pages():
    nb, found = nbformat.read(ROOT / "nbs" / "results.ipynb", as_version=4), {}
    for cell in nb.cells:
        if cell.cell_type == "code":
            exec(cell.source, found)
    outputs = [output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", [])]
    committed = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    assert committed == [found["markdown"](found["table"]).data], "execute nbs/results.ipynb again"
    assert {path.stem for path in PAGES} <= set(found["results"]) and all(found["results"].values())


PAGES = sorted((ROOT / "nbs" / "reproductions").glob("*.ipynb"))


@pytest.mark.parametrize("path", PAGES, ids=[p.stem for p in PAGES])
def test_the_outputs_are_of_the_settings_that_the_page_has(path):
    printed = next(o["data"]["text/plain"] for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"
                   for o in c.outputs if o.get("data", {}).get("text/plain", "").startswith("namespace("))
    ran = {word.arg: ast.literal_eval(word.value) for word in ast.parse(printed, mode="eval").body.keywords}
    stated = find(path.stem).scales["laptop"]
    names = {name for name, text in stated.items() if text != "None" and text.rstrip("()").isidentifier()}
    literal = {name: ast.literal_eval(stated[name]) for name in stated.keys() - names}
    assert ran.keys() == {"scale", *stated} and len(names) <= 2
    assert ran["scale"] == "laptop" and {name: ran[name] for name in literal} == literal


# --- committed notebooks have been executed


def shows(cell):
    "Whether a code cell must have an output: it prints, displays, or ends in a value that is no call."
    source = "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!")))
    body = ast.parse(source).body
    calls = [node.value for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    if any(getattr(call.func, "id", "") in ("print", "display", "image_grid") for call in calls):
        return True
    last = body[-1] if body else None
    return isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call) and not source.rstrip().endswith(";")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[str(p.relative_to(ROOT / "nbs")) for p in NOTEBOOKS])
def test_a_committed_notebook_has_its_outputs(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    run = [c for c in cells if not re.search(r"^#\|\s*(eval:\s*false|default_exp)", c.source, re.M)]
    bare = [c.source for c in run if shows(c) and not c.outputs and "#| export" not in c.source]
    assert not bare, "cells that show something have no output; execute the notebook:\n\n" + "\n\n".join(bare)
    assert not run or any(c.outputs for c in cells) or all("#| export" in c.source or "#| hide" in c.source for c in run)


def test_a_cell_that_was_not_executed_is_found():
    shown = ("x", "1 + 1", "a = 1\n[a]", "print(3)", "fig()\nimage_grid(x)", 'f"{x}"', "y.table")
    silent = ("a = 1", "x;", "def f(): return 1", "f(x)", "assert x", "import os", "# nothing", "if x: print(x)")
    cells = {source: shows(nbformat.v4.new_code_cell(source)) for source in shown + silent}
    assert [source for source, found in cells.items() if found] == list(shown)
