"""Every package that is imported is required by settings.ini, with a lower bound that the pinned versions satisfy."""

import ast
import contextlib
import re
import sys
from configparser import ConfigParser
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def required(extra=""):
    "Distribution -> Requirement, from settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    found = map(Requirement, config["DEFAULT"][f"{extra}requirements"].split())
    return {canonicalize_name(r.name): r for r in found}


def imported(source):
    "The top-level packages that Python source imports."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def code(notebook):
    cells = (c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code")
    return "\n".join(line for source in cells for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


MODALITIES = ("signals_", "graphs_", "text_", "molecules_")  # extras; a module imports their packages only where it needs them
SOURCES = {str(p.relative_to(ROOT)): (p.read_text, MODALITIES) for p in sorted((ROOT / "ssl_nb").rglob("*.py"))}
COMMANDS = {"reproductions": (), "explore": (), "benchmarks": ("bench_",), "atlas": MODALITIES}  # notebooks that the commands run
for kind, extras in COMMANDS.items():
    for path in sorted((ROOT / "nbs" / kind).rglob("[!.0-9]*.ipynb")):
        SOURCES[str(path.relative_to(ROOT))] = (lambda path=path: code(path), extras)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_imported_is_required(name):
    read, extras = SOURCES[name]
    known = {name: r for extra in ("", *extras) for name, r in required(extra).items()}
    owners = packages_distributions()
    for package in set(imported(read())) - set(sys.stdlib_module_names) - {"ssl_nb"}:
        named = {canonicalize_name(d) for d in owners.get(package, [package])}
        assert named & set(known), f"{name} imports {package}, and settings.ini does not require {' or '.join(named)}"


def test_requirements_have_lower_bounds_that_the_pinned_versions_satisfy():
    pins = {canonicalize_name(r.name): r for r in map(Requirement, (ROOT / "constraints.txt").read_text().split())}
    for name, requirement in required().items():
        assert any(s.operator in (">=", "==") for s in requirement.specifier), f"{name} has no lower bound"
        [pin] = pins[name].specifier
        assert pin.version in requirement.specifier, f"constraints.txt has {pins[name]}, settings.ini {requirement}"


def test_what_make_installs_imports_nbformat_quickly():
    # From 4.25 on, jsonschema's format checkers build grammars, which takes 3 s of each process that imports nbformat.
    assert not re.search(r"^rfc3987-syntax==", (ROOT / "constraints.txt").read_text(), re.M)


def test_timm_is_one_that_takes_no_checkpoint_from_a_files_metadata():
    assert "1.0.25" not in required()["timm"].specifier and "1.0.26" in required()["timm"].specifier


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0"])
def test_what_make_installs_runs_on_the_oldest_python_that_the_readme_names(python):
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    asked = {}
    for name in pinned:
        with contextlib.suppress(metadata.PackageNotFoundError):  # of another platform
            asked[name] = metadata.metadata(name)["Requires-Python"] or ""
    assert len(asked) > 100
    assert not [f"{name} {spec}" for name, spec in asked.items() if not SpecifierSet(spec).contains(python)]
