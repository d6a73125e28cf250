"""The book: what is in it, that it builds, and that its pages need nothing but themselves."""

import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parent.parent
BOOK = runpy.run_path(str(ROOT / "book" / "assemble.py"))


def files(entry):
    "The pages of an entry of the table of contents and of the entries below it."
    return [entry["file"], *(name for below in entry.get("entries", []) for name in files(below))]


def build(target, *flags):
    command = [sys.executable, "-m", "sphinx", "-q", *flags, "-c", ROOT / "book", target / "source", target / "html"]
    subprocess.run(command, check=True, timeout=1800)
    return target / "html"


class Page(HTMLParser):
    "Anchors, links, and what a page loads."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.update({given["id"]} if given.get("id") else ())
        self.links += [given["href"]] if tag == "a" and given.get("href") else []
        source = given.get("src") if tag in ("img", "script", "iframe", "video") else given.get("href") if tag == "link" else None
        self.loads += [source] if source else []


def broken(html):
    "Links and loaded files of a site that are missing, and what is loaded from elsewhere."
    pages = {path: Page(path) for path in html.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data", "mailto") or link.startswith("//"):
                found += [(path.name, link)] if link in page.loads and parts.scheme != "data" else []
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchored = not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].ids
            exists = target.is_file() and anchored
            found += [] if exists else [(str(path.relative_to(html)), link)]
    return found


def test_every_notebook_is_in_the_book_once(tmp_path):
    BOOK["assemble"](tmp_path)
    toc = yaml.safe_load((tmp_path / "_toc.yml").read_text())
    listed = [toc["root"], *(name for part in toc["subtrees"] for entry in part["entries"] for name in files(entry))]
    ask = ["git", "ls-files", "nbs/*.ipynb"]
    tracked = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(name for name in listed if not name.startswith("api/")) == sorted(name[4:-6] for name in tracked)
    assert len(listed) == len(set(listed)) == len([*tmp_path.rglob("*.ipynb"), *tmp_path.rglob("*.md")])


def test_a_page_shows_no_directives(tmp_path):
    cells = ["#| default_exp a.b", "#| hide\nsecret = 1", "#| export\n#| slow\nx = 1  # kept"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), tmp_path / "a.ipynb")
    assert [cell.source for cell in BOOK["page"](tmp_path / "a.ipynb").cells] == ["x = 1  # kept"]


def test_a_part_builds_and_loads_nothing_from_elsewhere(tmp_path):
    BOOK["assemble"](tmp_path / "source", {"Reference": ["teaching"]})
    html = build(tmp_path)
    assert not [link for _, link in broken(html) if "://" in link]
    assert (html / "teaching" / "03_schematic.html").is_file()
    assert "on the lower branch" in (html / "api" / "teaching.html").read_text()  # the comment of a parameter


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_whole_book_in_a_browser(tmp_path):
    from playwright.sync_api import sync_playwright

    BOOK["assemble"](tmp_path / "source")
    html = build(tmp_path, "--fail-on-warning")
    assert broken(html) == []
    faults = []
    with sync_playwright() as player, player.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("console", lambda message: faults.append((page.url, message.text)) if message.type == "error" else None)
        local = ("file:", "data:")
        page.on("request", lambda asked: None if asked.url.startswith(local) else faults.append((page.url, asked.url)))
        for path in sorted(html.rglob("*.html")):
            page.goto(path.as_uri())
            missing = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
            wide = page.evaluate("document.documentElement.scrollWidth")
            faults += [(path.name, fault) for fault in missing] + ([(path.name, f"{wide} px wide")] if wide > 400 else [])
    assert faults == []
