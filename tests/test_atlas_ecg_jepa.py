"""ECG-JEPA: what is hidden stays hidden, the target is the teacher's, the loss falls, and the page runs."""

import pytest
import torch

from ssl_nb import encoders, methods
from ssl_nb.atlas.ecg_jepa import ecg_jepa, masked_l1
from ssl_nb.data import Split
from ssl_nb.tokens import Patches
from ssl_nb.training import fit


def make(leads=1, seed=0, **knobs):
    torch.manual_seed(seed)
    encoder = encoders.create("transformer", tokenizer=Patches((5,)), values=5 * leads, embed_dim=16, depth=1, num_heads=2)
    return methods.create("ecg_jepa", encoder=encoder, predictor_dim=8, predictor_heads=2, **knobs)


def waves(rows=64, leads=1, seed=0):
    "Sines of different rates and phases."
    g = torch.Generator().manual_seed(seed)
    rate = torch.rand(rows, leads, 1, generator=g) * 0.3 + 0.05
    phase = torch.rand(rows, leads, 1, generator=g) * 6.28
    return Split({"ecg": torch.sin(torch.arange(100) * rate + phase)})


def test_the_card_names_row_and_modality():
    card = methods.card("ecg_jepa")
    assert (card.row, card.modality, card.family) == ("ecg_jepa", "ecg", "masked prediction")
    assert card.build == ("ssl_nb.evaluators.multilabel_auc", "ssl_nb.evaluators.multilabel_probe")
    assert make().made["knobs"]["mask_ratio"] == 0.75


def test_masked_l1_is_the_mean_absolute_error_of_hidden_tokens():
    prediction, target, mask = torch.rand(3, 7, 4), torch.rand(3, 7, 4), torch.rand(3, 7) < 0.5
    expected = sum((prediction[i, j] - target[i, j]).abs().mean() for i, j in mask.nonzero().tolist()) / mask.sum()
    torch.testing.assert_close(masked_l1(prediction, target, mask), expected)
    assert masked_l1(target, target, mask) == 0 and masked_l1(target + 2 * ~mask[..., None], target, mask) == 0


def test_hidden_patches_change_the_target_and_not_the_prediction():
    method, split = make().eval(), waves(4)
    (view,) = method.views(split, torch.Generator().manual_seed(0))
    assert (view.mask.sum(1) == 15).all() and view.mask.shape == (4, 20)
    other = view._replace(x=view.x._replace(x=torch.where(view.mask[..., None], torch.rand(view.x.x.shape), view.x.x)))
    with torch.no_grad():
        assert torch.equal(method.predictor(method.seen(view), view), method.predictor(method.seen(other), other))
        assert not torch.allclose(method.target(method, view, split, None), method.target(method, other, split, None))


def test_the_mask_is_made_of_spans_and_the_generator_decides_it():
    method, split = make(mask_ratio=0.5, span=5), waves(200)

    def draw(seed):
        return method.views(split, torch.Generator().manual_seed(seed))[0].mask

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    borders = (draw(0)[:, 1:] != draw(0)[:, :-1]).float().sum(1).mean()
    alone = make(mask_ratio=0.5, span=1).views(split, torch.Generator().manual_seed(0))[0].mask
    assert borders < 0.6 * (alone[:, 1:] != alone[:, :-1]).float().sum(1).mean()


def test_the_target_is_the_teachers_normalized_and_has_no_gradient():
    method, split = make(), waves(4)
    method.teacher.module.load_state_dict(make(seed=1).encoder.state_dict())
    (view,) = method.views(split, torch.Generator().manual_seed(0))
    target = method.target(method, view, split, None)
    expected = method.teacher.module.tokens(split.x).x
    torch.testing.assert_close(target, torch.nn.functional.layer_norm(expected, (16,)))
    method.loss([view], split).loss.backward()
    assert all(q.grad is None for q in method.teacher.parameters()) and method.encoder.enter[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("progress, kept", [(0.0, 0.5), (1.0, 1.0), (0.5, 0.75)])
def test_the_teacher_follows_with_a_momentum_that_goes_from_start_to_end(progress, kept):
    method = make(momentum=(0.5, 1.0))
    with torch.no_grad():
        for q in method.encoder.parameters():
            q.add_(1.0)
    before = [q.clone() for q in method.teacher.module.parameters()]
    method.after_step(progress)
    for old, new in zip(before, method.teacher.module.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 1 - kept), rtol=1e-4, atol=1e-5)


def test_it_trains_and_the_loss_falls():
    method = make(momentum=(0.9, 1.0))
    history = fit(method, waves(), epochs=30, batch_size=32, lr=3e-3, device="cpu", report=lambda line: None)
    losses = history.series("loss")[1]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_leads_of_a_patch_are_one_token_and_the_teacher_can_be_evaluated():
    method, split = make(leads=3, evaluate_teacher=True), waves(4, leads=3)
    assert method.encoder.tokens(split.x).x.shape == (4, 20, 16) and torch.isfinite(method.step(split).loss)
    assert method.evaluated is method.teacher.module and method.embed(split).shape == (4, 16)


@pytest.mark.parametrize("call, error, words", [
    (lambda: ecg_jepa(encoders.create("convnet")), TypeError, "no tokenizer"),
    (lambda: make(momentum=(0.9, 1.1)), ValueError, "two numbers from 0 to 1"),
    (lambda: make(mask_ratio=1.0).step(waves(2)), ValueError, "ratio"),
    (lambda: make(span=0).step(waves(2)), ValueError, "length"),
    (lambda: make().step(Split({"ecg": torch.rand(2, 1, 99)})), ValueError, "multiple"),
    (lambda: make(predictor_depth=0), ValueError, "depth 0")])  # fmt: skip
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
