"""Intervals that hold the truth as often as they say, over examples, groups and seeds; p-values; the scale of features."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_nb import evaluators as ev
from ssl_nb.evaluators import scores as sc

# ---- shares of right predictions


def covered(interval, rate, n, trials=600, seed=0):
    rng = np.random.default_rng(seed)
    ends = [interval((rng.random(n) < rate).astype(float)) for _ in range(trials)]
    return np.mean([low <= rate <= high for low, high in ends])


@pytest.mark.parametrize("rate, n", [(0.99, 50), (0.95, 50), (0.99, 200), (0.5, 20), (0.02, 100)])
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_are_covered(rate, n, seed):
    assert covered(lambda v: ev.mean_score(v, "x").interval, rate, n, seed=seed) > 0.89
    if (rate, n) == (0.99, 50):  # the bootstrap is degenerate in most such test sets
        assert covered(lambda v: ev.bootstrap(v, n=100), rate, n, 200, seed) < 0.6


@pytest.mark.parametrize("right, n", [(0, 10), (10, 10), (7, 10), (99, 100), (1, 2)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_equals_scipy(right, n, level):
    from scipy.stats import binomtest

    values = np.arange(n) < right
    theirs = binomtest(right, n).proportion_ci(level, "wilson")
    assert sc._interval(values.astype(float), level=level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    if level == 0.95:
        for column in (values, values.astype(int), torch.from_numpy(values), values.tolist()):
            assert ev.mean_score(column, "x").interval == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_all_right_is_not_certain():
    low, high = ev.mean_score(np.ones(100), "x").interval
    assert high == 1 and low == pytest.approx(100 / (100 + 1.959964**2), abs=1e-6)
    assert ev.mean_score(np.zeros(100), "x").interval == pytest.approx((0, 1 - low))


def test_equal_values_other_than_shares_have_no_interval():
    assert ev.mean_score(np.full(50, 0.3), "x").interval is None
    assert ev.mean_score(np.linspace(0, 0.3, 50), "x").interval is not None


@pytest.mark.parametrize("only_ours, only_theirs, n", [(0.04, 0.0, 50), (0.02, 0.02, 50), (0.1, 0.05, 100), (0.3, 0.1, 40)])
def test_differences_of_shares_are_covered(only_ours, only_theirs, n):
    rng, held, true = np.random.default_rng(0), 0, only_ours - only_theirs
    for _ in range(400):
        kind = rng.choice(3, n, p=[only_ours, only_theirs, 1 - only_ours - only_theirs])
        ours, baseline = np.where(kind == 2, 1, kind == 0), np.where(kind == 2, 1, kind == 1)
        low, high = ev.paired_difference(ours, baseline, of="examples").interval
        held += low <= true <= high
    assert held / 400 > 0.92


def test_agreement_on_every_example_leaves_room():
    right = np.arange(50) < 45
    gap = ev.paired_difference(ev.mean_score(right, "a"), ev.mean_score(right, "b"))
    assert gap == 0 and gap.interval[0] < -0.01 and gap.interval[1] == pytest.approx(-gap.interval[0])
    table = ev.comparisons({"a": ev.mean_score(right, "a"), "b": ev.mean_score(right, "b")})
    assert table.p[0] == table.p_holm[0] == 1


# ---- groups


def beta_binomial(rng, rate, groups, size, icc):
    each = rng.beta(rate * (1 - icc) / icc, (1 - rate) * (1 - icc) / icc, groups)
    codes = np.repeat(np.arange(groups), size)
    return (rng.random(groups * size) < each[codes]).astype(float), codes


@pytest.mark.parametrize("rate, groups, size, icc", [(0.8, 30, 10, 0.3), (0.5, 10, 10, 0.5), (0.99, 30, 10, 0.8)])
def test_shares_over_groups_are_covered_where_examples_promise_too_much(rate, groups, size, icc):
    rng, over, plain = np.random.default_rng(0), 0, 0
    for _ in range(400):
        values, codes = beta_binomial(rng, rate, groups, size, icc)
        score = ev.mean_score(values, "x")
        for kind in ("over", "plain"):
            low, high = score.interval if kind == "plain" else score.over(codes).interval
            over, plain = over + (kind == "over") * (low <= rate <= high), plain + (kind == "plain") * (low <= rate <= high)
    assert over / 400 > 0.89 and plain < over - 20


def test_real_values_over_groups_are_covered():
    rng, over, plain = np.random.default_rng(0), 0, 0
    codes = np.repeat(np.arange(40), rng.integers(1, 12, 40))
    for _ in range(200):
        score = ev.mean_score(rng.normal(size=40)[codes] + rng.normal(size=len(codes)), "x")
        inside = [low <= 0 <= high for low, high in (score.over(codes).interval, score.interval)]
        over, plain = over + inside[0], plain + inside[1]
    assert over / 200 > 0.87 and plain / 200 < 0.8


def test_a_grouped_score_is_the_same_score():
    right = np.random.default_rng(0).random(60) < 0.8
    score, names = ev.mean_score(right, "knn@5", k=5), np.repeat(list("abcdefghijkl"), 5)
    for groups in (names, names.tolist(), torch.arange(12).repeat_interleave(5)):
        over = score.over(groups)
        assert over == score and over.protocol == score.protocol and over.of == "groups" and over.notes == {"k": 5}
        assert np.array_equal(over.samples, score.samples) and score.of == "examples" and score.groups is None
        assert over.interval[0] < over < over.interval[1] and over.row()["of"] == "groups"


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 40), seed=st.integers(0, 99), share=st.booleans())
def test_groups_of_one_are_examples(n, seed, share):
    values = np.random.default_rng(seed).random(n)
    values = (values < 0.7).astype(float) if share else values
    score = ev.mean_score(values, "x")
    over = score.over(np.arange(n)[::-1] * 7)
    if share and 0 < values.sum() < n:  # Student's t in place of z
        assert sc._effective(values, np.arange(n)) == pytest.approx(n - 1)  # the variance is estimated: ddof 1
        assert over.interval[0] <= score.interval[0] and over.interval[1] >= score.interval[1]
    elif not share:
        assert np.ptp(over.interval) == pytest.approx(np.ptp(score.interval), rel=0.25)


def test_copies_of_every_row_add_nothing_over_groups():
    right = np.random.default_rng(1).random(50) < 0.8
    once, copies = ev.mean_score(right, "x"), ev.mean_score(np.repeat(right, 20), "x")
    assert np.ptp(copies.interval) < 0.3 * np.ptp(once.interval)
    over = copies.over(np.repeat(np.arange(50), 20))
    assert over.interval == pytest.approx(once.over(np.arange(50)).interval)


def test_differences_and_comparisons_keep_to_the_groups():
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(20), 30)
    base = (rng.random(600) < 0.7).astype(float)
    ours = np.where(rng.random(20)[codes] < 0.3, 1.0, base)  # better in a few groups as a whole
    a, b = ev.mean_score(ours, "a"), ev.mean_score(base, "b")
    plain, grouped = ev.paired_difference(a, b), ev.paired_difference(a.over(codes), b.over(codes))
    assert grouped == plain and grouped.of == "groups" and "20 groups" in grouped.protocol
    assert np.ptp(grouped.interval) > 1.5 * np.ptp(plain.interval)
    assert ev.paired_difference(a, b.over(codes)).interval == grouped.interval
    assert ev.paired_difference(a.over(codes), b.over(codes), of="examples").interval == plain.interval
    table = ev.comparisons({"a": a.over(codes), "b": b.over(codes)})
    means = (ours - base).reshape(20, 30).mean(1)
    assert table.of[0] == "groups" and table.p[0] == pytest.approx(ttest_1samp(means, 0).pvalue)


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda s: s.over(np.arange(9)), "one for each of the 20 examples"),
        (lambda s: s.over(np.zeros(20)), "one group"),
        (lambda s: ev.Score(0.5, "rankme").over(np.arange(20)), "rankme is not a mean"),
        (lambda s: ev.Score(0.9, "r2", samples=np.zeros(20)).over(np.arange(20)), "r2 is not a mean"),
        (lambda s: ev.paired_difference(s, s, of="groups"), ".over(groups)"),
        (lambda s: ev.paired_difference(s.over(np.arange(20) // 2), s.over(np.arange(20) // 5)), "different groups"),
    ],
)
def test_refusals_of_groups(call, reason):
    with pytest.raises(ValueError) as error:
        call(ev.mean_score(np.arange(20) % 3 > 0, "x"))
    assert reason in str(error.value)


# ---- seeds


@pytest.mark.parametrize(
    "ours, baseline", [([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]), ([0.5] * 4, [0.3] * 4), ([0.2, 0.4, 0.1], [0.2, 0.4, 0.1])]
)
def test_seeds_without_scatter_have_neither_interval_nor_p(ours, baseline):
    gap = ev.paired_difference(ours, baseline)
    assert gap.interval is None and "no interval" in gap.protocol and math.isnan(gap.row()["low"])
    table = ev.comparisons({"a": ours, "b": baseline})
    assert math.isnan(table.p[0]) and math.isnan(table.p_holm[0]) and math.isnan(table.low[0])
    if len(set(ours)) == 1:
        assert ev.seed_score(ours, "x").interval is None


def test_small_but_real_scatter_is_kept():
    gap = ev.paired_difference([0.9, 0.8, 0.7], [0.8, 0.7, 0.6 + 1e-12])
    assert gap.interval is not None and ev.comparisons({"a": [0.9, 0.8, 0.7], "b": [0.8, 0.7, 0.6 + 1e-12]}).p[0] < 1e-9


@pytest.mark.parametrize("count, warns", [(1, True), (2, True), (3, False)])
def test_fewer_than_three_seeds_warn(count, warns):
    a, b = np.arange(count) * 0.1, np.arange(count) ** 2 * 0.1
    for call in (lambda: ev.seed_score(a, "x"), lambda: ev.paired_difference(a, b), lambda: ev.comparisons({"a": a, "b": b})):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert bool(caught) == warns and all(f"{count} seed" in str(w.message) for w in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ev.paired_difference(a, b, of="examples")


def test_holm_counts_a_comparison_without_p():
    np.testing.assert_allclose(ev.holm([0.01, np.nan, 0.03]), [0.03, np.nan, 0.06])
    np.testing.assert_allclose(ev.holm(torch.tensor([math.nan])), [np.nan])
    full = ev.holm([0.01, 1.0, 0.03])
    np.testing.assert_allclose(full[[0, 2]], ev.holm([0.01, np.nan, 0.03])[[0, 2]])


# ---- the scale of features


def test_features_are_widened_where_float32_would_overflow_or_vanish():
    for scale, dtype in ((1e25, torch.float64), (1e-25, torch.float64), (1e5, torch.float32), (0, torch.float32)):
        x = ev.check_features(torch.ones(3, 2) * scale)
        assert x.dtype == dtype and torch.equal(x, torch.ones(3, 2).mul(scale).to(dtype))
    for scale in (1e100, 1e-100):
        with pytest.raises(ValueError, match="divide them by a constant"):
            ev.check_features(np.full((3, 2), scale))
        assert ev.check_features(np.full((3, 2), scale), any_scale=True).shape == (3, 2)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 9), power=st.integers(-30, 30), seed=st.integers(0, 99))
def test_unit_rows_at_any_scale(n, d, power, seed):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.1
    scaled = x * torch.logspace(-power, power, n)[:, None] if n > 1 else x * 10.0**power
    torch.testing.assert_close(sc.unit_rows(scaled), torch.nn.functional.normalize(x, dim=1), rtol=1e-5, atol=1e-6)
    assert torch.equal(sc.unit_rows(torch.zeros(n, d)), torch.zeros(n, d))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n, d", [(2000, 64), (64, 2000), (300, 300)])
def test_rounding_separates_directions_from_storage_errors(dtype, n, d):
    generator = torch.Generator().manual_seed(0)
    clean = 10 + 0.5 * torch.randn(n, 5, generator=generator).double() @ torch.randn(5, d, generator=generator).double()
    stored = clean.to(dtype).double()
    s, mean = torch.linalg.svdvals(stored - stored.mean(0)), stored.mean(0).norm() * n**0.5
    assert int((s > sc.rounding(dtype, n, d) * torch.hypot(s[0], mean)).sum()) == 5
