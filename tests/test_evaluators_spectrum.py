"""Spectra from any source, and what is read off them: reference values, oracles, invariances, bad input."""

import copy
import importlib
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

sc = importlib.import_module("ssl_nb.evaluators.scores")
sp = importlib.import_module("ssl_nb.evaluators.spectrum")  # the package has a function of that name
X, Y = load_digits(return_X_y=True)
VIEWS = np.stack([X[Y == c][:50] for c in range(10)])


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def svd(x, center=False, normalize=False):
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if normalize else x
    return np.linalg.svd(x - x.mean(0) if center else x, compute_uv=False)


# ---- reference values on digits (shared/reference/evaluators.md)


@pytest.mark.parametrize(
    "evaluate, value",
    [
        (sp.rankme, 29.629946),
        (sp.effective_rank, 29.629086),
        (sp.stable_rank, 1.436037),
        (sp.nesum, 6.715649),
        (sp.participation_ratio, 13.168511),
        (sp.alpha_req, 1.644798),
        (sp.coherence, 29.459016),
        (sp.self_cluster, 0.475999),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_reference_values(evaluate, value, dtype):
    assert evaluate(X.astype(dtype)) == pytest.approx(value, abs=1e-6)


def test_lidar_reference_value():
    assert sp.lidar(VIEWS) == pytest.approx(6.918593, abs=1e-6)
    assert sp.lidar(torch.from_numpy(VIEWS).half()) == pytest.approx(6.918593, abs=1e-6)


# ---- where features come from


def sources(x, tmp_path):
    tensor = torch.from_numpy(x)
    on_disk = np.memmap(tmp_path / "x", x.dtype, "w+", shape=x.shape)
    on_disk[:] = x
    labeled = DataLoader(TensorDataset(tensor, torch.arange(len(x))), batch_size=13)
    return {
        "array": x,
        "tensor": tensor,
        "memmap": np.memmap(tmp_path / "x", x.dtype, "r", shape=x.shape),
        "loader of tuples": labeled,
        "generator": (rows for rows in tensor.split(7)),
        "list of batches": list(tensor.split(50)),
        "list of arrays": [x[:40], x[40:]],
        "nested list": x.tolist(),
        "requires grad": tensor.clone().requires_grad_(),
        "not contiguous": torch.stack([tensor, tensor], 2)[:, :, 0],
    }


@pytest.mark.parametrize("shape", [(130, 20), (60, 90), (64, 64)])
@pytest.mark.parametrize("options", [{}, {"center": True}, {"normalize": True}, {"center": True, "normalize": True}])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 1e-6)])
def test_every_source_gives_the_spectrum(shape, options, dtype, tolerance, tmp_path):
    x = (randn(*shape) + 2).numpy().astype(dtype)
    expected = svd(x.astype(np.float64), **options)
    for name, source in sources(x, tmp_path).items():
        got = sp.spectrum(source, block=32, **options)
        resolved = slice(-1 if options.get("center") and shape[0] <= shape[1] else None)  # the last is zero
        np.testing.assert_allclose(got[resolved], expected[resolved], tolerance, tolerance * expected[0], err_msg=name)
        assert (got.rows, got.dims) == shape and got.dtype == torch.float64 and not got.requires_grad


def test_batches_are_read_once_and_in_blocks():
    seen = []

    def batches():
        for i in range(6):
            seen.append(i)
            yield randn(30, 8, seed=i)

    got = sp.spectrum(batches(), center=True, block=11)
    assert seen == list(range(6))
    whole = torch.cat([randn(30, 8, seed=i) for i in range(6)])
    np.testing.assert_allclose(got, svd(whole.numpy(), center=True), rtol=1e-12)


def test_memmap_is_never_read_whole(tmp_path, monkeypatch):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(500, 12))
    x[:] = randn(500, 12)
    largest, check = 0, sp.check_features

    def watched(part, *args, **kwargs):
        nonlocal largest
        largest = max(largest, len(part))
        return check(part, *args, **kwargs)

    monkeypatch.setattr(sp, "check_features", watched)
    sp.spectrum(x, center=True, block=50)
    assert largest == 50


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), d=st.integers(1, 30), cut=st.integers(1, 60), offset=st.sampled_from([0, 1, 1e3, 1e6]))
def test_centering_does_not_lose_digits_to_the_mean(n, d, cut, offset):
    x = randn(n, d, seed=n * 31 + d)
    expected = svd(x.numpy(), center=True)
    got = sp.spectrum((part for part in (x + offset).split(cut)), center=True)
    np.testing.assert_allclose(got, expected, atol=max(1e-7, 1e-9 * offset) * expected[0] + 1e-9)


def test_small_values_survive_where_they_can(tmp_path):
    s = torch.logspace(0, -12, 13, dtype=torch.float64)
    u, v = (torch.linalg.qr(randn(m, 13, seed=m)).Q for m in (300, 20))
    x = u * s @ v.T
    on_disk = np.memmap(tmp_path / "x", np.float64, "w+", shape=(300, 20))
    on_disk[:] = x
    for source in (x, on_disk, x.T.contiguous()):
        torch.testing.assert_close(sp.spectrum(source, block=64)[:13] * 1, s, rtol=2e-3, atol=0)
    once = sp.spectrum(x.split(50))  # a Gram matrix resolves about 1e-7
    torch.testing.assert_close(once[:6] * 1, s[:6], rtol=1e-3, atol=0)
    assert (once[9:] == 0).all()


def test_huge_and_tiny_values():
    x = randn(50, 6)
    np.testing.assert_allclose(sp.spectrum(x * 1e200) / 1e200, svd(x.numpy()), rtol=1e-10)
    assert sp.effective_rank(x * 1e-150) == pytest.approx(sp.effective_rank(x))
    with pytest.raises(ValueError, match="overflow"):
        sp.spectrum((x * 1e200).split(9))


# ---- the Spectrum


def test_spectrum_is_a_tensor_that_remembers():
    s = sp.spectrum(X, center=True)
    assert isinstance(s, torch.Tensor) and (s.rows, s.dims, s.centered, s.normalized) == (1797, 64, True, False)
    for result in (s * 1, s[:3], s.sum(), s.clone(), s.float(), torch.log(s), s.to("cpu", torch.float32)):
        assert type(result) is torch.Tensor
    for again in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s), copy.copy(s)):
        assert type(again) is sp.Spectrum and torch.equal(again, s) and vars(again) == vars(s)
    assert np.asarray(s).shape == (64,) and "2" in repr(s)


NEEDS = {
    "rankme": (sp.rankme, False),
    "effective_rank": (sp.effective_rank, False),
    "stable_rank": (sp.stable_rank, False),
    "stable_rank centered": (lambda x: sp.stable_rank(x, center=True), True),
    "nesum": (sp.nesum, True),
    "participation_ratio": (sp.participation_ratio, True),
    "alpha_req": (lambda x: sp.alpha_req(x, 0, 5), True),
}


@pytest.mark.parametrize("evaluate, center", NEEDS.values(), ids=NEEDS)
def test_one_decomposition_serves_those_that_need_it(evaluate, center):
    right, wrong = sp.spectrum(X, center=center), sp.spectrum(X, center=not center)
    assert evaluate(right) == pytest.approx(evaluate(X), rel=1e-12)
    assert evaluate(right * 1) == evaluate(right) == evaluate(right.tolist())
    batches = torch.from_numpy(X).split(100)
    assert evaluate(batches) == pytest.approx(evaluate(X), rel=1e-6)
    with pytest.raises(ValueError, match=rf"pass spectrum\(features, center={center}\)"):
        evaluate(wrong)
    evaluate(wrong * 1)  # a plain tensor is trusted


# ---- oracles and known answers


def test_equal_to_definitions_in_numpy():
    x = (randn(300, 20) * torch.logspace(0, -1, 20)).numpy() + 0.5
    eig, s = np.linalg.eigvalsh(np.cov(x.T)), svd(x)
    assert sp.nesum(x) == pytest.approx(eig.sum() / eig.max())
    assert sp.participation_ratio(x) == pytest.approx(eig.sum() ** 2 / (eig**2).sum())
    assert sp.stable_rank(x) == pytest.approx((s**2).sum() / s.max() ** 2)
    u = np.linalg.svd(x, full_matrices=False)[0]
    assert sp.coherence(x, block=77) == pytest.approx((u**2).sum(1).max() * 300 / 20)
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    e = 300 + 300 * 299 / 20
    assert sp.self_cluster(x) == pytest.approx((((z @ z.T) ** 2).sum() - e) / (300**2 - e))
    assert sp.self_cluster(x[:15]) == pytest.approx(
        (((z[:15] @ z[:15].T) ** 2).sum() - (15 + 15 * 14 / 20)) / (15**2 - (15 + 15 * 14 / 20))
    )


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (30, 30)])
def test_coherence_of_the_numerical_rank(shape):
    x = (randn(shape[0], 5) @ randn(5, shape[1], seed=1)).numpy()
    u = np.linalg.svd(x)[0][:, :5]
    for dtype in (np.float64, np.float32):
        score = sp.coherence(x.astype(dtype))
        assert score == pytest.approx((u**2).sum(1).max() * shape[0] / 5, rel=1e-4) and score.notes["rank"] == 5
    assert 1 <= score <= shape[0] / 5


@pytest.mark.parametrize("n, q, d", [(30, 4, 8), (6, 5, 20), (2, 2, 3)])
def test_lidar_equals_scipy_generalized_eigenvalues(n, q, d):
    from scipy.linalg import eigh

    views = (randn(n, 1, d) + 0.5 * randn(n, q, d, seed=1)).numpy()
    means = views.mean(1)
    within = np.einsum("nqi,nqj->ij", views - means[:, None], views - means[:, None]) / (n * (q - 1))
    eig = eigh(np.cov(means.T), within + 1e-4 * np.eye(d), eigvals_only=True).clip(0) + 1e-8
    assert sp.lidar(views) == pytest.approx(np.exp(-(eig / eig.sum() * np.log(eig / eig.sum())).sum()), rel=1e-5)
    assert 1 <= sp.lidar(views) <= min(d, n - 1) + 1e-3


def test_lidar_of_parallel_and_dead_features():
    one = randn(40, 1, 1) * randn(1, 1, 16, seed=1) + 1e-6 * randn(40, 5, 16, seed=2)
    assert sp.lidar(one) == pytest.approx(1, abs=1e-3)
    assert sp.lidar(torch.zeros(10, 4, 8)) == 0


@pytest.mark.parametrize("alpha", [0.5, 1, 2])
def test_power_law_and_participation_ratio_of_a_known_spectrum(alpha):
    eig = torch.arange(1, 65, dtype=torch.float64) ** -alpha
    score = sp.alpha_req(eig.sqrt())
    assert score == pytest.approx(alpha) and score.notes["r2"] == pytest.approx(1)
    assert sp.participation_ratio(eig.sqrt()) == pytest.approx((eig.sum() ** 2 / (eig**2).sum()).item())
    sample = randn(20_000, 64) * eig.sqrt()
    assert sp.alpha_req(sample) == pytest.approx(alpha, abs=0.03)


def test_alpha_req_says_its_range():
    assert sp.alpha_req(X).protocol == "alpha_req (indices 3..49)"
    clipped = sp.alpha_req(X, last=200)
    assert clipped.protocol == "alpha_req (indices 3..60, clipped from 3..200)" and clipped.notes["rank"] == 61
    assert clipped == sp.alpha_req(X, last=60)
    low = sp.alpha_req(X[:, 20:23])
    assert math.isnan(low) and low.protocol == "alpha_req (no fit: rank 3)"
    assert sp.alpha_req(torch.ones(30)) == pytest.approx(0, abs=1e-12)


EVERY = {**{k: v[0] for k, v in NEEDS.items()}, "coherence": sp.coherence, "self_cluster": sp.self_cluster}


@pytest.mark.parametrize("evaluate", EVERY.values(), ids=EVERY)
def test_rotation_scale_and_order_change_nothing(evaluate):
    x = randn(80, 12) * torch.logspace(0, -1, 12) + 0.3
    turned = x[torch.randperm(80)] @ torch.linalg.qr(randn(12, 12, seed=1)).Q * 37
    assert evaluate(turned) == pytest.approx(evaluate(x), rel=1e-9)
    assert evaluate(x).interval is None


@pytest.mark.parametrize("evaluate", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("shape", [(50, 16), (15, 50)])
def test_collapsed_batch(evaluate, value, shape):
    score, x = evaluate(torch.full(shape, value)), torch.full(shape, value)
    if evaluate is EVERY["alpha_req"]:
        assert math.isnan(score)
    elif evaluate is EVERY["self_cluster"]:
        assert score == pytest.approx(1)
    else:
        centered = any(evaluate is NEEDS[k][0] for k in NEEDS if NEEDS[k][1])
        assert score == pytest.approx(float(value > 0 and not centered), abs=1e-3)
    assert evaluate(x.double()) == pytest.approx(score, abs=1e-3, nan_ok=True)


# ---- one rule for ranks: what the rounding of the input explains is no direction


def around_a_mean(n, d, rank=5, dtype=torch.float32, seed=0):
    return (10 + 0.1 * randn(n, rank, seed=seed) @ randn(rank, d, seed=seed + 1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n, d", [(1000, 64), (300, 64), (40, 512)])
def test_collapse_around_a_mean_has_its_rank(dtype, n, d):
    x = around_a_mean(n, d, dtype=dtype)
    for source in (x, x.split(17)):
        assert [int((sp.spectrum(source, center=c) > 0).sum()) for c in (True, False)] == [5, 6]
        assert sp.alpha_req(source).notes["rank"] == 5 and "3..4" in sp.alpha_req(source).protocol
    assert sp.coherence(x).notes["rank"] == 6
    assert int(sp.log_spectrum(x).isfinite().sum()) in (5, 6)  # on the sphere the flat sheet is curved, towards the mean
    exact = sp.spectrum(around_a_mean(n, d, dtype=torch.float64), center=True)
    got = sp.spectrum(x, center=True)  # Weyl: no value moves by more than the rounding errors
    assert (got - exact).abs().max() <= sc.rounding(dtype, n, d) * 10 * (n * d) ** 0.5


def test_collapse_on_disk_and_in_mixed_batches(tmp_path):
    x = around_a_mean(300, 40).numpy()
    on_disk = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    on_disk[:] = x
    assert int((sp.spectrum(on_disk, center=True, block=64) > 0).sum()) == 5
    batches = [around_a_mean(300, 40)[:100].double(), around_a_mean(300, 40)[100:].half()]
    assert int((sp.spectrum(batches, center=True) > 0).sum()) == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_alpha_req_of_features_and_of_their_spectrum_agree(dtype):
    for x in (around_a_mean(300, 64, dtype=dtype), torch.from_numpy(X).to(dtype), randn(40, 90).to(dtype)):
        for first, last in ((0, 3), (3, 49), (0, 300)):
            direct, through = (sp.alpha_req(z, first, last) for z in (x, sp.spectrum(x, center=True)))
            assert direct == through and direct.protocol == through.protocol and direct.notes["rank"] == through.notes["rank"]


def test_whole_numbers_are_stored_exactly():
    counts = torch.ones(500, 12, dtype=torch.uint8) * 100
    counts[0, :7] += torch.arange(7, dtype=torch.uint8)  # one row differs by a little
    for dtype in (torch.uint8, torch.int64, torch.float64):
        assert int((sp.spectrum(counts.to(dtype), center=True) > 0).sum()) == 1


@pytest.mark.parametrize("scale", [1e25, 1e-25, 1e37])
def test_float32_features_of_any_scale(scale):
    x = randn(60, 8).float()
    big = x * scale
    np.testing.assert_allclose(sp.spectrum(big, center=True), sp.spectrum(x, center=True) * scale, rtol=1e-5)
    for evaluate in (sp.rankme, sp.stable_rank, sp.nesum, sp.coherence, sp.self_cluster, sp.feature_std):
        assert evaluate(big) == pytest.approx(evaluate(x), rel=1e-5)
    torch.testing.assert_close(sp.log_spectrum(big), sp.log_spectrum(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sp.spectrum(big.split(7), normalize=True), sp.spectrum(x, normalize=True), rtol=1e-5)


# ---- bad input


@pytest.mark.parametrize("evaluate", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize(
    "bad, reason",
    [
        (torch.tensor([[1.0, math.nan], [0, 1], [2, 2]]), "NaN or infinity in 1 of 3 rows"),
        (torch.zeros(0, 3), r"\(0, 3\)"),
        (torch.zeros(4, 0), r"\(4, 0\)"),
        (torch.zeros(2, 3, 4), "flatten"),
        (torch.zeros(4, 3, dtype=torch.complex64), "real numbers"),
    ],
)
def test_bad_features(evaluate, bad, reason):
    with pytest.raises(ValueError, match=reason):
        evaluate(bad)


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: sp.spectrum([]), r"\(0,\)"),
        (lambda: sp.spectrum(x for x in ()), "no batch"),
        (lambda: sp.spectrum(iter([torch.ones(3, 4), torch.ones(3, 5)])), "batch 1 has 5 dimensions"),
        (lambda: sp.spectrum(iter([torch.ones(3, 4), torch.full((3, 4), math.inf)])), "batch 1 hold NaN or inf"),
        (lambda: sp.spectrum(iter([torch.ones(3, 4, 5)])), "batch 0 must have shape"),
        (lambda: sp.spectrum(iter([torch.ones(1, 4)]), center=True), "2 rows"),
        (lambda: sp.spectrum(X, block=0), "block=0"),
        (lambda: sp.nesum(X[:1]), "2 rows"),
        (lambda: sp.rankme(torch.tensor([1.0, -1.0])), "negative"),
        (lambda: sp.alpha_req(X, 5, 5), "first=5, last=5"),
        (lambda: sp.alpha_req(X, -1, 5), "first=-1"),
        (lambda: sp.coherence([torch.ones(3, 4)]), "not batches"),
        (lambda: sp.self_cluster(X[:1]), "2 rows and 2 dimensions"),
        (lambda: sp.self_cluster(X[:, :1]), "2 rows and 2 dimensions"),
        (lambda: sp.lidar(X), "images, views, dimensions"),
        (lambda: sp.lidar(VIEWS[:, :1]), "2 views"),
        (lambda: sp.lidar(VIEWS[:1]), "2 images"),
        (lambda: sp.lidar(VIEWS, delta=0), "delta=0"),
        (lambda: sp.lidar(VIEWS * np.nan), "views hold NaN"),
    ],
)
def test_refusals_name_value_and_reason(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def test_nan_on_disk_is_found(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(100, 5))
    x[77, 3] = np.nan
    with pytest.raises(ValueError, match="features from row 64 on hold NaN"):
        sp.spectrum(x, block=32)


def test_zero_rows_are_no_direction():
    x = torch.cat([F.normalize(randn(50, 8), dim=1), torch.zeros(50, 8)])
    assert sp.self_cluster(x) > 0.15 > sp.self_cluster(x[:50])
    assert sp.spectrum(x, normalize=True).isfinite().all()
