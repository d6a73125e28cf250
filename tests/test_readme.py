"""Every figure in the tables of the README stands in the committed outputs of the notebook that the row names."""

import ast
import re
from bisect import bisect_left, bisect_right
from functools import lru_cache
from html import unescape
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
NAMED = {p.stem: p for p in (ROOT / "nbs" / "reproductions").glob("*.ipynb")}
NAMED |= {f"benchmarks/{p.stem}": p for p in (ROOT / "nbs" / "benchmarks").glob("*.ipynb")}
TEXT_COLUMNS = ("claim", "what", "protocol", "verdict", "command", "notebook", "question", "run time")  # say what, not how much

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
    "Every number in the outputs of a notebook, as text, table or stream."
    found = set()
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            for text in texts:
                bare = unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.S)).replace("\u2212", "-")
                found |= {value for value, _ in numbers(bare)}
    return sorted(found)


def stands_in(value, half, path):
    "Whether a number of the outputs rounds to this one; a unit may be a thousandth (ms, s) or a percentage."
    known, half = output_numbers(path), half * (1 + 1e-6)
    return any(
        bisect_left(known, (value - half) / factor) < bisect_right(known, (value + half) / factor)
        for factor in (1, 1e3, 1e-3, 100)
    )


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


README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURES = list(figures(README))


def test_the_readme_has_figures_to_check():
    assert len(FIGURES) >= 20 and len({n for _, _, named in FIGURES for n in named}) >= 3


@pytest.mark.parametrize("row, cell, named", FIGURES, ids=[f"{i}-{row[:40]}" for i, (row, _, _) in enumerate(FIGURES)])
def test_a_figure_of_the_readme_is_in_the_outputs(row, cell, named):
    missing = [f"{v:g}" for v, half in numbers(cell) if not any(stands_in(v, half, path) for path in named)]
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
    true, wrong = (".828", "1,860", "1863", "23 ms", "82.8 %"), (".83 or .827", ".8277", "1,870", "77", "24 ms")
    assert all(stands_in(*next(numbers(text)), tmp_path / "made.ipynb") for text in true)
    assert not any(all(stands_in(*n, tmp_path / "made.ipynb") for n in numbers(text)) for text in wrong)


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
