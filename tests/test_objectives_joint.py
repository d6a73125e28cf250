"""Objectives that compare examples or dimensions: what reference/objectives.md says goes wrong elsewhere."""
import math

import pytest
import torch
import torch.nn.functional as F
from distributed import average_gradients, run_two_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_nb.objectives import (
    MoCoQueue,
    barlow_twins,
    contrastive,
    covariance_term,
    cross_correlation,
    info_nce,
    invariance_term,
    nt_xent,
    variance_term,
    vicreg,
)

pytestmark = pytest.mark.xdist_group("objectives_joint")  # one worker makes the two ranks for all of them

PAIRWISE = {"info_nce": info_nce, "nt_xent": nt_xent, "barlow_twins": barlow_twins, "vicreg": vicreg}
WIDE, NARROW = (6, 11), (11, 6)  # n < d and n > d take different roads in barlow_twins and vicreg


def views(n, d, seed=0, dtype=torch.float64):
    return torch.randn(2, n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed)).unbind()


def with_grad(objective, z0, z1):
    z0, z1 = z0.clone().requires_grad_(), z1.clone().requires_grad_()
    loss = objective(z0, z1)
    loss.backward()
    return loss.detach(), torch.stack([z0.grad, z1.grad])


# --- two ranks -------------------------------------------------------------------------------------


def _with_negatives(z0, z1):
    return info_nce(z0, z1, negatives=torch.cat([z0, z1]).detach().flip(1))


def _vicreg_by_terms(z0, z1):
    return 25 * invariance_term(z0, z1) + 12.5 * (variance_term(z0) + variance_term(z1)) + \
        covariance_term(z0) + covariance_term(z1)


def _correlation(z0, z1):
    return (cross_correlation(z0, z1) * torch.arange(float(z0.shape[1]))).sum()


GATHERED = {**PAIRWISE, "info_nce with negatives": _with_negatives, "vicreg by terms": _vicreg_by_terms,
            "cross_correlation": _correlation}  # fmt: skip


def _network(width, dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, width)).to(dtype)


def _inputs(dtype):
    return torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1)).to(dtype)


def _train_step(name, width, rows, dtype=torch.float64):
    "Loss and the flattened parameter gradient, of the rows of the batch that this process has."
    network, x = _network(width, dtype), _inputs(dtype)[:, rows]
    if name == "moco":
        moco = MoCoQueue(12, width, temperature=0.2).to(dtype)
        moco(network(x[0]), network(x[1]).detach() + 1)  # fills part of the queue
        loss = moco(network(x[0]), network(x[1]).detach() - 1)
        state = moco.queue
    else:
        loss, state = GATHERED[name](network(x[0]), network(x[1])), torch.zeros(1)
    loss.backward()
    return loss.detach(), network, state


def _all_on_this_rank(rank, world):
    got = {}
    for name in [*GATHERED, "moco"]:
        for width in (3, 12):
            for dtype in (torch.float32, torch.float64):
                loss, network, state = _train_step(name, width, slice(4 * rank, 4 * rank + 4), dtype)
                average_gradients(network)
                grad = torch.cat([p.grad.flatten() for p in network.parameters()])
                got[f"{name} {width} {dtype}"] = [loss, grad, state]
    with pytest.raises(ValueError, match="drop_last"):
        nt_xent(*views(4 + rank, 3))
    assert nt_xent(*views(1, 3, seed=rank)).isfinite()  # one row on each of two ranks: two rows
    return got


@pytest.fixture(scope="module")
def two_ranks():
    return run_two_ranks(_all_on_this_rank)


@pytest.mark.parametrize("name", [*GATHERED, "moco"])
@pytest.mark.parametrize("width", [3, 12])
def test_two_ranks_are_one_process_with_the_joined_batch(two_ranks, name, width):
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-6)]:
        loss, network, state = _train_step(name, width, slice(0, 8), dtype)
        grad = torch.cat([p.grad.flatten() for p in network.parameters()])
        losses, grads, states = zip(*(r[f"{name} {width} {dtype}"] for r in two_ranks), strict=True)
        if name == "moco":  # each rank has the loss of its own queries, and DDP averages
            losses = [torch.stack(losses).mean()]
        for other in losses:
            assert torch.isclose(other, loss, rtol=tolerance, atol=0)
        for other, queue in zip(grads, states, strict=True):
            assert (other - grad).norm() <= 3 * tolerance * grad.norm()
            assert torch.allclose(queue, state, atol=tolerance)


# --- the naive double loop -------------------------------------------------------------------------


def _cos(a, b):
    return (a @ b) / (a.norm() * b.norm())


def naive_info_nce(q, k, negatives, t):
    keys = list(k) + list(negatives)
    total = 0
    for i in range(len(q)):
        total += math.log(sum(math.exp(_cos(q[i], m) / t) for m in keys)) - _cos(q[i], k[i]) / t
    return total / len(q)


def naive_nt_xent(z0, z1, t):
    z, n, total = torch.cat([z0, z1]), len(z0), 0
    for i in range(2 * n):
        others = sum(math.exp(_cos(z[i], z[j]) / t) for j in range(2 * n) if j != i)
        total += math.log(others) - _cos(z[i], z[(i + n) % (2 * n)]) / t
    return total / (2 * n)


def naive_barlow_twins(z0, z1, lambda_):
    z0, z1 = z0 - z0.mean(0), z1 - z1.mean(0)
    c = [[_cos(a, b) for b in z1.T] for a in z0.T]
    d = range(len(c))
    return sum((1 - c[i][i]) ** 2 for i in d) + lambda_ * sum(c[i][j] ** 2 for i in d for j in d if i != j)


def naive_vicreg(z0, z1):
    n, d = z0.shape
    total = 25 * sum((z0[b, j] - z1[b, j]) ** 2 for b in range(n) for j in range(d)) / (n * d)
    for z in (z0, z1):
        x = z - z.mean(0)
        c = [[(x[:, i] @ x[:, j]) / (n - 1) for j in range(d)] for i in range(d)]
        total += 12.5 * sum(max(0, 1 - (c[j][j] + 1e-4).sqrt()) for j in range(d)) / d
        total += sum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return total


@pytest.mark.parametrize("shape", [WIDE, NARROW, (2, 3), (5, 1)])
def test_equal_to_a_double_loop(shape):
    z0, z1 = views(*shape)
    same = lambda a, b: math.isclose(a, b, rel_tol=1e-10)  # noqa: E731
    assert same(barlow_twins(z0, z1, lambda_=0.02), naive_barlow_twins(z0, z1, 0.02))
    assert same(vicreg(z0, z1), naive_vicreg(z0, z1))
    if shape[1] == 1:
        return  # cosines of numbers have no gradient: refused below
    for t in (0.01, 0.1, 1.0):
        assert same(nt_xent(z0, z1, temperature=t), naive_nt_xent(z0, z1, t))
        assert same(info_nce(z0, z1, temperature=t), naive_info_nce(z0, z1, [], t))
        more = z0[:2] + 1
        assert same(info_nce(z0, z1, temperature=t, negatives=more), naive_info_nce(z0, z1, more, t))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 20), d=st.integers(1, 9), block=st.integers(1, 17), keep=st.booleans(),
       t=st.sampled_from([0.05, 0.5, 3.0]))  # fmt: skip
def test_nt_xent_in_any_blocks(n, d, block, keep, t):
    z0, z1 = views(n, d)
    expected, expected_grad = with_grad(lambda a, b: contrastive._nt_xent_with_maximum(a, b, t), z0, z1)
    before, contrastive._KEEP_ROWS = contrastive._KEEP_ROWS, 10**6 if keep else 0
    try:
        got, got_grad = with_grad(lambda a, b: contrastive._NTXent.apply(a, b, t, block), z0, z1)
    finally:
        contrastive._KEEP_ROWS = before
    assert torch.isclose(got, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(got_grad, expected_grad, rtol=1e-8, atol=1e-9)


# --- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("shape", [WIDE, NARROW, (2, 3)])
def test_gradients_against_finite_differences(name, shape):
    z0, z1 = (z.requires_grad_() for z in views(*shape))
    assert torch.autograd.gradcheck(PAIRWISE[name], (z0, z1), rtol=1e-4)


def test_gradient_of_the_queue_against_finite_differences():
    moco, (q, k) = MoCoQueue(7, 4, temperature=0.3).double().eval(), views(5, 4)
    assert torch.autograd.gradcheck(lambda q: moco(q, k), q.requires_grad_())


@pytest.mark.parametrize("name", ["nt_xent", "barlow_twins", "vicreg"])
def test_a_second_derivative_is_refused_rather_than_wrong(name):
    z0, z1 = (z.requires_grad_() for z in views(4, 3))
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(PAIRWISE[name](z0, z1), z0, create_graph=True)


# --- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("shape", [(48, 96), (96, 48)])
def test_float32_is_close_to_float64(name, shape):
    z0, z1 = views(*shape)
    loss, grad = with_grad(PAIRWISE[name], z0, z1)
    loss32, grad32 = with_grad(PAIRWISE[name], z0.float(), z1.float())
    assert loss32.dtype == torch.float32
    assert torch.isclose(loss32.double(), loss, rtol=2e-6, atol=0)
    assert (grad32 - grad).norm() <= 3e-6 * grad.norm()


@pytest.mark.parametrize("name", PAIRWISE)
def test_autocast_changes_nothing(name):
    network, x = nn.Linear(16, 32), torch.randn(2, 48, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = [network(v) for v in x]
        assert half[0].dtype == torch.bfloat16
        loss, grad = with_grad(PAIRWISE[name], half[0].detach(), half[1].detach())
    full, full_grad = with_grad(PAIRWISE[name], half[0].detach().float(), half[1].detach().float())
    assert loss.dtype == torch.float32 and grad.dtype == torch.bfloat16
    assert torch.isclose(loss, full, rtol=1e-3)
    assert (grad.float() - full_grad).norm() <= 4e-3 * full_grad.norm()  # rounding of the result


def test_autocast_around_the_queue():
    moco, (q, k) = MoCoQueue(32, 16).eval(), views(8, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(moco(q, k), moco.eval()(q, k))
        inside = moco(q, k)
    assert torch.isclose(inside, moco(q, k), rtol=1e-3) and inside.dtype == torch.float32


@pytest.mark.parametrize(
    "size,value_error,grad_error", [(1, 2e-6, 2e-6), (100, 2e-3, 1e-4), (1000, 5e-2, 1e-3)]
)
def test_cancellation_on_the_wide_road_is_bounded(size, value_error, grad_error):
    "One dimension much larger than the rest: the difference of two large numbers in float32."
    z = views(128, 512)[0]
    z[:, 0] *= size
    grads, values = [], []
    for dtype in (torch.float64, torch.float32):
        x = z.to(dtype, copy=True).requires_grad_()
        term = covariance_term(x)
        term.backward()
        values.append(term.item())
        grads.append(x.grad.double())
    assert abs(values[1] / values[0] - 1) < value_error
    assert (grads[1] - grads[0]).norm() < grad_error * grads[0].norm()


@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.2])
@pytest.mark.parametrize("name", ["nt_xent", "info_nce"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_solved_batch_keeps_its_relative_precision(name, temperature, keep, monkeypatch):
    "Positives at cosine 0.9999, negatives at 0: what is left of loss and gradient is small, and right."
    monkeypatch.setattr(contrastive, "_KEEP_ROWS", 10**6 if keep else 0)
    z0 = torch.linalg.qr(views(64, 64)[0]).Q.T.float().double()
    z1 = (z0 + 2e-3 * views(64, 64, seed=1)[0]).float().double()
    objective = lambda a, b: PAIRWISE[name](a, b, temperature=temperature)  # noqa: E731
    loss, grad = with_grad(objective, z0, z1)
    loss32, grad32 = with_grad(objective, z0.float(), z1.float())
    assert 0 < loss < 1 and torch.isclose(loss32.double(), loss, rtol=2e-5, atol=0)
    assert (grad32 - grad).norm() <= 2e-5 * grad.norm()
    maximum, grad_maximum = with_grad(lambda a, b: contrastive._nt_xent_with_maximum(a, b, temperature), z0.float(), z1.float())
    if name == "nt_xent":
        assert torch.isclose(maximum.double(), loss, rtol=2e-5, atol=0)
        assert (grad_maximum - grad).norm() <= 2e-5 * grad.norm()


def test_the_queue_keeps_the_precision_of_an_easy_and_of_a_hopeless_query():
    moco = MoCoQueue(16, 16, temperature=0.05).double().eval()
    moco.queue.copy_(torch.eye(16))
    for key, expected in [(torch.eye(16)[:1] - 1e-9, None), (-torch.ones(1, 16), None)]:
        q = (key if key.sum() > 0 else -key).double().requires_grad_()
        loss = moco(q, key.double())
        logits = torch.cat([F.normalize(key.double()), moco.queue]) @ F.normalize(q.detach()).T / 0.05
        expected = logits.logsumexp(0) - logits[0]
        assert torch.isclose(loss, expected[0], rtol=1e-12)


# --- invariances -----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.floats(-3, 3), shift=st.floats(-100, 100))
@pytest.mark.parametrize("shape", [WIDE, NARROW])
def test_barlow_twins_ignores_affine_maps_of_each_dimension(shape, seed, exponent, shift):
    z0, z1 = views(*shape, seed=seed)
    scale = 10 ** (exponent * torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)).double())
    expected = barlow_twins(z0, z1)
    assert torch.isclose(barlow_twins(z0 * scale + shift, z1), expected, rtol=1e-6)
    assert torch.isclose(barlow_twins(z0, z1 * scale + shift), expected, rtol=1e-6)
    assert cross_correlation(z0, z1).abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("name", ["info_nce", "nt_xent"])
def test_contrastive_losses_ignore_the_length_of_rows(name):
    z0, z1 = views(8, 5)
    lengths = torch.linspace(0.1, 9, 8, dtype=z0.dtype)[:, None]
    assert torch.isclose(PAIRWISE[name](z0 * 100, z1 * lengths), PAIRWISE[name](z0, z1), rtol=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("shape", [WIDE, NARROW])
def test_the_order_of_examples_and_views_does_not_matter(name, shape):
    z0, z1 = views(*shape)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    loss = PAIRWISE[name](z0, z1)
    assert torch.isclose(PAIRWISE[name](z0[order], z1[order]), loss, rtol=1e-12)
    if name != "info_nce":  # the only one with two roles
        assert torch.isclose(PAIRWISE[name](z1, z0), loss, rtol=1e-12)
    assert not torch.isclose(PAIRWISE[name](z0[order], z1), loss, rtol=1e-3)  # but who belongs to whom does


def test_vicreg_ignores_a_common_shift():
    z0, z1 = views(*WIDE)
    assert torch.isclose(vicreg(z0 + 7, z1 + 7), vicreg(z0, z1), rtol=1e-10)


# --- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRWISE)
def test_what_has_no_answer_is_refused(name):
    objective, (z0, z1) = PAIRWISE[name], views(4, 3)
    nan = z1.clone()
    nan[2, 1] = math.nan
    for bad, words in [((z0[:1], z1[:1]), "1 example"), ((z0, nan), "1 of 4 rows"), ((z0, z1[:3]), "(3, 3)"),
                       ((z0, z1[:, :2]), "(4, 2)"), ((z0[0], z1[0]), "(3,)"),
                       ((z0.long(), z1.long()), "int64")]:  # fmt: skip
        with pytest.raises(ValueError) as e:
            objective(*bad)
        assert words in str(e.value)


@pytest.mark.parametrize("objective", [info_nce, nt_xent])
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(objective, temperature):
    with pytest.raises(ValueError, match="temperature"):
        objective(*views(4, 3), temperature=temperature)


def test_negatives_are_checked_and_make_a_batch_of_one_possible():
    z0, z1 = views(1, 3)
    assert info_nce(z0, z1, negatives=z0 + 1).isfinite()
    with pytest.raises(ValueError, match="NaN"):
        info_nce(z0, z1, negatives=z0 * math.nan)
    with pytest.raises(ValueError, match="width 2"):
        info_nce(z0, z1, negatives=z0[:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(8, 32), (512, 32)])
def test_a_constant_batch_has_the_documented_limit(dtype, shape):
    "0.1 is not a float, and its mean over rows is not 0.1: the remainder must not pass for a signal."
    z = torch.full(shape, 0.1, dtype=dtype)
    limits = {"info_nce": math.log(shape[0]), "nt_xent": math.log(2 * shape[0] - 1),
              "barlow_twins": shape[1], "vicreg": 25 * 0.99}  # fmt: skip
    for name, limit in limits.items():
        loss, grad = with_grad(PAIRWISE[name], z, z)
        assert math.isclose(loss, limit, rel_tol=1e-5), name
        assert grad.isfinite().all() and grad.abs().max() < 1e-2, name


def test_a_dead_dimension_and_a_dead_row_get_no_wild_gradient():
    z0, z1 = views(8, 5)
    z0[:, 2], z0[3] = 0.1, 0
    z0[3, 2] = 0.1
    for shape_of in (lambda z: z, lambda z: z.repeat(1, 3)):
        loss, grad = with_grad(lambda a, b: barlow_twins(shape_of(a), shape_of(b)), z0, z1)  # noqa: B023
        assert loss.isfinite() and grad.isfinite().all() and (grad[0, :, 2] == 0).all()
    z0[3] = 0
    for name in ("info_nce", "nt_xent"):
        loss, grad = with_grad(PAIRWISE[name], z0, z1)
        assert loss.isfinite() and grad.abs().max() < 100 and (grad[0, 3] == 0).all()


@pytest.mark.parametrize("dead", [0.0, 0.1, -3.0])
@pytest.mark.parametrize("shape", [WIDE, NARROW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_takes_nothing_from_the_others(shape, dead, dtype):
    "One dead ReLU, in one view or in both: no NaN, no gradient of its own, and the gradient of the rest as without it."
    objectives = {
        "cross_correlation": lambda a, b: (cross_correlation(a, b) - torch.eye(a.shape[1]).to(a)).square().sum(),
        "barlow_twins": barlow_twins,
        "variance": lambda a, b: a.shape[1] * (variance_term(a) + variance_term(b)),
        "covariance": lambda a, b: a.shape[1] * (covariance_term(a) + covariance_term(b)),
    }  # fmt: skip
    z0, z1 = views(*shape, dtype=dtype)
    for both in (True, False):
        a, b = z0.clone(), z1.clone()
        a[:, 2] = dead
        if both:
            b[:, 2] = dead
        rest = [i for i in range(shape[1]) if i != 2]
        for name, objective in objectives.items():
            loss, grad = with_grad(objective, a, b)
            assert loss.isfinite() and grad.isfinite().all(), name
            assert grad[0][:, 2].abs().max() < 1e-6, name
            if both:
                _, expected = with_grad(objective, a[:, rest], b[:, rest])
                assert torch.allclose(grad[:, :, rest], expected, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("call,words", [
    (lambda z: nt_xent(z[:, :1], z[:, :1]), "width 1"),
    (lambda z: info_nce(z[:, :1], z[:, :1]), "width 1"),
    (lambda z: MoCoQueue(8, 1)(z[:, :1].float(), z[:, :1].float()), "width 1"),
    (lambda z: barlow_twins(z[:, :0], z[:, :0]), "width 0"),
    (lambda z: vicreg(z[:, :0], z[:, :0]), "width 0"),
    (lambda z: nt_xent(z, z, temperature=math.inf), "finite"),
    (lambda z: MoCoQueue(8, 3, temperature=math.inf), "finite"),
    (lambda z: barlow_twins(z, z, lambda_=-1.0), "lambda_ is -1.0"),
    (lambda z: barlow_twins(z, z, lambda_=math.nan), "lambda_ is nan"),
    (lambda z: vicreg(z, z, covariance=-1.0), "none negative"),
    (lambda z: vicreg(z, z, invariance=0.0, variance=0.0, covariance=0.0), "not all zero"),
    (lambda z: variance_term(z, eps=0.0), "eps is 0.0"),
])  # fmt: skip
def test_what_would_train_nothing_or_the_wrong_thing_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(views(6, 3)[0])


def test_extreme_temperatures_and_scales_stay_finite():
    z0, z1 = views(8, 5, dtype=torch.float32)
    for t in (1e-4, 1e-3, 0.02, 0.024, 100.0):
        for objective in (info_nce, nt_xent):
            loss, grad = with_grad(lambda a, b: objective(a, b, temperature=t), z0 * 1e10, -z0 * 1e-10)  # noqa: B023
            assert loss.isfinite() and grad.isfinite().all()
            expected, _ = with_grad(lambda a, b: objective(a, b, temperature=t), z0.double(), -z0.double())  # noqa: B023
            assert math.isclose(loss, expected, rel_tol=1e-5)


@pytest.mark.parametrize("batch", ["orthonormal", "rank one"])
def test_gradients_are_finite_at_degenerate_batches(batch):
    z = torch.eye(6) if batch == "orthonormal" else torch.outer(torch.arange(1.0, 7), torch.ones(6))
    for name, objective in PAIRWISE.items():
        loss, grad = with_grad(objective, z, z)
        assert loss.isfinite() and grad.isfinite().all(), name


# --- the queue -------------------------------------------------------------------------------------


def test_the_queue_is_normalized_wraps_and_keeps_the_latest():
    moco, seen = MoCoQueue(10, 4), []
    start = moco.queue.clone()
    assert torch.allclose(start.norm(dim=1), torch.ones(10))
    for step in range(7):
        q, k = views(4, 4, seed=step, dtype=torch.float32)
        moco(q, 5 * k)
        seen.append(F.normalize(k))
        assert torch.allclose(moco.queue.norm(dim=1), torch.ones(10), atol=1e-6)
        latest = torch.cat([start, *seen])[-10:]
        in_order = lambda rows: rows[rows[:, 0].argsort()]  # noqa: E731
        assert torch.allclose(in_order(latest), in_order(moco.queue), atol=1e-6)
    assert int(moco.position) == 28 % 10


def test_a_batch_larger_than_the_queue_leaves_its_last_keys():
    moco, (q, k) = MoCoQueue(3, 4), views(8, 4, dtype=torch.float32)
    moco(q, k)
    assert torch.allclose(moco.queue, F.normalize(k)[-3:])


def test_the_loss_sees_past_keys_only():
    moco, (q, k) = MoCoQueue(6, 4, temperature=0.2).double(), views(6, 4)
    before = moco.queue.copy_(F.normalize(moco.queue)).clone()
    loss = moco(q, k)
    alone = [info_nce(q[i : i + 1], k[i : i + 1], negatives=before, temperature=0.2) for i in range(6)]
    assert torch.isclose(loss, torch.stack(alone).mean(), rtol=1e-10)
    assert torch.allclose(moco.queue, F.normalize(k))  # the current batch is there afterwards
    assert moco(F.normalize(k), k) > 0.69  # and would have been in the way


def test_backward_works_after_the_queue_has_moved_on():
    moco, (q, k) = MoCoQueue(8, 4).double(), views(4, 4)
    still = MoCoQueue(8, 4).double().eval()
    q.requires_grad_()
    first = moco(q, k)
    moco(q.detach(), k)
    moco(q.detach(), k)
    a, = torch.autograd.grad(first, q)
    b, = torch.autograd.grad(still(q, k), q)
    assert torch.allclose(a, b)


def test_no_gradient_into_keys_and_no_queueing_in_evaluation():
    moco, (q, k) = MoCoQueue(8, 4).double(), views(4, 4)
    k.requires_grad_()
    moco(q.requires_grad_(), k).backward()
    assert k.grad is None and q.grad.abs().max() > 0 and not moco.queue.requires_grad
    before = moco.queue.clone()
    moco.eval()(q, k)
    assert torch.equal(moco.queue, before)


def test_the_queue_survives_a_checkpoint():
    moco, other = MoCoQueue(10, 4), MoCoQueue(10, 4)
    for step in range(3):
        moco(*views(4, 4, seed=step, dtype=torch.float32))
    other.load_state_dict(moco.state_dict())
    q, k = views(4, 4, seed=9, dtype=torch.float32)
    assert torch.equal(moco(q, k), other(q, k)) and torch.equal(moco.queue, other.queue)
    assert set(moco.state_dict()) == {"queue", "position"}
    assert torch.equal(MoCoQueue(10, 4).queue, MoCoQueue(10, 4).queue)  # the same start on every rank


def test_the_queue_refuses_what_does_not_fit():
    moco, (q, k) = MoCoQueue(10, 4), views(4, 5, dtype=torch.float32)
    with pytest.raises(ValueError, match="dim=5"):
        moco(q, k)
    before = moco.queue.clone()
    with pytest.raises(ValueError, match="NaN"):
        moco(q[:, :4], k[:, :4] * math.nan)
    assert torch.equal(moco.queue, before)
    for knobs in (dict(size=0), dict(dim=0), dict(temperature=0)):
        with pytest.raises(ValueError, match="positive"):
            MoCoQueue(**{"size": 4, "dim": 4, **knobs})


# --- lightly, where it is right, and where it is not -----------------------------------------------


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_parity_with_lightly(shape):
    loss = pytest.importorskip("lightly.loss")
    z0, z1 = views(*shape)
    for theirs, ours in [(loss.NTXentLoss(), nt_xent), (loss.VICRegLoss(), vicreg),
                         (loss.NTXentLoss(temperature=0.1), lambda a, b: nt_xent(a, b, temperature=0.1))]:
        (value, grad), (expected, expected_grad) = with_grad(ours, z0, z1), with_grad(theirs, z0, z1)
        assert torch.isclose(value, expected, rtol=1e-9)
        assert torch.allclose(grad, expected_grad, rtol=1e-6, atol=1e-10)
    # Barlow Twins: lightly adds 1e-5 to variances near 1
    (value, grad) = with_grad(barlow_twins, z0, z1)
    (expected, expected_grad) = with_grad(loss.BarlowTwinsLoss(), z0, z1)
    assert torch.isclose(value, expected, rtol=1e-4) and (grad - expected_grad).norm() < 1e-3 * grad.norm()


def test_parity_with_lightlys_queue():
    loss = pytest.importorskip("lightly.loss")
    theirs = loss.NTXentLoss(temperature=0.2, memory_bank_size=(12, 4))
    ours = MoCoQueue(12, 4, temperature=0.2)
    theirs.memory_bank.bank.copy_(ours.queue)
    for step in range(2):  # lightly's next step would reach the end of the ring, where it goes wrong
        q, k = views(5, 4, seed=step, dtype=torch.float32)
        assert torch.isclose(ours(q, k), theirs(q.requires_grad_(), k), rtol=1e-5)
        assert torch.allclose(ours.queue, theirs.memory_bank.bank, atol=1e-6)
    q, k = views(5, 4, seed=2, dtype=torch.float32)
    ours(q, k), theirs(q.requires_grad_(), k)
    wrapped = F.normalize(k)[2:]  # 12 - 10 = 2 keys fit before the end
    assert torch.allclose(ours.queue[:3], wrapped, atol=1e-6)
    assert not torch.allclose(theirs.memory_bank.bank[:3], wrapped, atol=1e-2)  # lightly drops them
    assert set(theirs.state_dict()) == set()  # and forgets its queue in a checkpoint


def test_lightlys_barlow_twins_depends_on_the_scale_and_ours_does_not():
    loss = pytest.importorskip("lightly.loss")
    z0, z1 = views(40, 24)
    z1 = z0 + 0.1 * z1
    theirs = [loss.BarlowTwinsLoss()(s * z0, s * z1).item() for s in (1, 1e-3)]
    ours = [barlow_twins(s * z0, s * z1).item() for s in (1, 1e-3)]
    assert theirs[1] > 2 * theirs[0] and math.isclose(*ours, rel_tol=1e-9)


# --- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [WIDE, NARROW])
def test_parts_are_the_unweighted_detached_terms(shape):
    z0, z1 = (z.requires_grad_() for z in views(*shape))
    loss, parts = barlow_twins(z0, z1, lambda_=0.3, parts=True)
    assert torch.isclose(loss, parts["invariance"] + 0.3 * parts["redundancy"])
    assert torch.equal(loss, barlow_twins(z0, z1, lambda_=0.3)) and loss.requires_grad
    assert not any(p.requires_grad for p in parts.values())

    loss, parts = vicreg(z0, z1, invariance=2.0, variance=3.0, covariance=5.0, parts=True)
    assert torch.isclose(loss, 2 * parts["invariance"] + 3 * parts["variance"] + 5 * parts["covariance"])
    assert torch.isclose(parts["invariance"], invariance_term(z0, z1))
    assert torch.isclose(parts["variance"], (variance_term(z0) + variance_term(z1)) / 2)
    assert torch.isclose(parts["covariance"], covariance_term(z0) + covariance_term(z1))
    assert not any(p.requires_grad for p in parts.values())
