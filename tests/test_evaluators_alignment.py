"""Kernel and minibatch CKA, RSA, Procrustes, mutual kNN, CKNNA, tolerance: definitions, oracles, invariances, limits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata, spearmanr

from ssl_nb.evaluators import similarity as sim
from ssl_nb.evaluators.geometry import alignment, tolerance, uniformity
from ssl_nb.evaluators.similarity import cca, cka, cknna, kernel_cka, minibatch_cka, mutual_knn, procrustes, rsa


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def related(n=80, d=9, e=6, seed=0):
    x = randn(n, d, seed=seed) + 1
    return x, x[:, :e] + 0.5 * randn(n, e, seed=seed + 1)


def rotation(d, seed=5):
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


EVERY = {
    "cka": cka,
    "cca": cca,
    "kernel_cka": kernel_cka,
    "kernel_cka debiased": lambda x, y: kernel_cka(x, y, 0.7, debiased=True),
    "minibatch_cka": lambda x, y: minibatch_cka(zip(x.split(20), y.split(20), strict=True)),
    "rsa euclidean": lambda x, y: rsa(x, y, "euclidean"),
    "rsa pearson": lambda x, y: rsa(x, y, "euclidean", "pearson"),
    "procrustes": procrustes,
}
COSINE = {"rsa cosine": lambda x, y: rsa(x, y, "cosine"), "mutual_knn": mutual_knn, "cknna": cknna}
each = pytest.mark.parametrize("measure", (EVERY | COSINE).values(), ids=EVERY | COSINE)


@each
def test_identity_symmetry_rotation_scale(measure):
    x, y = related()
    expected = measure(x, y)
    assert measure(x, x) == pytest.approx(1, abs=1e-9)
    if measure is not cknna:  # its mask is not symmetric
        assert measure(y, x) == pytest.approx(expected, abs=1e-9)
    assert measure(7 * x @ rotation(9), y) == pytest.approx(expected, abs=1e-7)
    if measure in EVERY.values():
        assert measure(x - 5, y + 3) == pytest.approx(expected, abs=1e-7)
    if measure is not EVERY["minibatch_cka"]:  # the same batches in another order of rows are other batches
        order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
        assert measure(x[order], y[order]) == pytest.approx(expected, abs=1e-9)
        assert measure(x, y[order]) < expected


@each
@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_features_of_any_scale(measure, scale):
    x, y = (side.float() for side in related())
    assert measure(x * scale, y) == pytest.approx(measure(x, y), abs=1e-4)
    with pytest.raises(ValueError, match="divide them by a constant"):
        measure(x.double() * 1e100, y)


@each
def test_dtypes_gradients_autocast(measure):
    x, y = related()
    x, y = x.half().float(), y.half().float()
    expected = measure(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure(x.half(), (1 * y).requires_grad_()) == pytest.approx(expected, abs=1e-5)


# ---- kernels


@pytest.mark.parametrize("bandwidth, block", [(1.0, 512), (0.3, 7), (3.0, 33)])
def test_kernel_cka_is_its_definition(bandwidth, block):
    x, y = (side.numpy() for side in related(41))
    tables = [squareform(pdist(side)) for side in (x, y)]
    k, m = (np.exp(-((t / bandwidth / np.median(t[np.triu_indices(41, 1)])) ** 2) / 2) for t in tables)
    h = np.eye(41) - 1 / 41
    expected = (h @ k @ h * m).sum() / np.sqrt((h @ k @ h * k).sum() * (h @ m @ h * m).sum())
    assert kernel_cka(x, y, bandwidth, block=block) == pytest.approx(expected)

    def unbiased(a, b):
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        cross = (a.sum(0) * b.sum(1)).sum()
        return np.trace(a @ b) + a.sum() * b.sum() / (40 * 39) - 2 / 39 * cross

    expected = unbiased(k, m) / np.sqrt(unbiased(k, k) * unbiased(m, m))
    assert kernel_cka(x, y, bandwidth, debiased=True, block=block) == pytest.approx(expected)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_wide_kernel_is_linear(debiased):
    x, y = related()
    assert kernel_cka(x, y, 1e5, debiased) == pytest.approx(cka(x, y, debiased), abs=1e-6)


def test_kernel_cka_sees_what_is_not_linear_and_nothing_in_noise():
    line = torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
    assert cka(line, line**2, debiased=True) < 0.05 and kernel_cka(line, line**2, 0.3, debiased=True) > 0.15
    found = [kernel_cka(randn(60, 8, seed=s), randn(60, 8, seed=99 + s), debiased=True) for s in range(40)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 40**0.5 and kernel_cka(randn(60, 8), randn(60, 8, seed=9), 0.1) > 0.9


def test_minibatch_cka_is_unbiased_in_the_batch_size():
    x, y = related(3000)
    whole = cka(x, y, debiased=True)
    for size in (10, 100, 1000):
        assert minibatch_cka(zip(x.split(size), y.split(size), strict=True)) == pytest.approx(whole, abs=0.03)
    one = minibatch_cka([(x, y)])
    assert one == pytest.approx(whole) and one.notes["batches"] == 1
    noise = minibatch_cka((randn(8, 30, seed=s), randn(8, 30, seed=999 + s)) for s in range(200))
    assert abs(noise) < 0.1 < cka(randn(8, 30), randn(8, 30, seed=999))


# ---- RSA


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean"])
def test_rsa_equals_scipy(distance):
    x, y = (side.numpy() for side in related(50))
    lists = pdist(x, distance), pdist(y, distance)
    for block in (1024, 7):
        assert rsa(x, y, distance, block=block) == pytest.approx(spearmanr(*lists).statistic)
        assert rsa(x, y, distance, "pearson", block) == pytest.approx(np.corrcoef(*lists)[0, 1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_ranks_share_ties(values):
    found = sim._ranks(torch.tensor(values, dtype=torch.float64))
    np.testing.assert_allclose(found, rankdata(values))


def test_rsa_by_rank_ignores_a_monotone_change_of_distances():
    x = randn(60, 1).abs() * 3
    assert rsa(x, torch.linspace(0, 1, 60)[x.flatten().argsort().argsort()][:, None], "euclidean") > 0.7
    bent = torch.cat([x, torch.zeros(60, 1).double()], 1)
    assert rsa(x, bent, "euclidean") == pytest.approx(1)


# ---- Procrustes


@pytest.mark.parametrize("n, d, e", [(60, 9, 6), (12, 40, 30), (20, 20, 20), (15, 40, 8)])
def test_procrustes_equals_scipy(n, d, e):
    x, y = related(n, d, e)
    score = procrustes(x, y, block=7)
    theirs = scipy_procrustes(x.numpy(), F.pad(y, (0, d - e)).numpy())[2]
    assert score.notes["disparity"] == pytest.approx(theirs)
    assert score.notes["distance"] ** 2 == pytest.approx(2 - 2 * score) and np.cos(score.notes["angle"]) == pytest.approx(score)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(3, 12))
def test_procrustes_distances_are_metrics(seed, n):
    a, b, c = (randn(n, d, seed=seed + i) for i, d in enumerate((2, 3, 5)))
    for kind in ("distance", "angle"):
        ab, bc, ac = (procrustes(*pair).notes[kind] for pair in ((a, b), (b, c), (a, c)))
        assert ac <= ab + bc + 1e-9


# ---- neighbors


def neighbor_mask(x, k):
    z = F.normalize(x, dim=1)
    cosine = z @ z.T
    index = cosine.clone().fill_diagonal_(-9).topk(k).indices
    return torch.zeros_like(cosine).scatter_(1, index, 1), cosine


def hsic_1(a, b):
    "Song et al. 2012, eq. 5, of tables that need not be symmetric."
    n = len(a)
    a, b = a - torch.diag(a.diag()), b - torch.diag(b.diag())
    return ((a @ b).trace() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()) / (n * (n - 3))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 40), k=st.integers(3, 7), seed=st.integers(0, 99), block=st.sampled_from([1024, 7]))
def test_neighbors_by_their_definition(n, k, seed, block):
    x, y = related(n, seed=seed)
    (left, kx), (right, ky) = neighbor_mask(x, k), neighbor_mask(y, k)
    both = left * right
    assert mutual_knn(x, y, k, block) == pytest.approx((both.sum() / (n * k)).item())
    norms = hsic_1(left * kx, left * kx), hsic_1(right * ky, right * ky)
    if min(norms) > 1e-9:
        expected = hsic_1(both * kx, both * ky) / (norms[0] * norms[1]).sqrt()
        assert cknna(x, y, k, block) == pytest.approx(expected.item(), abs=1e-9)


def test_cknna_of_all_pairs_is_debiased_cka_of_unit_rows():
    x, y = related()
    assert cknna(x, y, 79) == pytest.approx(cka(F.normalize(x, dim=1), F.normalize(y, dim=1), debiased=True), abs=1e-9)


def test_unrelated_neighbors_are_at_chance():
    x, y = randn(400, 10), randn(400, 10, seed=1)
    score = mutual_knn(x, y, 20)
    assert score == pytest.approx(20 / 399, abs=0.01) and score.of == "examples" and len(score.samples) == 400
    assert abs(cknna(x, y, 20)) < 0.1 and mutual_knn(x, y, 399) == 1


# ---- tolerance


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 40), classes=st.integers(1, 4), seed=st.integers(0, 99), block=st.sampled_from([4096, 5]))
def test_tolerance_is_the_mean_cosine_within_classes(n, classes, seed, block):
    x, y = randn(n, 5, seed=seed), np.arange(n) % min(classes, n // 2)
    z = F.normalize(x, dim=1)
    same = torch.from_numpy((y[:, None] == y) & ~np.eye(n, dtype=bool))
    assert tolerance(x, y, block) == pytest.approx((z @ z.T)[same].mean().item(), abs=1e-9)


def test_tolerance_in_the_limits_and_at_any_scale():
    x, y = randn(2000, 64), torch.arange(2000) % 10
    assert abs(tolerance(x, y)) < 0.01 and tolerance(torch.eye(10)[y], y) == pytest.approx(1)
    assert tolerance(torch.stack([x[0], -x[0]]), [0, 0]) == pytest.approx(-1)
    for scale in (1e25, 1e-25):
        small = x[:50].float()
        assert tolerance(small * scale, y[:50]) == pytest.approx(tolerance(small, y[:50]), abs=1e-6)
        assert uniformity(small * scale) == pytest.approx(uniformity(small), rel=1e-5)
        assert alignment(small * scale, small.flip(0)) == pytest.approx(alignment(small, small.flip(0)), rel=1e-5)


def test_views_that_agree_have_no_interval():
    assert alignment(randn(20, 3), randn(20, 3)) == 0 and alignment(randn(20, 3), randn(20, 3)).interval is None


# ---- CCA: the one rank rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cca_counts_no_rounding_around_a_mean(dtype):
    x = (10 + 0.3 * randn(300, 5) @ randn(5, 20, seed=1)).to(dtype)
    score = cca(x, randn(300, 3, seed=2))
    assert score.notes["ranks"] == (5, 3)


# ---- bad input


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda x, y: mutual_knn(x, y, 0), "k=0"),
        (lambda x, y: mutual_knn(x, y, 80), "k=80"),
        (lambda x, y: cknna(x, y, 10.0), "k=10.0"),
        (lambda x, y: kernel_cka(x, y, 0), "bandwidth=0"),
        (lambda x, y: kernel_cka((x[:, :1] > 9) * 1.0, y), "the same"),
        (lambda x, y: kernel_cka(torch.cat([x[:1].expand(79, -1), x[1:2]]), y), "median distance is 0"),
        (lambda x, y: minibatch_cka([]), "no batch"),
        (lambda x, y: minibatch_cka([(x, y), (x[:3], y[:3])]), "x of batch 1"),
        (lambda x, y: minibatch_cka([(x, y[:9])]), "80 rows"),
        (lambda x, y: rsa(x, y, "manhattan"), "manhattan"),
        (lambda x, y: rsa(x, y, compare="kendall"), "kendall"),
        (lambda x, y: rsa(torch.cat([torch.ones(1, 9), x[1:]]), y), "row 0 of x is constant"),
        (lambda x, y: rsa(randn(20001, 1), randn(20001, 1)), "20,000 rows or fewer"),
        (lambda x, y: procrustes(x, y[:9]), "same examples"),
        (lambda x, y: procrustes(x, 0 * y), "the same"),
        (lambda x, y: tolerance(x, np.arange(80)), "label of its own"),
        (lambda x, y: tolerance(x, np.arange(9)), "80 rows"),
    ],
)
def test_refusals(call, reason):
    with pytest.raises(ValueError) as error:
        call(*related())
    assert reason in str(error.value)
