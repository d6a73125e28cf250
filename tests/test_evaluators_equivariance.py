"""Equivariance: R2 on held-out objects, ranks with ties, the readout of a factor: oracles, known answers, bad input."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from ssl_nb.evaluators.equivariance import (
    _check_pairs,
    _folds,
    _ridge_path,
    _standardize,
    equivariance_r2,
    equivariance_rank,
    factor_r2,
)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def turning(count=60, views=10, planes=3, spread=0.1, seed=0):
    "(z, R(theta) z, (cos, sin), objects): planes that turn by theta."
    g = torch.Generator().manual_seed(seed)
    objects = torch.arange(count).repeat_interleave(views)
    theta = torch.rand(len(objects), generator=g) * 2 * math.pi
    z = torch.complex(torch.ones(count, planes), torch.zeros(count, planes))
    z = (z + spread * torch.randn(count, planes, dtype=torch.complex64, generator=g))[objects]
    turned = z * torch.polar(torch.ones_like(theta), theta)[:, None]
    z, turned = (torch.view_as_real(c).flatten(1) for c in (z, turned))
    return z, turned, torch.stack([theta.cos(), theta.sin()], 1), objects


# ---- R2


def test_known_answers():
    z, turned, circle, objects = turning()
    score = equivariance_r2(z, turned, circle, objects)
    assert score > 0.95 and score.interval[0] < score < score.interval[1] and score.of == "examples"
    assert score.notes["train_objects"] == 45 and score.notes["test_objects"] == 15
    assert abs(equivariance_r2(z, z, circle, objects)) < 0.05
    assert equivariance_r2(z, z, circle, objects, "mlp") < 0.05
    assert equivariance_r2(z, turned, circle, objects, "mlp") > 0.9


def test_the_network_reads_products_and_the_line_does_not():
    z, turned, circle, objects = turning(count=100, planes=2, spread=3.0)
    linear, network = (equivariance_r2(z, turned, circle, objects, kind) for kind in ("linear", "mlp"))
    assert linear < 0.3 and network > linear + 0.3


def test_rows_in_place_of_objects_inflate():
    z, _, _, objects = turning(count=60)
    identity = randn(60, 50)[objects]
    middle = randn(60, 2, seed=1)[objects]
    parameters = middle + 0.1 * randn(600, 2, seed=2)
    assert equivariance_r2(identity, identity, parameters) > 0.6
    assert equivariance_r2(identity, identity, parameters, objects) < 0.2


def test_no_object_is_on_both_sides_in_split_and_folds():
    z, turned, circle, objects = turning(count=23, views=7)
    for seed in range(5):
        _, _, groups, held_out = _check_pairs(z, turned, circle, objects * 13 - 5, seed, 0.25)
        assert not set(groups[held_out].tolist()) & set(groups[~held_out].tolist())
        assert len(groups[held_out].unique()) == 6
        fold = _folds(groups[~held_out], 5, seed)
        for k in range(5):
            inside, outside = groups[~held_out][fold != k], groups[~held_out][fold == k]
            assert len(outside) and not set(inside.tolist()) & set(outside.tolist())


def test_what_is_held_out_has_no_part_in_the_fit():
    z, turned, circle, objects = turning()
    _, _, _, held_out = _check_pairs(z, turned, circle, objects, 0, 0.25)
    spoiled = torch.where(held_out[:, None], 50 * randn(*z.shape, seed=5), turned)
    notes = [equivariance_r2(z, t, circle, objects).notes["strength"] for t in (turned, spoiled)]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("n, d", [(80, 6), (20, 50)])
def test_ridge_equals_scikit_learn(n, d):
    x, y = randn(n, d, dtype=torch.float64), randn(n, 2, seed=1, dtype=torch.float64)
    for strength, w in zip((1e-3, 0.1), _ridge_path(x, y, (1e-3, 0.1)), strict=True):
        theirs = Ridge(alpha=strength * n, fit_intercept=False).fit(x, y).coef_.T
        assert w.numpy() == pytest.approx(theirs, abs=1e-8)


def test_r2_equals_scikit_learn_on_the_same_rows():
    z, turned, circle, objects = turning(count=30)
    turned = turned + 0.5 * randn(*z.shape, seed=3)
    score = equivariance_r2(z, turned, circle, objects, seed=4)
    x, y, groups, held_out = _check_pairs(z, turned, circle, objects, 4, 0.25)
    x, train = _standardize(x, ~held_out).double().numpy(), ~held_out.numpy()
    y, fold = y.double().numpy(), _folds(groups[~held_out], 5, 4).numpy()
    cv = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)]
    errors = []
    for strength in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
        fits = [Ridge(alpha=strength * len(a)).fit(x[train][a], y[train][a]) for a, _ in cv]
        errors.append(sum(np.square(f.predict(x[train][b]) - y[train][b]).sum() for f, (_, b) in zip(fits, cv, strict=True)))
    strength = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)[int(np.argmin(errors))]
    assert score.notes["strength"] == strength
    predicted = Ridge(alpha=strength * train.sum()).fit(x[train], y[train]).predict(x[~train])
    assert score == pytest.approx(r2_score(y[~train], predicted), abs=1e-5)
    assert score.notes["each"] == pytest.approx(r2_score(y[~train], predicted, multioutput="raw_values"), abs=1e-5)


def test_repeatable_and_without_touching_the_global_state():
    z, turned, circle, objects = turning(count=20)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for kind in ("linear", "mlp"):
        first, again = (equivariance_r2(z, turned, circle, objects, kind, seed=1) for _ in range(2))
        assert first == again and first.interval == again.interval
        assert first != equivariance_r2(z, turned, circle, objects, kind, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_order_names_of_objects_units_and_shift_do_not_matter_to_the_line(seed):
    z, turned, circle, objects = turning(count=20, seed=seed)
    turned = turned + 0.3 * randn(*z.shape, seed=seed)
    expected = equivariance_r2(z, turned, circle, objects)
    changed = equivariance_r2(100 * z + 7, turned / 10, 5 * circle - 3, 3 * objects + 2)
    assert changed == pytest.approx(expected, abs=1e-3)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    assert equivariance_r2(z[order], turned[order], circle[order], objects[order]) == pytest.approx(expected, abs=1e-4)


def test_parameters_far_from_zero_lose_no_precision():
    z, turned, circle, objects = turning(count=20)
    expected = equivariance_r2(z, turned, circle, objects)
    assert equivariance_r2(z, turned, circle.double() + 1e6, objects) == pytest.approx(expected, abs=1e-6)
    assert equivariance_r2(z, turned, circle.numpy()[::-1], objects.numpy()[::-1].copy()[::-1]) < 0.1


def test_constant_features_predict_the_mean():
    _, _, circle, objects = turning()
    score = equivariance_r2(torch.ones(600, 4), torch.ones(600, 4), circle, objects)
    assert -0.1 < score <= 0


# ---- ranks


def naive(predicted, targets, objects, metric):
    ranks = []
    for i in range(len(predicted)):
        mates = [j for j in range(len(targets)) if objects[j] == objects[i]]
        if metric == "cosine":
            d = {j: -F.cosine_similarity(predicted[i], targets[j], dim=0).item() for j in mates}
        else:
            d = {j: (predicted[i] - targets[j]).norm().item() for j in mates}
        ranks.append(1 + sum(d[j] < d[i] for j in mates))
    return np.mean([1 / r for r in ranks]), np.mean([r == 1 for r in ranks])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.sampled_from(["cosine", "euclidean"]), st.integers(1, 5))
def test_ranks_equal_the_loop(seed, metric, groups):
    rng = np.random.default_rng(seed)
    objects = torch.from_numpy(np.r_[0, 0, rng.integers(0, groups, 28)])
    targets = randn(30, 5, seed=seed, dtype=torch.float64)
    predicted = targets + 1.0 * randn(30, 5, seed=seed + 1, dtype=torch.float64)
    found = equivariance_rank(predicted, targets, objects, metric)
    assert [float(found["mrr"]), float(found["h_1"])] == pytest.approx(naive(predicted, targets, objects, metric))


def test_perfect_ignorant_and_collapsed():
    z, turned, _, objects = turning(count=20, views=8)
    perfect = equivariance_rank(turned, turned, objects)
    assert perfect["mrr"] == perfect["h_1"] == 1
    harmonic = sum(1 / k for k in range(1, 9)) / 8
    for predicted, targets in ((z, turned), (torch.ones(160, 4), torch.ones(160, 4)), (turned, torch.zeros(160, 6))):
        found = equivariance_rank(predicted, targets, objects)
        assert found["mrr"] == pytest.approx(harmonic) and found["h_1"] == pytest.approx(1 / 8)
        assert found["mrr"].notes["chance"] == pytest.approx(harmonic)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_collapsed_encoder_is_at_chance_whatever_its_vector(metric):
    same = randn(1, 37)[[0] * 24]
    found = equivariance_rank(same + 0, same + 0, torch.arange(24) % 3, metric)
    assert found["h_1"] == pytest.approx(1 / 8)


def test_ties_count_by_expectation():
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    found = equivariance_rank(targets, targets)
    assert found["h_1"].samples == pytest.approx([0.5, 0.5, 1]) and found["mrr"].samples == pytest.approx([0.75, 0.75, 1])


def test_a_perfect_rank_is_not_certain():
    z, turned, _, objects = turning(count=12, views=4)
    for groups in (objects, None):
        low, high = equivariance_rank(turned, turned, groups)["h_1"].interval
        assert high == 1 and 0.5 < low < 0.95


def test_intervals_are_over_objects():
    z, turned, _, objects = turning(count=12, views=20)
    predicted = torch.where((objects < 6)[:, None], turned, turned.flip(0))  # half of the objects right, half wrong
    by_object, by_row = (equivariance_rank(predicted, turned, o)["h_1"] for o in (objects, None))
    wide, narrow = (high - low for low, high in (by_object.interval, by_row.interval))
    assert wide > 2 * narrow


# ---- factor_r2, moved here from the views gallery


def test_factor_r2_is_that_of_scikit_learn_and_still_found_in_the_gallery():
    x, f = randn(600, 5), randn(600, 2, seed=1)
    f = f + x[:, :2]
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), RidgeCV(alphas=[1, 10, 100, 1000]))
    fitted.fit(x[:400].double().numpy(), f[:400].double().numpy())
    expected = r2_score(f[400:].double().numpy(), fitted.predict(x[400:].double().numpy()))
    score = factor_r2(x[:400], f[:400], x[400:], f[400:])
    assert score == pytest.approx(expected) and score.protocol == "factor R2 (ridge)"
    assert factor_r2(x[:400], randn(400, seed=7), x[400:], randn(200, seed=8)) < 0.05
    with pytest.raises(ValueError, match="399"):
        factor_r2(x[:400], f[:399], x[400:], f[400:])
    from ssl_nb.explore import views_gallery

    assert views_gallery.factor_r2 is factor_r2


# ---- input of any kind


def test_dtypes_gradients_and_layouts():
    z, turned, circle, objects = turning(count=20)
    z, turned = (8 * z).round(), (8 * turned).round()
    expected = equivariance_r2(z, turned, circle, objects)
    ranks = equivariance_rank(z, turned, objects)
    for change in (
        lambda t: t.half(),
        lambda t: t.long(),
        lambda t: t.clone().requires_grad_(),
        lambda t: t.T.contiguous().T,
        lambda t: t.double().numpy(),
    ):
        a, b = change(z), change(turned)
        assert equivariance_r2(a, b, circle, objects) == pytest.approx(expected, abs=1e-3)
        assert equivariance_r2(a, b, circle.numpy(), objects.numpy()) == pytest.approx(expected, abs=1e-3)
        assert equivariance_rank(a, b, objects)["mrr"] == pytest.approx(ranks["mrr"], abs=1e-3)
    assert math.isfinite(equivariance_r2(z, turned, circle[:, 0], objects))


Z = randn(40, 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: equivariance_r2(Z, Z[:39], Z), "shape"),
        (lambda: equivariance_r2(Z, Z[:, :2], Z), "shape"),
        (lambda: equivariance_r2(Z, Z, Z[:30]), "parameters"),
        (lambda: equivariance_r2(Z, Z, Z, torch.zeros(39)), "39|labels"),
        (lambda: equivariance_r2(Z, Z, Z, torch.arange(40) % 5), "5 objects"),
        (lambda: equivariance_r2(Z, Z, torch.ones(40, 2)), "do not vary"),
        (lambda: equivariance_r2(Z, Z, Z * torch.nan), "NaN"),
        (lambda: equivariance_r2(Z * torch.inf, Z, Z), "infinity"),
        (lambda: equivariance_r2(Z[:0], Z[:0], Z[:0]), "shape"),
        (lambda: equivariance_r2(Z[:1], Z[:1], Z[:1]), "rows or more"),
        (lambda: equivariance_r2(Z, Z, Z, kind="tree"), "tree"),
        (lambda: equivariance_r2(Z, Z, Z, strengths=(0.0,)), "positive"),
        (lambda: equivariance_r2(Z, Z, Z, test_fraction=1.0), "test_fraction"),
        (lambda: equivariance_rank(Z, Z[:39]), "targets"),
        (lambda: equivariance_rank(Z, Z, torch.arange(40)), "one view"),
        (lambda: equivariance_rank(Z, Z, metric="manhattan"), "manhattan"),
        (lambda: equivariance_rank(Z * torch.nan, Z), "NaN"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ---- two averages, and factors that do not vary


def test_sies_formula_compares_with_one_scalar_mean():
    z, turned, circle, objects = turning(spread=0.5)
    y = circle * torch.tensor([1.0, 3.0]) + torch.tensor([0.0, 5.0])
    columns, sie = (equivariance_r2(z, turned, y, objects, average=average) for average in ("columns", "sie"))
    x, target, groups, held_out = _check_pairs(z, turned, y, objects, 0, 0.25)
    x, train = _standardize(x, ~held_out).double().numpy(), ~held_out.numpy()
    predicted = Ridge(alpha=sie.notes["strength"] * train.sum()).fit(x[train], target[train]).predict(x[~train])
    truth = target[~train].numpy()
    assert columns == pytest.approx(r2_score(truth, predicted), abs=1e-5)
    assert sie == pytest.approx(1 - np.square(truth - predicted).sum() / np.square(truth - truth.mean()).sum(), abs=1e-5)
    assert "mean over parameters" in columns.protocol and "SIE's, one scalar mean" in sie.protocol
    np.testing.assert_allclose(columns.notes["each"], sie.notes["each"])
    assert sie.interval[0] < sie < sie.interval[1]


def test_the_two_averages_agree_for_one_parameter_and_differ_by_the_means():
    z, turned, circle, objects = turning()
    one = [float(equivariance_r2(z, turned, circle[:, :1] + 7, objects, average=average)) for average in ("columns", "sie")]
    assert one[0] == pytest.approx(one[1], abs=1e-9)
    apart = randn(len(z), 2, seed=3) + torch.tensor([10.0, 0.0])
    first, second = randn(len(z), 3), randn(len(z), 3)
    columns, sie = (equivariance_r2(first, second, apart, objects, average=average) for average in ("columns", "sie"))
    assert columns < 0.05 and sie > 0.9  # nothing is known but the means
    with pytest.raises(ValueError, match="'columns' and 'sie'"):
        equivariance_r2(z, turned, circle, objects, average="all")


def test_the_interval_of_factor_r2_is_over_groups():
    x, f = randn(400, 5), randn(400, seed=1)
    f = f + x[:, 0]
    copies, group = (t[200:].repeat_interleave(9, 0) for t in (x, f)), torch.arange(200).repeat_interleave(9)
    test = list(copies)
    apart = factor_r2(x[:200], f[:200], *test)
    together = factor_r2(x[:200], f[:200], *test, groups=group)
    once = factor_r2(x[:200], f[:200], x[200:], f[200:])
    wide, narrow, right = (high - low for low, high in (together.interval, apart.interval, once.interval))
    assert apart == together == pytest.approx(once) and wide > 2 * narrow and wide == pytest.approx(right, rel=0.3)
    assert together.of == "groups"


@pytest.mark.parametrize("where", [0, 1])
def test_a_factor_that_does_not_vary_is_refused(where):
    factors = [randn(40, 2), randn(20, 2)]
    factors[where][:, 1] = 0.3
    with pytest.raises(ValueError, match=r"columns \[1\] of (train|test)_factor do not vary"):
        factor_r2(randn(40, 3), factors[0], randn(20, 3), factors[1])
