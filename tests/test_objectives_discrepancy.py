import math

import pytest
import torch
from distributed import run_two_ranks

from ssl_nb.objectives.discrepancy import discrepancy_margin, edit_distance_loss, graph_discrimination


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graphs(n=6, k=3, d=5):
    return draw(n, d), draw(n, k, d, seed=1), torch.randint(1, 9, (n, k), generator=torch.Generator().manual_seed(2))


def test_discrimination_is_the_cross_entropy_of_the_original():
    scores = draw(7, 4).requires_grad_()
    loss = graph_discrimination(scores)
    torch.testing.assert_close(loss, (scores.logsumexp(1) - scores[:, 0]).mean())
    loss.backward()
    right = torch.eye(4, dtype=torch.float64)[0]
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(1) - right) / 7)
    torch.testing.assert_close(graph_discrimination(torch.zeros(3, 5)), torch.tensor(math.log(5)))
    torch.testing.assert_close(graph_discrimination(scores[:, [0, 3, 1, 2]]), loss)  # in any order of the changed ones
    assert graph_discrimination(100 * torch.eye(4)[:1]) < 1e-6


def test_the_edit_distance_loss_is_zero_for_proportional_distances_and_only_for_those():
    original, changed, edits = graphs()
    direction = torch.nn.functional.normalize(changed, dim=2)
    constant = draw(6, 1, 1).exp()  # another one for each graph
    proportional = original[:, None] + constant * edits[..., None] * direction
    assert edit_distance_loss(original, proportional, edits) < 1e-20
    proportional[2, 1] += 0.1 * direction[2, 1]
    ratio = constant[2, 0, 0]
    off = ratio + 0.1 / edits[2, 1]
    torch.testing.assert_close(edit_distance_loss(original, proportional, edits), 2 * (off - ratio) ** 2 / 18)


def test_the_edit_distance_loss_depends_on_distances_alone():
    original, changed, edits = graphs()
    loss, turn = edit_distance_loss(original, changed, edits), torch.linalg.qr(draw(5, 5, seed=3)).Q
    torch.testing.assert_close(edit_distance_loss(original @ turn + 3, changed @ turn + 3, edits), loss)
    torch.testing.assert_close(edit_distance_loss(2 * original, 2 * changed, edits), 4 * loss)
    torch.testing.assert_close(edit_distance_loss(original, changed, 5 * edits), loss / 25)
    torch.testing.assert_close(edit_distance_loss(original, changed[:, [2, 0, 1]], edits[:, [2, 0, 1]]), loss)


def test_a_version_at_distance_zero_has_a_finite_gradient():
    original, changed, edits = graphs()
    changed[0, 0] = original[0]
    original.requires_grad_(), changed.requires_grad_()
    (edit_distance_loss(original, changed, edits) + discrepancy_margin(original, changed)).backward()
    assert original.grad.isfinite().all() and changed.grad.isfinite().all()


@pytest.mark.parametrize("margin", [0.0, 0.7, 5.0])
def test_the_margin_is_the_loop_over_graphs_versions_and_others(margin):
    original, changed, _ = graphs()
    terms = [max(0.0, (margin + (h - original[i]).norm() - (original[m] - original[i]).norm()).item())
             for i in range(6) for h in changed[i] for m in range(6) if m != i]
    expected = torch.tensor(sum(terms) / len(terms), dtype=torch.float64)
    torch.testing.assert_close(discrepancy_margin(original, changed, margin=margin), expected)


def test_the_margin_is_zero_where_other_graphs_are_farther_by_the_margin():
    original = 10.0 * torch.eye(4)  # all at the distance of 14.14
    changed = original[:, None] + torch.tensor([[0.0, 2.0, 0.0, 0.0], [-3.0, 0.0, 0.0, 0.0]])
    gap = 10 * math.sqrt(2) - 3
    assert discrepancy_margin(original, changed, margin=gap - 0.01) == 0
    assert discrepancy_margin(original, changed, margin=gap + 0.01) > 0


def test_second_derivatives_exist():
    original, changed, edits = graphs(n=3, k=2, d=3)
    both = (original.requires_grad_(), changed.requires_grad_())
    torch.autograd.gradcheck(lambda a, b: edit_distance_loss(a, b, edits[:, :2]), both)
    torch.autograd.gradcheck(lambda a, b: discrepancy_margin(a, b, margin=9.0), both)


def on_a_rank(rank, world):
    original, changed, _ = graphs()
    mine = slice(3 * rank, 3 * rank + 3)
    original, changed = original[mine].clone().requires_grad_(), changed[mine].clone().requires_grad_()
    loss = discrepancy_margin(original, changed)
    loss.backward()
    return [loss.detach(), original.grad / world, changed.grad / world]


def test_the_margin_over_two_ranks_is_that_of_one_process():
    original, changed, _ = graphs()
    original.requires_grad_(), changed.requires_grad_()
    loss = discrepancy_margin(original, changed)
    loss.backward()
    found = run_two_ranks(on_a_rank)
    for rank in (0, 1):
        torch.testing.assert_close(found[rank][0], loss.detach())
    for place, grad in ((1, original.grad), (2, changed.grad)):
        torch.testing.assert_close(torch.cat([found[0][place], found[1][place]]), grad)


@pytest.mark.parametrize("call, message", [
    (lambda o, c, e: graph_discrimination(o[:, :1]), "width 1"),
    (lambda o, c, e: edit_distance_loss(o, c[:, :1], e[:, :1]), "2 or more changed"),
    (lambda o, c, e: edit_distance_loss(o, c, e * 0), "above 0"),
    (lambda o, c, e: edit_distance_loss(o, c, e[:, :2]), r"shape \(6, 2\)"),
    (lambda o, c, e: discrepancy_margin(o[:5], c), r"\(5, 5\)"),
    (lambda o, c, e: discrepancy_margin(o[:1], c[:1]), "1 graph"),
    (lambda o, c, e: discrepancy_margin(o, c, margin=-1.0), "margin is -1.0"),
    (lambda o, c, e: discrepancy_margin(o * math.nan, c), "NaN")])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*graphs())
