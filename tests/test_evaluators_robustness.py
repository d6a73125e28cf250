"""OOD scores and the shape test against other implementations, constructed cases and bad input."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.covariance import EmpiricalCovariance
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from ssl_nb.evaluators import robustness as rb
from ssl_nb.evaluators.robustness import detection, ood_scores
from ssl_nb.evaluators.shape import _seam, disrupt_shape, odd_one_out, shape_sensitivity

X, Y = load_digits(return_X_y=True)
KNOWN = Y < 7
TRAIN, LABELS, TEST, OOD = X[:1000][KNOWN[:1000]], Y[:1000][KNOWN[:1000]], X[1000:][KNOWN[1000:]], X[~KNOWN]
KINDS = ("texture", "patch_shuffle", "phase")


def rng(seed=0):
    return np.random.default_rng(seed)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- AUROC and FPR at 95 % TPR


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_detection_equals_sklearn_with_ties(inside, outside):
    truth, scores = np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside].astype(float)
    found = detection(np.array(inside, float), np.array(outside, float), n=2)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found["fpr95"] == fpr[np.argmax(tpr >= 0.95)]


def test_detection_equals_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc, binary_roc

    inside, outside = rng().normal(1, 1, 300).round(1), rng(1).normal(0, 1, 200).round(1)
    scores = torch.from_numpy(np.r_[inside, outside])
    truth = torch.cat([torch.ones(300), torch.zeros(200)]).long()
    squeezed = (scores - scores.min()) / (scores.max() - scores.min())  # torchmetrics wants probabilities
    found = detection(inside, outside, n=2)
    fpr, tpr, _ = binary_roc(squeezed, truth)
    assert found["auroc"] == pytest.approx(float(binary_auroc(squeezed, truth)), abs=1e-6)
    assert found["fpr95"] == pytest.approx(float(fpr[(tpr >= 0.95).nonzero()[0, 0]]), abs=1e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.5])
def test_gaussians_have_the_auroc_of_theory_inside_the_interval(delta):
    found = detection(rng(1).normal(delta, 1, 5000), rng(2).normal(0, 1, 4000))
    for name, value in (("auroc", norm.cdf(delta / 2**0.5)), ("fpr95", norm.cdf(norm.ppf(0.95) - delta))):
        low, high = found[name].interval
        assert low - 0.01 < value < high + 0.01
        assert found[name] == pytest.approx(value, abs=0.03)
        assert found[name].of == "examples" and found[name].protocol == f"ood, {name}"


def test_interval_is_that_of_both_sides_resampled():
    inside, outside = rng(1).normal(1, 1, 60), rng(2).normal(0, 1, 40)
    found = detection(inside, outside, n=2000)["auroc"]
    draw, placements = rng(3), (inside[:, None] > outside).astype(float)
    naive = [placements[draw.integers(0, 60, 60)][:, draw.integers(0, 40, 40)].mean() for _ in range(2000)]
    np.testing.assert_allclose(found.interval, np.quantile(naive, [0.025, 0.975]), atol=0.012)
    one_sided = [placements[draw.integers(0, 60, 60)].mean() for _ in range(2000)]
    assert np.ptp(found.interval) > 1.2 * np.ptp(np.quantile(one_sided, [0.025, 0.975]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_detection_sees_only_the_order(seed):
    inside, outside = rng(seed).normal(0.5, 1, 50), rng(seed + 1).normal(0, 1, 30)
    plain, bent = detection(inside, outside, n=2), detection(np.exp(3 * inside) - 7, np.exp(3 * outside) - 7, n=2)
    assert plain["auroc"] == bent["auroc"] and plain["fpr95"] == bent["fpr95"]
    assert detection(outside, inside, n=2)["auroc"] == pytest.approx(1 - plain["auroc"])
    assert detection(inside, inside, n=2)["auroc"] == 0.5


def test_separated_sides_are_not_certain():
    found = detection(np.arange(30.0) + 100, np.arange(20.0), n=200)
    assert found["auroc"] == found["aupr_in"] == 1 and found["fpr95"] == 0
    assert all(score.interval is None for score in found.values())


def test_detection_of_one_against_one_has_no_interval():
    found = detection([1.0], [0.0])
    assert found["auroc"] == 1 and found["fpr95"] == 0 and found["auroc"].interval is None


@pytest.mark.parametrize("bad", [[], [float("nan")], [float("inf")], [[1.0, 2.0]]])
def test_detection_refuses(bad):
    with pytest.raises(ValueError, match="inside"):
        detection(np.array(bad), np.array([1.0]))
    with pytest.raises(ValueError, match="outside"):
        detection(np.array([1.0]), np.array(bad))


# ---- the three scores


def test_mahalanobis_equals_sklearn_without_shrinkage():
    means, whiten = rb.fit_gaussians(TRAIN, LABELS, shrinkage=0)
    oracle = EmpiricalCovariance(assume_centered=True).fit(TRAIN - means.numpy()[LABELS])
    theirs = -np.min([oracle.mahalanobis(OOD - m) for m in means.numpy()], axis=0)
    np.testing.assert_allclose(rb.mahalanobis(OOD, means, whiten), theirs, rtol=1e-8)


def test_mahalanobis_without_labels_is_one_gaussian():
    means, whiten = rb.fit_gaussians(TRAIN, shrinkage=0)
    theirs = -EmpiricalCovariance().fit(TRAIN).mahalanobis(OOD)
    np.testing.assert_allclose(rb.mahalanobis(OOD, means, whiten), theirs, rtol=1e-8)


def test_mahalanobis_without_shrinkage_is_invariant_to_linear_maps():
    a = rng(3).normal(size=(64, 64)) + 8 * np.eye(64)
    x = X + rng(4).normal(size=X.shape)  # full rank
    plain = rb.mahalanobis(x[:50], *rb.fit_gaussians(x, Y, shrinkage=0))
    mapped = rb.mahalanobis(x[:50] @ a, *rb.fit_gaussians(x @ a, Y, shrinkage=0))
    np.testing.assert_allclose(mapped, plain, rtol=1e-6)


def test_full_shrinkage_is_the_euclidean_distance():
    means, whiten = rb.fit_gaussians(TRAIN, shrinkage=1)
    scale = ((TRAIN - TRAIN.mean(0)) ** 2).mean()
    np.testing.assert_allclose(rb.mahalanobis(OOD, means, whiten), -((OOD - TRAIN.mean(0)) ** 2).sum(1) / scale)


def test_a_direction_without_variance_is_seen_with_shrinkage_only():
    marked = TEST.copy()
    marked[:, 0] += 16
    seen = {g: rb.mahalanobis(marked, *rb.fit_gaussians(TRAIN, LABELS, g)) for g in (0, 1e-3)}
    plain = {g: rb.mahalanobis(TEST, *rb.fit_gaussians(TRAIN, LABELS, g)) for g in (0, 1e-3)}
    assert torch.allclose(seen[0], plain[0]) and (seen[1e-3] < plain[1e-3] - 10).all()


@pytest.mark.parametrize("k", [1, 7, 50])
def test_knn_score_equals_sklearn(k):
    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    theirs = NearestNeighbors(n_neighbors=k).fit(unit(TRAIN)).kneighbors(unit(OOD))[0][:, -1]
    np.testing.assert_allclose(-rb.knn_score(OOD, TRAIN, k), theirs, rtol=1e-6)
    if k == 1:
        assert (rb.knn_score(TRAIN, TRAIN, 1) == 0).all()  # no rounding where the neighbor is the image itself


def test_max_softmax_equals_sklearn_at_the_same_strength():
    x = (TRAIN - TRAIN.mean(0)) / (TRAIN.std(0) + (TRAIN.std(0) == 0))
    weight, bias, _ = rb.fit_linear(torch.from_numpy(x), torch.from_numpy(LABELS), 7, l2=0.01)
    theirs = LogisticRegression(C=1 / (0.01 * len(x)), max_iter=2000, tol=1e-8).fit(x, LABELS)
    np.testing.assert_allclose(rb.max_softmax(x, weight, bias), theirs.predict_proba(x).max(1), atol=2e-3)


@pytest.mark.parametrize("kind", rb.KINDS)
def test_scores_are_higher_for_what_was_trained_on(kind):
    found = ood_scores(TRAIN, TEST, OOD, LABELS, kinds=kind, k=20)
    assert list(found) == [kind] and set(found[kind]) == {"auroc", "fpr95", "aupr_in", "aupr_out"}
    notes = found[kind]["auroc"].notes
    assert found[kind]["auroc"] > 0.8 and np.median(notes["inside"]) > np.median(notes["outside"])
    low, high = found[kind]["auroc"].interval
    assert low < found[kind]["auroc"] < high and high - low < 0.1
    assert ood_scores(TRAIN, TEST, TEST, LABELS, kinds=kind, k=20)[kind]["auroc"] == 0.5


def test_kinds_and_protocols():
    found = ood_scores(TRAIN, TEST, OOD, LABELS)
    assert list(found) == ["mahalanobis", "knn", "max_softmax"]
    assert all(list(scores) == ["auroc", "fpr95", "aupr_in", "aupr_out"] for scores in found.values())
    assert found["knn"]["fpr95"].protocol == "ood knn distance, k 50, fpr95"
    assert list(ood_scores(TRAIN, TEST, OOD, kinds=("mahalanobis", "knn"))) == ["mahalanobis", "knn"]


@pytest.mark.parametrize("change", ["float16", "int64", "requires_grad", "strided", "list"])
def test_any_kind_of_features(change):
    ways = {
        "float16": lambda x: torch.from_numpy(x).half(),
        "int64": lambda x: torch.from_numpy(x).long(),
        "requires_grad": lambda x: torch.from_numpy(x).requires_grad_(),
        "strided": lambda x: torch.from_numpy(np.repeat(x, 2, axis=1))[:, ::2],
        "list": lambda x: x.tolist(),
    }
    expected = ood_scores(TRAIN, TEST, OOD, LABELS, kinds=("mahalanobis", "knn"))
    found = ood_scores(*map(ways[change], (TRAIN, TEST, OOD)), LABELS, kinds=("mahalanobis", "knn"))
    for kind in expected:
        assert found[kind]["auroc"] == pytest.approx(expected[kind]["auroc"], abs=1e-4)
        assert not isinstance(found[kind]["auroc"].notes["inside"], torch.Tensor)


NAN = np.where(np.arange(64) == 3, np.nan, X[:80])


@pytest.mark.parametrize(
    "given, options, message",
    [
        ((TRAIN, TEST, OOD), {}, "needs train_labels"),
        ((TRAIN, TEST, OOD, LABELS), dict(kinds="mahalanobi"), "mahalanobis"),
        ((NAN, TEST, OOD), dict(kinds="knn"), "train_features hold NaN"),
        ((TRAIN, NAN, OOD), dict(kinds="knn"), "test_features hold NaN"),
        ((TRAIN, TEST, NAN), dict(kinds="knn"), "ood_features hold NaN"),
        ((TRAIN, TEST[:, :9], OOD), dict(kinds="mahalanobis"), "dimensions"),
        ((TRAIN, TEST, OOD[:, :9]), dict(kinds="mahalanobis"), "dimensions"),
        ((TRAIN[:20], TEST, OOD), dict(kinds="knn"), "k=50"),
        ((TRAIN, TEST[:0], OOD), dict(kinds="knn"), "test_features"),
        ((TRAIN, TEST, OOD, LABELS[:-1]), dict(kinds="mahalanobis"), "need as many labels"),
        ((TRAIN, TEST, OOD, LABELS * 0), dict(kinds="max_softmax"), "two classes"),
        ((np.ones((90, 64)), TEST, OOD), dict(kinds="mahalanobis"), "do not vary"),
        ((TRAIN[:7], TEST, OOD, np.arange(7)), dict(kinds="mahalanobis"), "do not vary"),
        ((TRAIN, TEST, OOD), dict(kinds="mahalanobis", shrinkage=-1), "shrinkage"),
    ],
)
def test_ood_scores_refuses(given, options, message):
    with pytest.raises(ValueError, match=message):
        ood_scores(*given, **options)


# ---- disrupted images


def pictures(n=6, c=1, h=24, w=24, dtype=torch.uint8, seed=0):
    "Smooth random images."
    x = F.interpolate(torch.rand(n, c, 6, 6, generator=gen(seed)), size=(h, w), mode="bicubic").clamp(0, 1)
    return (x * 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("c, h, w", [(1, 24, 24), (3, 32, 32), (5, 16, 28), (1, 8, 8)])
def test_shape_dtype_range_and_seed(kind, dtype, c, h, w):
    x = pictures(3, c, h, w, dtype)
    made = disrupt_shape(x, kind, gen())
    assert made.shape == x.shape and made.dtype == dtype
    assert 0 <= made.min() and made.max() <= (255 if dtype == torch.uint8 else 1)
    assert torch.equal(made, disrupt_shape(x, kind, gen())) and not torch.equal(made, disrupt_shape(x, kind, gen(1)))
    assert (made != x).flatten(1).any(1).all()


def test_patch_shuffle_moves_every_cell_and_changes_none():
    x = torch.arange(2 * 3 * 24 * 24).view(2, 3, 24, 24).float() / 3456

    def cells(y):
        return [y[:, :, i : i + 6, j : j + 6].flatten(1) for i in range(0, 24, 6) for j in range(0, 24, 6)]

    before, after = torch.stack(cells(x), 1), torch.stack(cells(disrupt_shape(x, "patch_shuffle", gen())), 1)
    same = (before[:, :, None] == after[:, None]).all(3)  # image, old place, new place
    assert (same.sum(1) == 1).all() and (same.sum(2) == 1).all() and not same.diagonal(dim1=1, dim2=2).any()


def test_patch_shuffles_are_uniform_over_cycles():
    made = disrupt_shape(torch.arange(4.0).view(1, 1, 2, 2).expand(6000, 1, 2, 2) / 4, "patch_shuffle", gen(), grid=2)
    kinds, counts = (made.flatten(1) * 4).unique(dim=0, return_counts=True)
    assert len(kinds) == 6 and (counts / 6000 - 1 / 6).abs().max() < 0.02  # 3! cycles of four cells


def test_phase_keeps_mean_and_spectrum_where_nothing_is_clipped():
    x = 0.5 + 0.02 * torch.randn(4, 3, 16, 16, generator=gen())
    made = disrupt_shape(x, "phase", gen())
    assert torch.allclose(made.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(torch.fft.fft2(made).abs(), torch.fft.fft2(x).abs(), atol=1e-3)

    def channels(y):
        return torch.einsum("nchw,ndhw->ncd", y - y.mean((2, 3), True), y - y.mean((2, 3), True))

    assert torch.allclose(channels(made), channels(x), atol=1e-4)  # one phase for all: their correlation stays


def test_quilting_makes_no_new_colors_and_lays_whole_blocks():
    x = torch.randint(0, 256, (5, 3, 24, 24), generator=gen(), dtype=torch.uint8)
    made = disrupt_shape(x, "texture", gen(), block=6, overlap=2)
    for old, new in zip(x, made, strict=True):
        colors = set(map(tuple, old.flatten(1).T.tolist()))
        assert set(map(tuple, new.flatten(1).T.tolist())) <= colors
    windows = F.unfold(x.float(), 3).transpose(1, 2)  # the corner belongs to one block, beyond the reach of all seams
    assert (windows == made[..., :3, :3].flatten(1)[:, None].float()).all(2).any(1).all()


def test_quilting_of_a_constant_image_is_that_image():
    x = torch.full((2, 1, 24, 24), 0.3)
    assert torch.equal(disrupt_shape(x, "texture", gen()), x)


def test_quilting_uses_the_image_evenly():
    x = torch.zeros(40, 1, 24, 24)
    x[..., 8:16, 6:18] = 1  # a bright box, a sixth of the image
    made = disrupt_shape(x, "texture", gen()).mean((1, 2, 3))
    assert abs(made.mean() - 1 / 6) < 0.05 and made.std() < 0.1


def test_seam_is_the_cheapest_path():
    cost = torch.rand(30, 6, 3, generator=gen())
    seams = _seam(cost, 8).sum(2)
    assert ((seams[:, 1:] - seams[:, :-1]).abs() <= 1).all()
    best = []
    for one in cost:
        total = one[0].tolist()
        for row in one[1:].tolist():
            total = [row[j] + min(total[max(0, j - 1) : j + 2]) for j in range(3)]
        best.append(min(total))
    spent = cost.gather(2, seams[..., None]).sum((1, 2))
    assert torch.allclose(spent, torch.tensor(best))


def test_quilting_does_not_depend_on_how_much_fits_in_memory(monkeypatch):
    x = pictures(7)
    whole = disrupt_shape(x, "texture", gen())
    original = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda self, size, dim=0: original(self, min(size, 2), dim))
    assert torch.equal(disrupt_shape(x, "texture", gen()), whole)


def test_larger_images_are_quilted_from_a_coarser_choice():
    x = pictures(1, 3, 96, 80)
    assert disrupt_shape(x, "texture", gen()).shape == x.shape


def test_digits_are_lost_and_texture_is_kept():
    from ssl_nb import data
    from ssl_nb.evaluators import knn

    scenes = data.load("scenes", n_train=1500, n_test=300)
    made = disrupt_shape(scenes.test["images"], "texture", gen())

    def flat(x):
        return x.flatten(1).float()

    def score(x):
        return knn(flat(scenes.train["images"]), scenes.train["labels"], flat(x), scenes.test["labels"], k=10)

    assert score(scenes.test["images"]) > 0.45 and score(made) < 0.2

    def sort(x):
        return flat(x).sort(1).values

    pixels = sort(scenes.test["images"])
    mine, other = ((sort(made) - reference).abs().mean() for reference in (pixels, pixels.roll(1, 0)))
    assert mine < other / 3


@pytest.mark.parametrize(
    "images, options, message",
    [
        (pictures(), dict(kind="textur"), "texture"),
        (pictures()[0], {}, r"\(n, channels"),
        (pictures()[:0], {}, "images in it"),
        (np.zeros((2, 1, 8, 8)), {}, "must be a tensor"),
        (pictures().int(), {}, "uint8"),
        (pictures(dtype=torch.float32) * float("nan"), {}, "NaN"),
        (pictures(), dict(kind="patch_shuffle", grid=5), "grid=5"),
        (pictures(), dict(kind="patch_shuffle", grid=1), "grid=1"),
        (pictures(), dict(block=30), "block=30"),
        (pictures(), dict(block=4, overlap=4), "overlap=4"),
        (pictures(), dict(fit=0), "fit=0"),
    ],
)
def test_disrupt_shape_refuses(images, options, message):
    with pytest.raises(ValueError, match=message):
        disrupt_shape(images, **options)


# ---- odd one out


def naive(a, b, odd):
    right = []
    for trio in zip(*(np.asarray(x, float) for x in (a, b, odd)), strict=True):
        unit = [v / np.linalg.norm(v) for v in trio]
        likeness = [sum(unit[i] @ unit[j] for j in range(3) if j != i) for i in range(3)]
        right.append(int(np.argmin(likeness) == 2))
    return np.array(right)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 2))
def test_odd_one_out_equals_the_loop_and_ignores_rotation_and_length(seed, likeness):
    a, b, odd = torch.randn(3, 50, 8, generator=gen(seed), dtype=torch.float64)
    b = b + likeness * a
    found = odd_one_out(a, b, odd)
    assert np.array_equal(found, naive(a, b, odd))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=gen(seed), dtype=torch.float64)).Q
    assert torch.equal(odd_one_out(3 * a @ turn, b @ turn, 0.1 * odd @ turn), found)
    assert torch.equal(odd_one_out(b, a, odd), found)


def test_odd_one_out_limits():
    a, odd = torch.eye(4)[:2], torch.eye(4)[2:]
    assert odd_one_out(a, a, odd).tolist() == [1, 1] and odd_one_out(a, odd, a).tolist() == [0, 0]
    assert odd_one_out(a, a, a).tolist() == pytest.approx([1 / 3] * 2)  # all alike: lots
    assert odd_one_out(a, odd, (a + odd)).tolist() == [0, 0]
    assert odd_one_out(torch.eye(4)[:1], torch.eye(4)[1:2], torch.eye(4)[2:3]).item() == pytest.approx(1 / 3)


def test_random_features_are_at_chance():
    score = shape_sensitivity(tuple(torch.randn(3, 3000, 16, generator=gen())))
    assert score.interval[0] < 1 / 3 < score.interval[1] and score.notes["chance"] == 1 / 3
    assert score.of == "examples" and len(score.samples) == 3000


class Collapsed(torch.nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 4)


class Pixels(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1).float() + 1


@pytest.mark.parametrize("odd", ["disrupted", "original"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_encoder_is_at_chance_exactly(odd, kind):
    assert shape_sensitivity(Collapsed(), pictures(20), kind=kind, odd=odd) == pytest.approx(1 / 3)


def test_an_encoder_blind_to_place_is_at_chance_on_shuffled_images():
    def palette(x):
        return x.flatten(1).sort(1).values.float() + 1

    assert shape_sensitivity(palette, pictures(20), kind="patch_shuffle") == pytest.approx(1 / 3)


def test_an_encoder_that_sees_only_the_mirrored_layout_finds_all():
    half = torch.rand(30, 1, 24, 12, generator=gen())
    symmetric = torch.cat([half, half.flip(-1)], -1)  # equal to their mirror images
    assert shape_sensitivity(Pixels(), symmetric) == 1
    assert shape_sensitivity(Pixels(), symmetric, odd="disrupted", positive=lambda x: 1 - x) < 1


def test_trials_are_averaged_within_images_and_seeds_repeat():
    x = pictures(12)
    one, again, three = (shape_sensitivity(Pixels(), x, kind="patch_shuffle", trials=t) for t in (1, 1, 3))
    assert np.array_equal(one.samples, again.samples) and len(three.samples) == 12
    assert np.allclose(three.samples * 3, np.round(three.samples * 3))
    assert one.protocol == "dist odd-one-out (patch_shuffle, odd disrupted)" and three.notes["trials"] == 3


def test_knobs_reach_the_disruption():
    x = pictures(4)
    seen = []
    shape_sensitivity(lambda y: seen.append(y) or y.flatten(1).float(), x, kind="patch_shuffle", grid=2)
    assert torch.equal(seen[2], disrupt_shape(x, "patch_shuffle", gen(), grid=2)) and torch.equal(seen[1], x.flip(-1))


def test_the_encoder_is_left_as_it_was():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(576)).train()
    before = net[1].running_mean.clone()
    shape_sensitivity(net, pictures(8, dtype=torch.float32))
    assert net.training and torch.equal(net[1].running_mean, before)


@pytest.mark.parametrize(
    "given, options, message",
    [
        ((torch.ones(3, 2), torch.ones(3, 2)), {}, "2 sets of features"),
        ((torch.ones(3, 2),) * 3, dict(images=pictures()), "no images"),
        ((torch.ones(3, 2), torch.ones(4, 2), torch.ones(3, 2)), {}, "have shapes"),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.full((3, 2), math.nan)), {}, "odd hold NaN"),
        (Pixels(), {}, "needs images"),
        (Pixels(), dict(images=pictures(), odd="mirror"), "odd='mirror'"),
        (Pixels(), dict(images=pictures(), trials=0), "trials=0"),
        (Pixels(), dict(images=pictures(), kind="none"), "kind of disruption"),
    ],
)
def test_shape_sensitivity_refuses(given, options, message):
    with pytest.raises(ValueError, match=message):
        shape_sensitivity(given, **options)


# ---- AUPR, and scores by classes and by a classifier


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.lists(st.integers(0, 6), min_size=2, max_size=40))
def test_aupr_is_average_precision_with_either_side_positive(inside, outside):
    from sklearn.metrics import average_precision_score

    truth, scores = np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside].astype(float)
    found = detection(inside, outside, n=2)
    assert found["aupr_in"] == pytest.approx(average_precision_score(truth, scores))
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - truth, -scores))


def test_aupr_without_information_is_the_share_of_positives():
    found = detection(np.ones(30), np.ones(10), n=50)
    assert found["aupr_in"] == 0.75 and found["aupr_out"] == 0.25
    low, high = detection(np.arange(400.0) % 37, np.arange(200.0) % 37, n=200)["aupr_in"].interval
    assert 0.6 < low < 2 / 3 + 0.02 and low < high < 0.75


def logits_of(x):
    weight, bias, _ = rb.fit_linear(torch.from_numpy(TRAIN), torch.from_numpy(LABELS), 7, l2=0.01)
    return weight, bias, torch.from_numpy(x) @ weight + bias


def test_energy_is_the_soft_maximum_of_the_logits():
    weight, bias, logits = logits_of(TEST)
    torch.testing.assert_close(rb.energy(TEST, weight, bias), torch.from_numpy(np.log(np.exp(logits.numpy()).sum(1))))
    torch.testing.assert_close(rb.energy(TEST, weight, bias, 1e-4), logits.amax(1), atol=1e-3, rtol=0)  # cold: the maximum
    torch.testing.assert_close(rb.energy(TEST, weight, bias + 3), rb.energy(TEST, weight, bias) + 3)
    with pytest.raises(ValueError, match="temperature=0"):
        rb.energy(TEST, weight, bias, 0)


def test_relative_mahalanobis_is_the_difference_of_two():
    classes, everything = rb.fit_gaussians(TRAIN, LABELS), rb.fit_gaussians(TRAIN)
    found = rb.relative_mahalanobis(TEST, classes, everything)
    torch.testing.assert_close(found, rb.mahalanobis(TEST, *classes) - rb.mahalanobis(TEST, *everything))
    assert rb.relative_mahalanobis(TEST, everything, everything).abs().max() == 0  # one class: nothing is left


def test_vim_sees_what_the_logits_cannot_see():
    weight, bias, _ = logits_of(TRAIN)
    origin, residual = rb.fit_vim(TRAIN, weight, bias, dims=32)
    directions = residual / residual.norm(dim=0)
    torch.testing.assert_close(directions.T @ directions, torch.eye(32).double(), atol=1e-8, rtol=0)
    x = torch.from_numpy(TRAIN)
    length = ((x - origin) @ residual).norm(dim=1)
    # the virtual logit is as large as the others
    assert length.mean().item() == pytest.approx((x @ weight + bias).amax(1).mean().item())
    torch.testing.assert_close(rb.vim(TRAIN, weight, bias, origin, residual), rb.energy(TRAIN, weight, bias) - length)
    still = torch.linalg.svd(torch.cat([weight.T, directions.T])).Vh[-1]  # changes no logit and no residual
    moved = rb.vim(TEST + 50 * still.numpy(), weight, bias, origin, residual)
    torch.testing.assert_close(moved, rb.vim(TEST, weight, bias, origin, residual), atol=1e-6, rtol=1e-6)
    blind = torch.linalg.svd(weight.T).Vh[-1].numpy()  # changes no logit
    moved, still = (rb.vim(x, weight, bias, origin, residual).mean() for x in (TEST + 50 * blind, TEST))
    assert moved < still - 1
    with pytest.raises(ValueError, match="dims=64"):
        rb.fit_vim(TRAIN, weight, bias, dims=64)
    flat = np.c_[TRAIN[:, 20:24], np.zeros((len(TRAIN), 4))]
    w, b, _ = rb.fit_linear(torch.from_numpy(flat), torch.from_numpy(LABELS), 7, l2=0.1)
    with pytest.raises(ValueError, match="nothing is left"):
        rb.fit_vim(flat, w, torch.zeros_like(b), dims=4)


@pytest.mark.parametrize("kind", ["relative_mahalanobis", "max_softmax", "energy", "vim"])
def test_kinds_by_classes_need_labels(kind):
    with pytest.raises(ValueError, match=f"{kind} needs train_labels"):
        ood_scores(TRAIN, TEST, OOD, kinds=kind)
    with pytest.raises(ValueError, match="unlabeled"):
        ood_scores(TRAIN, TEST, OOD, np.where(LABELS == 3, -1, LABELS), kinds=kind)


# ---- calibration


def claims(n, seed=0, sharper=1.0):
    rng = np.random.default_rng(seed)
    odds = rng.normal(size=(n, 3)) * 2
    p = np.exp(odds) / np.exp(odds).sum(1, keepdims=True)
    label = (rng.random((n, 1)) > p.cumsum(1)).sum(1).clip(max=2)
    p = p**sharper
    return p / p.sum(1, keepdims=True), label


def naive_ece(p, y, bins, adaptive=False):
    confidence, right = p.max(1), p.argmax(1) == y
    order = np.argsort(confidence, kind="stable")
    edges = [order[[i for i in range(len(y)) if i * bins // len(y) == b]] for b in range(bins)] if adaptive else [
        np.flatnonzero((b / bins < confidence) & (confidence <= (b + 1) / bins)) for b in range(bins)]
    return sum(len(rows) * abs(right[rows].mean() - confidence[rows].mean()) for rows in edges if len(rows)) / len(y)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_the_loop_over_bins_and_brier_scikit_learns(bins):
    p, y = claims(400)
    found = rb.calibration(p, y, bins)
    assert found["ece"] == pytest.approx(naive_ece(p, y, bins))
    assert found["ece_adaptive"] == pytest.approx(naive_ece(p, y, bins, True))
    assert found["brier"] == pytest.approx(np.square(p - np.eye(3)[y]).sum(1).mean()) and len(found["brier"].samples) == 400
    order = np.random.default_rng(1).permutation(400)
    again = rb.calibration(torch.from_numpy(p[order]), torch.from_numpy(y[order]), bins)
    assert again["ece"] == pytest.approx(found["ece"])


def test_a_calibrated_classifier_is_at_the_floor_and_a_sharper_one_above():
    values = [rb.calibration(*claims(300, seed))["ece"] for seed in range(20)]
    floor = np.mean([v.notes["floor"] for v in values])
    assert np.mean(values) == pytest.approx(floor, rel=0.25) and floor > 0.02
    sharp = rb.calibration(*claims(3000, 0, sharper=3.0))
    assert sharp["ece"] > 3 * sharp["ece"].notes["floor"] and sharp["brier"] > rb.calibration(*claims(3000))["brier"]


def test_calibration_of_certainty():
    sure = np.eye(4)[np.arange(40) % 4]
    assert {name: float(s) for name, s in rb.calibration(sure, np.arange(40) % 4).items()} == dict(ece=0, ece_adaptive=0, brier=0)
    found = rb.calibration(sure, (np.arange(40) + 1) % 4)
    assert {name: float(s) for name, s in found.items()} == dict(ece=1, ece_adaptive=1, brier=2)


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(probabilities=np.ones((9, 3))), "sum to 1"),
        (dict(probabilities=np.tile([1.5, -0.5, 0.0], (9, 1))), "0 or more"),
        (dict(labels=np.full(9, 3)), "columns"),
        (dict(labels=np.full(9, -1)), "unlabeled"),
        (dict(bins=2.5), "bins=2.5"),
        (dict(bins=0), "bins=0"),
    ],
)
def test_calibration_refuses(change, reason):
    with pytest.raises(ValueError, match=reason):
        rb.calibration(**dict(probabilities=np.full((9, 3), 1 / 3), labels=np.arange(9) % 3) | change)
