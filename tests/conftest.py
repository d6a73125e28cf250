import os
from pathlib import Path

import pytest
from browser import CHROMIUM, FLAGS, jupyterlab
from hypothesis import settings

settings.register_profile("same every time", derandomize=True)  # what passes here passes on another machine
settings.load_profile("same every time")

DATA = Path(os.environ.get("SSL_NB_DATA", "/nowhere"))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))


@pytest.fixture
def shared_data():
    "The folder of real data sets; tests that ask for it are skipped without it."
    if not DATA.is_dir():
        pytest.skip("SSL_NB_DATA names no folder")
    return DATA


@pytest.fixture(scope="session")
def chromium():
    "Chromium, driven by Playwright; tests that ask for it are skipped without."
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium: install Debian's package chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory, chromium):
    "A running JupyterLab; notebooks go into its `folder`."
    pytest.importorskip("jupyterlab")
    server = jupyterlab(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.fixture
def page(chromium):
    "A fresh page; what goes wrong in its scripts fails the test."
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors, errors
