"""BYOL, SimSiam, SwAV, DINO, MAE and DirectPred: known defects, parity, precision, two ranks, faults."""
import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed import average_gradients, run_two_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_nb.objectives.direct_prediction import (
    DirectPredictor,
    LinearDynamics,
    collapse_threshold,
    eigenspace_alignment,
    fixed_points,
    scalar_dynamics,
)
from ssl_nb.objectives.masked_reconstruction import masked_mse, patchify, unpatchify
from ssl_nb.objectives.momentum_contrast import MoCoQueue
from ssl_nb.objectives.prediction import byol, ema_update, momentum_schedule, negative_cosine, simsiam
from ssl_nb.objectives.self_distillation import DINOHead, DINOLoss, temperature_warmup
from ssl_nb.objectives.swapped_assignment import (
    FeatureQueue,
    Prototypes,
    sinkhorn,
    swapped_cross_entropy,
    swav,
)
from ssl_nb.tokens.masks import random_mask


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosines(n, k, d=16, seed=0, dtype=torch.float32):
    z, prototypes = normal(n, d, seed=seed, dtype=dtype), normal(k, d, seed=seed + 100, dtype=dtype)
    return F.normalize(z) @ F.normalize(prototypes).T


def four(n=12, d=6, dtype=torch.float32):
    return [normal(n, d, seed=i, dtype=dtype) for i in range(4)]


# ---- prediction


def naive_byol(p0, p1, z0, z1):
    total = 0.0
    for p, z in ((p0, z1), (p1, z0)):
        for a, b in zip(p, z, strict=True):
            total += ((a / a.norm() - b / b.norm()) ** 2).sum().item() / len(p)
    return total


def test_byol_is_the_papers_sum_and_simsiam_the_mean():
    views = four(dtype=torch.float64)
    assert math.isclose(byol(*views), naive_byol(*views), rel_tol=1e-12)
    p0, p1, z0, z1 = views
    assert torch.isclose(simsiam(*views), (negative_cosine(p0, z1) + negative_cosine(p1, z0)) / 2, rtol=1e-12)
    assert math.isclose(byol(p0, p1, -p1, -p0), 8, rel_tol=1e-12)


def test_negative_cosine_equals_lightly_in_value_and_gradient():
    from lightly.loss import NegativeCosineSimilarity

    p, z, _, _ = four()
    gradients = []
    for loss in (negative_cosine, NegativeCosineSimilarity()):
        q = p.clone().requires_grad_()
        value = loss(q, z)
        value.backward()
        gradients.append((value, q.grad))
    (ours, our_grad), (theirs, their_grad) = gradients
    assert torch.isclose(ours, theirs, atol=1e-6) and torch.allclose(our_grad, their_grad, atol=1e-7)


@pytest.mark.parametrize("objective", [byol, simsiam])
def test_gradient_does_not_reach_targets(objective):
    views = [v.requires_grad_() for v in four()]
    objective(*views).backward()
    assert [v.grad is not None for v in views] == [True, True, False, False]


def test_simsiam_without_stop_gradient_reaches_targets():
    views = [v.requires_grad_() for v in four(dtype=torch.float64)]
    simsiam(*views, stop_gradient=False).backward()
    assert all(v.grad.abs().sum() > 0 for v in views)
    assert torch.autograd.gradcheck(lambda *v: simsiam(*v, stop_gradient=False), views)


def test_zero_rows_have_cosine_zero_and_no_gradient():
    p = torch.zeros(3, 4, requires_grad=True)
    value = negative_cosine(p, torch.ones(3, 4))
    value.backward()
    assert value == 0 and not p.grad.any()


def test_momentum_schedule_first_middle_last():
    assert momentum_schedule(0.996, 0) == 0.996
    assert math.isclose(momentum_schedule(0.996, 0.5), 0.998)
    assert momentum_schedule(0.996, 1) == 1
    quarter = 1 - 0.004 * (math.cos(math.pi / 4) + 1) / 2  # the paper's formula at k = K / 4
    assert math.isclose(momentum_schedule(0.996, 0.25), quarter)
    with pytest.raises(ValueError, match="progress 12"):
        momentum_schedule(0.996, 12)


def small_network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_ema_update_moves_parameters_and_copies_buffers(momentum):
    student, teacher = small_network(), small_network().eval()
    student(torch.randn(8, 4))  # moves the running statistics
    before, after = copy.deepcopy(teacher), student.state_dict()
    ema_update(teacher, student, momentum)
    for (name, new), old in zip(teacher.named_parameters(), before.parameters(), strict=True):
        expected = momentum * old + (1 - momentum) * after[name]
        assert torch.equal(new, old) if momentum == 1 else torch.allclose(new, expected, atol=1e-7)
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    assert teacher[1].num_batches_tracked == 1


def test_a_teacher_in_training_mode_keeps_the_statistics_that_it_has_measured():
    student, teacher, x = small_network(), small_network(), normal(64, 4)
    student(x + 100)
    for _ in range(200):
        teacher(x)
    before = copy.deepcopy(teacher)
    ema_update(teacher, student, 1.0)
    assert torch.equal(teacher[1].running_mean, before[1].running_mean)
    assert torch.allclose(teacher.eval()(x), before.train()(x), atol=0.1)  # so that it can be evaluated


def test_ema_update_refuses_other_architectures_and_momenta():
    with pytest.raises(ValueError, match="deepcopy"):
        ema_update(nn.Linear(2, 2), nn.Linear(2, 3), 0.9)
    with pytest.raises(ValueError, match="momentum 99"):
        ema_update(nn.Linear(2, 2), nn.Linear(2, 2), 99)


@pytest.mark.parametrize("length", [1e-3, 1e-6, 1e-12, 1e-17])
@pytest.mark.parametrize("objective", [byol, simsiam])
def test_short_rows_count_like_long_ones(objective, length):
    def loss_and_gradient(scales):
        views = [(scale * v).requires_grad_() for scale, v in zip(scales, four(), strict=True)]
        loss = objective(*views)
        loss.backward()
        return loss.detach(), [scale * v.grad for scale, v in zip(scales[:2], views[:2], strict=True)]  # turns with the direction

    expected, turn = loss_and_gradient((1, 1, 1, 1))
    for scales in [(length, 1, 1, length), (length,) * 4, (1, length, length, 1 / length)]:
        loss, grads = loss_and_gradient(scales)
        assert torch.isclose(loss, expected, rtol=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(grads, turn, strict=True))


# ---- swapped assignment


def naive_sinkhorn(scores, epsilon=0.05, iterations=3):
    log_q = scores.double() / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


@pytest.mark.parametrize("iterations", [1, 3, 5, 6, 23])
@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.01, 0.002])
def test_sinkhorn_equals_the_loop_in_logarithms(iterations, epsilon):
    scores = cosines(40, 24)
    expected = naive_sinkhorn(scores, epsilon, iterations)
    tolerance = 1e-6 / epsilon  # float32 cosines carry an error of 1e-7, divided by epsilon
    single, double = (sinkhorn(s, epsilon=epsilon, iterations=iterations) for s in (scores, scores.double()))
    assert torch.allclose(single.double(), expected, atol=tolerance)
    assert double.dtype == torch.float64 and torch.allclose(double, expected, atol=1e-12)


def test_sinkhorn_marginals_to_1e6_at_small_epsilon():
    q = sinkhorn(cosines(60, 12), epsilon=0.01, iterations=2000)
    joint = q / 60
    assert (joint.sum(0) - 1 / 12).abs().max() < 1e-6 and (joint.sum(1) - 1 / 60).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([0.0, 1.0, 300.0, 3e4]), n=st.integers(1, 20), k=st.integers(1, 20))
def test_sinkhorn_stays_finite(dtype, scale, n, k):
    q = sinkhorn((scale * cosines(n, k)).to(dtype), epsilon=0.01, iterations=12)
    assert q.dtype == torch.float32 and q.isfinite().all()
    assert torch.allclose(q.sum(1), torch.ones(n), atol=1e-5)


def test_sinkhorn_recovers_entries_that_underflow_at_first():
    # Every row prefers column 0 by 200 nats; half of them must nevertheless end in column 1.
    scores = torch.stack([torch.ones(8), -torch.ones(8)], 1)
    assert torch.allclose(sinkhorn(scores, epsilon=0.01, iterations=3), torch.full((8, 2), 0.5))
    scores[:, 1] -= torch.linspace(0, 0.8, 8)
    q = sinkhorn(scores, epsilon=0.002, iterations=3000)
    assert torch.allclose(q.sum(0), torch.full((2,), 4.0), atol=0.05)


def test_sinkhorn_and_swav_equal_lightly():
    from lightly.loss import SwaVLoss
    from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn

    views = [cosines(48, 20, seed=i).requires_grad_() for i in range(5)]
    assert torch.allclose(sinkhorn(views[0]), lightly_sinkhorn(views[0].detach()), atol=1e-6)
    queue = [cosines(30, 20, seed=i) for i in (7, 8)]
    for ours, theirs in [(swav(views), SwaVLoss()(views[:2], views[2:])),
                         (swav(views, queue_scores=queue), SwaVLoss()(views[:2], views[2:], queue))]:
        assert torch.allclose(ours, theirs.squeeze(), rtol=1e-5)
        for a, b in zip(torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    # lightly exponentiates the scores as they are
    assert lightly_sinkhorn(100 * views[0].detach()).isnan().any()


def test_swav_equals_the_double_loop():
    views = [cosines(10, 6, seed=i, dtype=torch.float64).requires_grad_() for i in range(4)]
    total = 0
    for i in (0, 2):
        q = naive_sinkhorn(views[i].detach())
        for v in range(4):
            if v != i:
                for row in range(10):
                    total -= (q[row] * (views[v][row] / 0.1).log_softmax(0)).sum() / 10
    assert torch.isclose(swav(views, assign_views=(0, 2)), total / (2 * 3), rtol=1e-12)
    targets = {i: naive_sinkhorn(views[i].detach()) for i in (0, 2)}
    assert torch.autograd.gradcheck(lambda *s: swapped_cross_entropy(s, targets, 0.1), views)


def test_swav_stays_finite_with_extreme_scores():
    views = [(1e4 * cosines(16, 8, seed=i)).requires_grad_() for i in range(2)]
    loss = swav(views, epsilon=0.001)
    loss.backward()
    assert loss.isfinite() and views[0].grad.isfinite().all()


def test_limits_of_small_and_constant_batches():
    assert torch.allclose(sinkhorn(cosines(1, 8)), torch.full((1, 8), 1 / 8))
    constant = cosines(1, 8).expand(6, 8)
    assert torch.allclose(sinkhorn(constant), torch.full((6, 8), 1 / 8), atol=1e-6)
    assert swav([constant, constant]).isfinite()


@pytest.mark.parametrize("n,k", [(2, 8), (5, 12), (8, 9)])
def test_codes_of_few_rows_spread_over_k_over_n_prototypes_and_are_not_flat(n, k):
    q = sinkhorn(cosines(n, k, dtype=torch.float64), iterations=4000)
    assert q.max() <= n / k + 1e-6 and q.max() > 1.2 / k
    assert torch.allclose(q.sum(0), torch.full((k,), n / k, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("call,words", [
    (lambda s: swav([s, s], temperature=0), "temperature is 0"),
    (lambda s: swav([s, s], temperature=-0.1), "positive"),
    (lambda s: swav([s[:, :1]] * 2), "width 1"),
    (lambda s: sinkhorn(s, epsilon=math.nan), "positive"),
    (lambda s: Prototypes(4, 0), "train nothing"),
    (lambda s: Prototypes(4, 1), "two prototypes"),
    (lambda s: Prototypes(0, 4), "train nothing"),
    (lambda s: Prototypes(4, 4, freeze_until=3), "part of the training"),
    (lambda s: FeatureQueue(0, 4), "hold nothing"),
    (lambda s: FeatureQueue(4, 0), "hold nothing"),
    (lambda s: FeatureQueue(4, 4, views=0), "hold nothing"),
    (lambda s: DINOLoss(0), "trains nothing"),
    (lambda s: DINOLoss(1), "trains nothing"),
    (lambda s: DINOLoss(4, warmup_temperature=0), "positive"),
    (lambda s: DINOLoss(4, student_temperature=math.nan), "positive"),
    (lambda s: DINOLoss(4, center_momentum=1.5), "center_momentum 1.5"),
    (lambda s: DINOLoss(4, warmup=2), "warmup 2"),
    (lambda s: DINOHead(4, 0), "train nothing"),
    (lambda s: DINOHead(4, 4, hidden=0), "hidden 0"),
    (lambda s: DINOHead(0, 4), "in_dim 0"),
    (lambda s: DINOHead(4, 4, bottleneck=1), "train nothing"),
    (lambda s: DirectPredictor(0), "dim 0"),
    (lambda s: DirectPredictor(4, epsilon=math.nan), "epsilon nan"),
    (lambda s: byol(*[s[:, :1]] * 4), "width 1"),
    (lambda s: simsiam(*[s[:, :0]] * 4), "width 0"),
    (lambda s: negative_cosine(s[:, :1], s[:, :1]), "width 1"),
    (lambda s: swav([s], assign_views=(0,)), "two views"),
    (lambda s: swav([s, s], assign_views=(0, 2)), "numbered 0 to 1"),
    (lambda s: swav([s, s], assign_views=(1, 1)), "different views"),
    (lambda s: swav([s, s * math.nan]), "NaN"),
    (lambda s: sinkhorn(s, epsilon=0), "positive"),
    (lambda s: sinkhorn(s, iterations=0), "at least one turn"),
])  # fmt: skip
def test_what_would_train_nothing_or_the_wrong_thing_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(cosines(8, 4))


def test_prototypes_are_unit_vectors_and_freeze_until_told():
    prototypes = Prototypes(4, 6, freeze_until=0.2)
    with torch.no_grad():
        prototypes.weight *= 5
    z = normal(9, 4)
    expected = F.normalize(z) @ F.normalize(prototypes.weight).T
    assert torch.allclose(prototypes(z), expected, atol=1e-6)

    def gradient():
        prototypes.weight.grad = None
        prototypes(z).square().sum().backward()
        return prototypes.weight.grad.abs().sum()

    assert gradient() == 0  # zero, not None: data-parallel training waits for it
    prototypes.after_step(0.2)
    assert gradient() > 0
    resumed = Prototypes(4, 6, freeze_until=0.2)
    resumed.load_state_dict(prototypes.state_dict())
    assert resumed.progress == 0.2


def test_queue_is_normalized_ordered_and_silent_until_full():
    queue, prototypes = FeatureQueue(5, 3), Prototypes(3, 4)
    batches = [[10 * normal(2, 3, seed=10 * b + v) for v in range(2)] for b in range(4)]
    for b, batch in enumerate(batches):
        assert (queue.scores(prototypes) is None) == (b < 3)  # 0, 2, 4 of 5 embeddings; then 6
        queue.push(batch)
    kept = torch.cat([batches[1][0][1:], batches[2][0], batches[3][0]])  # the last five of view 0
    by_first = lambda rows: rows[rows[:, 0].argsort()]  # noqa: E731
    assert torch.allclose(by_first(queue.features[0]), by_first(F.normalize(kept)), atol=1e-6)
    assert torch.allclose(queue.features.norm(dim=2), torch.ones(2, 5))
    scores = [prototypes(z) for z in batches[0]]
    assert swav(scores, queue_scores=queue.scores(prototypes)).isfinite()
    for wrong, words in [([normal(6, 3)] * 2, "at least as long"), ([normal(2, 3)], "as many views"),
                         ([normal(2, 4)] * 2, "width 4"), ([normal(2, 3) * math.nan] * 2, "NaN")]:  # fmt: skip
        before = copy.deepcopy(queue.state_dict())
        with pytest.raises(ValueError, match=words):
            queue.push(wrong)
        assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


# ---- self-distillation


def test_dino_equals_lightly_over_steps():
    from lightly.loss import DINOLoss as Lightly

    ours, theirs = DINOLoss(20), Lightly(20)
    for step in range(3):
        student = [normal(8, 20, seed=10 * step + i).requires_grad_() for i in range(4)]
        teacher = [normal(8, 20, seed=10 * step + 5 + i) for i in range(2)]
        a, b = ours(student, teacher), theirs(teacher, student)
        assert torch.isclose(a, b, rtol=1e-5)
        for x, y in zip(torch.autograd.grad(a, student), torch.autograd.grad(b, student), strict=True):
            assert torch.allclose(x, y, atol=1e-6)
        assert torch.allclose(ours.center, theirs.center.flatten(), atol=1e-6)


def test_dino_equals_the_double_loop_and_stops_at_the_teacher():
    student = [normal(7, 5, seed=i, dtype=torch.float64).requires_grad_() for i in range(3)]
    teacher = [normal(7, 5, seed=9 + i, dtype=torch.float64).requires_grad_() for i in range(2)]
    total = 0
    for i, t in enumerate(teacher):
        for v, s in enumerate(student):
            if i != v:
                for row in range(7):
                    total -= ((t[row] / 0.04).softmax(0) * (s[row] / 0.1).log_softmax(0)).sum() / 7
    loss = DINOLoss(5)(student, teacher)
    assert torch.isclose(loss, total / 4, rtol=1e-12)
    loss.backward()
    assert all(s.grad is not None for s in student) and all(t.grad is None for t in teacher)


def test_dino_one_view_is_an_error_and_extremes_are_finite():
    z = normal(4, 6)
    with pytest.raises(ValueError, match="two views"):
        DINOLoss(6)([z], [z])
    with pytest.raises(ValueError, match="see every view"):
        DINOLoss(6)([z], [z, z])
    with pytest.raises(ValueError, match="out_dim"):
        DINOLoss(7)([z, z], [z])
    with pytest.raises(ValueError, match="NaN"):
        DINOLoss(6)([z, z], [z * math.nan])
    extreme = [(1e5 * normal(4, 6, seed=i)).requires_grad_() for i in range(2)]
    loss = DINOLoss(6)(extreme, extreme)
    loss.backward()
    assert loss.isfinite() and extreme[0].grad.isfinite().all()
    assert DINOLoss(6)([z[:1], z[1:2]], [z[2:3]]).isfinite()  # rows are not compared: one is enough


def test_dino_refused_batch_leaves_the_center_alone():
    loss, z = DINOLoss(6), normal(4, 6)
    with pytest.raises(ValueError):
        loss([z, z], [z * math.inf])
    assert not loss.center.any()
    loss.eval()([z, z], [z])
    assert not loss.center.any()


def test_temperature_warmup_first_middle_last():
    warm = dict(start=0.04, end=0.07, warmup=0.4)
    values = [temperature_warmup(p, **warm) for p in (0, 0.2, 0.4, 0.7, 1)]
    assert values == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert temperature_warmup(0, start=0.04, end=0.07, warmup=0) == 0.07
    loss = DINOLoss(3, teacher_temperature=0.07, warmup_temperature=0.04, warmup=0.4)
    loss.after_step(0.2)
    resumed = DINOLoss(3, teacher_temperature=0.07, warmup_temperature=0.04, warmup=0.4)
    resumed.load_state_dict(loss.state_dict())
    assert resumed.teacher_temperature == pytest.approx(0.055)


def test_dino_head_freezes_the_students_last_layer_and_nothing_else():
    student = DINOHead(4, 6, hidden=8, bottleneck=3, freeze_until=0.1)
    teacher = copy.deepcopy(student).requires_grad_(False)
    x, optimizer = normal(5, 4), torch.optim.SGD(student.parameters(), 0.1)
    before = copy.deepcopy(student.state_dict())

    def changed():
        loss = DINOLoss(6)([student(x), student(x + 1)], [teacher(x), teacher(x + 1)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}

    mlp = {f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    assert changed() == mlp
    student.after_step(0.1)
    assert changed() == mlp | {"last_layer.weight"}
    assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())


# ---- masked reconstruction


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.integers(1, 5), channels=st.integers(1, 3))
def test_patches_go_there_and_back(rows, columns, patch, channels):
    images = normal(2, channels, rows * patch, columns * patch)
    patches = patchify(images, patch)
    assert patches.shape == (2, rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(patches, patch, grid=(rows, columns)), images)


def test_patchify_equals_lightly():
    from lightly.models.utils import patchify as lightly_patchify

    images = normal(2, 3, 12, 12)
    assert torch.equal(patchify(images, 4), lightly_patchify(images, 4))
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_mse_equals_the_loop(normalize):
    pred, target = normal(3, 8, 12, dtype=torch.float64), normal(3, 8, 12, seed=1, dtype=torch.float64)
    mask = random_mask((3, 8), torch.Generator().manual_seed(0), ratio=0.5)
    errors = []
    for i, j in mask.nonzero().tolist():
        x = target[i, j]
        if normalize:
            x = (x - x.mean()) / (((x - x.mean()) ** 2).sum() / 11 + 1e-6).sqrt()
        errors.append(((pred[i, j] - x) ** 2).mean())
    loss = masked_mse(pred, target, mask, normalize=normalize)
    assert torch.isclose(loss, sum(errors) / len(errors), rtol=1e-12)
    assert torch.equal(masked_mse(pred, target, mask.float()), masked_mse(pred, target, mask))


def test_masked_mse_ignores_visible_patches_and_the_light_of_a_patch():
    pred, target = normal(2, 6, 12).requires_grad_(), normal(2, 6, 12, seed=1).requires_grad_()
    mask = random_mask((2, 6), torch.Generator().manual_seed(0), ratio=0.5)
    loss = masked_mse(pred, target, mask)
    loss.backward()
    assert torch.equal(pred.grad.abs().sum(2) > 0, mask) and target.grad is None
    scale, shift = 1 + torch.rand(2, 6, 1), normal(2, 6, 1, seed=3)
    assert torch.isclose(masked_mse(pred, scale * target + shift, mask), loss, rtol=1e-4)
    assert not torch.isclose(masked_mse(pred, scale * target + shift, mask, normalize=False),
                             masked_mse(pred, target, mask, normalize=False), rtol=1e-2)


@pytest.mark.parametrize("call,words", [
    (lambda p, m: masked_mse(p, p, m & False), "none of the 16"),
    (lambda p, m: masked_mse(p, p[:, :4], m), "do not fit"),
    (lambda p, m: masked_mse(p, p, m[:, :4]), "do not fit"),
    (lambda p, m: masked_mse(p * math.nan, p, m), "NaN"),
    (lambda p, m: masked_mse(p[..., :1], p[..., :1], m), "its own mean"),
    (lambda p, m: patchify(torch.zeros(1, 3, 8, 9), 4), "multiples"),
    (lambda p, m: unpatchify(p, 2, grid=(3, 3)), "3 x 3"),
])  # fmt: skip
def test_masked_reconstruction_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call(normal(2, 8, 12), random_mask((2, 8), ratio=0.5))


# ---- direct prediction


def test_directpred_is_the_papers_equation():
    f = normal(200, 6) * torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1, 0.01])
    F1, F2 = (g.T @ g / 100 for g in (f[:100], f[100:]))
    predictor = DirectPredictor(6, rho=0.3, epsilon=0.1)
    predictor(f[:50]), predictor(f[50:100])  # two views of one step
    predictor.after_step()
    assert torch.allclose(predictor.correlation, F1, atol=1e-6)
    predictor(f[100:])
    predictor.after_step()
    expected = 0.3 * F1 + 0.7 * F2  # rho weighs the past
    assert torch.allclose(predictor.correlation, expected, atol=1e-6)
    s, U = torch.linalg.eigh((expected / torch.linalg.eigvalsh(expected)[-1]).double())
    paper = U @ torch.diag(s.clamp_min(0).sqrt() + 0.1 * s.max()) @ U.T  # eq. 18-19 at max s = 1
    assert torch.allclose(predictor.weight.double(), paper, atol=1e-4)
    assert eigenspace_alignment(predictor.weight, expected)[:4].min() > 0.9999


def test_directcopy_is_the_papers_equation_and_both_are_scale_invariant():
    f = normal(100, 6) * torch.linspace(1, 0.1, 6)
    for mode in DirectPredictor.MODES:
        weights = []
        for scale in (1.0, 100.0):
            predictor = DirectPredictor(6, mode=mode)
            predictor(scale * f)
            predictor.after_step()
            weights.append(predictor.weight)
        assert torch.allclose(*weights, atol=1e-4)
    correlation = f.T @ f / 100
    expected = correlation / torch.linalg.matrix_norm(correlation, 2) + 0.1 * torch.eye(6)
    assert torch.allclose(weights[0], expected, atol=1e-3)


def test_direct_predictor_has_no_parameters_but_passes_gradients():
    predictor = DirectPredictor(4)
    f = normal(8, 4).requires_grad_()
    predictor(f)
    predictor.after_step()
    weight = predictor.weight.clone()
    (gradient,) = torch.autograd.grad(predictor(f).sum(), f)
    assert not list(predictor.parameters())
    assert torch.allclose(gradient, weight.sum(1).expand(8, 4), atol=1e-6)


def test_direct_predictor_sets_every_nth_step_rests_in_eval_and_resumes():
    def step(p, seed):
        p(normal(16, 4, seed=seed))
        p.after_step()
        return p.weight.clone()

    predictor = DirectPredictor(4, every=3)
    weights = [step(predictor, i) for i in range(4)]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    resumed = DirectPredictor(4, every=3)
    resumed.load_state_dict(predictor.state_dict())
    for seed in (5, 6, 7):
        assert torch.equal(step(predictor, seed), step(resumed, seed))
    before = predictor.correlation.clone()
    predictor.eval()(normal(16, 4))
    predictor.after_step()
    assert torch.equal(predictor.correlation, before)


@pytest.mark.parametrize("mode", DirectPredictor.MODES)
def test_direct_predictor_limits(mode):
    predictor = DirectPredictor(4, mode=mode)
    predictor(torch.zeros(8, 4))
    predictor.after_step()
    assert torch.allclose(predictor.weight, 0.1 * torch.eye(4))
    orthonormal = torch.linalg.qr(normal(4, 4)).Q  # equal eigenvalues
    predictor(orthonormal), predictor(torch.ones(1, 4))
    predictor.after_step()
    assert predictor.weight.isfinite().all()
    with pytest.raises(ValueError, match="NaN"):
        predictor(torch.full((2, 4), math.nan))
    with pytest.raises(ValueError, match="directpred, directcopy"):
        DirectPredictor(4, mode="copy")


def test_eigenspace_alignment_is_one_for_shared_and_small_for_random_eigenvectors():
    U, V = (torch.linalg.qr(normal(8, 8, seed=i, dtype=torch.float64)).Q for i in (0, 1))
    spectrum = torch.arange(1.0, 9.0, dtype=torch.float64)
    correlation = U * spectrum @ U.T
    ones = torch.ones(8, dtype=torch.float64)
    assert torch.allclose(eigenspace_alignment(U * spectrum.flip(0) @ U.T, correlation), ones)
    assert torch.allclose(eigenspace_alignment(-correlation, correlation), -ones)
    assert eigenspace_alignment(V * spectrum @ V.T, correlation).max() < 0.999
    batch = eigenspace_alignment(torch.stack([correlation, -correlation]), correlation.expand(2, 8, 8))
    assert batch.shape == (2, 8)


def aligned(s, p):
    U, V = (torch.linalg.qr(normal(len(s), len(s), seed=i, dtype=torch.float64)).Q for i in (0, 1))
    return U * s.sqrt() @ V.T, U * p @ U.T, U


@pytest.mark.parametrize("knobs", [
    dict(), dict(eta=0.1), dict(alpha_p=4.0, eta=0.02), dict(beta=0.5, eta=0.02),
    dict(stop_gradient=False, eta=0.02), dict(predictor=False, eta=0.02),
])  # fmt: skip
def test_matrix_simulation_agrees_with_scalar_theory(knobs):
    s, p = torch.linspace(0.1, 1, 5, dtype=torch.float64), torch.linspace(0.8, 0.2, 5, dtype=torch.float64)
    W, Wp, U = aligned(s, p)
    clock = dict(steps=200, dt=0.05, every=50)
    path = LinearDynamics.isotropic(5, 0.3, **knobs).run(W, None if "predictor" in knobs else Wp, **clock)
    theory = scalar_dynamics(s, p, noise=0.3, **knobs, **clock)
    simulated = U.T @ path.W @ path.W.mT @ U
    assert torch.allclose(simulated.diagonal(dim1=1, dim2=2), theory.s, atol=1e-6)
    assert torch.allclose((U.T @ path.Wp @ U).diagonal(dim1=1, dim2=2), theory.p, atol=1e-6)
    assert torch.allclose(simulated, torch.diag_embed(theory.s), atol=1e-6)  # they stay aligned


def test_velocity_is_minus_the_gradient_of_the_expected_loss():
    X = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    noise = 0.3 * torch.eye(3, dtype=torch.float64)
    W, Wp, Wa = (normal(3, 3, seed=i, dtype=torch.float64).requires_grad_() for i in range(3))

    def expected_loss(W, Wp, target):  # E |Wp W x1 - T x2|^2 / 2 with E x1 x1' = X + noise, E x2 x1' = X
        A = Wp @ W
        return 0.5 * ((A @ (X + noise) @ A.T).trace() - 2 * (A @ X @ target.T).trace()
                      + (target @ (X + noise) @ target.T).trace())

    for stop, target in ((True, Wa.detach()), (False, W)):
        model = LinearDynamics(X, noise, stop_gradient=stop, beta=0.2 if stop else None, alpha_p=3.0)
        velocity = model.velocity(W.detach(), Wp.detach(), Wa.detach())
        dW, dWp = torch.autograd.grad(expected_loss(W, Wp, target), (W, Wp))
        assert torch.allclose(velocity[0], -dW, atol=1e-12)
        assert torch.allclose(velocity[1], -3 * dWp, atol=1e-12)
    with pytest.raises(ValueError, match="stop_gradient=False"):
        LinearDynamics(X, noise, stop_gradient=False, beta=0.1)


def test_collapse_without_predictor_or_stop_gradient_in_a_batch_of_decays():
    W, Wp, _ = aligned(*(torch.full((4,), 0.5, dtype=torch.float64),) * 2)
    eta = torch.tensor([0.01, 0.1, 0.3], dtype=torch.float64)
    batch = dict(steps=400, dt=0.2, every=400)
    stack = lambda M: M.expand(3, 4, 4)  # noqa: E731
    size = lambda path: path.W[-1].norm(dim=(-2, -1))  # noqa: E731
    for off in (dict(predictor=False), dict(stop_gradient=False)):
        model = LinearDynamics.isotropic(4, 0.2, eta=eta, **off)
        assert size(model.run(stack(W), None if "predictor" in off else stack(Wp), **batch)).max() < 1e-4
    both = size(LinearDynamics.isotropic(4, 0.2, eta=eta).run(stack(W), stack(Wp), **batch))
    assert (both[:2] > 0.5).all() and both[2] < 1e-4  # the threshold is 0.208


def test_fixed_points_and_threshold():
    low, high = fixed_points(0.2, 0.1)
    for p in (low, high):
        path = scalar_dynamics(p[None] ** 2 / 3, p[None], noise=0.2, eta=0.1, alpha_p=3.0, steps=5, dt=0.1)
        assert torch.allclose(path.p, p.expand_as(path.p), atol=1e-9)
        assert torch.allclose(path.s, path.s[0].expand_as(path.s), atol=1e-9)
    start = torch.stack([low - 0.01, low + 0.01])
    end = scalar_dynamics(start**2, start, noise=0.2, eta=0.1, steps=2000, dt=0.2, every=2000).p[-1]
    assert end[0] < 1e-3 and torch.isclose(end[1], high, atol=1e-4)
    assert fixed_points(0.2, collapse_threshold(0.2) + 1e-6)[0].isnan()


# ---- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_equals_float32(dtype):
    torch.manual_seed(0)
    views = [v.to(dtype) for v in four(32, 16)]
    head, x = DINOHead(16, 24, hidden=32, bottleneck=8), normal(32, 16).to(dtype)
    mask = torch.rand(4, 8) < 0.5
    prototypes = Prototypes(16, 12)

    def direct(*z):
        predictor = DirectPredictor(16)
        predictor(z[0])
        predictor.after_step()
        return torch.cat([predictor(z[0]), predictor.correlation])

    cases = {
        "byol": lambda *z: byol(*z), "simsiam": lambda *z: simsiam(*z),
        "sinkhorn": lambda *z: sinkhorn(z[0], epsilon=0.5), "swav": lambda *z: swav(z[:2], epsilon=0.5),
        "dino": lambda *z: DINOLoss(16)(z, z[:2]), "prototypes": lambda *z: prototypes(z[0]),
        "masked": lambda *z: masked_mse(z[0].reshape(4, 8, 16), z[1].reshape(4, 8, 16), mask),
        "direct": direct,
    }  # fmt: skip
    for name, objective in cases.items():
        expected = objective(*(v.float() for v in views))
        with torch.autocast("cpu", dtype=dtype):
            got = objective(*views)
        assert got.dtype == torch.float32, name
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3), name
    with torch.autocast("cpu", dtype=dtype):
        assert head(x).dtype == torch.float32


@pytest.mark.parametrize("state", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16])
def test_modules_with_state_take_any_precision(state, given):
    "State of a precision, embeddings of another: nothing crashes, and the loss and the state are near those in float32."
    def run(state, given):
        torch.manual_seed(0)
        queue, prototypes, dino = FeatureQueue(40, 16), Prototypes(16, 12), DINOLoss(16)
        moco, predictors = MoCoQueue(40, 16), [DirectPredictor(16, mode=mode) for mode in DirectPredictor.MODES]
        modules = nn.ModuleList([queue, prototypes, dino, moco, *predictors]).to(state)
        losses = []
        for step in range(3):
            z = [normal(32, 16, seed=10 * step + i).to(given).requires_grad_() for i in range(4)]
            losses += [swav([prototypes(v) for v in z], queue_scores=queue.scores(prototypes)), dino(z, z[:2]), moco(*z[:2])]
            queue.push(z[:2])
            losses += [byol(q(z[0]), q(z[1]), z[2], z[3]) for q in predictors]
            sum(losses[-5:]).backward()
            for q in predictors:
                q.after_step()
            assert all(v.grad.isfinite().all() for v in z)
        assert all(v.dtype == state for v in modules.state_dict().values() if v.is_floating_point() and v.ndim)
        ends = torch.stack([loss.detach().double() for loss in losses])
        return ends, queue.features.double(), predictors[0].correlation.double()

    for got, expected in zip(run(state, given), run(torch.float32, torch.float32), strict=True):
        assert got.isfinite().all() and torch.allclose(got, expected, rtol=0.05, atol=0.05)
        if torch.float64 in (state, given) and torch.bfloat16 not in (state, given) and state != torch.float16:
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


# ---- two ranks


def two_rank_problem():
    torch.manual_seed(0)
    module = nn.ModuleDict({"f": nn.Linear(5, 6), "q": nn.Linear(6, 6), "c": Prototypes(6, 7)}).double()
    return module, [normal(12, 5, seed=i, dtype=torch.float64) for i in range(3)]


def two_rank_losses(module, views, dino, direct):
    z = [module["f"](v) for v in views]
    p = [module["q"](v) for v in z]
    scores = [module["c"](v) for v in z]
    queue = [s.detach() for s in scores[:2]]
    yield "byol", byol(p[0], p[1], z[0], z[1])
    yield "simsiam", simsiam(p[0], p[1], z[0], z[1])
    yield "swav", swav(scores, iterations=8)
    yield "swav with queue", swav(scores, queue_scores=queue)
    for _ in range(2):  # the second loss uses the center that the first one moved
        value = dino(p, z[:2])
    yield "dino", value
    direct(z[0]), direct(z[1])
    direct.after_step()
    yield "directpred", direct(z[0]).square().mean()


def gradients_of(rank=0, world=1):
    module, views = two_rank_problem()
    rows = slice(12 // world * rank, 12 // world * (rank + 1))
    dino, direct = DINOLoss(6).double(), DirectPredictor(6)
    results = {}
    for name, loss in two_rank_losses(module, [v[rows] for v in views], dino, direct):
        module.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        if world > 1:
            average_gradients(module)
            loss = loss.detach().clone()
            dist.all_reduce(loss)
            loss /= world
        results[name] = [loss.detach()] + [p.grad for p in module.parameters() if p.grad is not None]
    results["center"], results["predictor"] = [dino.center], [direct.weight, direct.correlation]
    with torch.no_grad():
        results["codes"] = [sinkhorn(module["c"](module["f"](views[0]))[rows], iterations=8)]
    return results


def test_two_ranks_equal_one_process():
    first, second = run_two_ranks(gradients_of)
    joined = gradients_of()
    codes = torch.cat([first.pop("codes")[0], second.pop("codes")[0]])
    assert torch.allclose(codes, joined.pop("codes")[0], atol=1e-12)
    for ranks in (first, second):
        assert ranks.keys() == joined.keys()
        for name, values in joined.items():
            assert len(values) == len(ranks[name])
            for expected, got in zip(values, ranks[name], strict=True):
                assert torch.allclose(got, expected, atol=1e-6), name
