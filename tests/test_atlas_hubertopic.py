"""HuBERTopic: hidden frames are predicted, the labels are refreshed once, topics add a loss, and the loss falls."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from ssl_nb import encoders, methods
from ssl_nb.atlas.hubertopic import hubertopic
from ssl_nb.data import Ragged, Split
from ssl_nb.tokens import LogMel
from ssl_nb.training import fit


def make(seed=0, **knobs):
    torch.manual_seed(seed)
    mel = LogMel(8000, bands=8, mean=(-4.0,), std=(4.0,))
    encoder = encoders.create("transformer", tokenizer=mel, values=8, embed_dim=16, depth=2, num_heads=2)
    return methods.create("hubertopic", encoder=encoder, **(dict(clusters=6, topics=3) | knobs))


def tones(rows=64, seed=0):
    "Words of two tones out of three, 0.2 to 0.3 seconds."
    g = torch.Generator().manual_seed(seed)
    pitch = torch.tensor([300.0, 900.0, 2500.0])[torch.randint(3, (rows, 2), generator=g)]
    lengths = torch.randint(800, 1200, (rows,), generator=g).tolist()
    tone = lambda p, n: torch.sin(6.2832 * p * torch.arange(n) / 8000)  # noqa: E731
    sound = [torch.cat([tone(p, n) for p in pair]) for pair, n in zip(pitch, lengths, strict=True)]
    return Split({"wave": Ragged.of([s + 0.01 * torch.randn(len(s), generator=g) for s in sound])})


def started(progress=0.0, **knobs):
    method, split = make(**knobs), tones()
    method.before_epoch(split, progress)
    return method, split, method.views(split, torch.Generator().manual_seed(0))[0]


def test_the_card_names_row_and_modality():
    card = methods.card("hubertopic")
    assert (card.row, card.modality, card.family) == ("hubertopic", "speech", "masked prediction")
    assert {"Clusters", "Topics", "unit_counts", "masked_cross_entropy"} <= set(card.uses["methods"])
    assert card.uses["tokens"] == ["span_mask"]
    assert make().made["knobs"]["topic_weight"] == 0.5
    assert set(card.paper_knobs) == {"clusters", "span", "mask_ratio", "layer"}  # those of HuBERT base


def test_the_loss_is_that_of_hidden_units_plus_the_weighted_one_of_topics():
    method, split, view = started(topic_weight=0.7)
    with torch.no_grad():
        step = method.loss([view], split)
        seen = method.encoder.tokens(view.x, replace=view.mask)
        (units, topics), (u, z) = method.predictor(seen, view), method.target(method, view, split, seen)
        hidden = torch.stack([-units[i, j].log_softmax(0)[u[i, j]] for i, j in view.mask.nonzero().tolist()]).mean()
    torch.testing.assert_close(step.loss, hidden + 0.7 * cross_entropy(topics, z))
    torch.testing.assert_close(step.metrics["units"], hidden)
    assert z.shape == (64,) and u.shape == view.mask.shape and not view.mask[~view.x.real].any()


def test_without_weight_the_topic_head_learns_nothing():
    method, split, view = started(topic_weight=0.0)
    method.loss([view], split).loss.backward()
    assert method.predictor.topics.weight.grad.abs().sum() == 0 and method.predictor.units.weight.grad.abs().sum() > 0


def test_hidden_frames_change_the_target_and_not_the_prediction():
    method, split, view = started()
    other = view._replace(x=view.x._replace(x=torch.where(view.mask[..., None], -view.x.x, view.x.x)))
    with torch.no_grad():
        torch.testing.assert_close(method.predictor(method.seen(view), view)[0], method.predictor(method.seen(other), other)[0])
        assert not torch.equal(method.target(method, view, split, None)[0], method.target(method, other, split, None)[0])


def test_labels_are_refreshed_once_from_a_frozen_copy_of_the_encoder():
    method, split, view = started()
    target, centroids = method.target, [c.centroids.clone() for c in method.target.units]
    assert target.stage == 0 and centroids[0].abs().sum() > 0 and centroids[1].abs().sum() == 0
    with torch.no_grad():
        for q in method.encoder.parameters():
            q.add_(0.05)
    method.before_epoch(split, 0.4)
    assert torch.equal(target.units[0].centroids, centroids[0]) and target.stage == 0
    method.before_epoch(split, 0.5)
    assert target.stage == 1 and target.units[1].centroids.abs().sum() > 0
    expected = target.units[1](method.encoder.tokens(view.x, layers=[0])[0].x)
    assert torch.equal(target(method, view, split, None)[0], expected)
    before, kept = target.units[1].centroids.clone(), target(method, view, split, None)
    with torch.no_grad():
        for q in method.encoder.parameters():
            q.mul_(0.5)
    method.after_step(0.6)
    method.before_epoch(split, 0.75)
    assert torch.equal(target.units[1].centroids, before)
    assert all(torch.equal(a, b) for a, b in zip(target(method, view, split, None), kept, strict=True))


def test_it_trains_and_both_losses_fall():
    method = make(topic_weight=1.0, refresh=2.0)
    history = fit(method, tones(96), epochs=25, batch_size=32, lr=5e-3, device="cpu", report=lambda line: None)
    for name in ("units", "topics"):
        losses = history.series(name)[1]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_labels_travel_with_the_weights():
    method, split, view = started()
    other = make(seed=1)
    other.load_state_dict(method.state_dict())
    ours, theirs = method.target(method, view, split, None), other.target(other, view, split, None)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("call, error, words", [
    (lambda: hubertopic(encoders.create("convnet")), TypeError, "no tokenizer"),
    (lambda: make(topic_weight=-1.0), ValueError, "topic_weight is -1.0"),
    (lambda: make(refresh=0.0), ValueError, "refresh is 0.0"),
    (lambda: make(topics=1), ValueError, "topics is 1"),
    (lambda: make(clusters=5000).before_epoch(tones(8), 0.0), ValueError, "clusters"),
    (lambda: make(mask_ratio=1.0).step(tones(4)), ValueError, "ratio")])  # fmt: skip
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
