"""Evaluators against published conventions, independent oracles, constructed cases and bad input."""

import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from ssl_nb import evaluators as ev
from ssl_nb.evaluators.neighbors import top_k
from ssl_nb.evaluators.scores import rounding

X, Y = load_digits(return_X_y=True)
SPLIT = X[:1000], Y[:1000], X[1000:], Y[1000:]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_spectrum(s, n=300, seed=0):
    s = torch.as_tensor(s, dtype=torch.float64)
    u, v = (torch.linalg.qr(randn(m, len(s), seed=seed, dtype=torch.float64)).Q for m in (n, len(s)))
    return u * s @ v.T


# ---- reference values (shared/reference/evaluators.md), on digits


@pytest.mark.parametrize(
    "evaluate, value, digits",
    [
        (ev.rankme, 29.629946, 6),
        (ev.effective_rank, 29.629086, 6),
        (ev.feature_std, 0.059323, 6),
        (ev.uniformity, -1.163522, 6),
        (lambda x: ev.rankme(x, eps=1e-5), 29.711006, 6),
        (lambda x: ev.rankme(ev.spectrum(x, center=True) * 1), 39.7085, 4),
        (lambda x: ev.log_spectrum(x).isfinite().sum(), 61, 6),
    ],
)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16]
)  # digits are exact in all three
def test_reference_values(evaluate, value, digits, dtype):
    assert float(evaluate(torch.from_numpy(X).to(dtype))) == pytest.approx(value, abs=0.6 * 10**-digits)


@pytest.mark.parametrize(
    "k, temperature, value", [(20, 0.07, 0.956085), (200, 0.07, 0.924718), (200, 0.1, 0.913425)]
)
def test_knn_reference_values(k, temperature, value):
    score = ev.knn(*SPLIT, k=k, temperature=temperature)
    assert score == pytest.approx(value, abs=1e-6)
    assert score.protocol == f"knn@{k} (t {temperature})" and score.of == "examples"
    assert score.interval[0] < score < score.interval[1]


# ---- oracles


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (64, 64)])
@pytest.mark.parametrize(
    "options", [{}, {"center": True}, {"normalize": True}, {"center": True, "normalize": True}]
)
@pytest.mark.parametrize("block", [4096, 17])
def test_spectrum_equals_lapack(shape, options, block):
    x = randn(*shape, dtype=torch.float64) + 3
    y = F.normalize(x, dim=1) if options.get("normalize") else x
    y = y - y.mean(0) if options.get("center") else y
    expected = torch.linalg.svdvals(y)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = ev.spectrum(x.to(dtype), block=block, **options)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected[0].item())


def test_small_singular_values_survive_in_float64():
    s = torch.logspace(0, -12, 13, dtype=torch.float64)
    torch.testing.assert_close(ev.spectrum(with_spectrum(s)), s, rtol=1e-3, atol=0)


def test_feature_std_equals_lightly():
    from lightly.utils.debug import std_of_l2_normalized

    x = randn(200, 30) + 1
    assert ev.feature_std(x) == pytest.approx(std_of_l2_normalized(x).item(), rel=1e-5)


def test_log_spectrum_is_of_the_covariance():
    x = randn(500, 12, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(torch.cov(F.normalize(x, dim=1).T)).flip(0).log()
    torch.testing.assert_close(ev.log_spectrum(x), expected)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (200, 0.1)])
def test_knn_predicts_as_lightly_and_as_float64(k, temperature):
    from lightly.utils.benchmarking.knn import knn_predict

    train, test = F.normalize(randn(3000, 48), dim=1), F.normalize(randn(500, 48, seed=1), dim=1)
    labels, truth = torch.arange(3000) % 7, torch.arange(500) % 7
    lightly = knn_predict(test, train.T, labels, 7, knn_k=k, knn_t=temperature)[:, 0]
    values, index = (test.double() @ train.double().T).topk(k)
    votes = torch.zeros(500, 7, dtype=torch.float64).scatter_add_(
        1, labels[index], (values / temperature).exp()
    )
    ours = ev.knn(train, labels, test, truth, k=k, temperature=temperature).samples
    assert np.array_equal(ours, (lightly == truth).numpy()) and np.array_equal(
        ours, (votes.argmax(1) == truth).numpy()
    )


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 400),
    share=st.floats(0, 1),
    rows=st.integers(1, 5),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_top_k_is_exact(n, share, rows, ties, seed):
    x, k = randn(rows, n, seed=seed), max(1, round(share * n))
    x = x.round() if ties else x
    values, index = top_k(x, k)
    assert torch.equal(values, x.topk(k).values) and torch.equal(x.gather(1, index), values)
    assert all(len(set(row)) == k for row in index.tolist())


@settings(max_examples=40, deadline=None)
@given(
    q=st.integers(1, 40),
    n=st.integers(1, 300),
    d=st.integers(1, 20),
    share=st.floats(0, 1),
    tile=st.sampled_from([1, 100, 3000, None]),
)
def test_nearest_is_exact_in_any_tile(q, n, d, share, tile):
    queries, bank, k = (
        randn(q, d, dtype=torch.float64),
        randn(n, d, seed=1, dtype=torch.float64),
        max(1, round(share * n)),
    )
    similarity, index = ev.nearest(queries, bank, k, tile=tile)
    cosine = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    torch.testing.assert_close(similarity, cosine.topk(k).values)
    torch.testing.assert_close(cosine.gather(1, index), similarity)
    assert all(len(set(row)) == k for row in index.tolist())


def test_nearest_merges_over_many_blocks_of_the_bank():
    queries, bank = randn(9, 8), randn(5000, 8, seed=1)
    whole, tiled = ev.nearest(queries, bank, 5), ev.nearest(queries, bank, 5, tile=64)
    assert torch.equal(whole[1], tiled[1]) and torch.allclose(whole[0], tiled[0])


def test_alignment_and_uniformity_equal_pdist():
    z0, z1 = (
        F.normalize(randn(150, 9, dtype=torch.float64), dim=1),
        F.normalize(randn(150, 9, seed=1).double(), dim=1),
    )
    assert ev.alignment(z0, z1) == pytest.approx((z0 - z1).norm(dim=1).pow(2).mean().item())
    assert ev.alignment(z0, z1, alpha=1) == pytest.approx((z0 - z1).norm(dim=1).mean().item())
    for t in (2, 0.5):
        assert ev.uniformity(z0, t=t, block=32) == pytest.approx(
            torch.pdist(z0).pow(2).mul(-t).exp().mean().log().item()
        )


def test_linear_probe_equals_scikit_learn_at_one_strength():
    from sklearn.linear_model import LogisticRegression

    x, y = randn(400, 10, dtype=torch.float64), (torch.arange(400) % 3)
    x[:, 0] += y
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    weight, bias, _ = ev.fit_linear(x, y, 3, l2=0.05)
    theirs = LogisticRegression(C=1 / (0.05 * 400), tol=1e-10, max_iter=5000).fit(z, y.numpy())
    np.testing.assert_allclose(F.softmax(x @ weight + bias, 1), theirs.predict_proba(z), atol=1e-4)


def test_paired_t_interval_equals_scipy():
    from scipy.stats import ttest_rel

    a, b = [0.9, 0.8, 0.95, 0.7], [0.85, 0.82, 0.9, 0.6]
    got = ev.paired_difference(a, b, level=0.9)
    assert got.interval == pytest.approx(tuple(ttest_rel(a, b).confidence_interval(0.9)))
    assert got.of == "seeds" and "t)" in got.protocol


# ---- constructed cases


def test_known_ranks():
    flat, half = with_spectrum(torch.ones(32)), with_spectrum((torch.arange(32) < 8).double())
    assert ev.effective_rank(flat) == pytest.approx(32) and ev.effective_rank(half) == pytest.approx(8)
    assert ev.effective_rank(half.float()) == pytest.approx(8, abs=1e-4)
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    assert ev.effective_rank(5 * p) == pytest.approx(
        math.exp(-(p * p.log()).sum())
    )  # a spectrum in place of features


def test_gaussian_of_known_covariance():
    scale = torch.tensor([3.0, 2.0, 1.0, 0.5])
    s = ev.spectrum(randn(40_000, 4) * scale, center=True)
    torch.testing.assert_close((s**2 / 39_999).sqrt().float(), scale, rtol=0.02, atol=0)
    assert ev.feature_std(randn(4000, 64)) == pytest.approx(1 / 8, rel=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e15])
def test_collapsed_batch(value):
    z = torch.full((100, 32), value)
    assert ev.effective_rank(z) == pytest.approx(float(value > 0), abs=1e-4)
    assert ev.rankme(z) == pytest.approx(float(value > 0), abs=1e-3)
    assert ev.feature_std(z) < 1e-6 and ev.uniformity(z) == pytest.approx(0, abs=1e-5)
    assert ev.log_spectrum(z).isfinite().sum() <= 1


def test_rotation_changes_nothing():
    z = randn(300, 16, dtype=torch.float64) * torch.logspace(0, -3, 16, dtype=torch.float64)
    turned = z @ torch.linalg.qr(randn(16, 16, seed=1, dtype=torch.float64)).Q
    for evaluate in (ev.rankme, ev.effective_rank, ev.uniformity, lambda z: ev.alignment(z, z.flip(0))):
        assert evaluate(turned) == pytest.approx(evaluate(z), rel=1e-9)
    assert torch.allclose(ev.nearest(z, z, 3)[1], ev.nearest(turned, turned, 3)[1])


def test_perfect_and_chance():
    y = torch.arange(600) % 4
    z = F.one_hot(y, 4).float() + 0.05 * randn(600, 4)
    shuffled = y[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    for evaluate in (ev.knn, ev.linear_probe):
        assert evaluate(z[:400], y[:400], z[400:], y[400:]) == 1
        chance = evaluate(z[:400], shuffled[:400], z[400:], shuffled[400:])
        assert chance.interval[0] - 0.05 < 0.25 < chance.interval[1] + 0.05


def test_probe_chooses_on_train_only():
    a = ev.linear_probe(*SPLIT)
    b = ev.linear_probe(*SPLIT[:2], SPLIT[2].copy(), (SPLIT[3] + 1) % 10)
    assert all(a.notes[name] == b.notes[name] for name in ("l2", "validation"))
    assert a.notes["l2"] in (10, 1, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
    assert (
        "chosen on 20% of train" in a.protocol
        and "offline_linear (l2 0.1)" == ev.linear_probe(*SPLIT, l2=0.1).protocol
    )


def test_split_rows_is_stratified():
    from ssl_nb.evaluators.probes import split_rows

    y = torch.tensor([0] * 100 + [1] * 10 + [2] * 2 + [3])
    valid = split_rows(y, 0.2)
    assert torch.bincount(y[valid], minlength=4).tolist() == [20, 2, 1, 0]
    assert torch.equal(valid, split_rows(y, 0.2)) and not torch.equal(valid, split_rows(y, 0.2, seed=1))


def test_labels_of_any_integers():
    x, y = SPLIT[0], SPLIT[1]
    far = np.array([-7, 3, 10**9, 4, 5, 6, 77, 8, 9, 10])
    for evaluate in (ev.knn, ev.linear_probe):
        assert evaluate(x, far[y], SPLIT[2], far[SPLIT[3]]) == evaluate(*SPLIT)
    unseen = np.full(797, 55)
    assert ev.knn(x, y, SPLIT[2], unseen) == 0


def test_online_probe_learns_and_leaves_the_encoder_alone():
    torch.manual_seed(0)
    x, y = torch.from_numpy(SPLIT[0]).float(), torch.from_numpy(SPLIT[1])
    encoder, probe = torch.nn.Linear(64, 64), ev.OnlineProbe(64, 10)
    optimizer = torch.optim.SGD(probe.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        probe.loss(encoder(x), y).backward()
        optimizer.step()
    assert encoder.weight.grad is None
    state = pickle.dumps(probe.state_dict())
    score = probe.score(encoder(torch.from_numpy(SPLIT[2]).float()), SPLIT[3])
    assert score > 0.85 and score.protocol == "online_linear" and probe.training
    assert pickle.dumps(probe.state_dict()) == state


# ---- scores


def test_score_is_a_float_with_a_protocol():
    score = ev.Score(0.912, "knn@20 (t 0.07)", (0.905, 0.919), "examples", l2=3)
    assert repr(score) == str(score) == "knn@20 (t 0.07) = 0.912 [0.905, 0.919]"
    assert json.dumps(score) == "0.912" and f"{score:.1%}" == "91.2%" and np.asarray([score]).dtype == float
    again = pickle.loads(pickle.dumps(score))
    assert again == score and vars(again) == vars(score) and score.notes == {"l2": 3}
    assert score.row() == dict(protocol="knn@20 (t 0.07)", value=0.912, low=0.905, high=0.919, of="examples")
    assert repr(ev.Score(2.5e-5, "x")) == "x = 2.5e-05"


def test_scores_can_be_plotted():  # matplotlib unwraps anything that has `.values`
    import matplotlib.axes
    from matplotlib.figure import Figure

    ax: matplotlib.axes.Axes = Figure().subplots()
    assert ax.plot([0], ev.knn(*SPLIT))[0].get_ydata()[0] == pytest.approx(0.956, abs=1e-3)


def test_table():
    rows = ev.table({"a": [ev.Score(1, "x")], "b": [ev.Score(2, "x", (1, 3), "seeds"), ev.Score(3, "y")]})
    assert list(rows.columns) == ["features", "protocol", "value", "low", "high", "of"] and len(rows) == 3
    assert list(ev.table([ev.Score(1, "x")]).columns)[0] == "protocol"


def test_bootstrap_is_close_to_theory_and_repeatable():
    right = np.repeat([1.0, 0.0], [800, 200])
    low, high = ev.bootstrap(right, n=4000)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.003) and high == pytest.approx(0.8 + half, abs=0.003)
    assert ev.bootstrap(right) == ev.bootstrap(torch.from_numpy(right)) != ev.bootstrap(right, seed=1)
    narrow = ev.bootstrap(right, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert ev.bootstrap(right, np.median) == (1, 1)
    rows = randn(100, 3)  # rows are resampled as a whole
    assert ev.bootstrap(rows, lambda r: float(r.shape == (100, 3))) == (1, 1)


def test_pairing_of_scores_by_example():
    both = np.repeat([[1, 1], [0, 0], [1, 0], [0, 1]], [640, 100, 40, 20], axis=0)
    ours, base = (ev.mean_score(column, "knn") for column in both.T)
    difference = ev.paired_difference(ours, base)
    assert ours.interval[0] < base.interval[1] and difference.interval[0] > 0
    assert (
        difference == pytest.approx(20 / 800)
        and "Bonett-Price" in difference.protocol
        and difference.of == "examples"
    )
    assert ev.paired_difference([0.9], [0.8]).interval is None


# ---- input: whatever can be measured is, the rest is refused with a reason

EVERY = {
    "spectrum": ev.spectrum,
    "rankme": ev.rankme,
    "effective_rank": ev.effective_rank,
    "feature_std": ev.feature_std,
    "log_spectrum": ev.log_spectrum,
    "uniformity": ev.uniformity,
    "alignment": lambda z: ev.alignment(z, z),
    "nearest": lambda z: ev.nearest(z, z, 1)[0],
    "knn": lambda z: ev.knn(z, np.arange(len(z)) % 2, z, np.arange(len(z)) % 2, 1),
    "linear_probe": lambda z: ev.linear_probe(z, np.arange(len(z)) % 2, z, np.arange(len(z)) % 2),
}
each = pytest.mark.parametrize("evaluate", EVERY.values(), ids=EVERY.keys())


@each
@pytest.mark.parametrize(
    "bad, reason",
    [
        (torch.tensor([[1.0, math.nan], [0, 1]]), "NaN or infinity in 1 of 2 rows (first: row 0)"),
        (torch.tensor([[1.0, 0.0], [0, -math.inf]]), "NaN or infinity in 1 of 2 rows (first: row 1)"),
        (torch.zeros(0, 3), "(0, 3)"),
        (torch.zeros(4, 0), "(4, 0)"),
        (torch.zeros(2, 3, 4), ".flatten(1)"),
        (torch.zeros(4, 3, dtype=torch.complex64), "real numbers"),
        (torch.zeros(4, 3, dtype=torch.bool), "real numbers"),
    ],
)
def test_bad_features(evaluate, bad, reason):
    with pytest.raises(ValueError) as error:
        evaluate(bad)
    assert reason in str(error.value)


@each
@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(4, 40),
    d=st.integers(1, 40),
    seed=st.integers(0, 9),
    dtype=st.sampled_from(
        [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64]
    ),
)
def test_any_shape_and_dtype(evaluate, n, d, seed, dtype):
    z = (randn(n, d, seed=seed) * 3 + 4).clamp(0.5, 50).to(dtype)
    got, plain = (torch.as_tensor(evaluate(x), dtype=torch.float64) for x in (z, z.double()))
    if evaluate in (EVERY["knn"], EVERY["linear_probe"]):  # equal similarities may come in any order
        assert 0 <= got <= 1 and 0 <= plain <= 1
    elif evaluate in (EVERY["rankme"], EVERY["effective_rank"]):
        assert got == evaluate(ev.spectrum(z) * 1)
    elif evaluate in (EVERY["spectrum"], EVERY["log_spectrum"]):  # what rounding to the dtype explains is zero
        zero = 0 if evaluate is EVERY["spectrum"] else -math.inf
        torch.testing.assert_close(got, plain.where(got != zero, got), rtol=1e-4, atol=1e-4)
        share = rounding(dtype, n, d) * (1 if evaluate is EVERY["spectrum"] else math.sqrt(n))  # rows of length 1
        size = ev.spectrum(z.double())[0] if evaluate is EVERY["spectrum"] else 1 / math.sqrt(n - 1)
        lost = plain[got == zero] if evaluate is EVERY["spectrum"] else (plain[got == zero] / 2).exp()
        assert (lost <= 1.01 * share * size).all()
    else:
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@each
def test_graph_layout_and_context_do_not_matter(evaluate):
    z = randn(30, 12) + 1
    expected = torch.as_tensor(evaluate(z))
    kept = z.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attached = torch.as_tensor(evaluate((z * 1.0).requires_grad_()))
    assert torch.equal(attached, expected) and not attached.requires_grad
    torch.testing.assert_close(torch.as_tensor(evaluate(z.T.contiguous().T)), expected)
    torch.testing.assert_close(torch.as_tensor(evaluate(torch.stack([z, z], 2)[:, :, 0])), expected)
    frozen = z.numpy().copy()
    frozen.flags.writeable = False
    torch.testing.assert_close(torch.as_tensor(evaluate(frozen)), expected)
    assert torch.equal(z, kept)  # nothing is written to the input


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: ev.knn(*SPLIT, k=1001), "k=1001 is more than the 1000 rows"),
        (lambda: ev.knn(*SPLIT, k=0), "k=0"),
        (lambda: ev.knn(*SPLIT, k=2.5), "k=2.5"),
        (lambda: ev.knn(*SPLIT, temperature=0), "temperature=0"),
        (lambda: ev.knn(X[:9], Y[:8], X, Y), "9 rows"),
        (lambda: ev.knn(X[:9], Y[:9] + 0.5, X, Y), "whole numbers"),
        (lambda: ev.knn(X, Y, X[:, :9], Y, k=1), "same encoder"),
        (lambda: ev.linear_probe(X, Y, X[:, :9], Y), "same encoder"),
        (lambda: ev.linear_probe(X, 0 * Y, X, Y), "one class"),
        (lambda: ev.linear_probe(*SPLIT, valid_fraction=1), "valid_fraction"),
        (lambda: ev.linear_probe(X[:9], np.arange(9), X, Y), "one example only"),
        (lambda: ev.alignment(X, X[:9]), "row by row"),
        (lambda: ev.alignment(X, X, alpha=0), "alpha=0"),
        (lambda: ev.uniformity(X[:1]), "2 rows or more"),
        (lambda: ev.uniformity(X, t=-1), "t=-1"),
        (lambda: ev.rankme(torch.tensor([1.0, -1.0])), "negative"),
        (lambda: ev.rankme(torch.tensor([math.nan])), "NaN"),
        (lambda: ev.rankme(X, eps=-1), "eps=-1"),
        (lambda: ev.bootstrap([1.0]), "2 values"),
        (lambda: ev.bootstrap([1, math.nan]), "NaN"),
        (lambda: ev.bootstrap([1, 2], level=95), "level=95"),
        (lambda: ev.bootstrap([1, 2], "mode"), "mode"),
        (lambda: ev.paired_difference([1, 2], [1]), "cannot be paired"),
        (lambda: ev.paired_difference([1], [1], of="runs"), "runs"),
        (lambda: ev.KNNClassifier(k=20).fit(X[:9], Y[:9]), "9 rows of the bank"),
    ],
)
def test_refusals_name_value_and_reason(call, reason):
    with pytest.raises(ValueError) as error:
        call()
    assert reason in str(error.value)


def test_huge_finite_values_are_not_taken_for_infinite():
    assert ev.check_features(torch.full((4, 4), 3e38)).shape == (4, 4)


def test_one_test_example_has_no_interval():
    score = ev.knn(X[:50], Y[:50], X[60:61], Y[60:61])
    assert score.interval is None and score in (0, 1)


def test_import_loads_neither_scikit_learn_nor_plots():
    code = (
        "import sys, ssl_nb.evaluators as ev; "
        "assert not {'sklearn', 'scipy', 'matplotlib', 'pandas', 'lightly'} & set(sys.modules); "
        "ev.LinearProbe; assert 'sklearn' in sys.modules; assert not hasattr(ev, 'Missing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
