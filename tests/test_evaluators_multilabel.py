"""The macro AUC of several labels: scikit-learn's value, DeLong's variance, groups, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ssl_nb import evaluators
from ssl_nb.data import Data, Spec, Split
from ssl_nb.evaluators import multilabel_auc, multilabel_probe, paired_difference


def drawn(seed, rows=60, labels=3, levels=4):
    "Scores with many ties, and labels that are in some rows and not in all."
    g = torch.Generator().manual_seed(seed)
    y = torch.rand(rows, labels, generator=g) < 0.4
    y[0], y[1] = True, False
    return (torch.randn(rows, labels, generator=g) + y).mul(levels).round() / levels, y


@given(st.integers(0, 10**6), st.integers(3, 80), st.integers(1, 5), st.sampled_from([1, 4, 1000]))
@settings(max_examples=40, deadline=None)
def test_the_value_is_that_of_scikit_learn(seed, rows, labels, levels):
    scores, y = drawn(seed, rows, labels, levels)
    found = multilabel_auc(scores, y)
    assert abs(found - roc_auc_score(y.numpy(), scores.double().numpy(), average="macro")) < 1e-9
    assert np.allclose(found.notes["each"], [roc_auc_score(y[:, c], scores[:, c]) for c in range(labels)], atol=1e-9)


def test_samples_average_to_the_value_and_have_the_variance_of_delong():
    scores, y = drawn(0, rows=200, labels=2)
    found = multilabel_auc(scores, y)
    assert abs(found.samples.mean() - found) < 1e-9 and found.interval[0] < found < found.interval[1]
    covariance = np.zeros((2, 2))
    placements = []  # of each label: shares of pairs won by each positive and each negative
    for s, label in zip(scores.T, y.T, strict=True):
        wins = (s[label][:, None] > s[~label]).double() + (s[label][:, None] == s[~label]).double() / 2
        placements.append((label, wins.mean(1) - wins.mean(), wins.mean(0) - wins.mean()))
    for a, (ya, va, wa) in enumerate(placements):
        for b, (yb, vb, wb) in enumerate(placements):
            left, right = torch.zeros(200).double(), torch.zeros(200).double()
            left[ya], left[~ya] = va / ya.sum(), wa / (~ya).sum()
            right[yb], right[~yb] = vb / yb.sum(), wb / (~yb).sum()
            covariance[a, b] = left @ right
    assert np.isclose(found.samples.var() / 200, covariance.mean(), rtol=1e-9)


def test_the_interval_agrees_with_a_bootstrap_of_the_auc_itself():
    scores, y = drawn(1, rows=300)
    rng, draws = np.random.default_rng(0), []
    for _ in range(300):
        rows = rng.integers(0, 300, 300)
        draws.append(float(multilabel_auc(scores[rows], y[rows])))
    low, high = multilabel_auc(scores, y).interval
    assert abs((high - low) / np.subtract(*np.quantile(draws, [0.975, 0.025])) - 1) < 0.2


def test_limits_and_invariances():
    scores, y = drawn(2)
    assert multilabel_auc(y.float(), y) == 1 and multilabel_auc(y.float(), y).interval is None
    assert multilabel_auc(-y.float(), y) == 0 and multilabel_auc(torch.zeros(60, 3), y) == 0.5
    assert multilabel_auc(scores.exp(), y.int()) == multilabel_auc(scores.numpy(), y.numpy())
    assert abs(multilabel_auc(scores, y) + multilabel_auc(-scores, y) - 1) < 1e-9
    order = torch.randperm(60)
    assert abs(multilabel_auc(scores[order], y[order]) - multilabel_auc(scores, y)) < 1e-12


def test_repeated_rows_widen_the_interval_over_groups_and_not_that_over_rows():
    scores, y = drawn(3, rows=100)
    person = torch.arange(100).repeat(4)
    one, four = multilabel_auc(scores, y), multilabel_auc(scores.repeat(4, 1), y.repeat(4, 1))
    wide = four.over(person)

    def width(score):
        return score.interval[1] - score.interval[0]

    assert abs(four - one) < 1e-9 and width(four) < 0.7 * width(one) and 0.8 < width(wide) / width(one) < 1.25


def test_two_scores_of_the_same_rows_are_paired():
    scores, y = drawn(4, rows=300)
    worse = scores + torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    gap = paired_difference(multilabel_auc(scores, y), multilabel_auc(worse, y))
    assert abs(gap - (multilabel_auc(scores, y) - multilabel_auc(worse, y))) < 1e-9 and gap.interval[0] > 0


def linear(rows, seed=0):
    "Features, and labels that are linear functions of them."
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 8, generator=g)
    return z, z @ torch.randn(8, 3, generator=torch.Generator().manual_seed(1)) > 0


def test_the_probe_reads_linear_labels_and_chance_is_a_half():
    (z, y), (test, truth) = linear(300), linear(200, seed=5)
    assert multilabel_probe(z, y, test, truth) > 0.97
    found = multilabel_probe(z, y[torch.randperm(300, generator=torch.Generator().manual_seed(0))], test, truth, l2=0.01)
    assert 0.3 < found < 0.7 and "l2 0.01" in found.protocol and "macro AUC" in found.protocol


def test_the_probe_does_not_see_scale_and_shift():
    (z, y), (test, truth) = linear(200), linear(100, seed=5)
    stretch = torch.logspace(-2, 2, 8)
    moved = multilabel_probe(z * stretch + 3, y, test * stretch + 3, truth, l2=0.1)
    assert abs(multilabel_probe(z, y, test, truth, l2=0.1) - moved) < 0.01


def test_the_suite_finds_it():
    class Same(torch.nn.Module):
        def forward(self, x):
            return x

    (z, y), (test, truth) = linear(100), linear(80, seed=5)
    train, held = Split({"x": z, "labels": y}), Split({"x": test, "labels": truth})
    sets = Data(Spec("linear", (8,)), train, held)
    found = evaluators.evaluate(Same(), sets, suite="multilabel_probe", progress=False, keep=False)
    assert "multilabel_probe" in evaluators.names() and found.rows[0]["score"] > 0.9


@pytest.mark.parametrize("scores, labels, words", [
    (torch.rand(9, 2), torch.ones(9, 2), "column 0 of labels is 1 in all 9 rows"),
    (torch.rand(9, 2), torch.arange(9) % 2, "a column of 0 and 1"),
    (torch.rand(9, 2), torch.arange(18).reshape(9, 2), "labels hold 2"),
    (torch.rand(9, 2), torch.full((9, 2), -1), "labels hold -1"),
    (torch.rand(9, 3), torch.arange(18).reshape(9, 2) % 3 == 0, "a column of scores for each"),
    (torch.full((9, 2), torch.nan), torch.arange(18).reshape(9, 2) % 3 == 0, "NaN")])  # fmt: skip
def test_what_is_refused(scores, labels, words):
    with pytest.raises(ValueError, match=words):
        multilabel_auc(scores, labels)


def test_a_probe_wants_the_same_columns_and_widths():
    (z, y), (test, truth) = linear(50), linear(50, seed=5)
    with pytest.raises(ValueError, match="3 columns and test_labels 2"):
        multilabel_probe(z, y, test, truth[:, :2])
    with pytest.raises(ValueError, match="the same encoder"):
        multilabel_probe(z, y, test[:, :4], truth)
    none = y & torch.tensor([True, False, True])
    with pytest.raises(ValueError, match="column 1 of train_labels"):
        multilabel_probe(z, none, test, truth)
