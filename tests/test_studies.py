"""The committed outputs of the studies: regions before any training, a gate for each claim, five paired seeds, verdicts."""

import json
import re

import pytest

from ssl_nb.reproduce import find, notebooks
from ssl_nb.verdicts import VERDICTS

CLAIMS = {"label_free": 5, "dist_shape": 6, "ood_ranking": 3}
GATES = dict.fromkeys(CLAIMS, "untrained (?:encoder|start)")
GATES |= dict.fromkeys(("collapse", "barlow_twins"), "trained over untrained")


def cells(name):
    return json.loads(find(name).path.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("name", CLAIMS)
def test_regions_are_in_the_text_above_the_first_training(name):
    texts = [source(cell) for cell in cells(name)]
    stated = next(i for i, text in enumerate(texts) if "Claims and regions" in text)
    assert stated < min(i for i, text in enumerate(texts) if "training.fit(" in text)
    assert "of no interest" in texts[stated] and "*Gate*" in texts[stated] or "**gate**" in texts[stated]


@pytest.mark.parametrize("name, claims", (CLAIMS | {"collapse": 4, "barlow_twins": 2}).items())
def test_the_committed_run_has_five_seeds_and_a_verdict_with_gates_for_each_claim(name, claims):
    assert int(find(name).scales["laptop"]["seeds"]) >= 5
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    table = "".join(code[-1]["outputs"][-1]["data"]["text/html"])
    found = re.findall(r'class="verdict (\w+)"', table)
    assert len(found) == claims and set(found) <= set(VERDICTS)
    assert len(re.findall(rf"<tr>(?=.*?{GATES[name]})", table.split("<tbody>")[1])) == claims


def test_the_study_without_medmnist_does_not_carry_its_name():
    assert "medmnist_benchmark" not in notebooks() and "ood_ranking" in notebooks()
