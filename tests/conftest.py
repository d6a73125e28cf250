import os
from pathlib import Path

import pytest
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
