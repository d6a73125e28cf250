"""TwoNN and manifold capacity: reference values, oracles, known answers, bad input. (Alignment: test_evaluators.)"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.stats import norm
from sklearn.datasets import load_digits, make_swiss_roll
from sklearn.neighbors import NearestNeighbors

from ssl_nb.evaluators.geometry import _cone_projection, _pivot, manifold_capacity, two_nn

X, Y = load_digits(return_X_y=True)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slope(ratios, discard=0.1):
    x = np.sort(np.log(ratios))
    kept = int(len(x) * (1 - discard))
    y = -np.log(1 - np.arange(1, kept + 1) / len(x))
    return x[:kept] @ y / (x[:kept] @ x[:kept])


# ---- TwoNN


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
def test_two_nn_reference_value(dtype):
    score = two_nn(torch.from_numpy(X).to(dtype))
    assert score == pytest.approx(8.908, abs=5e-4)  # scikit-dimension 0.5.0
    assert score.notes["maximum_likelihood"] == pytest.approx(9.044, abs=5e-4)
    assert score.notes["duplicates"] == 0 and score.interval is None and "discard 0.1" in score.protocol


@pytest.mark.parametrize("discard", [0.1, 0.3, 0.002])
def test_two_nn_equals_scikit_learn_neighbors(discard):
    x = randn(700, 6).numpy()
    r = NearestNeighbors(n_neighbors=3, algorithm="kd_tree").fit(x).kneighbors(x)[0]
    assert two_nn(x, discard=discard) == pytest.approx(slope(r[:, 2] / r[:, 1], discard), rel=1e-9)
    assert two_nn(x, discard, block=33) == pytest.approx(two_nn(x, discard), rel=1e-12)


def test_two_nn_without_discarding_leaves_out_the_infinite_one():
    assert math.isfinite(two_nn(X[:100], discard=0))


@pytest.mark.parametrize("d", [1, 2, 4, 8])
def test_two_nn_finds_the_dimension_of_a_gaussian(d):
    x = F.pad(randn(3000, d), (0, 64 - d)) @ torch.linalg.qr(randn(64, 64, seed=1)).Q
    assert two_nn(x) == pytest.approx(d, rel=0.1)


def test_two_nn_of_a_curved_sheet():
    assert two_nn(make_swiss_roll(3000, random_state=0)[0]) == pytest.approx(2, abs=0.15)


def test_two_nn_is_invariant_and_exact_far_from_the_origin():
    x = randn(400, 5)
    turned = (x @ torch.linalg.qr(randn(5, 5, seed=1)).Q)[torch.randperm(400)] * 3 + 1e4
    assert two_nn(turned) == pytest.approx(two_nn(x), rel=1e-7)


def test_two_nn_of_copies():
    x = randn(300, 4)
    double = two_nn(torch.cat([x, x, x[:10]]))
    assert double == pytest.approx(two_nn(x), rel=1e-9) and double.notes["duplicates"] == 310


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: two_nn(X[:4]), "5 rows"),
        (lambda: two_nn(np.ones((50, 3))), "1 different rows in 50"),
        (lambda: two_nn(X, discard=1), "discard=1"),
        (lambda: two_nn(X, discard=-0.1), "discard=-0.1"),
        (lambda: two_nn(X, block=0), "block=0"),
        (lambda: two_nn(torch.eye(6)), "grid"),
        (lambda: two_nn(np.full((9, 3), np.nan)), "NaN"),
        (lambda: two_nn(np.ones((9, 3, 3))), "flatten"),
        (lambda: two_nn(np.ones((0, 3))), r"\(0, 3\)"),
    ],
)
def test_two_nn_refusals(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


# ---- non-negative least squares


@settings(max_examples=40, deadline=None)
@given(p=st.integers(1, 25), k=st.integers(1, 25), seed=st.integers(0, 999), spread=st.sampled_from([0.1, 1, 10]))
def test_cone_projection_equals_scipy(p, k, seed, spread):
    points = torch.cat([spread * randn(p, k, seed=seed), torch.ones(p, 1).double()], 1)
    draws = randn(20, k + 1, seed=seed + 1)
    weights = _cone_projection(points, draws)
    theirs = np.array([nnls(points.T.numpy(), t)[0] for t in draws.numpy()]) @ points.numpy()
    np.testing.assert_allclose(weights @ points, theirs, atol=1e-7)
    assert (weights >= 0).all()


def test_pivoting_settles_and_its_tiles_agree():
    points, draws = torch.cat([randn(50, 49) * 7, torch.ones(50, 1)], 1), randn(200, 50, seed=1)
    _, settled = _pivot(points @ points.T, draws @ points.T)
    assert settled.all()
    torch.testing.assert_close(_cone_projection(points, draws, tile=1), _cone_projection(points, draws))
    unsolved, settled = _pivot(points @ points.T, draws @ points.T, rounds=1)
    assert not settled.all()


# ---- manifold capacity


def gardner(k):
    return 1 / ((1 + k * k) * norm.cdf(k) + k * norm.pdf(k))


@pytest.mark.parametrize("margin", [0, 0.5, 1])
def test_capacity_of_points_is_that_of_gardner(margin):
    score = manifold_capacity(randn(20, 1, 30), draws=5000, margin=margin)
    assert score == pytest.approx(gardner(margin), rel=0.03)
    assert score.notes["radius"] == score.notes["dimension"] == 0
    same = manifold_capacity(randn(20, 1, 30).expand(-1, 4, -1), draws=500, margin=margin)
    assert same == pytest.approx(score, rel=0.1) and same.notes["radius"] < 1e-6


def spheres(radius, dim, p=300):
    half = F.normalize(randn(2, p // 2, dim), dim=2) * radius
    s = F.pad(torch.cat([half, -half], 1), (1, 3))
    s[..., 0] = torch.tensor([1.0, -1.0])[:, None]
    return s


@pytest.mark.parametrize("radius, dim", [(0.5, 1), (0.5, 2), (2, 2), (1, 3)])
def test_capacity_of_balls(radius, dim):
    rng = np.random.default_rng(0)
    t0, tau = rng.normal(size=10**6), np.sqrt(rng.chisquare(dim, 10**6))
    length = np.maximum(radius * tau + t0, 0) ** 2 / (1 + radius**2)
    closed = 1 / np.where(tau <= radius * t0, tau**2 + t0**2, length).mean()
    score = manifold_capacity(spheres(radius, dim), draws=1000)
    assert score == pytest.approx(closed, rel=0.06)
    assert score.notes["radius"] <= radius + 1e-6 and score.notes["dimension"] <= dim + 1e-6


def test_public_example():
    simulated = randn(10, 50, 5000, dtype=torch.float32)
    score = manifold_capacity(simulated, draws=100)  # the README of neural_manifolds_replicaMFT: 0.04, 1.48, 36.17
    assert round(score, 2) == 0.04
    assert score.notes["radius"] == pytest.approx(1.48, abs=0.05)
    assert score.notes["dimension"] == pytest.approx(36.17, abs=0.6)


@pytest.mark.slow
def test_public_example_in_full():
    score = manifold_capacity(randn(100, 50, 5000, dtype=torch.float32))
    assert round(score, 2) == 0.04
    assert score.notes["radius"] == pytest.approx(1.48, abs=0.02)
    assert score.notes["dimension"] == pytest.approx(36.17, abs=0.2)


def test_capacity_equals_the_primal_programme():
    from scipy.optimize import minimize

    manifolds, margin = [x for x in randn(3, 6, 4) + 2 * randn(3, 1, 4, seed=1)], 0.3
    score = manifold_capacity(manifolds, draws=400, margin=margin)
    middle, inverse, rng = torch.cat(manifolds).mean(0), [], np.random.default_rng(0)
    for x in manifolds:
        center = (x - middle).mean(0)
        s = np.c_[((x - middle - center) / center.norm()).numpy(), np.ones(6)]
        for t in rng.normal(size=(100, 5)):
            fit = minimize(
                lambda v, t=t: ((v - t) ** 2).sum(),
                np.zeros(5) - s[0],
                jac=lambda v, t=t: 2 * (v - t),
                constraints={"type": "ineq", "fun": lambda v, s=s: -margin - s @ v, "jac": lambda v, s=s: -s},
            )
            inverse.append(fit.fun)
    assert score == pytest.approx(1 / np.mean(inverse), rel=0.15)  # other draws


def test_capacity_is_invariant_repeatable_and_harmonic():
    x = randn(5, 12, 20) + 2 * randn(5, 1, 20, seed=1)
    score = manifold_capacity(x)
    assert score == manifold_capacity(list(x.numpy())) != manifold_capacity(x, seed=1)
    turned = x @ torch.linalg.qr(randn(20, 20, seed=2)).Q * 5 + 3
    assert manifold_capacity(turned, draws=2000) == pytest.approx(manifold_capacity(x, draws=2000), rel=0.05)
    assert score == pytest.approx(5 / sum(1 / c for c in score.notes["capacities"]))
    assert manifold_capacity(x.float().requires_grad_()) == pytest.approx(score, rel=1e-4)
    assert score > manifold_capacity(x, margin=0.5)


def test_capacity_of_manifolds_of_unequal_size_and_more_points_than_dimensions():
    score = manifold_capacity([X[Y == c][: 20 + 10 * c, 2:7] for c in range(5)], draws=50)
    assert 0 < score < 2 and score.notes["dimension"] < 5
    assert len(score.notes["capacities"]) == 5 and score.interval is None


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: manifold_capacity(randn(1, 5, 4)), "1 manifold"),
        (lambda: manifold_capacity(torch.ones(4, 5, 3)), "manifold 0 is centered at the mean"),
        (lambda: manifold_capacity(randn(3, 5, 4), margin=-1), "margin=-1"),
        (lambda: manifold_capacity(randn(3, 5, 4), draws=1), "draws=1"),
        (lambda: manifold_capacity([randn(3, 4), randn(3, 5)]), "same encoder"),
        (lambda: manifold_capacity([randn(3, 4), randn(3, 4) * math.nan]), "manifold 1 hold NaN"),
        (lambda: manifold_capacity([randn(3, 4), randn(0, 4)]), r"\(0, 4\)"),
        (lambda: manifold_capacity(randn(6, 4)), "must have shape"),
    ],
)
def test_capacity_refusals(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
