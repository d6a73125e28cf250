"""The commands: quick help, one readable line for a mistake, exit codes."""

import json
import os
import subprocess
import sys

import pytest
from test_reproduce import CONCLUDE, SETUP, write_notebook
from typer.testing import CliRunner

from ssl_nb.cli import aligned, app, joined
from ssl_nb.runs import Result, Run, RunFailed, attempt


@pytest.fixture
def call(tmp_path, monkeypatch):
    """`call("list")` -> exit code, stdout, stderr; the toy's execution is pretended."""
    folder = write_notebook(tmp_path / "nbs", "toy", SETUP, CONCLUDE)

    def execute(path, values, partial, lock, say):
        say("epoch 1/1  loss 0.5")
        (partial / "notebook.ipynb").write_text(path.read_text())
        import pandas as pd

        table = pd.DataFrame(dict(method=["raw", "ours"], score=[0.5, float("nan")]))
        Run(partial).conclude(Result("it counts", 1.0, baseline=0.0, interval=(0.5, 1.5)), table=table)

    monkeypatch.setattr(attempt, "execute", execute)
    monkeypatch.chdir(tmp_path)

    def invoke(*words):
        done = CliRunner(env={"SSL_NB_NOTEBOOKS": str(folder)}).invoke(app, list(map(str, words)))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.output
        return done.exit_code, done.stdout, done.stderr

    return invoke


@pytest.mark.parametrize("words", [["--help"], ["list"], ["show", "first_run"]], ids=" ".join)
def test_help_and_lists_need_nothing_heavy(words):
    code = (
        "import sys, ssl_nb.cli, ssl_nb.runs, ssl_nb.disk; from typer.main import get_command;"
        f"get_command(ssl_nb.cli.app)({words}, standalone_mode=False);"
        "heavy = 'torch', 'numpy', 'pandas', 'duckdb', 'papermill', 'nbformat';"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_list_and_show(call):
    code, out, _ = call("list")
    line = next(line for line in out.splitlines() if line.startswith("toy"))
    assert code == 0 and "Does it count to $n$?" in line and line.endswith("a second on two cores")
    code, out, _ = call("show", "toy")
    assert code == 0 and "int or None" in out and "# " not in out
    assert any(line.split() == ["laptop", "3"] for line in out.splitlines())


def test_list_goes_on_past_a_broken_notebook(call, tmp_path):
    (tmp_path / "nbs" / "bad.ipynb").write_text("{")
    code, out, _ = call("list")
    assert code == 0 and "unreadable" in out and "toy" in out


def test_reproduce_shows_progress_figures_and_report_and_then_that_it_exists(call, tmp_path):
    code, out, _ = call("reproduce", "toy", "-p", "epochs", "2", "-p", "lr=1e-2", "--scale", "smoke")
    (run,) = (tmp_path / "runs").glob("toy-*")
    assert code == 0 and "epoch 1/1  loss 0.5" in out and "reproduced" in out and "raw" in out
    assert out.splitlines()[-1] == f"report: {run / 'report.html'}"
    assert json.loads((run / "parameters.json").read_text())["parameters"]["lr"] == 0.01
    code, out, _ = call("reproduce", "toy", "-p", "epochs", "2", "-p", "lr", "0.01", "-p", "scale", "smoke")
    assert code == 0 and "exists" in out and "epoch 1/1" not in out
    assert out.splitlines()[-1] == f"report: {run / 'report.html'}"


@pytest.mark.parametrize(
    "words, message",
    [
        (["toi"], "did you mean 'toy'"),
        (["toy", "-p", "epoch", "3"], "did you mean 'epochs'"),
        (["toy", "-p", "epochs", "many"], "epochs = 'many' is not an int or None"),
        (["toy", "-p", "epochs"], "has no value"),
        (["toy", "-p", "lr", "1", "-p", "lr", "2"], "given 2 times"),
        (["toy", "--scale", "smok"], "did you mean 'smoke'"),
        (["toy", "--scale", "smoke", "-p", "scale", "laptop"], "scale is given twice"),
        (["toy", "--runs", "nbs/toy.ipynb/runs"], "cannot write runs to"),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(call, tmp_path, words, message):
    code, out, err = call("reproduce", *words)
    assert code == 2 and message in err and not out
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    "error, code, message",
    [
        (RunFailed("the kernel died"), 1, "the kernel died"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (OSError(28, "No space left on device"), 1, "No space left"),
    ],
)
def test_a_run_that_does_not_end_has_its_exit_code(call, monkeypatch, error, code, message):
    def execute(*_):
        raise error

    monkeypatch.setattr(attempt, "execute", execute)
    found, _, err = call("reproduce", "toy")
    assert found == code and message in err


def test_results_names_what_it_skips_and_writes_csv(call, tmp_path):
    assert call("results")[0] == 2
    call("reproduce", "toy")
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / ".partial-toy-1").mkdir()
    code, out, err = call("results", "--csv", "all.csv")
    assert code == 0 and "it counts" in out and "torn" in err and "unfinished" in err
    assert "it counts" in (tmp_path / "all.csv").read_text()
    assert call("results", "other")[1].startswith("no runs of other")
    code, _, err = call("results", "--csv", "nowhere/all.csv")
    assert code == 2 and "cannot write" in err


def test_pairs_and_columns():
    assert joined(["x", "-p", "lr", "-1", "-p", "a=b", "--", "-p", "c"]) == [
        "x",
        "-p",
        "lr=-1",
        "-p",
        "a=b",
        "--",
        "-p",
        "c",
    ]
    lines = aligned([["name", "n"], ["a", 10], ["b", None], ["c" * 99, 1.0]], widest=9).splitlines()
    assert [len(line.rstrip()) for line in lines] == [13, 13, 1, 13] and lines[3].startswith("cccccccc\u2026")


def handed_over(monkeypatch, *words):
    "What `ssl_nb` would become, and its exit code."
    asked = []
    monkeypatch.setattr(os, "execv", lambda program, words: asked.append(words))
    done = CliRunner().invoke(app, [*map(str, words)])
    return asked, done


def test_lab_opens_a_lesson_where_it_lies_in_a_checkout(monkeypatch):
    [words], _ = handed_over(monkeypatch, "lab", "views")
    assert words[1:3] == ["-m", "jupyterlab"] and words[3].endswith("nbs/explore/views.ipynb")


def test_pages_of_the_atlas_are_listed_by_family_and_opened_by_id(monkeypatch, tmp_path):
    import ssl_nb

    (tmp_path / "ssl_nb").mkdir()
    monkeypatch.setattr(ssl_nb, "__file__", str(tmp_path / "ssl_nb" / "__init__.py"))
    for family, name in (("audio", "hubert"), ("video", "videomae")):
        write_notebook(tmp_path / "nbs" / "atlas" / family, name, SETUP, CONCLUDE)
    lines = CliRunner().invoke(app, ["list"]).stdout.splitlines()
    first = [line.split()[0] for line in lines if line]
    assert first[:4] == ["atlas/audio", "hubert", "atlas/video", "videomae"] and "Does it count to $n$?" in lines[1]
    [words], _ = handed_over(monkeypatch, "lab", "videomae")
    assert words[1:3] == ["-m", "jupyterlab"] and words[3].endswith("nbs/atlas/video/videomae.ipynb")


def test_lab_copies_from_an_installed_package_and_keeps_what_the_user_wrote(monkeypatch, tmp_path):
    import ssl_nb

    package, home = tmp_path / "site" / "ssl_nb", tmp_path / "home"
    (package / "notebooks" / "explore").mkdir(parents=True)
    home.mkdir()
    (package / "notebooks" / "explore" / "maps.ipynb").write_text("{}")
    monkeypatch.setattr(ssl_nb, "__file__", str(package / "__init__.py"))
    monkeypatch.chdir(home)
    [words], done = handed_over(monkeypatch, "lab", "maps")
    assert words[3] == "maps.ipynb" and (home / "maps.ipynb").read_text() == "{}" and "a copy" in done.output
    (home / "maps.ipynb").write_text('{"mine": 1}')
    handed_over(monkeypatch, "lab", "maps")
    assert (home / "maps.ipynb").read_text() == '{"mine": 1}'


def test_serve_stays_on_loopback_unless_asked(monkeypatch):
    [words], done = handed_over(monkeypatch, "serve", "collapse")
    assert "--Voila.ip=127.0.0.1" in words and words[3].endswith("nbs/explore/collapse.ipynb") and not done.stderr
    [words], done = handed_over(monkeypatch, "serve", "collapse", "--host", "0.0.0.0")
    assert "--Voila.ip=0.0.0.0" in words and "lets others connect" in done.stderr


@pytest.mark.parametrize("command", ["lab", "serve"])
def test_an_unknown_lesson_and_a_missing_program_are_told(monkeypatch, command):
    asked, done = handed_over(monkeypatch, command, "colapse")
    assert not asked and done.exit_code == 2 and "did you mean 'collapse'" in done.stderr and "maps" in done.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked, done = handed_over(monkeypatch, command, "maps")
    assert not asked and done.exit_code == 2 and "pip install 'ssl_nb[lab]'" in done.stderr
