"""k-means against labels: parity with scikit-learn, invariances, known answers, bad input."""

import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from ssl_nb.evaluators.clustering import clustering, match_clusters


def clouds(classes=4, each=25, d=6, apart=20.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    return apart * np.eye(classes, d)[y] + rng.normal(size=(len(y), d)), y


def test_equals_scikit_learn_start_by_start():
    x, y = clouds(apart=1.5)
    found = clustering(x, y, 5, seeds=3)
    for seed in range(3):
        fitted = KMeans(5, n_init=1, random_state=seed).fit(x)
        assert found["nmi"].samples[seed] == pytest.approx(normalized_mutual_info_score(y, fitted.labels_))
        assert found["ari"].samples[seed] == pytest.approx(adjusted_rand_score(y, fitted.labels_))
        assert found["ari"].notes["inertia"][seed] == pytest.approx(fitted.inertia_)
    assert all(score.of == "seeds" and "5 clusters" in score.protocol for score in found.values())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 30), clusters=st.integers(1, 5), classes=st.integers(1, 5), seed=st.integers(0, 999))
def test_matching_is_the_best_of_all(n, clusters, classes, seed):
    rng = np.random.default_rng(seed)
    found, y = rng.integers(0, clusters, n), rng.integers(0, classes, n)
    table = np.array([[((found == k) & (y == c)).sum() for c in range(5)] for k in range(5)])
    best = max(table[range(5), order].sum() for order in permutations(range(5)))
    assert match_clusters(found, y) == pytest.approx(best / n)
    assert match_clusters(rng.permutation(50)[found], torch.from_numpy(rng.permutation(50)[y])) == pytest.approx(best / n)


def test_separate_clouds_and_shuffled_labels():
    x, y = clouds()
    best = clustering(x, y)
    assert max(best["ari"].samples) == 1 and max(best["accuracy"].samples) == 1
    chance = clustering(x, np.random.default_rng(0).permutation(y))
    assert abs(chance["ari"]) < 0.1 and chance["nmi"] < 0.2 and 0.25 <= chance["accuracy"] < 0.6


@pytest.mark.parametrize("scale", [1e25, 1e-25, 1.0])
def test_scale_rotation_order_and_names_change_nothing(scale):
    x, y = clouds()
    turned = x @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0] * scale
    order, names = np.random.default_rng(2).permutation(len(y)), np.array([7, -3, 10**9, 0])
    for features in (turned[order], torch.from_numpy(turned[order]).float()):
        found = clustering(features, names[y[order]], seeds=5)
        assert max(found["nmi"].samples) == pytest.approx(1) and max(found["accuracy"].samples) == 1


def test_starts_that_agree_have_no_interval():
    x, y = clouds(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = clustering(x, y, seeds=3)
    assert found["ari"] == 1 and all(score.interval is None for score in found.values())


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda x, y: clustering(x, 0 * y), "one class"),
        (lambda x, y: clustering(x, y, 101), "clusters=101"),
        (lambda x, y: clustering(x, y, 1), "clusters=1"),
        (lambda x, y: clustering(x, y, seeds=0), "seeds=0"),
        (lambda x, y: clustering(np.ones_like(x), y), "1 different rows for 4 clusters"),
        (lambda x, y: clustering(x, y[:9]), "100 rows"),
        (lambda x, y: clustering(x * np.nan, y), "NaN"),
        (lambda x, y: match_clusters(y, y[:9]), "100 rows"),
    ],
)
def test_refusals(call, reason):
    with pytest.raises(ValueError) as error:
        call(*clouds())
    assert reason in str(error.value)
