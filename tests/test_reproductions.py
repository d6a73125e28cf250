"""Every notebook that travels with the package runs from top to bottom at its smallest scale, and ends in a whole run."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ALL, DATA

from ssl_nb.evaluators.scores import paired_difference, seed_score
from ssl_nb.runs import load_run, notebooks, reproduce
from ssl_nb.runs.verdicts import Result


def quiet(_):
    pass


def check_sense(results):
    """The stored verdicts follow from the stored figures, and the stored intervals from the stored seeds."""
    for row in results:
        result = Result(**{**row, "verdict": None, "gates": [{**gate, "passed": None} for gate in row["gates"]]})
        assert result.verdict == row["verdict"] and [gate.passed for gate in result.gates] == [
            gate["passed"] for gate in row["gates"]
        ]
        if result.p is not None and result.interval:  # made by `judge`
            gated = any(gate.passed is not True for gate in result.gates)
            assert (result.p <= 1 - result.level + 1e-9) == (result.verdict != "inconclusive") or gated
            assert result.level >= 0.95 - 1e-9 and result.detectable > 0
            sides = list((result.per_seed or {}).values())
            if sides:
                other = sides[1] if len(sides) > 1 else [result.baseline or 0.0] * len(sides[0])
                assert result.interval == pytest.approx(
                    paired_difference(sides[0], other, of="seeds", level=result.level).interval
                )


# Figures that leave no doubt, by row of the log, and the verdicts that must follow: what wins, loses, or is the same.
def _dist_shape(row):
    copy, pair, quality = {"mae": (0.9, 0.1, 0.9), "untrained": (0.4, 0.6, 0.2)}.get(row["features"], (0.4, 0.6, 0.8))
    return dict(copy=copy, pair=pair, knn=quality, offline_linear=quality)


def _barlow_twins(row):
    if row["part"] == "tune":  # as it was: other figures could choose a lambda that the run did not compare
        return {}
    end = "narrow" if row["width"] == 16 else "small" if row["batch"] == 128 else "top"
    found = {"barlow_twins": dict(narrow=0.5, small=0.4, top=0.9), "simclr": dict(narrow=0.8, small=0.8, top=0.9)}
    return dict(untrained=0.2, calibrated=0.3, knn=found[row["method"]][end])


def _collapse(row):
    knn = {"DirectPred, moving average": 0.8, "two-layer, moving average": 0.9}.get(row["setting"], 0.7)
    return dict(untrained=0.2, calibrated=0.3, knn=knn, spread=0.1 if row["setting"] == "no predictor" else 0.9)


SENSE = {
    "dist_shape": (_dist_shape, ["reproduced", "contradicted"] * 3),
    "barlow_twins": (_barlow_twins, ["reproduced", "contradicted"]),
    "collapse": (_collapse, ["reproduced", "null", "reproduced", "contradicted"]),
}


def judged_anew(folder, figures):
    "The verdicts of a finished smoke run after its log was given other figures, as if it had been interrupted before them."
    partial = folder.with_name(f".partial-{folder.name}")
    partial.mkdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scatter = np.random.default_rng(0)  # without any scatter between seeds there is no interval
    made = [{key: value + scatter.uniform(0, 1e-4) for key, value in figures(row).items()} for row in rows]
    log = [json.dumps({**row, **new, "_attempt": 1}) + "\n" for row, new in zip(rows, made, strict=True)]
    (partial / "metrics.jsonl").write_text("".join(log))
    (partial / "attempts.json").write_text(json.dumps([{"started": "before", "force": True}]))
    parameters = load_run(folder)["parameters"]
    again = reproduce(load_run(folder)["name"], {"scale": parameters["scale"]}, runs=folder.parent, force=True, say=quiet)
    assert load_run(again)["attempts"] == 2
    return [row["verdict"] for row in load_run(again)["results"]]


NEEDS = {"d_sla": "tu", "transtab": "tabular", "videomae": "fashion_mnist_8k"}  # data that do not travel with the package


def check_run(folder):
    """A whole run: results that make sense, a report that opens without a network, the versions it was made with."""
    run = load_run(folder)
    assert run["results"]
    check_sense(run["results"])
    assert run["parameters"]["scale"] == "smoke"
    report = (folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?https?://[^"'> ]+\.(?:js|css)""", report), "opens only with a network"
    assert json.loads((folder / "versions.json").read_text())["packages"]["torch"]


def page(name):
    "A parameter of `test_smoke`. Benchmarks run in CI and with --slow: they time other libraries."
    return pytest.param(name, marks=pytest.mark.slow if name.startswith("benchmarks/") and not ALL else ())


@pytest.mark.parametrize("name", map(page, sorted(set(notebooks()) - {"first_run"})))  # first_run has a test of its own
def test_smoke(name, tmp_path):
    if name in NEEDS and not (DATA / NEEDS[name]).is_dir():
        pytest.skip(f"SSL_NB_DATA has no {NEEDS[name]}")
    folder = reproduce(name, scale="smoke", runs=tmp_path, say=quiet)
    check_run(folder)
    if name == "benchmarks/views":
        rates = pd.read_csv(folder / "table.csv").set_index("library").images_per_s.str.split().str[0].astype(float)
        assert len(rates) == 5 and rates.min() > 0
    if name in SENSE:
        figures, verdicts = SENSE[name]
        assert judged_anew(folder, figures) == verdicts


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "dino", "mae", "moco", "simsiam", "swav", "vicreg"])
@pytest.mark.slow
def test_first_run_takes_any_method(method, tmp_path):
    given = {"method": method, "encoder": "vit" if method == "mae" else "convnet", "scale": "smoke"}
    assert load_run(reproduce("first_run", given, runs=tmp_path, say=quiet))["results"]


@pytest.mark.parametrize("dataset", ["digits", "cifar10_jpeg", "mnist"])
@pytest.mark.slow
def test_first_run_takes_any_data_set(dataset, tmp_path, shared_data):
    assert load_run(reproduce("first_run", {"dataset": dataset, "scale": "smoke"}, runs=tmp_path, say=quiet))["results"]


def test_simclr_beats_its_untrained_encoder_with_intervals_apart(tmp_path):
    given = {"scale": "smoke", "epochs": 30, "seeds": 4, "views": ["handwriting"]}
    folder = reproduce("first_run", given, runs=tmp_path, say=quiet)
    check_run(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def interval(name):
        found = [row["labels/100"] for row in rows if row.get("representation") == name]
        assert len(found) == 4
        return seed_score(np.array(found), "offline_linear, 100 labels").interval

    assert interval("untrained")[1] < interval("simclr")[0]


@pytest.mark.slow
def test_first_run_beats_pixels_with_few_labels(tmp_path):
    folder = reproduce("first_run", runs=tmp_path, say=quiet)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert load_run(folder)["results"][0]["verdict"] == "reproduced"
    assert {"raw pixels", "untrained", "simclr", "from scratch"} <= {row.get("representation") for row in rows}
