"""LogME, TransRate, H-score, LEEP, cross-dataset probing and forgetting: reference values, oracles, limits, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.linear_model import BayesianRidge
from torch import nn

from ssl_nb.data import Data, Spec, image_split
from ssl_nb.encoders import Encoder, embed
from ssl_nb.evaluators.neighbors import knn
from ssl_nb.evaluators.probes import linear_probe
from ssl_nb.evaluators.transferability import adapt, as_matrix, cross_dataset, forgetting, h_score, leep, log_me, trans_rate

X, Y = load_digits(return_X_y=True)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- LogME


@pytest.mark.parametrize("block", [4096, 100])
def test_log_me_reference_values(block):
    assert log_me(X, Y, block=block) == pytest.approx(0.27028, abs=6e-6)
    # `_fit_fixed_point` with its three null directions
    assert log_me(X, Y, exact=False, block=block) == pytest.approx(0.27862, abs=1e-5)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert log_me(unit, Y, exact=False, block=block) == pytest.approx(0.27422, abs=1e-5)


def maximum(x, y):
    "The largest log density of a column, by a general optimizer."
    from scipy.optimize import minimize

    s, rest = np.linalg.svd(x, full_matrices=True)[:2]
    sigma, along = np.zeros(len(x)), (s.T @ y) ** 2
    sigma[: len(rest)] = rest**2

    def loss(logs):
        variance = sigma / np.exp(logs[0]) + np.exp(-logs[1])
        return (np.log(2 * np.pi * variance) + along / variance).sum() / 2 / len(x)

    start, options = (np.log(np.median(sigma[sigma > 0])), 2.0), dict(xatol=1e-8, fatol=1e-12)
    return -minimize(loss, start, method="Nelder-Mead", options=options).fun


@pytest.mark.parametrize("shape, dead", [((100, 8), 0), ((100, 8), 200), ((30, 50), 0), ((30, 50), 200)])
def test_log_me_is_the_maximum_of_the_evidence(shape, dead):
    x = np.pad(randn(*shape).numpy(), ((0, 0), (0, dead)))
    y = x[:, :3] @ [1.0, -2, 0.5] + randn(shape[0], seed=1).numpy()
    assert log_me(x, y[:, None]) == pytest.approx(maximum(x, y), abs=2e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_neither_scale_nor_dead_units_nor_rounding_changes_log_me(scale, dtype):
    x = torch.from_numpy(X[:300]).to(dtype)
    expected = log_me(X[:300], Y[:300])
    assert log_me(x * scale, Y[:300]) == pytest.approx(expected, abs=1e-6)
    assert log_me(torch.cat([x, torch.zeros(300, 200).to(dtype)], 1), Y[:300]) == pytest.approx(expected, abs=1e-6)
    around = 10 + 0.1 * randn(300, 5) @ randn(5, 64, seed=1)  # five directions and the mean; rounding must add none
    assert log_me(around.to(dtype), Y[:300]).notes["rank"] == 6
    targets = X[:300, 20:24] + 1
    ours, scaled = log_me(x, targets), log_me(x, targets * 1e6)
    assert scaled == pytest.approx(ours - np.log(1e6), abs=1e-6) and scaled.notes["beta"][0] == pytest.approx(
        ours.notes["beta"][0] / 1e12, rel=1e-5
    )


def published(features, labels, rounds=2000, tolerance=1e-8):
    "The published `_fit_fixed_point` on truncated singular vectors, one class at a time, run until it settles."
    (n, d), found = features.shape, []
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    u, s = u[:, s > 1e-10 * s[0]], s[s > 1e-10 * s[0]] ** 2
    for c in np.unique(labels):
        y = (labels == c).astype(float)
        along = (u.T @ y) ** 2
        a = b = 1.0
        for _ in range(rounds):
            t = a / b
            gamma = (s / (s + t)).sum()
            m2, r2 = (s * along / (t + s) ** 2).sum(), (along / (1 + s / t) ** 2).sum() + (y @ y) - along.sum()
            a, b = gamma / (m2 + 1e-12), (n - gamma) / (r2 + 1e-12)
            if abs(a / b - t) <= tolerance * t:
                break
        m2 = (s * along / (a / b + s) ** 2).sum()
        r2 = (along / (1 + s * b / a) ** 2).sum() + (y @ y) - along.sum()
        terms = d * np.log(a) + n * np.log(b / 2 / np.pi) - np.log(a + b * s).sum() - b * r2 - a * m2
        found.append(terms / 2 / n)
    return np.mean(found)


@pytest.mark.parametrize("rows", [slice(None), slice(40), slice(64)])
def test_log_me_equals_the_published_algorithm_on_either_side(rows):
    x, y = X[rows], Y[rows]
    assert log_me(x, y, exact=False, tolerance=1e-8, iterations=2000) == pytest.approx(published(x, y), abs=1e-4)
    full = randn(len(x), 12).numpy() + y[:, None]  # at full rank it is the evidence as well
    assert log_me(full, y) == pytest.approx(published(full, y), abs=1e-4)


@pytest.mark.parametrize("shape", [(60, 5), (20, 40)])
def test_exact_log_me_is_the_density_of_a_gaussian(shape):
    x, y = randn(*shape).numpy(), np.arange(shape[0]) % 3
    notes = (score := log_me(x, y)).notes
    found = []
    for c, alpha, beta in zip(range(3), notes["alpha"], notes["beta"], strict=True):
        covariance = x @ x.T / alpha + np.eye(len(x)) / beta
        found.append(multivariate_normal.logpdf(y == c, np.zeros(len(x)), covariance) / len(x))
    assert score == pytest.approx(np.mean(found), abs=1e-6)


def test_the_fixed_point_is_that_of_bayesian_ridge():
    x, w = randn(500, 8).numpy(), randn(8, seed=1).numpy()
    target = x @ w + 0.3 * randn(500, seed=2).numpy()
    fitted = BayesianRidge(fit_intercept=False, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-10, max_iter=1000).fit(
        x, target
    )
    notes = log_me(x, target[:, None], tolerance=1e-10, iterations=1000).notes
    assert notes["alpha"][0] == pytest.approx(fitted.lambda_, rel=1e-3)
    assert notes["beta"][0] == pytest.approx(fitted.alpha_, rel=1e-3)


def test_dead_dimensions_change_the_published_form_only():
    padded = np.c_[X, np.zeros((len(X), 50))]
    assert log_me(padded, Y) == pytest.approx(log_me(X, Y), abs=1e-9)
    assert log_me(padded, Y, exact=False) > log_me(X, Y, exact=False) + 0.1
    full = X[:, X.std(0) > 0.5]
    assert log_me(full, Y) == pytest.approx(log_me(full, Y, exact=False)) and log_me(full, Y).notes["rank"] == full.shape[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.booleans())
def test_both_scores_ignore_rotation_order_and_names_of_classes(seed, exact):
    x, y = randn(60, 6, seed=seed), torch.arange(60) % 4
    x[:, 0] += y
    rotation, order = torch.linalg.qr(randn(6, 6, seed=seed + 1)).Q, torch.randperm(60)
    renamed = torch.tensor([7, -3, 100, 2])[y]
    for score in (lambda x, y: log_me(x, y, exact=exact), trans_rate):
        assert score((x @ rotation)[order], renamed[order]) == pytest.approx(score(x, y), abs=1e-8)


def test_both_scores_prefer_true_labels_and_fall_with_noise():
    shuffled = np.random.default_rng(0).permutation(Y)
    for score in (log_me, trans_rate):
        assert score(X, Y) > score(X, shuffled) + 0.1
        found = [score(X + s * np.random.default_rng(1).normal(size=X.shape), Y) for s in (0.5, 5, 10, 20)]
        assert found == sorted(found, reverse=True)


# ---- TransRate


def naive_trans_rate(z, y, eps=1e-4, balanced=False):
    def rate(z):
        return np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / (len(z) * eps))[1] / 2

    z = z - z.mean(0)
    classes = np.unique(y)
    shares = [1 / len(classes) if balanced else (y == c).mean() for c in classes]
    return rate(z) - sum(share * rate(z[y == c]) for c, share in zip(classes, shares, strict=True))


@pytest.mark.parametrize("rows", [slice(None), slice(40), slice(64)])
@pytest.mark.parametrize("eps", [1e-4, 1.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_trans_rate_equals_its_definition_on_either_side(rows, eps, balanced):
    expected = naive_trans_rate(X[rows], Y[rows], eps, balanced)
    assert trans_rate(X[rows], Y[rows], eps, balanced, block=17) == pytest.approx(expected, abs=1e-7)


def test_trans_rate_limits():
    assert trans_rate(X, np.zeros(len(X))) == 0 and trans_rate(np.ones((9, 4)), np.arange(9) % 3) == 0
    assert trans_rate(10 * X, Y) == pytest.approx(trans_rate(X, Y, eps=1e-6))
    assert trans_rate(X, Y, eps=1e9) < 1e-3
    rate = trans_rate(X, Y)
    assert rate.notes["rate"] - rate.notes["within"] == pytest.approx(rate)
    alone = trans_rate(X[:10], np.arange(10))  # every class one example
    assert np.isfinite(alone) and alone.notes["within"] > 0


# ---- cross-dataset probing


def toy(name, channels=1, size=8, classes=3, seed=0, n=90):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 60, (n, channels, size, size), generator=g)
    images += (labels * 60)[:, None, None, None]
    parts = [image_split(images[rows].to(torch.uint8), labels[rows]) for rows in (slice(0, 60), slice(60, n))]
    spec = Spec(name, (channels, size, size), tuple("abc"), (0.5,), (0.25,))
    return Data(spec, *parts)


class Small(nn.Module):
    "A convolution with a size, as ours have."

    def __init__(self, channels=3, size=8):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.img_size = nn.Conv2d(channels, 6, 3), size

    def forward(self, x):
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return self.conv(x).relu().flatten(2).mean(2)


def test_every_pair_equals_the_probe_by_hand():
    sets, nets = {"gray": toy("g"), "color": toy("c", 3, 10)}, {"small": Small(), "pixels": nn.Flatten()}
    table = cross_dataset(nets, sets, l2=0.1, trained_on={"small": "nothing"})
    assert list(table.columns) == "encoder trained_on set protocol value low high of adapted".split()
    assert list(table.adapted) == ["1 -> 3 channels", "10 x 10 -> 8 x 8 pixels", "", ""]
    assert list(table.trained_on) == ["nothing", "nothing", "", ""] and (table.value > 0.9).all()
    d = sets["gray"]
    by_hand = linear_probe(
        embed(nets["small"], d.train["images"].expand(-1, 3, -1, -1)),
        d.train["labels"],
        embed(nets["small"], d.test["images"].expand(-1, 3, -1, -1)),
        d.test["labels"],
        l2=0.1,
    )
    score = table.attrs["scores"]["small", "gray"]
    assert score == by_hand and np.array_equal(score.samples, by_hand.samples)
    matrix = as_matrix(table)
    assert list(matrix.index) == ["small", "pixels"] and list(matrix.columns) == ["gray", "color"]
    assert matrix.loc["small", "gray"] == score


def test_by_knn():
    d = toy("g")
    table = cross_dataset({"pixels": nn.Flatten()}, {"g": d}, protocol="knn", k=5)
    expected = knn(d.train["images"].flatten(1), d.train["labels"], d.test["images"].flatten(1), d.test["labels"], k=5)
    assert table.value[0] == expected and table.protocol[0] == expected.protocol


def test_adapting_repeats_and_resizes_and_keeps_what_fits():
    images = toy("g").train["images"]
    same, done = adapt(images, Small(1))
    assert same is images and done == ""
    repeated, done = adapt(images, Small(3))
    assert repeated.dtype == torch.uint8 and torch.equal(repeated[:, 2:], images) and done == "1 -> 3 channels"
    resized, done = adapt(images, Small(1, 16))
    assert resized.shape[-2:] == (16, 16) and 0 <= resized.min() and resized.max() <= 1
    assert resized.mean() == pytest.approx(images.float().mean().item() / 255, abs=0.02) and "16 x 16" in done


def test_misfits_are_named_before_any_embedding():
    class Counting(Small):
        seen = 0

        def forward(self, x):
            Counting.seen += len(x)
            return super().forward(x)

    with pytest.raises(ValueError, match="'gray net' cannot embed 'color'.*3 channels"):
        cross_dataset({"first": Counting(3), "gray net": Small(1)}, {"color": toy("c", 3)})
    assert Counting.seen <= 2
    unknown = toy("u")
    unknown.train["labels"][:5] = -1
    with pytest.raises(ValueError, match="5 labels of u are unknown"):
        cross_dataset({"a": Small()}, {"u": unknown})
    with pytest.raises(ValueError, match="finetune"):
        cross_dataset({"a": Small()}, {"g": toy("g")}, protocol="finetune")
    with pytest.raises(ValueError, match="no pair"):
        cross_dataset({}, {"g": toy("g")})


def test_the_encoders_of_this_package_say_their_channels_and_size():
    from ssl_nb import encoders

    net = encoders.create("vit", in_chans=3, img_size=16, depth=1, embed_dim=32, num_heads=2)
    assert isinstance(net, Encoder)
    done = cross_dataset({"vit": net}, {"g": toy("g")}, l2=0.1).adapted[0]
    assert done == "1 -> 3 channels, 8 x 8 -> 16 x 16 pixels"


# ---- H-score


def naive_h_score(x, y):
    means = np.stack([x[y == c].mean(0) for c in y])
    return np.trace(np.linalg.pinv(np.cov(x.T), rcond=1e-12, hermitian=True) @ np.cov(means.T))


@pytest.mark.parametrize("shape", [(200, 8), (30, 50)])
@pytest.mark.parametrize("block", [4096, 7])
def test_h_score_is_its_definition(shape, block):
    x, y = randn(*shape).numpy() + 2, np.arange(shape[0]) % 3
    x[:, 0] += y
    assert h_score(x, y, block=block) == pytest.approx(naive_h_score(x, y), rel=1e-6)
    from sklearn.covariance import LedoitWolf

    fitted, means = LedoitWolf().fit(x), np.stack([x[y == c].mean(0) for c in y])
    expected = (1 - fitted.shrinkage_) * np.trace(np.linalg.solve(fitted.covariance_, np.cov(means.T, bias=True)))
    shrunk = h_score(x, y, shrink=True, block=block)
    assert shrunk == pytest.approx(expected) and shrunk.notes["shrinkage"] == pytest.approx(fitted.shrinkage_)


def test_h_score_sums_squared_canonical_correlations():
    from ssl_nb.evaluators.similarity import cca

    onehot = np.eye(10)[Y]
    score = cca(X, onehot, squared=True)
    assert h_score(X, Y) == pytest.approx(np.square(score.samples).sum())


def test_h_score_in_the_limits():
    onehot, y = np.eye(4)[np.arange(80) % 4], np.arange(80) % 4
    assert h_score(onehot, y) == pytest.approx(3) and h_score(randn(5000, 8), np.arange(5000) % 4) < 0.02
    assert h_score(randn(20, 40), y[:20]) == pytest.approx(3)  # any labels, with few examples
    assert h_score(randn(20, 40), y[:20], shrink=True) < 2
    x = randn(80, 6)
    x[:, 0] += torch.arange(80) % 4
    mixed = x @ (randn(6, 6, seed=1) + 3 * torch.eye(6))
    assert h_score(1e3 * mixed + 7, y) == pytest.approx(h_score(x, y))
    for scale in (1e25, 1e-25):
        for shrink in (False, True):
            assert h_score(x.float() * scale, y, shrink) == pytest.approx(h_score(x, y, shrink), rel=1e-4)
    dead = torch.cat([x, torch.zeros(80, 200)], 1)
    assert h_score(dead, y) == pytest.approx(h_score(x, y))


# ---- LEEP


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 40), sources=st.integers(1, 6), seed=st.integers(0, 99))
def test_leep_is_its_definition(n, sources, seed):
    p, y = randn(n, sources, seed=seed).softmax(1).numpy(), np.arange(n) % 3
    joint = np.stack([p[y == c].sum(0) for c in range(3)]) / n
    expected = np.log(((joint / joint.sum(0))[y] * p).sum(1))
    score = leep(p, y)
    assert score == pytest.approx(expected.mean()) and score.samples == pytest.approx(expected) and score <= 0
    assert leep(torch.from_numpy(p), np.array([7, -2, 100])[y]) == pytest.approx(score)


def test_leep_in_the_limits():
    y = np.arange(60) % 4
    perfect, even = leep(np.eye(4)[y], y), leep(np.full((60, 5), 0.2), y)
    assert perfect == 0 and perfect.interval is None and even == pytest.approx(-np.log(4))
    assert leep(np.eye(4)[y // 2], y) == pytest.approx(-np.log(2))
    empty = np.c_[np.eye(4)[y], np.zeros(60)]  # a source class that never occurs
    assert leep(empty, y) == 0


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: leep(randn(9, 3), np.arange(9) % 2), "softmax"),
        (lambda: leep(np.ones((9, 3)), np.arange(9) % 2), "sum to 1"),
        (lambda: leep(np.eye(9), np.arange(8)), "9 rows"),
        (lambda: h_score(X, 0 * Y), "one class"),
        (lambda: h_score(np.ones((9, 3)), np.arange(9) % 2), "the same"),
        (lambda: h_score(X, Y[:9]), "1797 rows"),
    ],
)
def test_refusals_of_leep_and_h_score(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ---- forgetting


A = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.5, 0.75, 0.6]])


def test_forgetting_by_hand():
    found = forgetting(A)
    assert found["average_accuracy"] == pytest.approx((0.5 + 0.75 + 0.6) / 3)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.7 - 0.75)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.5 - 0.9) + (0.75 - 0.7)) / 2)
    assert all(score.interval is None for score in found.values())


def test_forgetting_counts_zero_shot_unless_told():
    early = A.copy()
    early[0, 1] = 0.8
    assert forgetting(early)["forgetting"] == pytest.approx((0.4 + 0.05) / 2)
    assert forgetting(early, learned_only=True)["forgetting"] == pytest.approx((0.4 - 0.05) / 2)


@pytest.mark.filterwarnings("error")
def test_what_is_not_measured_above_the_diagonal_is_left_out():
    partial = np.where(np.tri(3, dtype=bool), A, np.nan)
    expected = forgetting(A, learned_only=True)
    for learned_only in (False, True):
        found = forgetting(partial, learned_only)
        assert {k: float(v) for k, v in found.items()} == pytest.approx({k: float(v) for k, v in expected.items()})


def test_forgetting_over_seeds_has_student_t_intervals():
    from scipy import stats

    runs = A + 0.05 * np.random.default_rng(0).normal(size=(6, 3, 3))
    each = [float(forgetting(run)["forgetting"]) for run in runs]
    score = forgetting(torch.from_numpy(runs))["forgetting"]
    assert score == pytest.approx(np.mean(each)) and score.samples == pytest.approx(each) and score.of == "seeds"
    assert score.interval == pytest.approx(stats.t.interval(0.95, 5, np.mean(each), stats.sem(each)))


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.ones((3, 2)), "shape"),
        (np.ones((1, 1)), "2 tasks"),
        (np.ones(3), "shape"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.where(np.eye(3, dtype=bool), np.inf, 0.5), "infinite"),
        (np.ones((0, 3, 3)), "shape"),
    ],
)
def test_bad_accuracy_is_named(bad, words):
    with pytest.raises(ValueError, match=words):
        forgetting(bad)


# ---- input of any kind


@pytest.mark.parametrize("measure", [log_me, trans_rate])
def test_dtypes_gradients_and_layouts(measure):
    x, y = torch.from_numpy(X[:300]), torch.from_numpy(Y[:300])
    expected = float(measure(x, y))
    for change in (
        lambda t: t.half(),
        lambda t: t.long(),
        lambda t: t.float().requires_grad_(),
        lambda t: t.T.contiguous().T,
        lambda t: t.numpy().astype(np.float32),
    ):
        assert float(measure(change(x), y)) == pytest.approx(expected, abs=1e-5)
    assert measure(x, y.double()) == measure(x, y.numpy()) == expected


@pytest.mark.parametrize("measure", [log_me, trans_rate])
@pytest.mark.parametrize(
    "x, y, words",
    [
        (randn(30, 3), torch.zeros(29), "30 rows"),
        (randn(30, 3), torch.full((30,), 0.5), "whole"),
        (randn(0, 3), torch.zeros(0), "shape"),
        (randn(1, 3), torch.zeros(1), "rows or more"),
        (torch.full((30, 3), torch.nan), torch.arange(30) % 2, "NaN"),
        (randn(30), torch.arange(30) % 2, "shape"),
    ],
)
def test_bad_input_is_named(measure, x, y, words):
    with pytest.raises(ValueError, match=words):
        measure(x, y)


def test_limits_are_named():
    for call, words in (
        (lambda: log_me(X, np.zeros(len(X))), "one class"),
        (lambda: log_me(np.zeros((20, 3)), np.arange(20) % 2), "zero"),
        (lambda: log_me(X, np.ones((5, 2))), "as many targets"),
        (lambda: trans_rate(X, Y, eps=0), "eps=0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
