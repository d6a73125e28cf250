"""Label efficiency and fine-tuning: subsets by their defining properties, known answers, refusals."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from ssl_nb import data, encoders
from ssl_nb.evaluators import probes
from ssl_nb.evaluators.probes import (
    STRENGTHS,
    attentive_probe,
    balanced_accuracy,
    class_averages,
    fit_linear,
    label_efficiency,
    labeled_rows,
    linear_probe,
    mlp_probe,
    seed_score,
    split_rows,
)
from ssl_nb.evaluators.scores import mean_score, paired_difference
from ssl_nb.methods.finetune import finetune

X, Y = load_digits(return_X_y=True)
SPLIT = X[:1000], Y[:1000], X[1000:], Y[1000:]


def clusters(n, classes=4, d=6, gap=20.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return torch.eye(d)[y] * gap + torch.randn(n, d, generator=generator), y


# ---- the labeled subset


class_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(class_sizes, st.integers(0, 5), st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_fractions_are_exact_stratified_and_nested(sizes, seed, fractions):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 3 + 1, sizes))
    kept = [set()]
    for fraction in sorted(fractions):
        count = round(fraction * len(labels))
        if count < len(sizes):
            with pytest.raises(ValueError, match="no room for one of each"):
                labeled_rows(labels, fraction, seed=seed)
            continue
        rows = labeled_rows(labels, fraction, seed=seed)
        assert len(rows) == len(set(rows.tolist())) == count
        assert rows.tolist() == sorted(rows.tolist())
        assert set(labels[rows.numpy()]) == set(labels)
        assert kept[-1] <= set(rows.tolist())
        kept.append(set(rows.tolist()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(20, 90), min_size=2, max_size=8), st.floats(0.3, 1))
def test_every_class_is_within_one_row_of_its_share(sizes, fraction):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    found = np.bincount(labels[labeled_rows(labels, fraction).numpy()], minlength=len(sizes))
    share = found.sum() * np.array(sizes) / sum(sizes)
    assert (np.abs(found - share) < 1.5).all()  # Webster's rule may leave the quota by a little, with many classes


def test_per_class_subsets_are_even_and_nested():
    sets = [labeled_rows(Y, per_class=n, seed=3) for n in (1, 5, 20)]
    for n, rows in zip((1, 5, 20), sets, strict=True):
        assert (np.bincount(Y[rows.numpy()]) == n).all()
    assert set(sets[0].tolist()) < set(sets[1].tolist()) < set(sets[2].tolist())


def test_subsets_depend_on_labels_and_seed_only():
    a, b = labeled_rows(Y, 0.05, seed=1), labeled_rows(torch.from_numpy(Y).int(), 0.05, seed=1)
    assert (a == b).all()
    assert (labeled_rows(Y * 7 - 3, 0.05, seed=1) == a).all()  # renamed classes
    assert not torch.equal(labeled_rows(Y, 0.05, seed=2), a)


def test_drawn_rows_are_uniform_within_a_class():
    labels = np.repeat([0, 1], [10, 30])
    times = sum(np.bincount(labeled_rows(labels, 0.5, seed=s).numpy(), minlength=40) for s in range(400))
    assert abs(times / 400 - 0.5).max() < 0.12


@pytest.mark.parametrize(
    "budget, reason",
    [
        (dict(), "either fraction= or per_class="),
        (dict(fraction=0.1, per_class=2), "either fraction= or per_class="),
        (dict(fraction=0.0), r"must lie in \(0, 1\]"),
        (dict(fraction=1.2), r"must lie in \(0, 1\]"),
        (dict(fraction=float("nan")), r"must lie in \(0, 1\]"),
        (dict(fraction=0.001), "per_class=\\(1,\\)"),
        (dict(per_class=0), "at least 1"),
        (dict(per_class=1.5), "whole number"),
        (dict(per_class=200), "has 174 rows"),
    ],
)
def test_budgets_without_a_meaning_are_refused(budget, reason):
    with pytest.raises(ValueError, match=reason):
        labeled_rows(Y, **budget)


# ---- the choice of the penalty


def hidden_classes(shares, apart, rows, seed, d=32):
    "Classes that differ in directions of little variance only, mixed by a rotation: strong penalties see one class."
    g = torch.Generator().manual_seed(seed)
    means, turn = torch.randn(len(shares), d, generator=g) * apart, torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    y = torch.multinomial(torch.tensor(shares), rows + 1000, True, generator=g)
    narrow = torch.arange(d) < d // 2
    z = torch.randn(rows + 1000, d, generator=g) + means[y] * narrow
    x = (z * torch.where(narrow, 1.0, 10.0)) @ turn
    return x[:rows], y[:rows], x[rows:], y[rows:]


@pytest.mark.parametrize("shares, apart", [((0.67, 0.33), 0.45), ((0.5,) + (1 / 18,) * 9, 0.8)])
@pytest.mark.parametrize("rows", [400, 1200])
def test_the_search_passes_the_plateau_of_the_largest_class(shares, apart, rows):
    split = hidden_classes(shares, apart, rows, seed=rows)
    plateau, good = linear_probe(*split, l2=1.0), max(linear_probe(*split, l2=l2) for l2 in (1e-2, 1e-3, 1e-4))
    chosen = linear_probe(*split)
    assert plateau < good - 0.1 and plateau.notes["balanced_accuracy"] < 1.3 / len(shares)
    assert chosen > good - 0.04 and chosen.notes["balanced_accuracy"] > plateau.notes["balanced_accuracy"] + 0.1


def test_few_rows_are_each_held_out_once_and_many_in_one_part():
    y = torch.tensor([0] * 40 + [1] * 7 + [2] * 2 + [3])
    parts = probes._held_out(y, 0.2, seed=0)
    held = torch.stack(parts).sum(0)
    assert len(parts) == 5 and held[:-1].eq(1).all() and held[-1] == 0  # a class of one example is always fitted to
    assert all(set(y[~part].tolist()) == {0, 1, 2, 3} for part in parts)
    assert max(part.sum() for part in parts) - min(part.sum() for part in parts) <= 1
    assert len(probes._held_out(y, 0.5, seed=0)) == 2
    [part] = probes._held_out(torch.arange(1000) % 10, 0.2, seed=0)
    assert part.sum() == 200 and torch.equal(part, split_rows(torch.arange(1000) % 10, 0.2, 0))


def test_the_choice_from_100_labels_loses_little():
    "Digits, and random features of them, as an untrained network has: mean over draws."
    generator = torch.Generator().manual_seed(0)
    random = torch.from_numpy(X).float() @ torch.randn(64, 128, generator=generator)
    for x in (torch.from_numpy(X).float(), random.relu()):
        lost = []
        for draw in range(4):
            rows = labeled_rows(Y[:1000], 0.1, seed=draw)
            split = x[rows], Y[rows], x[1000:], Y[1000:]
            lost.append(max(linear_probe(*split, l2=l2) for l2 in STRENGTHS) - linear_probe(*split, seed=draw))
        assert np.mean(lost) < 0.015, lost


def test_equal_accuracies_are_told_apart_by_cross_entropy():
    x, y = clusters(200, gap=30.0)  # every strength is right about every row
    _, _, notes = fit_linear(x, y, 4)
    assert notes["validation"] == 1 and notes["l2"] == min(STRENGTHS)


def test_fewer_rows_than_dimensions_are_fitted_in_their_span():
    "The minimum is the same: its gradient vanishes in the whole space."
    noise = torch.randn(30, 90, generator=torch.Generator().manual_seed(0)).double()
    x, y = noise * torch.logspace(-2, 2, 90) + 5, torch.arange(30) % 3
    weight, bias, _ = fit_linear(x, y, 3, l2=0.1)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    w = (weight * x.std(0, correction=0)[:, None]).requires_grad_()
    b = (bias + x.mean(0) @ weight).requires_grad_()
    loss = nn.functional.cross_entropy(z @ w + b, y) + 0.05 * w.square().sum()
    assert max(g.abs().max() for g in torch.autograd.grad(loss, (w, b))) < 1e-4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60))
def test_class_averages_are_scikit_learns(pairs):
    import warnings

    from sklearn.metrics import balanced_accuracy_score, f1_score

    called, truth = map(np.array, zip(*pairs, strict=True))
    found = class_averages(torch.from_numpy(called) * 3 - 7, torch.from_numpy(truth) * 3 - 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, called))
        assert found["macro_f1"] == pytest.approx(f1_score(truth, called, average="macro"))
    score = mean_score(called == truth, "x")
    assert float(balanced_accuracy(score, truth)) == pytest.approx(found["balanced_accuracy"])


def test_balanced_accuracy_of_one_answer_is_one_over_the_classes():
    truth = np.repeat([0, 1, 2, 3], [70, 20, 6, 4])
    score = balanced_accuracy(mean_score(truth == 0, "knn@20"), truth)
    assert float(score) == pytest.approx(0.25) and score.protocol == "knn@20, balanced over classes"
    assert score.interval[0] < 0.25 < score.interval[1] and len(score.samples) == 100


@pytest.mark.parametrize("l2", [-0.1, float("nan"), float("inf")])
def test_strengths_without_a_meaning_are_refused(l2):
    with pytest.raises(ValueError, match="at least 0"):
        linear_probe(*SPLIT, l2=l2)
    with pytest.raises(ValueError, match="at least 0"):
        linear_probe(*SPLIT, strengths=(0.1, l2))
    with pytest.raises(ValueError, match="empty"):
        linear_probe(*SPLIT, strengths=())


# ---- the online probe


def test_online_score_leaves_every_submodule_in_its_mode():
    "Batch norm that was frozen stays frozen in the middle of training, and dropout goes on."
    probe = probes.OnlineProbe(8, 3)
    probe.normalize.eval()
    probe.score(torch.randn(20, 8), torch.arange(20) % 3)
    assert probe.training and probe.linear.training and not probe.normalize.training
    with pytest.raises(ValueError):
        probe.score(torch.full((20, 8), float("nan")), torch.arange(20) % 3)
    assert probe.training and not probe.normalize.training


# ---- the curve


def test_all_labels_are_the_linear_probe():
    curve = label_efficiency(*SPLIT, fractions=(1.0,), seeds=3, seed=4)
    probe = linear_probe(*SPLIT, seed=4)
    whole = curve["100%"]
    assert whole == probe and whole.interval == probe.interval and whole.of == "examples"
    assert (whole.samples == probe.samples).all() and whole.notes["images"] == 1000


def test_each_sample_is_a_probe_on_its_rows():
    curve = label_efficiency(*SPLIT, fractions=(0.02, 0.1), seeds=3, seed=5)
    x, y, *test = SPLIT
    for draw in range(3):
        rows = labeled_rows(y, 0.02, seed=5 + draw).numpy()
        assert curve["2%"].samples[draw] == linear_probe(x[rows], y[rows], *test, l2=0.1)
        rows = labeled_rows(y, 0.1, seed=5 + draw).numpy()
        alone = linear_probe(x[rows], y[rows], *test, seed=5 + draw)
        assert curve["10%"].samples[draw] == alone
        for name in ("l2", "balanced_accuracy", "macro_f1"):
            assert curve["10%"].notes[name][draw] == alone.notes[name]
    assert curve["2%"].notes["l2"] == [0.1] * 3 and "l2 0.1" in curve["2%"].protocol
    assert "chosen on 20% of them" in curve["10%"].protocol
    assert float(curve["2%"]) == pytest.approx(np.mean(curve["2%"].samples))


def test_more_labels_help_on_digits():
    curve = label_efficiency(*SPLIT, fractions=(0.01, 0.1, 1.0))
    assert list(curve) == ["1%", "10%", "100%"]
    values = [float(score) for score in curve.values()]
    assert values[0] + 0.1 < values[1] and values[1] + 0.05 < values[2]
    one = curve["1%"].interval
    assert one[1] - one[0] > 0.05  # ten images: the draw decides


def test_interval_is_students_t_over_draws():
    from scipy import stats

    score = label_efficiency(*SPLIT, fractions=(0.02,), seeds=4)["2%"]
    wanted = stats.t.interval(0.95, 3, np.mean(score.samples), stats.sem(score.samples))
    assert score.interval == pytest.approx(wanted) and score.of == "seeds"
    alone = label_efficiency(*SPLIT, fractions=(0.02,), seeds=1)["2%"]
    assert alone.interval is None and len(alone.samples) == 1


def test_two_encoders_pair_draw_by_draw():
    curves = [label_efficiency(x, SPLIT[1], t, SPLIT[3], fractions=(0.02,), seeds=4)["2%"]
              for x, t in ((SPLIT[0], SPLIT[2]), (SPLIT[0] * 3 + 1, SPLIT[2] * 3 + 1))]
    gap = paired_difference(*curves)
    low, high = gap.interval or (0.0, 0.0)  # no interval where no draw differs
    assert gap.of == "seeds" and abs(gap) < 0.01 and high - low < 0.02  # standardized inside


def test_known_answers():
    x, y = clusters(600, d=4)
    apart = label_efficiency(x[:400], y[:400], x[400:], y[400:], fractions=(0.05, 0.5), per_class=(1,))
    assert all(score == 1 for score in apart.values())
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 4, (600,), generator=generator)
    chance = label_efficiency(x[:400], noise[:400], x[400:], noise[400:], fractions=(0.1,), seeds=8)["10%"]
    assert abs(chance - 0.25) < 0.06


def test_table_is_tidy():
    table = label_efficiency(*SPLIT, fractions=(0.02, 1.0), per_class=(2,), seeds=2).table()
    assert list(table.columns) == ["budget", "images", "protocol", "value", "low", "high", "of"]
    assert table.budget.tolist() == ["2%", "100%", "2 per class"] and table.images.tolist() == [20, 1000, 20]
    assert table.of.tolist() == ["seeds", "examples", "seeds"]


def test_labels_of_any_integers_and_features_of_any_kind():
    x, y = clusters(300)
    wanted = label_efficiency(x[:200], y[:200], x[200:], y[200:], fractions=(0.1,), seeds=2)["10%"]
    strange = (x.half().requires_grad_(), y * 100 - 7)
    found = label_efficiency(strange[0][:200], strange[1][:200], x[200:].numpy(), (y * 100 - 7)[200:].int(),
                             fractions=(0.1,), seeds=2)["10%"]
    assert float(found) == float(wanted) == 1
    transposed = x.T.contiguous().T
    assert label_efficiency(transposed[:200], y[:200], transposed[200:], y[200:], fractions=(0.1,), seeds=2)["10%"] == 1


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(seeds=0), "seeds=0 must be 1"),
        (dict(fractions=()), "no budget"),
        (dict(fractions=(0.001,)), "no room for one of each"),
        (dict(train_labels=np.zeros(1000, int)), "one class cannot be told"),
        (dict(train_labels=SPLIT[1][:10]), "need as many labels"),
        (dict(train_features=np.where(SPLIT[0] == 3, np.nan, SPLIT[0])), "NaN or infinity"),
        (dict(train_features=np.zeros((0, 64)), train_labels=np.zeros(0, int)), "needed: 2 rows"),
        (dict(test_features=SPLIT[2][:, :9]), "9"),
    ],
)
def test_bad_input_is_refused(change, reason):
    given = dict(zip(("train_features", "train_labels", "test_features", "test_labels"), SPLIT, strict=True)) | dict(seeds=2)
    with pytest.raises(ValueError, match=reason):
        label_efficiency(**given | change)


def test_constant_features_are_at_the_largest_class():
    score = label_efficiency(np.ones((100, 3)), Y[:100], np.ones((50, 3)), Y[:50], fractions=(0.3,), seeds=2)["30%"]
    assert score in [pytest.approx(v) for v in np.bincount(Y[:50]) / 50] or 0 < score < 0.3


def test_seed_score_of_one_seed_has_no_interval():
    assert seed_score([0.5], "x").interval is None
    assert seed_score([0.5, 0.7], "x") == pytest.approx(0.6)


# ---- fine-tuning


class Pixels(nn.Module):
    "A small encoder without batch normalization."

    def __init__(self, width=16):
        super().__init__()
        self.layer = nn.Linear(64, width)

    def forward(self, x):
        return self.layer(x.flatten(1).float() / 255).relu()


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def small(width=16):
    torch.manual_seed(0)
    return Pixels(width)


CPU = dict(device="cpu")


def test_finetuning_learns_and_leaves_the_encoder_alone(digits):
    encoder = encoders.create("convnet", in_chans=1, img_size=8, channels=(8, 16, 32)).eval().requires_grad_(False)
    before = copy.deepcopy(encoder.state_dict())
    score = finetune(encoder, digits.train, digits.test, epochs=6, lr=5e-3, **CPU)
    assert score > 0.7 and score.of == "examples" and len(score.samples) == len(digits.test)
    assert score.interval[0] < score < score.interval[1]
    assert score.protocol == "finetune (last_epoch, 6 epochs, lr 0.005)"
    assert all(torch.equal(w, before[name]) for name, w in encoder.state_dict().items())
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert not hasattr(small(), "num_features")


def test_the_encoder_itself_is_tuned(digits):
    "Features that say nothing linear can be mended only by moving the encoder."
    encoder = small()
    encoder.layer.weight.data.mul_(0)
    encoder.layer.bias.data.fill_(1.0)
    features = [encoders.embed(encoder, s["images"]) for s in (digits.train, digits.test)]
    probe = linear_probe(features[0], digits.train["labels"], features[1], digits.test["labels"])
    assert probe < 0.15
    assert finetune(encoder, digits.train, digits.test, epochs=10, lr=1e-2, **CPU) > 0.4


def test_standing_still_on_the_probes_head_is_the_probe(digits):
    encoder = small()
    still = finetune(encoder, digits.train, digits.test, epochs=1, lr=1e-9, head="probe", weight_decay=0, **CPU)
    features = [encoders.embed(encoder, s["images"]) for s in (digits.train, digits.test)]
    probe = linear_probe(features[0], digits.train["labels"], features[1], digits.test["labels"])
    assert (still.samples == probe.samples).mean() > 0.99


def test_rate_is_chosen_on_a_part_of_train(digits):
    test = digits.test.assign(labels=digits.test["labels"].roll(1))  # labels of test that would choose otherwise
    score = finetune(small(), digits.train[:400], test, epochs=8, lr=(1e-7, 1e-2), **CPU)
    assert score.notes["lr"] == 1e-2 and set(score.notes["validation"]) == {1e-7, 1e-2}
    assert score.protocol.endswith("lr 0.01 chosen of 2 on 20% of train)")
    assert finetune(small(), digits.train[:400], digits.test, epochs=8, lr=1e-2, **CPU) > 0.5


def test_seeds_give_an_interval_over_seeds(digits):
    part = digits.train[:200]
    score = finetune(small(), part, digits.test, epochs=3, lr=1e-2, seeds=3, seed=2, **CPU)
    assert score.of == "seeds" and len(score.samples) == 3 and score.interval[0] < score < score.interval[1]
    alone = finetune(small(), part, digits.test, epochs=3, lr=1e-2, seed=3, **CPU)
    assert float(alone) == pytest.approx(score.samples[1])


def test_finetuning_repeats_also_without_gradients_around_it(digits):
    with torch.no_grad():  # as inside an evaluation loop
        first, second = (finetune(small(), digits.train[:200], digits.test, epochs=2, **CPU) for _ in range(2))
    assert (first.samples == second.samples).all()
    assert (finetune(small(), digits.train[:200], digits.test, epochs=2, seed=1, **CPU).samples != first.samples).any()


def test_generator_is_left_alone(digits):
    encoder = small()
    state = torch.random.get_rng_state()
    finetune(encoder, digits.train[:100], digits.test, epochs=1, **CPU)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fewer_images_than_a_batch_and_classes_of_any_number(digits):
    rows = labeled_rows(digits.train["labels"], per_class=2)
    part = digits.train[rows]
    few = part.assign(labels=part["labels"] * 5 + 3)
    test = digits.test.assign(labels=digits.test["labels"] * 5 + 3)
    assert finetune(small(64), few, test, epochs=40, lr=1e-2, **CPU) > 0.35


def test_views_are_used(digits):
    seen = []

    def views(batch, generator):
        seen.append(batch.x.shape)
        return [batch.x, batch.x.flip(-1)]

    finetune(small(), digits.train[:256], digits.test, epochs=2, batch_size=128, views=views, **CPU)
    assert seen == [(128, 1, 8, 8)] * 4


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(head="zero"), "'random' or 'probe'"),
        (dict(seeds=0), "seeds=0"),
        (dict(epochs=0), "epochs"),
        (dict(lr=-1.0), "lr"),
        (dict(lr=()), "lr"),
        (dict(lr=(1e-3, 1e-2), valid_fraction=1.5), "valid_fraction"),
        (dict(batch_size=0), "batch_size"),
    ],
)
def test_finetuning_refuses(digits, change, reason):
    with pytest.raises(ValueError, match=reason):
        finetune(small(), digits.train[:100], digits.test, **dict(epochs=1, **CPU) | change)


def test_finetuning_refuses_one_class(digits):
    ones = digits.train[digits.train["labels"] == 1]
    with pytest.raises(ValueError, match="nothing to tell apart"):
        finetune(small(), ones, digits.test, epochs=1, **CPU)


def test_strengths_stay_those_of_the_probe():
    weight, bias, notes = fit_linear(*map(torch.from_numpy, SPLIT[:2]), 10)
    assert notes["l2"] in STRENGTHS and weight.shape == (64, 10) and bias.shape == (10,)


# ---- probes that are networks


def xor(n, seed):
    "Four clouds in the plane; opposite ones share a label, so that no line separates the labels."
    sign = torch.randint(2, (n, 2), generator=torch.Generator().manual_seed(seed))
    scatter = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed + 1))
    return (sign * 2 - 1).float() + 0.2 * scatter, sign.sum(1) % 2


def test_mlp_probe_solves_what_no_line_separates():
    data = (*xor(400, 0), *xor(200, 5))
    assert mlp_probe(*data, hidden=32) > 0.97 and linear_probe(*data) < 0.75


def one_token_tells(n, seed, tokens=12):
    "Noise in all tokens but one, at a random place, which carries a mark and, beside it, the label."
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, tokens, 4, generator=generator), torch.randint(2, (n,), generator=generator)
    place = torch.randint(tokens, (n,), generator=generator)
    x[torch.arange(n), place, 0], x[torch.arange(n), place, 1] = 8, (y * 2 - 1) * 1.5
    return x, y


def test_attentive_probe_finds_the_token_that_tells():
    (x, y), (test, truth) = one_token_tells(600, 0), one_token_tells(300, 1)
    pooled = linear_probe(x.mean(1), y, test.mean(1), truth)
    attentive = attentive_probe(x, y, test, truth, lrs=(1e-2, 1e-1))
    assert attentive > pooled + 0.1 and attentive > 0.9


@pytest.mark.parametrize("probe, tokens", [(mlp_probe, False), (attentive_probe, True)])
def test_the_rate_is_chosen_on_train_only(probe, tokens):
    x, y = one_token_tells(200, 0)
    x = x if tokens else x.flatten(1)
    found = [probe(x, y, test, y[:50], lrs=(1e-4, 1e-2), epochs=5) for test in (x[:50], -x[:50].flip(0))]
    assert found[0].notes["lr"] == found[1].notes["lr"] and found[0].notes["validation"] == found[1].notes["validation"]
