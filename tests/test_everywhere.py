""".ci/everywhere runs what it is given as another machine would, remembers what passed and says what failed."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / ".ci" / "everywhere"
TEST = """
import os, torch
def test_as_another_machine():
    assert os.environ["OMP_NUM_THREADS"] == "2" and torch.get_num_threads() <= 2
    assert os.environ["ATEN_CPU_CAPABILITY"] == "default" and torch.backends.cpu.get_cpu_capability() == "DEFAULT"
"""


def everywhere(folder, *words):
    command = [sys.executable, SCRIPT, "--tests", "--cpu", "default", "--folder", folder / "runs", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_runs_reports_and_goes_on_where_it_stopped(tmp_path):
    test = tmp_path / "test_one.py"
    test.write_text(TEST)
    done = everywhere(tmp_path, "--threads", "1", "2", "--", test)
    assert done.returncode == 1 and "default, 1 thread | default, 2 threads" in done.stdout
    runs = [json.loads(line) for line in (tmp_path / "runs" / "runs.jsonl").read_text().splitlines()]
    assert [(run["threads"], run["passed"]) for run in runs] == [(1, False), (2, True)]
    assert "FAILED" in done.stdout and "FAIL " in done.stdout and "pass " in done.stdout

    again = everywhere(tmp_path, "--threads", "2", "--", test)
    assert again.returncode == 0 and len((tmp_path / "runs" / "runs.jsonl").read_text().splitlines()) == 2
    test.write_text(TEST + "    assert False\n")  # a changed file runs again
    assert everywhere(tmp_path, "--threads", "2", "--", test).returncode == 1
