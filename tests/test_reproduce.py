"""Run folders: whole or absent, refused before they start, and nothing fetched by their reports."""

import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ssl_nb.runs import (
    Parameter,
    Result,
    Run,
    RunFailed,
    RunRefused,
    attempt,
    find,
    identity,
    lessons,
    load_run,
    lock,
    notebooks,
    read_notebook,
    reproduce,
    resolve,
    results_table,
    scaled,
)
from ssl_nb.runs.catalog import by_kind
from ssl_nb.runs.parameters import value_of
from ssl_nb.runs.report import page

PARAMETERS = """scale: str = "laptop"  # smoke | laptop | paper
epochs: int = None  # None: what the scale says
lr: float = 1e-3  # learning rate
widths: list[int] = [64, 128]
mixed: bool = False
out: str = ""  # folder of this run"""
SETUP = """import os, sys
from ssl_nb.runs import Result, Run, scaled
p = scaled(scale, smoke=dict(epochs=1), laptop=dict(epochs=3), given=dict(epochs=epochs))
run = Run(out)"""
CONCLUDE = 'run.conclude(Result("it counts", p.epochs, baseline=0, interval=(p.epochs - 1, p.epochs + 1)))'
PROSE = "# Toy\n\nDoes it [count](https://paper.example) to $n$? Yes.\n\n*Run time: a second on two cores.*"


def write_notebook(folder, name, *cells, parameters=PARAMETERS, prose=PROSE):
    nb = new_notebook(cells=[new_markdown_cell(prose), *map(new_code_cell, [parameters, *cells])])
    nb.cells[1].metadata["tags"] = ["parameters"]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder


@pytest.fixture
def toy(tmp_path):
    return write_notebook(tmp_path / "nbs", "toy", SETUP, CONCLUDE)


@pytest.fixture
def pretend(monkeypatch):
    """Replace the execution of the notebook by a function of the partial folder; returns the calls."""
    calls = []

    def install(act=lambda folder: None):
        def execute(path, values, partial, lock, say):
            calls.append(sorted(path.name for path in partial.iterdir()))
            act(partial)
            shutil.copy(path, partial / "notebook.ipynb")
            Run(partial).conclude(Result("it counts", 1.0, baseline=0.0, interval=(0.5, 1.5)))

        monkeypatch.setattr(attempt, "execute", execute)
        return calls

    return install


# --- what a notebook says about itself


def test_reading_a_notebook_takes_its_question_parameters_and_scales(toy):
    found = find("toy", [toy])
    assert (found.title, found.question, found.takes) == (
        "Toy",
        "Does it count to $n$?",
        "a second on two cores",
    )
    assert [(p.name, p.type, p.default) for p in found.parameters.values()] == [
        ("scale", "str", "laptop"),
        ("epochs", "int or None", None),
        ("lr", "float", 1e-3),
        ("widths", "list[int]", [64, 128]),
        ("mixed", "bool", False),
    ]
    assert found.parameters["lr"].help == "learning rate"
    assert found.scales == {"smoke": {"epochs": "1"}, "laptop": {"epochs": "3"}}


@pytest.mark.parametrize(
    "cell, message",
    [
        ("seed = 0", "name: type = value"),
        ("seed: int", "name: type = value"),
        ("import os", "name: type = value"),
        ("seed: int = 1 + x", "literal"),
        ("seed: int = 'zero'", "an int"),
        ("seed: complex = 0", "must be one of"),
        ("seed: int = (", "not Python"),
        ("seed: int = 0", 'out: str = ""'),
    ],
)
def test_a_parameter_cell_that_cannot_be_recorded_is_refused(tmp_path, cell, message):
    write_notebook(tmp_path, "sly", parameters=cell)
    with pytest.raises(RunRefused, match=re.escape(message)):
        read_notebook(tmp_path / "sly.ipynb")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"cells": 3}', '{"cells": []}'])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "bad.ipynb").write_text(content)
    with pytest.raises(RunRefused, match="bad.ipynb"):
        read_notebook(tmp_path / "bad.ipynb")


def test_every_notebook_of_the_package_can_be_read():
    names = notebooks()
    assert {"first_run", "barlow_twins", "collapse"} <= set(names)
    for name in names:
        found = find(name)
        assert found.title and found.question, name
        assert "scale" in found.parameters, name
        assert name.startswith("benchmarks/") or {"smoke", "laptop", "paper"} <= set(found.scales), name


def test_every_page_has_a_name_of_its_own():
    kinds = by_kind()
    names = [name for names in kinds.values() for name in names] + list(lessons())
    assert len(notebooks()) == sum(map(len, kinds.values()))
    assert {name for name in names if names.count(name) > 1} <= {"collapse"}  # a lesson and a study of it
    nbs = Path(__file__).parents[1] / "nbs"
    pages = [*nbs.glob("reproductions/*.ipynb"), *nbs.glob("benchmarks/*.ipynb"), *nbs.glob("atlas/*/*.ipynb")]
    assert sorted(notebooks().values()) == sorted(pages)


def test_a_page_of_the_atlas_is_found_by_its_id_in_its_family(tmp_path, monkeypatch):
    import ssl_nb

    (tmp_path / "ssl_nb").mkdir()
    monkeypatch.setattr(ssl_nb, "__file__", str(tmp_path / "ssl_nb" / "__init__.py"))
    write_notebook(tmp_path / "nbs" / "reproductions", "toy", SETUP, CONCLUDE)
    for family, name in (("video", "videomae"), ("video", "video_jepa"), ("audio", "hubert"), ("_drafts", "none")):
        write_notebook(tmp_path / "nbs" / "atlas" / family, name, SETUP, CONCLUDE)
    assert {kind: list(names) for kind, names in by_kind().items()} == {
        "reproductions": ["toy"], "atlas/audio": ["hubert"], "atlas/video": ["video_jepa", "videomae"]
    }
    assert list(notebooks()) == ["toy", "hubert", "video_jepa", "videomae"]
    assert find("videomae").path == tmp_path / "nbs" / "atlas" / "video" / "videomae.ipynb"
    with pytest.raises(RunRefused, match="did you mean 'videomae'"):
        find("VideoMEA")


def test_own_folders_come_first_and_a_path_is_a_name(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_NB_NOTEBOOKS", f"{toy}{os.pathsep}{tmp_path}")
    assert notebooks()["toy"] == toy / "toy.ipynb"
    assert find(str(toy / "toy.ipynb")).name == "toy"
    monkeypatch.setenv("SSL_NB_NOTEBOOKS", str(tmp_path / "nowhere"))
    with pytest.raises(RunRefused, match="nowhere"):
        notebooks()


# --- values


def test_all_mistakes_are_said_at_once_with_the_nearest_name(toy):
    wrong = {"epoch": "3", "lr": "fast", "mixed": "maybe", "scale": "smok", "out": "x", "widths": "1,b"}
    with pytest.raises(RunRefused) as refused:
        resolve(find("toy", [toy]), wrong)
    said = str(refused.value)
    for part in (
        "unknown parameter 'epoch'; did you mean 'epochs'?",
        "lr = 'fast' is not a float",
        "mixed = 'maybe' is not a bool",
        "unknown scale 'smok'; did you mean 'smoke'?",
        "--runs DIR",
        "widths = '1,b' is not a list[int]",
    ):
        assert part in said
    with pytest.raises(RunRefused, match="did you mean 'toy'"):
        find("toi", [toy])


@pytest.mark.parametrize(
    "kind, text, value",
    [
        ("int", "200", 200),
        ("int", "-3", -3),
        ("float", "1e-3", 1e-3),
        ("float", "2", 2.0),
        ("float", 2, 2.0),
        ("bool", "true", True),
        ("bool", "False", False),
        ("str", "200", "200"),
        ("str", "a=b", "a=b"),
        ("str", "", ""),
        ("list", '[1, "a"]', [1, "a"]),
        ("list", "1,a", [1, "a"]),
        ("list[str]", "1,2", ["1", "2"]),
        ("list[float]", "0.1, 1e-3", [0.1, 1e-3]),
        ("list[int]", "[]", []),
        ("dict", '{"a": 1}', {"a": 1}),
    ],
)
def test_text_becomes_the_stated_type(kind, text, value):
    found = value_of(Parameter("x", kind, False, None), text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "kind, value",
    [
        ("int", "1.5"),
        ("int", "1e3"),
        ("int", ""),
        ("int", 1.0),
        ("int", True),
        ("int", None),
        ("float", "fast"),
        ("float", True),
        ("bool", "1"),
        ("bool", 1),
        ("str", 3),
        ("list[int]", "1,2.5"),
        ("list[int]", [True]),
        ("list[int]", "[1"),
        ("dict", "[1]"),
        ("dict", "a"),
    ],
)
def test_a_wrong_type_is_refused_with_value_and_expectation(kind, value):
    with pytest.raises(ValueError, match=re.escape(f"x = {value!r} is not a")):
        value_of(Parameter("x", kind, False, None), value)


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.lists(st.integers())))
def test_what_python_prints_is_read_back(value):
    kind = "list[int]" if isinstance(value, list) else type(value).__name__
    assert value_of(Parameter("x", kind, False, None), repr(value)) == value


def test_scaled_takes_the_scale_and_then_what_was_given():
    settings = dict(smoke=dict(epochs=1, width=8), laptop=dict(epochs=20, width=64))
    assert vars(scaled("laptop", **settings, given=dict(epochs=None, width=0))) == dict(
        scale="laptop", epochs=20, width=0
    )
    with pytest.raises(ValueError, match="did you mean 'laptop'"):
        scaled("labtop", **settings)
    with pytest.raises(ValueError, match="does not set depth"):
        scaled("smoke", **settings, given=dict(depth=3))
    with pytest.raises(ValueError, match="does not set width"):
        scaled("smoke", smoke=dict(epochs=1), laptop=dict(epochs=1, width=2))


# --- results


@pytest.mark.parametrize(
    "figures",
    [
        dict(ours=math.nan, baseline=0),
        dict(ours=1, baseline=0, verdict="reproduced"),
        dict(ours=1, baseline=0, interval=(2, 1)),
        dict(ours=1, baseline=0, interval=(-1.1, -0.9)),
        dict(ours=1, baseline=0, verdict="true"),
        dict(ours=1, baseline=0, interval=(-1, 3), verdict="reproduced"),
        dict(ours=1, interval=(0, math.inf)),
    ],
)
def test_a_result_that_does_not_follow_from_its_figures_is_refused(figures):
    with pytest.raises(ValueError, match="a claim"):
        Result("a claim", **figures)


# --- the run as its notebook sees it


def test_an_attempt_that_goes_on_replaces_rows_of_the_same_name(tmp_path):
    first = Run(tmp_path)
    first.log(epoch=1, loss=0.5)
    first.log(epoch=2, loss=0.4)
    first.log(loss=0.1)
    first.log(loss=0.2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "lo')
    second = Run(tmp_path)
    second.log(epoch=2, loss=0.35)
    second.log(epoch=3, loss=float("inf"))
    rows = second.metrics().astype(object).where(lambda frame: frame.notna(), None).to_dict("records")
    assert [(row["epoch"], row["loss"]) for row in rows] == [
        (1, 0.5),
        (None, 0.1),
        (None, 0.2),
        (2, 0.35),
        (3, None),
    ]


def test_a_conclusion_needs_results_and_a_run_by_hand_needs_no_folder():
    run = Run()
    with pytest.raises(ValueError, match="at least one"):
        run.conclude([])
    folder = run.folder
    assert folder.is_dir()
    del run
    assert not folder.exists()


# --- identity, force, locks, folders: without a kernel


def test_the_same_run_is_the_same_values_and_code_but_not_prose(toy):
    found = find("toy", [toy])
    name = identity(found, resolve(found, {"epochs": "4"}))
    assert name == identity(found, resolve(found, {"epochs": 4}))
    assert name != identity(found, resolve(found, {"epochs": 5}))
    write_notebook(toy, "toy", SETUP, CONCLUDE, prose="# Other words\n\nSame code.")
    assert name == identity(find("toy", [toy]), resolve(found, {"epochs": 4}))
    write_notebook(toy, "toy", SETUP + "\np.epochs += 1", CONCLUDE)
    assert name != identity(find("toy", [toy]), resolve(found, {"epochs": 4}))


def named(folder, value):
    "A file of data in a folder; the folder."
    folder.mkdir(exist_ok=True)
    np.savez(folder / "mine.npz", images=np.full((9, 8, 8), value, np.uint8))
    return folder


def of_data(tmp_path):
    "A notebook with a data set among its parameters."
    more = 'dataset: str = "digits"\nothers: list[str] = []\n'
    return write_notebook(tmp_path / "nbs", "own", SETUP, CONCLUDE, parameters=more + PARAMETERS)


def test_a_run_on_ones_own_data_is_known_by_their_content(tmp_path, monkeypatch):
    one, other = named(tmp_path / "one", 0), named(tmp_path / "other", 1)
    found = find("own", [of_data(tmp_path)])

    def name(folder, **given):
        monkeypatch.chdir(folder)
        return identity(found, resolve(found, given))

    first = name(one, dataset="mine.npz")
    assert first == name(one, dataset="./mine.npz") == name(other, dataset=str(one / "mine.npz"))
    assert first != name(other, dataset="mine.npz")
    assert name(one, others=["mine.npz"]) != name(other, others=["mine.npz"])
    named(one, 2)
    assert name(one, dataset="mine.npz") != first
    assert name(named(one, 0), dataset="mine.npz") == first


def test_a_path_of_data_is_recorded_so_that_it_holds_in_any_folder(tmp_path, monkeypatch):
    found = find("own", [of_data(tmp_path)])
    monkeypatch.chdir(named(tmp_path / "one", 0))
    for folder in ("photos", "digits", "laptop"):
        (tmp_path / "one" / folder).mkdir()
    values = resolve(found, dict(dataset="mine.npz", others=["./mine.npz", "photos", "text"]))
    assert values["dataset"] == values["others"][0] == str(tmp_path / "one" / "mine.npz")
    assert values["others"][1:] == ["photos", "text"]  # a bare word may mean something else
    assert resolve(found, dict(dataset="photos"))["dataset"] == str(tmp_path / "one" / "photos")
    before = identity(found, resolve(found, {}))
    assert resolve(found, {})["dataset"] == "digits" and resolve(found, {})["scale"] == "laptop"
    monkeypatch.chdir(tmp_path)
    assert identity(found, resolve(found, {})) == before
    assert resolve(found, dict(dataset="nowhere.npz"))["dataset"] == "nowhere.npz"


def test_another_folder_does_not_get_the_result_of_the_other_file(tmp_path, monkeypatch, pretend):
    calls, runs, nbs = pretend(), tmp_path / "runs", of_data(tmp_path)
    for folder in (named(tmp_path / "one", 0), named(tmp_path / "other", 1)):
        monkeypatch.chdir(folder)
        for _ in range(2):
            run = reproduce("own", dict(dataset="mine.npz"), runs=runs, folders=[nbs], say=lambda line: None)
    assert len(calls) == 2 and load_run(run)["parameters"]["dataset"] == str(tmp_path / "other" / "mine.npz")


def test_the_same_parameters_again_run_nothing_and_force_runs_anew(toy, tmp_path, pretend):
    calls, said = pretend(), []
    once = reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=said.append)
    assert reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=said.append) == once
    assert len(calls) == 1 and "exists" in said[-1] and "--force" in said[-1]
    (once / "mark").touch()
    assert reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=said.append, force=True) == once
    assert len(calls) == 2 and not (once / "mark").exists()
    assert [path.name for path in (tmp_path / "runs").glob("[!.]*")] == [once.name]
    assert not list((tmp_path / "runs").glob(".old-*")) + list((tmp_path / "runs").glob(".partial-*"))


def test_a_forced_run_that_fails_leaves_the_old_one_and_is_gone_on_with(toy, tmp_path, pretend):
    pretend()
    runs, said = tmp_path / "runs", []
    once = reproduce("toy", runs=runs, folders=[toy], say=said.append)
    before = (once / "result.json").read_text()

    def fail(folder):
        (folder / "train").mkdir()
        raise RunFailed("killed")

    pretend(fail)
    with pytest.raises(RunFailed, match="killed"):
        reproduce("toy", runs=runs, folders=[toy], say=said.append, force=True)
    assert (once / "result.json").read_text() == before
    assert reproduce("toy", runs=runs, folders=[toy], say=said.append) == once
    assert "interrupted --force run" in said[-1]
    calls = pretend()
    reproduce("toy", runs=runs, folders=[toy], say=said.append, force=True)
    assert "train" in calls[-1] and load_run(once)["attempts"] == 2


def test_force_throws_an_unforced_partial_away(toy, tmp_path, pretend):
    def fail(folder):
        (folder / "train").mkdir()
        raise RunFailed("killed")

    pretend(fail)
    with pytest.raises(RunFailed):
        reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str)
    calls = pretend()
    reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str, force=True)
    assert "train" not in calls[-1]


def test_what_a_killed_process_left_half_written_is_no_part_of_the_run(toy, tmp_path, pretend):
    def fail(folder):
        (folder / ".metrics.jsonl-12-34").write_text('{"epoch": 1, "lo')
        (folder / ".own").touch()
        raise RunFailed("killed")

    pretend(fail)
    with pytest.raises(RunFailed):
        reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str)
    pretend()
    made = reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str)
    assert load_run(made)["attempts"] == 2 and sorted(path.name for path in made.glob(".*")) == [".own"]


def test_a_forced_run_killed_between_its_renames_is_mended(toy, tmp_path, pretend):
    calls = pretend()
    once = reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str)
    once.rename(once.with_name(f".old-{once.name}"))
    assert reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str) == once and len(calls) == 1


def test_a_notebook_without_a_conclusion_is_no_run(toy, tmp_path, monkeypatch):
    def execute(path, values, partial, lock, say):
        shutil.copy(path, partial / "notebook.ipynb")

    monkeypatch.setattr(attempt, "execute", execute)
    with pytest.raises(RunFailed, match="without run.conclude"):
        reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str)
    assert not list((tmp_path / "runs").glob("toy-*"))


def test_two_processes_cannot_write_one_run_and_a_stale_lock_does_not_block(toy, tmp_path, pretend):
    pretend()
    found = find("toy", [toy])
    run = identity(found, resolve(found, {}))
    locks = tmp_path / "runs" / ".locks"
    locks.mkdir(parents=True)
    with open(locks / run, "w") as other:
        other.write(str(os.getpid()))
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunRefused, match=f"another process .pid {os.getpid()}"):
            reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str)
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout
    (locks / run).write_text(dead)
    assert reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str).name == run


def test_a_lock_held_by_the_kernel_of_a_killed_command_is_waited_for(toy, tmp_path, pretend, monkeypatch):
    pretend()
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    found, said = find("toy", [toy]), []
    run = identity(found, resolve(found, {}))
    (tmp_path / "runs" / ".locks").mkdir(parents=True)
    with open(tmp_path / "runs" / ".locks" / run, "w") as orphan:
        orphan.write(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout)
        orphan.flush()
        fcntl.flock(orphan, fcntl.LOCK_EX)
        with pytest.raises(RunRefused, match="locked by a process that a killed command"):
            reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=said.append)
    assert "waiting" in said[-1]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(
    toy, tmp_path, pretend, monkeypatch
):
    calls = pretend()
    (tmp_path / "file").touch()
    with pytest.raises(RunRefused, match="cannot write runs to .*file/runs: Not a directory.*--runs DIR"):
        reproduce("toy", runs=tmp_path / "file" / "runs", folders=[toy], say=str)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(attempt.tempfile, "TemporaryFile", read_only)
    with pytest.raises(RunRefused, match="Read-only file system"):
        reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=str)
    assert not calls


# --- kernels


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A real run, while the user's Jupyter has another Python under the name python3."""
    base = tmp_path_factory.mktemp("done")
    spec = base / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = ["/nonexistent/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps(dict(argv=argv, display_name="other", language="python")))
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    outputs = f"""import base64
from IPython.display import HTML, Image, display
display(Image(base64.b64decode("{pixel}")))
display(HTML('<script src="https://cdn.example/x.js"></script><b>table</b><img src="https://a.example/i.png">'))
run.log(epoch=1, loss=0.5)
(run.folder / "train").mkdir(exist_ok=True)
print(sys.executable)"""
    folder = write_notebook(base / "nbs", "toy", SETUP, outputs, 'run.progress("epoch 1/1")', CONCLUDE)
    said, environ = [], pytest.MonkeyPatch()
    environ.setenv("JUPYTER_PATH", str(base / "jupyter"))
    given = {"epochs": "2", "lr": "1e-2", "widths": "8"}
    made = reproduce("toy", given, scale="smoke", runs=base / "runs", folders=[folder], say=said.append)
    environ.undo()
    return made, said


def test_a_run_holds_all_that_it_promises(done):
    folder, said = done
    assert {path.name for path in folder.iterdir()} == {
        "metrics.jsonl",
        "notebook.ipynb",
        "parameters.json",
        "report.html",
        "result.json",
        "train",
        "versions.json",
    }
    run = load_run(folder)
    assert run["parameters"] == dict(scale="smoke", epochs=2, lr=0.01, widths=[8], mixed=False)
    assert run["results"][0]["ours"] == 2 and run["results"][0]["verdict"] == "reproduced"
    assert run["versions"]["packages"]["torch"] and run["versions"]["cores"] >= 1 and run["attempts"] == 1
    assert [json.loads(line) for line in (folder / "metrics.jsonl").open()] == [dict(epoch=1, loss=0.5)]
    assert "epoch 1/1" in said and sys.executable in said


def test_the_executed_notebook_can_be_run_again_by_hand(done):
    nb = nbformat.read(done[0] / "notebook.ipynb", as_version=4)
    nbformat.validate(nb)
    injected = next(cell for cell in nb.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert 'out = ""' in injected.source and "epochs = 2" in injected.source
    assert str(done[0].parent) not in (done[0] / "notebook.ipynb").read_text()


def test_the_report_fetches_nothing(done):
    html = (done[0] / "report.html").read_text()
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(html)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    assert "@import" not in html and not re.search(r"""url\(["']?http""", html)
    for tag, attributes in tags:
        loads = [attributes.get(name, "") for name in ("src", "srcset", "poster", "background", "data")]
        assert all(address.startswith("data:") for address in filter(None, loads)), (tag, attributes)
        assert "href" not in attributes or tag == "a"
    assert "default-src 'none'" in html and "data:image/png;base64,iVBOR" in html
    assert "<math" in html and "it counts" in html and "<b>table</b>" in html
    assert '<a href="https://paper.example">' in html  # a link that a reader may click is kept


def test_a_cell_error_is_a_failure_that_shows_its_last_lines(tmp_path):
    folder = write_notebook(
        tmp_path / "nbs", "toy", SETUP, "print('so far')", "raise KeyError('no such class')", CONCLUDE
    )
    with pytest.raises(RunFailed) as failed:
        reproduce("toy", runs=tmp_path / "runs", folders=[folder], say=str)
    (partial,) = (tmp_path / "runs").glob(".partial-toy-*")
    assert "KeyError: 'no such class'" in str(failed.value) and str(partial) in str(failed.value)
    assert "so far" in (partial / "notebook.ipynb").read_text()
    assert not list((tmp_path / "runs").glob("toy-*"))


def test_a_dead_kernel_is_a_failure(tmp_path):
    folder = write_notebook(
        tmp_path / "nbs", "toy", SETUP, "os.write(2, b'last words'); os.kill(os.getpid(), 9)", CONCLUDE
    )
    with pytest.raises(RunFailed, match="(?s)kernel died.*last words"):
        reproduce("toy", runs=tmp_path / "runs", folders=[folder], say=str)
    assert not list((tmp_path / "runs").glob("toy-*"))


def test_a_kernel_that_does_not_start_is_tried_once_more(toy, tmp_path, monkeypatch):
    import ipykernel.kernelspec

    spec = dict(
        argv=[sys.executable, "-c", "import sys; sys.exit('no kernel here')"],
        display_name="",
        language="python",
    )
    monkeypatch.setattr(ipykernel.kernelspec, "get_kernel_dict", lambda: spec)
    said = []
    with pytest.raises(RunFailed, match="(?s)did not start.*no kernel here"):
        reproduce("toy", runs=tmp_path / "runs", folders=[toy], say=said.append)
    assert said.count("the kernel did not start; once more") == 1


SLEEPER = """import time
saved = run.folder / "train"
step = int(saved.read_text()) if saved.exists() else 0
while step < 5:
    run.log(step=step, loss=1.0 / (step + 1))
    run.progress(f"step {step}")
    if step == 2 and not (run.folder / "slept").exists():
        (run.folder / "slept").touch()
        time.sleep(100)
    step += 1
    saved.write_text(str(step))"""


def test_a_killed_command_goes_on_where_it_was(tmp_path):
    folder = write_notebook(tmp_path / "nbs", "toy", SETUP, SLEEPER, CONCLUDE)
    command = [
        sys.executable,
        "-c",
        "from ssl_nb.cli import app; app()",
        "reproduce",
        "toy",
        "--runs",
        tmp_path / "runs",
    ]
    env = {**os.environ, "SSL_NB_NOTEBOOKS": str(folder)}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as first:
        for line in first.stdout:  # streamed while the cell runs
            if line == "step 2\n":
                break
        os.killpg(first.pid, signal.SIGKILL)
    assert not list((tmp_path / "runs").glob("toy-*"))
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    assert "continuing the run started" in again.stdout and "step 1\n" not in again.stdout and "step 2\n" in again.stdout
    (made,) = (tmp_path / "runs").glob("toy-*")
    steps = [json.loads(line)["step"] for line in (made / "metrics.jsonl").open()]
    assert steps == [0, 1, 2, 3, 4] and load_run(made)["attempts"] == 2
    assert f"report: {made / 'report.html'}" in again.stdout


# --- the table


def test_the_table_is_a_query_over_folders_and_names_what_it_skips(toy, tmp_path, pretend):
    pretend()
    runs = tmp_path / "runs"
    good = [reproduce("toy", {"epochs": n}, runs=runs, folders=[toy], say=str) for n in (1, 2)]
    whole = json.loads((good[0] / "result.json").read_text())
    broken = dict(
        torn='{"status": "comp',
        absent=None,
        other='{"a": 1}',
        empty=json.dumps({**whole, "results": []}),
        shape=json.dumps({**whole, "results": "none"}),
        list="[1]",
        forged=json.dumps({**whole, "results": [{**whole["results"][0], "interval": [-1, 2]}]}),
    )
    for name, text in broken.items():
        (runs / name).mkdir()
        if text is not None:
            (runs / name / "result.json").write_text(text)
    (runs / "binary").mkdir()
    (runs / "binary" / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning) as said:
        table = results_table(runs)
    assert sorted(table.run) == sorted(path.name for path in good)
    assert (
        table.ours.tolist() == [1, 1]
        and table.low.tolist() == [0.5, 0.5]
        and set(table.verdict) == {"reproduced"}
    )
    assert sorted(json.loads(text)["epochs"] for text in table.parameters) == [1, 2]
    messages = " ".join(str(warning.message) for warning in said)
    assert len(said) == len(broken) + 1 and all(f"/{name}" in messages for name in [*broken, "binary"])
    assert list(results_table(tmp_path / "none").columns) == list(table.columns)


# --- the report


def test_a_long_printout_folds_and_the_last_state_of_a_bar_is_kept():
    output = nbformat.v4.new_output
    cell = new_code_cell(
        "x",
        outputs=[
            output("stream", name="stdout", text="\n".join(map(str, range(40)))),
            output("stream", name="stderr", text="10%\r90%\n"),
        ],
    )
    html = page(new_notebook(cells=[new_markdown_cell("# T"), cell]))
    assert "printed, 40 lines" in html and "90%" in html and "10%\r" not in html and ">10%" not in html


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    root = Path(__file__).parents[1]
    if not (root / "setup.py").exists():
        pytest.skip("no checkout")
    base = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "_docs")

    def skip(folder, names):
        return {*unwanted(folder, names), *({"runs"} if Path(folder) == root else ())}  # results, not the package of that name

    shutil.copytree(root, base / "source", ignore=skip)
    write_notebook(base / "source" / "nbs" / "reproductions", "toy", SETUP, CONCLUDE)
    write_notebook(base / "source" / "nbs" / "atlas" / "toys", "rattle", SETUP, CONCLUDE)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", base, base / "source"]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    with zipfile.ZipFile(next(base.glob("*.whl"))) as file:
        file.extractall(base / "site")
    return base


def test_the_wheel_holds_every_module_script_and_notebook(wheel):
    source, site = wheel / "source", wheel / "site" / "ssl_nb"
    written = [path for path in (source / "ssl_nb").rglob("*") if path.suffix in (".py", ".js", ".css")]
    assert {".py", ".js", ".css"} == {path.suffix for path in written}
    for path in written:
        assert (site / path.relative_to(source / "ssl_nb")).is_file(), path
    for kind in ("reproductions", "benchmarks", "explore", "atlas/toys"):
        found = {path.name for path in (source / "nbs" / kind).glob("*.ipynb")}
        assert {path.name for path in (site / "notebooks" / kind).glob("*.ipynb")} == found
    files = {path.name for path in (source / "data").iterdir() if path.suffix in (".npz", ".md", ".yml", ".safetensors")}
    assert {path.name for path in (site / "files").iterdir()} == files and "mnist_small.npz" in files


def test_the_commands_work_from_the_wheel(wheel, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(wheel / "site")}
    where = f"import ssl_nb; assert ssl_nb.__file__.startswith({str(wheel / 'site')!r}), ssl_nb.__file__; "

    def ssl_nb(*words):
        command = [sys.executable, "-c", where + "from ssl_nb.cli import app; app()", *words]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    load = where + "from ssl_nb.data import load; print(load('mnist_small'))"
    loaded = subprocess.run([sys.executable, "-c", load], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert loaded.stdout.startswith("mnist_small: 10,000 train and 2,000 test"), loaded.stderr
    listed = ssl_nb("list").stdout
    assert "toy" in listed and "atlas/toys" in listed and "learning rate" in ssl_nb("show", "rattle").stdout
    assert "learning rate" in ssl_nb("show", "toy").stdout
    assert "denoising" in ssl_nb("atlas", "--family", "denoising").stdout
    made = ssl_nb("reproduce", "toy")
    assert made.returncode == 0, made.stderr
    (run,) = (tmp_path / "runs").glob("toy-*")
    assert load_run(run)["versions"]["commit"] is None
