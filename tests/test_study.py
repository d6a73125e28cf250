"""A study computes each cell once, pairs sides by seed, refuses what cannot be compared, and judges as the calls by hand do."""

import json
import math
import os
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_nb.runs import Claim, Evidence, Gate, Run, Study, judge

CALLS = []


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def toy(method, seed, size=1):
    CALLS.append((method, size, seed))
    return {"score": {"a": 0.5, "b": 0.7}[method] + 0.01 * size + 0.01 * (seed * 7 % 5), "start": 0.1 + 0.02 * (seed * 3 % 4)}


def study_in(folder, **knobs):
    return Study(Run(folder), **{"seeds": 4, **knobs})


# --- cells


def test_every_combination_is_measured_once_and_the_seeds_change_most_slowly(tmp_path):
    table = study_in(tmp_path).measure(toy, method=["a", "b"], size=[1, 2])
    assert CALLS == [(m, s, seed) for seed, m, s in product(range(4), "ab", (1, 2))]
    assert list(table) == ["method", "size", "seed", "score", "start"]
    assert table.score.tolist() == [toy(*call[::2], call[1])["score"] for call in CALLS[:16]]


def test_cells_can_be_listed_and_the_axes_multiply_with_them(tmp_path):
    study_in(tmp_path, seeds=[3]).measure(toy, [dict(method="a", size=5), dict(method="b")], seeds=[7, 8])
    assert CALLS == [("a", 5, 7), ("b", 1, 7), ("a", 5, 8), ("b", 1, 8)]
    study_in(tmp_path / "axes", seeds=1).measure(toy, [dict(method="a"), dict(method="b")], size=[1, 2])
    assert CALLS[4:] == [("a", 1, 0), ("a", 2, 0), ("b", 1, 0), ("b", 2, 0)]


def test_an_axis_may_be_one_value_or_the_names_of_a_dict(tmp_path):
    study_in(tmp_path, seeds=1).measure(toy, method={"a": None, "b": None}, size=3)
    assert CALLS == [("a", 3, 0), ("b", 3, 0)]


# --- what is kept


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_study_on_the_folder_computes_nothing(tmp_path, workers):
    def marked(method, seed):
        Path(tmp_path, f"{method}{seed}-{os.urandom(4).hex()}").touch()
        return {"score": seed / 3, "curve": [0.1, seed], "diverged": math.nan, "inner": {"x": np.float32(0.25)}}

    tables = [study_in(tmp_path / "run", workers=workers).measure(marked, method=["a", "b"]) for _ in range(2)]
    assert tables[0].equals(tables[1]) and len(list(tmp_path.iterdir())) == 1 + 8
    assert list(tables[0]) == ["method", "seed", "score", "curve", "diverged", "inner/x"]
    assert tables[0].score.tolist() == [seed / 3 for seed in range(4) for _ in range(2)]


def test_a_cell_is_computed_whose_arguments_changed(tmp_path):
    study_in(tmp_path).measure(toy, method=["a"], size=[0.1, 1])
    CALLS.clear()
    study_in(tmp_path, seeds=5).measure(toy, method=["a"], size=[0.1, 0.2, 1])
    assert CALLS == [("a", 0.2, seed) for seed in range(4)] + [("a", size, 4) for size in (0.1, 0.2, 1)]


def test_another_function_with_the_same_arguments_has_cells_of_its_own(tmp_path):
    def other(method, seed):
        return {"loss": 1.0 + seed}

    study = study_in(tmp_path)
    study.measure(toy, method=["a"])
    study.measure(other, method=["a"])
    assert len(CALLS) == 4 and study.values("loss", method="a") == [1.0, 2.0, 3.0, 4.0]
    assert len(study.values("score", method="a")) == 4


def test_the_order_of_arguments_does_not_matter(tmp_path):
    study_in(tmp_path).measure(toy, method=["a"], size=[2])
    study_in(tmp_path).measure(toy, size=[2], method=["a"])
    assert len(CALLS) == 4


@pytest.mark.parametrize("attempt", range(3))
def test_cells_of_several_attempts_that_differ_only_in_a_fraction_are_all_kept(tmp_path, attempt):
    for size in (0.1, 0.2, 0.3)[: attempt + 1]:
        study_in(tmp_path).measure(toy, method=["a"], size=size)
    table = study_in(tmp_path).measure(toy, method=["a"], size=[0.1, 0.2, 0.3][: attempt + 1])
    assert len(CALLS) == len(table) == 4 * (attempt + 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_loses_nothing_finished(tmp_path, workers):
    def fragile(seed):
        if seed == 5 and not Path(tmp_path, "mended").exists():
            while not Path(tmp_path, "run", "metrics.jsonl").exists():  # two workers: a cell of the other one is finished first
                time.sleep(0.05)
            raise OSError("no space left")
        Path(tmp_path, f"{seed}-{os.urandom(4).hex()}").touch()
        return {"score": seed}

    with pytest.raises(OSError, match="no space") as caught:
        study_in(tmp_path / "run", seeds=8, workers=workers).measure(fragile)
    assert "in the cell fragile(seed=5)" in caught.value.__notes__[0]
    kept = [json.loads(line)["seed"] for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines()]
    assert kept == list(range(5)) if workers == 1 else kept and 5 not in kept
    Path(tmp_path, "mended").touch()
    table = study_in(tmp_path / "run", seeds=8, workers=workers).measure(fragile)
    assert table.score.tolist() == list(range(8))
    for seed in kept:
        assert len(list(tmp_path.glob(f"{seed}-*"))) == 1


def test_a_torn_last_line_costs_one_cell(tmp_path):
    study_in(tmp_path).measure(toy, method=["a"])
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text()[:-20])
    CALLS.clear()
    study_in(tmp_path).measure(toy, method=["a"])
    assert CALLS == [("a", 1, 3)]


def test_other_rows_of_the_log_are_left_alone(tmp_path):
    run = Run(tmp_path)
    run.log(epoch=1, loss=0.5)
    study = Study(run, seeds=2)
    study.measure(toy, method=["a"])
    assert len(study.values("score", method="a")) == 2 and run.metrics().loss[0] == 0.5


def test_each_cell_says_when_it_is_done(tmp_path, capsys):
    study_in(tmp_path, seeds=2).measure(toy, method=["b"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '1 of 2: toy(method="b", seed=0): score 0.71, start 0.1' and len(lines) == 2
    study_in(tmp_path, seeds=3).measure(toy, method=["b"])
    assert capsys.readouterr().out.splitlines()[0] == "2 of 3 cells were finished before"


def test_what_tensors_and_scores_hold_is_kept_as_numbers_and_lists(tmp_path):
    from ssl_nb.evaluators.scores import seed_score

    def rich(seed):
        score = seed_score(np.array([0.25, 0.5, 0.75]), "knn")
        return {"t": torch.tensor(0.5), "n": np.int64(3), "curve": np.arange(2), "s": score, "note": "x"}

    row = study_in(tmp_path, seeds=1).measure(rich).iloc[0].to_dict()
    assert row == {"seed": 0, "t": 0.5, "n": 3, "curve": [0, 1], "s": 0.5, "note": "x"}


def test_nested_values_become_a_measure_for_each_entry(tmp_path):
    def detects(seed):
        return {"accuracy": 0.9, "auroc": {"knn": {"faces": 0.8 + seed, "digits": 0.6}, "softmax": {"faces": 0.5}}}

    study = study_in(tmp_path, seeds=2)
    study.measure(detects)
    assert study.values("auroc/knn/faces") == [0.8, 1.8] and study.values("auroc/softmax/faces") == [0.5, 0.5]


# --- values by condition


def test_values_follow_the_seeds(tmp_path):
    study = study_in(tmp_path, seeds=[3, 0, 11])
    study.measure(toy, method=["a", "b"], size=[1, 2])
    assert study.values("score", method="b", size=2) == [toy("b", seed, 2)["score"] for seed in (0, 3, 11)]


@pytest.mark.parametrize(
    "measure, condition, message",
    [
        ("scores", dict(method="a", size=1), "unknown measure 'scores'; did you mean 'score'"),
        ("score", dict(methods="a"), "unknown argument 'methods'; did you mean 'method'"),
        ("score", dict(method="c", size=1), r"unknown value of method 'c'; known: a, b"),
        ("score", dict(method="a"), r"size is left open \(1, 2\)"),
        ("score", dict(), "method is left open"),
    ],
)
def test_a_condition_that_selects_no_side_is_refused(tmp_path, measure, condition, message):
    study = study_in(tmp_path)
    study.measure(toy, method=["a", "b"], size=[1, 2])
    with pytest.raises(ValueError, match=message):
        study.values(measure, **condition)


def test_a_condition_leaves_open_what_some_cells_do_not_have(tmp_path):
    study = study_in(tmp_path, seeds=2)
    study.measure(toy, [dict(method="a"), dict(method="a", size=2), dict(method="b")])
    with pytest.raises(ValueError, match="size is left open"):
        study.values("score", method="a")
    assert len(study.values("score", method="a", size=2)) == len(study.values("score", method="b")) == 2


def test_two_functions_with_the_same_measure_are_not_mixed(tmp_path):
    def again(method, seed):
        return {"score": 0.0}

    study = study_in(tmp_path, seeds=2)
    study.measure(toy, method=["a"])
    study.measure(again, method=["a"], seeds=[100])
    with pytest.raises(ValueError, match=r"function is left open \(toy, again\)"):
        study.values("score", method="a")


def test_a_value_that_some_seeds_lack_is_nan(tmp_path):
    def sometimes(seed):
        return {"few": 0.5, **({"all": 0.9} if seed == 0 else {})}

    study = study_in(tmp_path, seeds=2)
    study.measure(sometimes)
    found = study.values("all")
    assert found[0] == 0.9 and math.isnan(found[1])
    with pytest.raises(ValueError, match=r"'x': the pairs at \[1\] hold NaN"):
        study.claim(Claim("x"), "all", {})


# --- gates and claims


def test_gates_and_claims_are_those_of_the_calls_by_hand(tmp_path):
    study = study_in(tmp_path, seeds=6)
    study.measure(toy, method=["a", "b"])
    ours, theirs = ([toy(method, seed) for seed in range(6)] for method in "ba")
    ours, theirs, start = [row["score"] for row in ours], [row["score"] for row in theirs], [row["start"] for row in ours]
    claim = Claim("b is better", (0.05, math.inf), (-0.05, 0.05))
    gate = study.gate("b over its start", "score", dict(method="b"), study.values("start", method="b"), protocol="knn@20")
    assert gate == Gate("b over its start", ours, start, "knn@20") and gate.passed
    jitter = [a - 0.1 - 0.01 * i for i, a in enumerate(ours)]
    study.claim(claim, "score", dict(method="b"), jitter, gates=[gate], protocol="knn@20")
    other = Claim("b is above .6", (0.6, math.inf))
    study.claim(other, "score", dict(method="b"))
    names = ("method=b", "baseline")
    by_hand = judge([Evidence(claim, ours, jitter, "knn@20", [gate], names), Evidence(other, ours, None, "score", names=names)])
    found = study.conclude()
    assert list(found) == by_hand
    assert [result.verdict for result in found] == ["reproduced"] * 2 and all(result.detectable > 0 for result in found)
    assert study.claim(claim, "score", dict(method="b"), dict(method="a")).baseline == theirs


def test_resampled_draws_are_passed_on(tmp_path):
    draws = list(np.random.default_rng(0).normal(0.3, 0.05, 999))
    study = study_in(tmp_path)
    study.claim(Claim("by a bootstrap", (0.1, math.inf)), "auroc", 0.8, 0.5, draws=draws)
    result = study.conclude()[0]
    assert result.verdict == "reproduced" and result.per_seed is None
    assert result.interval == pytest.approx(np.sort(draws)[[24, -25]].tolist())


def test_a_claim_made_again_replaces_itself_and_a_claim_on_other_sides_does_not(tmp_path):
    study = study_in(tmp_path)
    study.measure(toy, method=["a", "b"])
    for baseline in ([0.1, 0.2, 0.3, 0.4], [0.3, 0.1, 0.2, 0.2]):
        study.claim(Claim("more"), "score", dict(method="a"), baseline)
    study.claim(Claim("more"), "score", dict(method="b"), baseline)
    found = study.conclude()
    assert len(found) == 2 and found[0].per_seed["baseline"] == baseline


def test_the_run_ends_with_all_cells_or_the_table_that_is_given(tmp_path):
    study = study_in(tmp_path, seeds=2)
    table = study.measure(toy, method=["a", "b"])
    study.claim(Claim("more"), "score", dict(method="a"), [0.1, 0.3])
    study.conclude()
    kept = json.loads((tmp_path / "conclusion.json").read_text())
    assert [row["score"] for row in kept["table"]] == table.score.tolist() and len(kept["results"]) == 1
    study.conclude(table.head(1))
    assert len(json.loads((tmp_path / "conclusion.json").read_text())["table"]) == 1


def test_sides_with_other_seeds_are_refused(tmp_path):
    study = study_in(tmp_path)
    study.measure(toy, method=["a"])
    study.measure(toy, method=["b"], seeds=3)
    with pytest.raises(ValueError, match=r"'more': .*'a'.* seeds \[0, 1, 2, 3\] and .*'b'.* with \[0, 1, 2\]"):
        study.claim(Claim("more"), "score", dict(method="a"), dict(method="b"))
    with pytest.raises(ValueError, match="cannot be paired"):
        study.gate("more", "score", dict(method="a"), [0.1, 0.2])


def test_nan_and_what_is_no_number_cannot_be_compared(tmp_path):
    def odd(seed):
        return {"nan": math.nan if seed else 0.5, "curve": [1.0, 2.0], "fine": 0.1 * seed}

    study = study_in(tmp_path)
    study.measure(odd)
    with pytest.raises(ValueError, match=r"the pairs at \[1, 2, 3\] hold NaN"):
        study.gate("more", "nan", {}, 0.1)
    with pytest.raises(ValueError, match=r"'more': curve holds \[1.0, 2.0\], which is no number"):
        study.claim(Claim("more"), "curve", {}, 0.0)


def test_a_study_without_claims_has_no_conclusion(tmp_path):
    study = study_in(tmp_path)
    study.measure(toy, method=["a"])
    with pytest.raises(ValueError, match="at least one claim"):
        study.conclude()


# --- what is refused before anything is computed


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [0.5], ["a"], [True, False]])
def test_seeds_that_are_none_are_refused(tmp_path, seeds):
    with pytest.raises(ValueError, match="must be a positive number of seeds"):
        study_in(tmp_path, seeds=seeds)
    with pytest.raises(ValueError, match="must be a positive number of seeds"):
        study_in(tmp_path).measure(toy, method="a", seeds=seeds)


def test_no_workers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="workers=0"):
        study_in(tmp_path, workers=0)


@pytest.mark.parametrize(
    "grid, message",
    [
        (dict(method=["a", object()]), "method is of type object, not text, a number"),
        (dict(method=["a"], epochs=[1]), r"toy\(epochs=1, method=\"a\", seed=0\) cannot be called: .*epochs"),
        (dict(size=[1]), "cannot be called: missing a required argument: 'method'"),
        (dict(method=[]), "method has no values"),
        (dict(method=["a"], seed=[1]), "seed of a cell comes from seeds="),
    ],
)
def test_a_grid_without_cells_is_refused_before_the_first_call(tmp_path, grid, message):
    with pytest.raises((TypeError, ValueError), match=message):
        study_in(tmp_path).measure(toy, **grid)
    assert not CALLS


def test_a_function_without_a_name_is_refused(tmp_path):
    from functools import partial

    for function in (lambda seed: {"score": seed}, partial(toy, "a")):
        with pytest.raises(TypeError, match="takes a function that has a name"):
            study_in(tmp_path).measure(function)


@pytest.mark.parametrize(
    "returned, message",
    [
        (0.5, "returned 0.5, not a dict of numbers"),
        ({}, "returned no number"),
        ({"note": "fine", "curve": [1, 2]}, "returned no number"),
        ({"score": 1.0, "seed": 3}, "returned 'seed', which already names the cell"),
        ({"score": 1.0, "k": 3}, "returned 'k', which already"),
        ({"cell": 1.0}, "returned 'cell', which already"),
    ],
)
def test_what_a_function_returns_must_hold_a_number_under_a_name_of_its_own(tmp_path, returned, message):
    def odd(k, seed):
        return returned

    with pytest.raises((TypeError, ValueError), match=rf"odd\(k=1, seed=0\) {message}"):
        study_in(tmp_path).measure(odd, k=[1])
    assert not (tmp_path / "metrics.jsonl").exists()
