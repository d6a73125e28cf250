"""The glossary: its terms are in order, and every link to it or from it leads somewhere."""

import re
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).parent.parent / "nbs"
GLOSSARY = NBS / "course" / "glossary.ipynb"
PAGES = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def text(path):
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def anchor(heading):
    "The anchor of a heading, as JupyterLab and the book make it: blanks become hyphens, and capitals stay."
    return heading.replace(" ", "-")


def entries():
    "Heading -> its text."
    parts = re.split(r"^### (.+)$", re.sub(r"^## .*$", "", text(GLOSSARY), flags=re.MULTILINE), flags=re.MULTILINE)
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


def letters():
    return re.findall(r"^## (.+)$", text(GLOSSARY), re.MULTILINE)


def test_terms_are_in_alphabetical_order_under_their_letter():
    headings = re.findall(r"^###? (.+)$", text(GLOSSARY), re.MULTILINE)
    terms = list(entries())
    assert len(terms) >= 60 and terms == sorted(terms, key=str.casefold)
    assert letters() == sorted({term[0].upper() for term in terms})
    assert headings == sorted(headings, key=lambda heading: (heading[0].casefold(), len(heading) > 1, heading.casefold()))


def test_no_two_terms_have_the_same_anchor_in_any_renderer():
    anchors = [anchor(heading).casefold() for heading in [*entries(), *letters()]]
    assert len(set(anchors)) == len(anchors)
    assert not [name for name in anchors if not re.fullmatch(r"[a-z0-9-]+", name)]


@pytest.mark.parametrize("term", entries())
def test_an_entry_is_short_and_ends_with_a_pointer(term):
    body, _, pointer = entries()[term].rpartition("*[")
    assert pointer.endswith(")*") and body, f"{term} does not end with *[page](path)*"
    prose = re.sub(r"\$.*?\$|`.*?`|\(.*?\)", "", body)
    assert 1 <= len(re.findall(r"[.:](?:\s|$)", prose)) <= 5


@pytest.mark.parametrize("path", [GLOSSARY])
def test_the_pages_that_the_glossary_names_exist(path):
    anchors = {anchor(heading) for heading in [*entries(), *letters()]}
    for target in re.findall(r"\]\(([^)]+)\)", text(path)):
        page, _, fragment = target.partition("#")
        if not page:
            assert fragment in anchors, target
        else:
            assert (path.parent / page).is_file(), target


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(NBS)) for path in PAGES])
def test_links_to_the_glossary_lead_to_a_term(path):
    anchors = {anchor(heading) for heading in entries()}
    for target, fragment in re.findall(r"\]\(([^)#]*glossary\.ipynb)(?:#([^)]*))?\)", text(path)):
        assert (path.parent / target).resolve() == GLOSSARY, target
        assert not fragment or fragment in anchors, f"the glossary has no term #{fragment}"


@pytest.mark.parametrize("path", sorted(GLOSSARY.parent.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_a_lesson_links_its_terms_to_the_glossary(path):
    assert len(set(re.findall(r"\]\(glossary\.ipynb#([^)]+)\)", text(path)))) >= 10
