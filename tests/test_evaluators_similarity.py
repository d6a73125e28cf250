"""CKA, canonical correlations and neural predictivity: reference values, oracles, invariances, limits, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA, PLSRegression
from sklearn.datasets import load_digits

from ssl_nb.evaluators.predictivity import fit_readout, neural_predictivity, noise_ceiling, squared_median
from ssl_nb.evaluators.similarity import _feature_side, _gram_side, cca, cka

X, Y = load_digits(return_X_y=True)
PCS = (X - X.mean(0)) @ np.linalg.svd(X - X.mean(0), full_matrices=False)[2][:3].T


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- CKA


@pytest.mark.parametrize("debiased, value", [(False, 0.848182), (True, 0.848666)])
@pytest.mark.parametrize("block", [4096, 100])
def test_cka_reference_values(debiased, value, block):
    score = cka(X, PCS, debiased=debiased, block=block)
    assert score == pytest.approx(value, abs=6e-7)
    assert score.protocol == ("cka (linear, debiased)" if debiased else "cka (linear)")
    assert cka(PCS, X, debiased=debiased) == pytest.approx(score, abs=1e-12)


def hsic_1(k, m):
    "Song et al. 2012, eq. 5, as printed."
    n = len(k)
    k, m = k - torch.diag(k.diag()), m - torch.diag(m.diag())
    cross = (k.sum(0) * m.sum(0)).sum()
    return ((k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross) / (n * (n - 3))


@pytest.mark.parametrize("shape", [(40, 7, 5), (12, 60, 30), (30, 15, 15)])
@pytest.mark.parametrize("block", [4096, 7])
def test_cka_equals_its_definition_on_both_sides_of_the_cost(shape, block):
    n, d, e = shape
    x, y = randn(n, d) + 5, randn(n, e, seed=1) @ randn(e, e, seed=2) - 3
    y[:, :5] += x[:, :5]
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = x @ x.T, y @ y.T
    expected = (k * (h @ m @ h)).sum() / ((k * (h @ k @ h)).sum() * (m * (h @ m @ h)).sum()).sqrt()
    assert cka(x, y, block=block) == pytest.approx(expected.item(), abs=1e-10)
    expected = hsic_1(k, m) / (hsic_1(k, k) * hsic_1(m, m)).sqrt()
    assert cka(x, y, debiased=True, block=block) == pytest.approx(expected.item(), abs=1e-10)
    for left, right in zip(_feature_side(x, y, block), _gram_side(x, y, block), strict=True):
        assert torch.allclose(left, right)


def test_debiased_hsic_is_unbiased_for_independent_features():
    found = [cka(randn(60, 50, seed=s), randn(60, 50, seed=1000 + s), debiased=True) for s in range(100)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 10
    assert cka(randn(60, 50), randn(60, 50, seed=9)) > 0.4


@settings(max_examples=25, deadline=None)
@given(
    st.integers(5, 30),
    st.integers(1, 8),
    st.integers(0, 99),
    st.floats(-3, 3),
    st.floats(0.01, 100),
    st.booleans(),
)
def test_cka_ignores_rotation_scale_shift_and_order(n, d, seed, shift, scale, debiased):
    x, y = randn(n, d, seed=seed), randn(n, d, seed=seed + 1)
    y += x
    expected = cka(x, y, debiased=debiased)
    rotation, order = torch.linalg.qr(randn(d, d, seed=seed + 2)).Q, torch.randperm(n)
    assert cka((scale * x @ rotation + shift)[order], y[order], debiased=debiased) == pytest.approx(expected, abs=1e-6)
    if not debiased:
        assert 0 <= expected <= 1 and cka(x, 3 * x @ rotation) == pytest.approx(1)


# ---- CCA


@pytest.mark.parametrize("columns", [(range(18, 30), range(34, 38)), (range(2, 8), range(50, 56))])
def test_cca_equals_scikit_learn(columns):
    x, y = (X[:, list(c)] for c in columns)
    pairs = min(x.shape[1], y.shape[1])
    u, v = CCA(pairs, scale=False, max_iter=20000, tol=1e-12).fit(x, y).transform(x, y)
    expected = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(pairs)]
    score = cca(x, y)
    assert score.samples == pytest.approx(expected, abs=1e-4) and score == pytest.approx(np.mean(expected), abs=1e-4)
    assert cca(x, y, squared=True) == pytest.approx(np.mean(np.square(score.samples)))


def test_cca_by_the_eigenvalues_of_the_covariances():
    x, y = randn(500, 6), randn(500, 4, seed=1)
    y[:, :2] += x[:, :2]
    x, y = x - x.mean(0), y - y.mean(0)
    product = torch.linalg.solve(x.T @ x, x.T @ y) @ torch.linalg.solve(y.T @ y, y.T @ x)
    expected = torch.linalg.eigvals(product).real.sort(descending=True).values[:4].sqrt()
    assert cca(x, y).samples == pytest.approx(expected.numpy(), abs=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(2, 6), st.integers(2, 6))
def test_cca_ignores_every_invertible_map(seed, d, e):
    x, y = randn(60, d, seed=seed), randn(60, e, seed=seed + 1)
    y[:, :1] += x[:, :1]
    a, b = (randn(m, m, seed=seed + 2) + 3 * torch.eye(m, dtype=torch.float64) for m in (d, e))
    for squared in (False, True):
        expected = cca(x, y, squared=squared)
        assert cca(x @ a + 2, y @ b, squared=squared) == pytest.approx(expected, abs=1e-5)
        assert cca(y, x, squared=squared) == pytest.approx(expected, abs=1e-9)


def test_pwcca_weighs_by_the_first_side_and_svcca_by_variance():
    x, y = randn(2000, 3), randn(2000, 3, seed=1)
    x = x * torch.tensor([100.0, 1, 1], dtype=torch.float64)
    y[:, 0] = x[:, 0]  # the large direction is shared, the other two are not
    assert cca(x, y) < 0.45 and cca(x, y, "pwcca") > 0.9
    assert cca(y, x, "pwcca") > cca(x, y) and cca(y, x, "pwcca") != pytest.approx(cca(x, y, "pwcca"), abs=1e-3)
    assert cca(x, y, "svcca").notes["ranks"][0] == 1 and cca(x, y, "svcca") > 0.99
    assert cca(x, y, "svcca", variance=1.0) == pytest.approx(cca(x, y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_deficient_input_counts_its_rank(dtype):
    x, y = randn(300, 6), randn(300, 5, seed=1)
    y[:, :2] += x[:, :2]
    wide = torch.cat([x, x[:, :2] @ randn(2, 7, seed=3), torch.zeros(300, 1, dtype=torch.float64)], 1) + 10
    score = cca(wide.to(dtype), y.to(dtype))
    assert score.notes["ranks"] == (6, 5) and score == pytest.approx(cca(x, y), abs=1e-4)


def test_too_few_rows_make_correlations_certain():
    score = cca(randn(50, 40), randn(50, 30, seed=1))
    assert score.notes["certain"] == 40 + 30 - 49
    assert (score.samples > 1 - 1e-9).sum() == 21
    assert cca(randn(20, 40), randn(20, 30, seed=1)) == pytest.approx(1)
    squares = [cca(randn(200, 20, seed=s), randn(200, 30, seed=s + 100), squared=True) for s in range(20)]
    assert np.mean(squares) == pytest.approx(30 / 199, abs=0.01)


# ---- neural predictivity


def population(n=400, d=12, units=31, repeats=10, seed=0):
    rng = np.random.default_rng(seed)
    z, sigma = rng.normal(size=(n, d)), rng.uniform(0.5, 4, units)
    clean = z @ rng.normal(size=(d, units))
    clean /= clean.std(0)
    ceiling = np.sqrt(1 / (1 + sigma**2 / repeats))
    return z, clean + sigma * rng.normal(size=(repeats, n, units)), ceiling


def test_a_perfect_model_reaches_one_once_corrected():
    z, responses, ceiling = population()
    assert noise_ceiling(responses).numpy() == pytest.approx(ceiling, abs=0.1)
    for kind, knobs in (("pls", dict(components=12)), ("ridge", {})):
        for given_ceiling in (None, ceiling):
            score = neural_predictivity(z, responses, kind, ceiling=given_ceiling, **knobs)
            assert 0.9 < score < 1.08
        raw = neural_predictivity(z, responses.mean(0), kind, **knobs)
        assert raw < 0.85 and raw.of == "units" and len(raw.samples) == 31
    noise = np.random.default_rng(5).normal(size=z.shape)
    assert neural_predictivity(noise, responses, components=5) < 0.05


def test_the_ceiling_divides_each_unit_before_the_median():
    z, responses, ceiling = population(units=9)
    score = neural_predictivity(z, responses.mean(0), components=5, ceiling=ceiling)
    r = score.notes["r"]
    assert score.samples == pytest.approx(r / ceiling) and score == pytest.approx(np.median(r / ceiling) ** 2)
    assert score != pytest.approx((np.median(r) / np.median(ceiling)) ** 2, abs=1e-4)
    assert neural_predictivity(z, responses.mean(0), components=5, ceiling=0.5) == pytest.approx(
        4 * neural_predictivity(z, responses.mean(0), components=5)
    )


def test_pls_is_that_of_scikit_learn_on_the_same_splits():
    z, responses, _ = population(n=100, units=3)
    y = responses.mean(0)
    order = np.random.default_rng(7).permutation(100)
    fitted = PLSRegression(4, scale=False).fit(z[order[10:]], y[order[10:]])
    predicted = fitted.predict(z[order[:10]])
    expected = [np.corrcoef(predicted[:, i], y[order[:10], i])[0, 1] for i in range(3)]
    score = neural_predictivity(z, y, components=4, splits=1, seed=7)
    assert score.notes["r"] == pytest.approx(expected)


def test_a_negative_median_predicts_nothing():
    assert squared_median(np.array([-0.9, -0.8, 0.1])) == 0 and squared_median(np.array([0.5])) == 0.25


def test_ceiling_of_units_that_only_make_noise_is_nan_and_they_are_left_out():
    z, responses, _ = population(units=5)
    responses = np.concatenate([responses, np.random.default_rng(1).normal(size=(10, 400, 20))], 2)
    ceiling = noise_ceiling(responses)
    assert ceiling[:5].isfinite().all() and ceiling[5:].nan_to_num(0).max() < 0.5
    score = neural_predictivity(z, responses, components=5)
    assert score.notes["left_out"] == ceiling.isnan().sum() > 0


def test_repeatable_and_one_unit():
    z, responses, _ = population(units=1)
    y = responses.mean(0)
    first, again = (neural_predictivity(z, y, components=3, seed=1) for _ in range(2))
    assert first == again and first.interval is None
    assert neural_predictivity(z, y[:, 0], components=3, seed=1) == first


# ---- input of any kind


@pytest.mark.parametrize("measure", [cka, cca, lambda x, y: neural_predictivity(x, y, components=3)])
def test_dtypes_gradients_and_layouts(measure):
    x, y = torch.from_numpy(X[:200, 10:16]), torch.from_numpy(X[:200, 18:22])  # whole numbers below 17: exact in half
    expected = float(measure(x, y))
    for change in (
        lambda t: t.half(),
        lambda t: t.bfloat16(),
        lambda t: t.long(),
        lambda t: t.float().requires_grad_(),
        lambda t: t.T.contiguous().T,
        lambda t: t.numpy().astype(np.float32),
        lambda t: t.numpy()[::-1][::-1],
    ):
        assert float(measure(change(x), change(y))) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("measure", [cka, cca, lambda x, y: neural_predictivity(x, y, components=2)])
@pytest.mark.parametrize(
    "x, y, words",
    [
        (randn(30, 3), randn(29, 3), "29"),
        (randn(0, 3), randn(0, 3), "shape"),
        (randn(1, 3), randn(1, 3), "rows or more"),
        (torch.full((30, 3), torch.nan), randn(30, 3), "NaN"),
        (randn(30, 3), torch.full((30, 3), torch.inf), "infinity"),
        (randn(30, 3), torch.ones(30, 2), "same"),
        (randn(30), randn(30, 2), "shape"),
    ],
)
def test_bad_input_is_named(measure, x, y, words):
    with pytest.raises(ValueError, match=words):
        measure(x, y)


def test_bad_settings_are_named():
    x, y = randn(60, 6), randn(60, 4, seed=1)
    for call, words in (
        (lambda: cka(x[:3], y[:3], debiased=True), "4 rows"),
        (lambda: cca(x, y, kind="mcca"), "mcca"),
        (lambda: cca(x, y, "svcca", variance=1.5), "1.5"),
        (lambda: neural_predictivity(x, y), "components=25"),
        (lambda: neural_predictivity(x, y, kind="lasso"), "lasso"),
        (lambda: neural_predictivity(x, y, components=2, ceiling=1.5), "ceiling"),
        (lambda: neural_predictivity(x[:20], y[:20], components=2), "3 stimuli"),
        (lambda: noise_ceiling(y), "repeats"),
        (lambda: noise_ceiling(y[None]), "repeats"),
        (lambda: fit_readout(x.numpy(), y.numpy(), "pls", 2.5), "2.5"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_debiased_cka_refuses_rows_that_are_all_equally_far_apart():
    with pytest.raises(ValueError, match="equally far apart"):
        cka(torch.eye(7, dtype=torch.float64) * 3 + 1, randn(7, 3), debiased=True)
    assert cka(torch.eye(7), randn(7, 3)) > 0


def test_a_side_that_varies_by_rounding_only_has_no_correlations():
    x = torch.full((30, 3), 1e8, dtype=torch.float64)
    x[0, 0] += 1e-8
    with pytest.raises(ValueError, match="rounding"):
        cca(x, randn(30, 3))


def test_constant_features_and_arrays_with_negative_strides_or_without_write_access():
    z, responses, _ = population(n=60, units=3)
    with pytest.raises(ValueError, match="same"):
        neural_predictivity(np.ones_like(z), responses, components=2)
    expected = neural_predictivity(z, responses, components=2)
    backwards = np.ascontiguousarray(responses[:, ::-1])[:, ::-1]
    backwards.flags.writeable = False
    assert neural_predictivity(z, backwards, components=2) == expected
    assert neural_predictivity(torch.from_numpy(z), torch.from_numpy(responses), components=2) == expected
    assert torch.equal(noise_ceiling(backwards), noise_ceiling(responses))


def test_debiased_cka_stays_within_one():
    found = [cka(randn(5, 4, seed=s), randn(5, 3, seed=s + 100), debiased=True) for s in range(50)]
    assert -1 <= min(found) < 0 < max(found) <= 1
