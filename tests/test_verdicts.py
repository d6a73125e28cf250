"""Verdicts follow from figures: regions, gates, Holm's levels, power, and what cannot be judged."""

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from ssl_nb.evaluators.scores import holm, paired_difference
from ssl_nb.runs import Run
from ssl_nb.runs.verdicts import VERDICTS, Claim, Conclusion, Evidence, Gate, Result, detectable, judge, results_html, verdict

ABOVE = (0.0, math.inf)
A = [0.91, 0.90, 0.93, 0.92, 0.91, 0.92]
PASSED = Gate("A over its untrained encoder", [0.91, 0.90, 0.93], [0.80, 0.82, 0.81])
FAILED = Gate("A over its untrained encoder", [0.83, 0.79, 0.82], [0.80, 0.82, 0.81])
UNKNOWN = Gate("A over its untrained encoder", [0.91], [0.80])


def less(gaps):
    return [a - gap for a, gap in zip(A, gaps, strict=True)]


# --- words


def test_the_words_are_those_of_the_design():
    assert VERDICTS == ("reproduced", "contradicted", "null", "inconclusive", "untrained")


@given(*[st.floats(-10, 10)] * 4, st.floats(0.1, 5))
def test_one_condition_holds_for_each_word(a, b, edge, width, gap):
    (low, high), expect, no_interest = sorted((a, b)), (edge, edge + abs(width) + 0.1), (edge - gap, edge)
    word = verdict((low, high), expect, no_interest)
    assert (word == "reproduced") == (low > expect[0] and high < expect[1])
    assert (word == "null") == (low > no_interest[0] and high < no_interest[1])
    assert (word == "contradicted") == ((high < expect[0] or low > expect[1]) and word != "null")
    assert word in VERDICTS


@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0, 1))
def test_a_narrower_interval_never_undecides(middle, half, share):
    wide, narrow = ((middle - h, middle + h) for h in (half, half * share))
    words = [verdict(i, (0.5, math.inf), (-0.5, 0.5)) for i in (wide, narrow)]
    if words[0] != "inconclusive":
        assert words[1] != "inconclusive" and (words[0] == "reproduced") == (words[1] == "reproduced")


def test_gates_come_before_the_interval():
    assert verdict((1, 2), ABOVE, gates=[PASSED]) == "reproduced"
    assert verdict((1, 2), ABOVE, gates=[PASSED, FAILED]) == "untrained"
    assert verdict((1, 2), ABOVE, gates=[UNKNOWN]) == "inconclusive"
    assert verdict((1, 2), ABOVE, gates=[UNKNOWN, FAILED]) == "untrained"
    assert verdict(None, ABOVE) == "inconclusive"


# --- claims


@pytest.mark.parametrize(
    "regions, why",
    [
        (dict(expect=ABOVE, no_interest=(-0.02, 0.02)), "overlap"),
        (dict(expect=(1, 0)), "low < high"),
        (dict(expect=(0, 0)), "low < high"),
        (dict(expect=(math.nan, 1)), "low < high"),
        (dict(expect=(-math.inf, math.inf)), "finite end"),
        (dict(expect=(1, 2), no_interest=(0.1, -0.1)), "low < high"),
    ],
)
def test_a_claim_with_impossible_regions_is_refused(regions, why):
    with pytest.raises(ValueError, match=f"A beats B.*{why}"):
        Claim("A beats B", **regions)


def test_regions_that_touch_are_allowed():
    assert Claim("A beats B", (0.02, None), (-0.02, 0.02)).expect == (0.02, math.inf)


# --- gates


def test_a_gate_passes_where_the_paired_interval_lies_above_zero():
    assert PASSED.passed is True and FAILED.passed is False and UNKNOWN.passed is None
    assert PASSED.interval == pytest.approx(paired_difference(PASSED.ours, PASSED.baseline).interval)
    against_pixels = Gate("A over raw pixels", A, 0.9)
    assert against_pixels.interval == pytest.approx(paired_difference(A, [0.9] * 6).interval)
    assert against_pixels.passed is (against_pixels.interval[0] > 0)


def test_what_a_gate_says_is_computed_and_not_typed():
    assert Gate(**{**asdict(FAILED), "passed": True, "interval": (1, 2)}).passed is False


@pytest.mark.parametrize("make", [lambda ours, base: Gate("g", ours, base), lambda ours, base: Evidence(Claim("g"), ours, base)])
@pytest.mark.parametrize(
    "ours, base", [([], []), ([1, 2], [1]), ([1, math.nan], [1, 2]), ([1, 2], [1, math.inf]), ([1, 2], math.nan)]
)
def test_sides_that_cannot_be_paired_are_refused(make, ours, base):
    with pytest.raises(ValueError, match="'g'"):
        make(ours, base)


# --- intervals and p


def test_one_claim_alone_is_the_paired_t_test():
    baseline = less([0.01, 0.03, -0.01, 0.02, 0.01, 0.03])
    (result,) = judge([Evidence(Claim("A beats B"), A, baseline)])
    theirs = ttest_rel(A, baseline)
    assert result.p == pytest.approx(theirs.pvalue) and result.level == 0.95
    assert result.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert result.difference == pytest.approx(np.mean(A) - np.mean(baseline))


@given(st.integers(0, 10_000))
def test_p_is_the_smallest_alpha_that_decides(seed):
    draw = random.Random(seed)
    claim = Claim("A", (0.5, 2.0), (-0.5, 0.5))
    values = [draw.gauss(draw.choice([0, 1, 3]), 0.5) for _ in range(5)]
    sides = [Evidence(claim, values), Evidence(claim, 0.0, draws=[draw.gauss(1, 0.4) for _ in range(1999)])]
    for evidence in sides[: 1 + (seed % 10 == 0)]:
        p = judge([evidence])[0].p
        for alpha, decides in ((p * 0.98, False), (min(p * 1.02, 0.999999), True)):
            if 0.002 < alpha < 0.999:
                word = verdict(evidence.found().interval(alpha), claim.expect, claim.no_interest)
                assert (word != "inconclusive") == decides


@pytest.mark.parametrize("ours", [[0.9], [0.9, 0.9, 0.9], [1.0, 1.0]])
def test_without_a_spread_there_is_no_interval_and_no_verdict(ours):
    (result,) = judge([Evidence(Claim("A beats B"), ours, [0.1 + 0.2] * len(ours))])
    assert (result.interval, result.p, result.detectable, result.verdict) == (None, 1.0, None, "inconclusive")
    assert "A beats B" in str(result) and "inconclusive" in results_html([result])


def test_equal_differences_that_rounding_separates_have_no_interval():
    gaps = [0.1, 0.2, 0.3, 0.7]
    assert len({a + 0.1 - a for a in gaps}) > 1
    assert judge([Evidence(Claim("A"), [a + 0.1 for a in gaps], gaps)])[0].verdict == "inconclusive"


def test_too_few_draws_are_refused_with_the_number_needed():
    pages = [Evidence(Claim("A"), 1.0, 0.0, draws=[1.0, 2.0] * 50)] * 4
    with pytest.raises(ValueError, match="159 or more"):
        judge(pages)
    with pytest.raises(ValueError, match="at least one claim"):
        judge([])


# --- Holm


@given(st.lists(st.integers(0, 60), min_size=1, max_size=7), st.integers(0, 5))
def test_what_is_decided_is_what_holm_rejects(shifts, seed):
    draw = random.Random(seed)
    seen = [Evidence(Claim(str(i)), [shift / 20 + draw.gauss(0, 1) for _ in range(6)]) for i, shift in enumerate(shifts)]
    results = judge(seen)
    rejected = holm([result.p for result in results]) <= 0.05
    assert [result.verdict != "inconclusive" for result in results] == rejected.tolist()
    assert sorted(round(0.05 / (1 - r.level)) for r in results)[-1] == len(shifts)
    assert all(result.level >= 0.95 - 1e-12 for result in results)


def test_an_added_claim_that_says_nothing_widens_the_others():
    near = Evidence(Claim("near"), A, less([0.01, 0.03, -0.005, 0.02, 0.01, 0.03]))
    noise = [Evidence(Claim(str(i)), [1.0, -1.0, 2.0, -2.0, 0.5, -0.4]) for i in range(2)]
    alone, among = judge([near])[0], judge([*noise, near])[2]
    assert alone.verdict == "reproduced" and among.verdict == "inconclusive"
    assert among.level == pytest.approx(1 - 0.05 / 3) and among.p == alone.p


def test_a_claim_whose_gate_failed_still_counts():
    near = Evidence(Claim("near"), A, less([0.01, 0.03, -0.005, 0.02, 0.01, 0.03]))
    clear = Evidence(Claim("clear"), A, less([0.5, 0.51, 0.5, 0.52, 0.5, 0.5]), gates=[FAILED])
    results = judge([clear, near])
    assert results[0].verdict == "untrained" and results[1].level == pytest.approx(0.975)


def wrong(result, truth):
    region = {"reproduced": result.expect, "null": result.no_interest}.get(result.verdict)
    if region:
        return not region[0] < truth < region[1]
    return result.verdict == "contradicted" and result.expect[0] < truth < result.expect[1]


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "rules, truths",
    [
        ([Claim(str(i)) for i in range(6)], [0.0] * 6),
        ([Claim(str(i)) for i in range(6)], [0.0, 0.0, 0.0, 5.0, -5.0, 0.0]),
        ([Claim(str(i), (-1e-9, 1e-9)) for i in range(4)], [0.0] * 4),
        ([Claim(str(i), (1.0, math.inf), (-1.0, 1.0)) for i in range(5)], [1.0, -1.0, 1.0, 4.0, -1.0]),
    ],
)
def test_some_verdict_of_a_page_is_false_in_five_percent_at_most(rules, truths, shared):
    draw, n, pages, count, alone = np.random.default_rng(5), 6, 250, 0, 0
    for _ in range(pages):
        noise = math.sqrt(shared) * draw.normal(size=(1, n)) + math.sqrt(1 - shared) * draw.normal(size=(len(rules), n))
        seen = [Evidence(rule, truth + row) for rule, truth, row in zip(rules, truths, noise, strict=True)]
        count += any(map(wrong, judge(seen), truths))
        alone += any(wrong(judge([one])[0], truth) for one, truth in zip(seen, truths, strict=True))
    assert count <= 0.05 * pages + 2.6 * math.sqrt(0.05 * 0.95 * pages)  # 99.5 % of a binomial with rate .05
    assert count <= alone


def test_without_a_correction_a_page_of_six_is_wrong_too_often():
    draw = np.random.default_rng(5)
    pages = [[Evidence(Claim("A"), draw.normal(size=6)) for _ in range(6)] for _ in range(300)]
    assert sum(any(wrong(judge([one])[0], 0.0) for one in page) for page in pages) / 300 > 0.09
    assert sum(any(wrong(r, 0.0) for r in judge(page)) for page in pages) / 300 <= 0.05


# --- power


@pytest.mark.parametrize("n, claims", [(3, 1), (5, 2), (8, 4)])
def test_the_detectable_difference_is_detected_in_four_studies_of_five(n, claims):
    draw, shift = np.random.default_rng(2), detectable(0.3, n, claims)
    found = [
        paired_difference(row, np.zeros(n), level=1 - 0.05 / claims).interval[0] > 0 for row in draw.normal(shift, 0.3, (1500, n))
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_judge_states_the_detectable_difference_at_the_strictest_level():
    gaps = [0.01, 0.03, 0.0, 0.02, 0.01, 0.03]
    results = judge([Evidence(Claim("a"), A, less(gaps)), Evidence(Claim("b"), A, less([0.5, 0.6, 0.5, 0.4, 0.5, 0.5]))])
    assert results[0].detectable == pytest.approx(detectable(np.std(gaps, ddof=1), 6, claims=2))
    with pytest.raises(ValueError, match="1 seeds"):
        detectable(1.0, 1)


# --- results


def page():
    return judge(
        [
            Evidence(
                Claim("A beats B", (0.02, math.inf), (-0.02, 0.02)),
                A,
                less([0.05, 0.07, 0.06, 0.04, 0.06, 0.05]),
                "knn@20",
                [PASSED],
            ),
            Evidence(
                Claim("A < C", (-math.inf, 0), changed="the region was (-inf, -.1)"),
                A,
                less([0.05, 0.07, 0.06, 0.04, 0.06, 0.05]),
            ),
            Evidence(Claim("A beats D"), A, 0.5, gates=[FAILED], names=("A", "D")),
            Evidence(Claim("A beats E"), 0.9, 0.8, draws=[0.05 + i / 10_000 for i in range(999)]),
        ]
    )


def test_every_word_is_given_and_reads_back_from_json(tmp_path):
    results = page()
    assert [result.verdict for result in results] == ["reproduced", "contradicted", "untrained", "reproduced"]
    shown = Run(tmp_path).conclude(results)
    assert isinstance(shown, Conclusion)
    stored = json.loads((tmp_path / "conclusion.json").read_text())["results"]
    assert [Result(**row) for row in stored] == results
    assert stored[0]["no_interest"] == [-0.02, 0.02] and stored[1]["expect"] == [None, 0]
    assert results[2].per_seed == {"A": A}


def test_the_table_shows_gates_power_p_and_a_changed_region():
    shown = Conclusion(page())
    for text in (shown._repr_html_(), repr(shown)):
        assert "passed: A over its untrained encoder" in text and "failed: A over its" in text
        assert "98.75 %" in text
    html = shown._repr_html_()
    assert "A &lt; C<br>changed after the first run: the region was (-inf, -.1)" in html
    assert '<td class="verdict untrained">untrained</td>' in html


@pytest.mark.parametrize(
    "edit", [dict(verdict="contradicted"), dict(interval=[-1.0, 1.0]), dict(interval=None), dict(gates=[asdict(FAILED)])]
)
def test_a_stored_verdict_that_its_figures_do_not_carry_is_refused(edit):
    row = asdict(page()[0])
    assert Result(**row).verdict == "reproduced"
    with pytest.raises(ValueError, match="A beats B.*the figures say"):
        Result(**{**row, **edit})
