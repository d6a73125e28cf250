import hashlib
import os
import random
from pathlib import Path

import pytest
from browser import CHROMIUM, FLAGS, jupyterlab
from hypothesis import settings

# hypothesis tries new examples in every run. The seed is printed when a test fails, and `--hypothesis-seed` repeats the run.
settings.register_profile("new examples", deadline=None, derandomize=False)  # or it derandomizes where CI is set
settings.load_profile("new examples")

DATA = Path(os.environ.get("SSL_NB_DATA", "/nowhere"))
ALL = os.environ.get("SSL_NB_ALL") == "1"  # everything must run: a test that cannot counts as failed
# The only reasons for which a test may then be skipped. The last is scikit-learn's own, for array types that are not promised.
ALLOWED = ("takes minutes", "no GPU", "SCIPY_ARRAY_API is not set")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes")


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads its option
def pytest_configure(config):
    if config.getoption("hypothesis_seed") is None:
        given = getattr(config, "workerinput", {})  # in a worker of pytest-xdist, the seed of the run
        config.option.hypothesis_seed = given.get("hypothesis_seed") or str(random.SystemRandom().randrange(10**9))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["hypothesis_seed"] = node.config.getoption("hypothesis_seed")


def pytest_make_parametrize_id(config, val, argname):
    if isinstance(val, bytes):  # an archive holds the time it was made; as a name it would differ between workers of pytest-xdist
        return argname
    return None


def pytest_terminal_summary(terminalreporter, config):
    if terminalreporter.stats.get("failed"):
        seed = config.getoption("hypothesis_seed")
        terminalreporter.write_line(f"the examples of hypothesis come from a seed; to repeat them: --hypothesis-seed={seed}")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return counted((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return counted((yield))


def counted(report):
    "The report; a skip is a failure where everything must run."
    if ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED):
            report.outcome, report.longrepr = "failed", f"skipped, although SSL_NB_ALL=1 asks for every test: {reason}"
    return report


@pytest.fixture
def shared_data():
    "The folder of real data sets; tests that ask for it are skipped without it."
    if not DATA.is_dir():
        pytest.skip("SSL_NB_DATA names no folder")
    return DATA


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    "A function that writes files into a folder of a new SSL_NB_DATA. Returns the folder, and the files with their checksums."
    from ssl_nb.data import File

    monkeypatch.setenv("SSL_NB_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("SSL_NB_CACHE", str(tmp_path / "cache"))

    def write(folder, contents):
        for name, content in contents.items():
            path = tmp_path / "given" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        files = tuple(File(name, hashlib.md5(content).hexdigest()) for name, content in contents.items())
        return tmp_path / "given" / folder, files

    return write


@pytest.fixture
def given(made_up, monkeypatch):
    "A function that writes the files of a data set of a module, which then expects their checksums. Returns their folder."

    def put(module, key, contents, folder=None):
        place, files = made_up(folder or key, contents)
        monkeypatch.setitem(module._FILES, key, files)
        return place

    return put


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
