"""Writes the sources of the book: notebooks without nbdev's directives, a page for each part's API, the table of contents."""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import yaml

BOOK = Path(__file__).parent
NBS = BOOK.parent / "nbs"
# The parts of the book: notebooks, and folders of notebooks, in the order in which they are read.
PARTS = {
    "Course": ["course"],
    "Explore": ["explore"],
    "Atlas": ["atlas"],
    "Reproductions": ["results", "reproductions"],
    "Reference": [
        *("core", "data", "views", "tokens", "encoders", "objectives", "evaluators", "methods", "training", "runs", "teaching"),
    ],
    "Benchmarks": ["speed", "benchmarks"],
}
HIDDEN = re.compile(r"#\|\s*(hide|default_exp)\b")


def page(path):
    "A notebook as readers of the book see it: no directives, no cells that only concern nbdev."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [cell for cell in nb.cells if not (cell.cell_type == "code" and HIDDEN.match(cell.source))]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # nbdev_clean removes it
    return nb


def anchor(title):
    "The anchor of a heading as JupyterLab makes it, so that links into a page work in both."
    return title.replace(" ", "-")


def api(name):
    return f"# `ssl_nb.{name}`\n\n```{{eval-rst}}\n.. automodule:: ssl_nb.{name}\n   :members:\n   :imported-members:\n```\n"


def names(folder):
    "The pages of a folder, its index first; or the one page of this name."
    if (NBS / f"{folder}.ipynb").is_file():
        return [folder]
    found = [path.relative_to(NBS) for path in (NBS / folder).rglob("*.ipynb")]
    found = [path.with_suffix("").as_posix() for path in found if not {"runs", ".ipynb_checkpoints"} & set(path.parts[1:])]
    return sorted(found, key=lambda name: (not name.endswith("index"), name))


def entries(found):
    "Their places in the table of contents: an index is the parent of the others."
    rest = [{"file": name} for name in found]
    return [rest[0] | {"entries": rest[1:]}] if found[0].endswith("index") else rest


def assemble(target, parts=PARTS):
    shutil.rmtree(target, ignore_errors=True)
    pages = {part: [names(folder) for folder in folders] for part, folders in parts.items()}
    interfaces = [f"api/{name}" for name in parts["Reference"] if name != "core"]
    for name in ["index", *(name for folders in pages.values() for found in folders for name in found)]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page(NBS / f"{name}.ipynb"), target / f"{name}.ipynb")
    (target / "api").mkdir()
    for name in interfaces:
        (target / f"{name}.md").write_text(api(Path(name).name))
    trees = [{"caption": part, "entries": sum(map(entries, folders), [])} for part, folders in pages.items()]
    trees.append({"caption": "API", "entries": [{"file": name} for name in interfaces]})
    (target / "_toc.yml").write_text(yaml.safe_dump({"root": "index", "subtrees": trees}, sort_keys=False))


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
