"""Every notebook that travels with the package runs from top to bottom at its smallest scale, and ends in a whole run."""

import json
import re

import pytest

from ssl_nb.reproduce import load_run, notebooks, reproduce


def quiet(_):
    pass


@pytest.mark.parametrize("name", sorted(notebooks()))
def test_smoke(name, tmp_path):
    folder = reproduce(name, scale="smoke", runs=tmp_path, say=quiet)
    run = load_run(folder)
    assert run["results"] and all(result["verdict"] for result in run["results"])
    assert run["parameters"]["scale"] == "smoke"
    report = (folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?https?://[^"'> ]+\.(?:js|css)""", report), "opens only with a network"
    assert json.loads((folder / "versions.json").read_text())["packages"]["torch"]


@pytest.mark.parametrize("method", ["barlow_twins", "byol", "dino", "mae", "moco", "simsiam", "swav", "vicreg"])
@pytest.mark.slow
def test_first_run_takes_any_method(method, tmp_path):
    given = {"method": method, "encoder": "vit" if method == "mae" else "convnet", "scale": "smoke"}
    assert load_run(reproduce("first_run", given, runs=tmp_path, say=quiet))["results"]


@pytest.mark.parametrize("dataset", ["digits", "cifar10_jpeg", "mnist"])
@pytest.mark.slow
def test_first_run_takes_any_data_set(dataset, tmp_path, shared_data):
    assert load_run(reproduce("first_run", {"dataset": dataset, "scale": "smoke"}, runs=tmp_path, say=quiet))["results"]


@pytest.mark.slow
def test_first_run_beats_pixels_and_the_untrained_encoder_with_intervals_apart(tmp_path):
    folder = reproduce("first_run", runs=tmp_path, say=quiet)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert load_run(folder)["results"][0]["verdict"] == "reproduced"
    assert {"raw pixels", "untrained", "supervised"} <= {row.get("representation") for row in rows}
