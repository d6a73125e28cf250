"""What must hold of the repository itself: modules follow from notebooks, and notebooks are fit to be read."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import ssl_nb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
IDS = [str(p.relative_to(ROOT / "nbs")) for p in NOTEBOOKS]


def contents(folder, pattern):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob(pattern) if "_checkpoints" not in str(p)}


def test_modules_and_notebooks_are_in_sync(tmp_path):
    # nbdev never deletes a stale module, so the modules are exported from nothing, in a copy.
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    bin = Path(sys.executable).parent
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([bin / command], cwd=tmp_path, check=True)
    assert contents(tmp_path / "ssl_nb", "*.py") == contents(ROOT / "ssl_nb", "*.py")
    assert contents(tmp_path / "nbs", "*.ipynb") == contents(ROOT / "nbs", "*.ipynb")


def test_every_part_that_the_package_names_is_there():
    folders = {path.parent.name for path in (ROOT / "ssl_nb").glob("*/__init__.py")}
    assert folders <= set(dir(ssl_nb))
    for name in dir(ssl_nb):
        assert getattr(ssl_nb, name)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_cells_and_modules_can_be_read_at_one_go(path):
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    long = {len(lines): lines[:3] for lines in (source.strip().splitlines() for source in code) if len(lines) > 60}
    assert not long, f"cells of more than 60 lines, by their first ones; split them by subject: {long}"
    for source in code:
        if exported := re.search(r"^#\| *default_exp +(\S+)", source, re.MULTILINE):
            module = ROOT / "ssl_nb" / (exported[1].replace(".", "/") + ".py")
            length = len(module.read_text().splitlines())
            assert length <= 400, f"{module.name} has {length} lines; move a part of it to a notebook of its own"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_notebook_is_executed_and_light(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata, "widget state weighs megabytes; keep the still picture"
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            assert output.output_type != "error", f"a committed error: {cell.source}"
            for kind, content in output.get("data", {}).items():
                assert "widget-view" not in kind, "a widget without its kernel shows an error: run make export"
                size = len(str(content)) * (3 / 4 if kind.startswith("image/") else 1)
                assert size < 100_000, f"an output of {size:.0f} bytes behind: {cell.source}"


def test_no_host_of_a_registry_is_committed():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|files\.python|registry\.npmjs|deb\.debian")
    named = [f for f in files if f != "tests/test_repository.py"
             and hosts.search((ROOT / f).read_text(encoding="utf-8", errors="ignore"))]
    assert not named
