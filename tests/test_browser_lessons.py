"""Every lesson, whole, as a reader meets it: in JupyterLab by hand, and as a page served by Voila."""
import shutil

import pytest
from browser import WAIT, drawn, open_and_run, shoot, voila

from ssl_nb.runs import lessons

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.slow]


@pytest.mark.parametrize("name", lessons())
def test_in_jupyterlab(lab, page, name):
    notebook = lab.folder / f"{name}.ipynb"
    shutil.copy(lessons()[name], notebook)
    open_and_run(page, lab, notebook, wait=3 * WAIT)
    assert not page.get_by_text("Traceback").count()
    if not name.isdigit():  # about one widget, and not of the course
        drawn(page)
    shoot(page, f"lesson_{name}_jupyterlab")


@pytest.mark.parametrize("name", lessons())
def test_in_voila(chromium, page, tmp_path, name):
    with voila(name, tmp_path) as server:
        page.goto(server.url("/"), timeout=3 * WAIT * 1000)
        page.locator("h1").first.wait_for(timeout=3 * WAIT * 1000)
        if not name.isdigit():
            assert drawn(page).get_attribute("aria-label")
        assert not page.get_by_text("Traceback").count() and not page.get_by_text("from ssl_nb").count()
        shoot(page, f"lesson_{name}_voila", whole=True)
