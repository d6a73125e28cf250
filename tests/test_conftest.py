"""The tests themselves: no skip goes unnoticed where everything must run, and a failure on new examples can be repeated."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def run(tmp_path):
    "`run(source, *options, SSL_NB_ALL='1')`: exit code and output of pytest with this conftest on one test file."
    for name in ("conftest.py", "browser.py"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")

    def pytest_on(source, *options, **variables):
        (tmp_path / "test_it.py").write_text(source)
        env = {k: v for k, v in os.environ.items() if k not in ("SSL_NB_ALL", "SSL_NB_DATA", "PYTEST_ADDOPTS")} | variables
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # or plugins of packages that are not needed here import torch
        plugins = ["-p", "xdist", "-p", "_hypothesis_pytestplugin", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-q", *plugins, *options, "test_it.py"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return pytest_on


SKIPS = """
import pytest
def test_data(shared_data): pass
@pytest.mark.skipif(True, reason="SSL_NB_DATA has no mnist")
def test_mnist(): pass
@pytest.mark.slow
def test_long(): pass
@pytest.mark.skipif(True, reason="no GPU")
def test_gpu(): pass
"""


def test_skips_count_as_failures_where_everything_must_run(run):
    code, said = run(SKIPS)
    assert code == 0 and "4 skipped" in said
    code, said = run(SKIPS, SSL_NB_ALL="1")
    assert code == 1 and "2 skipped" in said and "SSL_NB_DATA has no mnist" in said and "names no folder" in said
    code, said = run("import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass", SSL_NB_ALL="1")
    assert code != 0 and "no_such_package" in said


GROUP = """
import pytest
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("i", range(6))
def test_it(i): pass
"""


def test_a_group_stays_on_one_worker(run):
    code, said = run(GROUP, "-n", "2", "--dist", "loadgroup", "-vv")
    assert code == 0 and len(set(re.findall(r"\[(gw\d)\].*PASSED", said))) == 1  # pytest-xdist 3.8 does not group with pytest 9.2


RARE = """
from hypothesis import given, settings, strategies as st
@settings(database=None)
@given(st.integers(0, 2**62))
def test_rare(n):
    print("tried", n)
    assert n % 7 != 3
"""


def test_a_failure_names_the_seed_that_repeats_it(run):
    def tried(*options):
        code, said = run(RARE, *options)
        assert code == 1
        return re.findall(r"tried (\d+)", said), re.search(r"--hypothesis-seed=(\d+)", said)[1]

    numbers, seed = tried("-n", "2")
    assert len(numbers) > 5 and tried(f"--hypothesis-seed={seed}") == (numbers, seed)
    assert tried(f"--hypothesis-seed={seed}1")[0] != numbers
