"""Frames of methods: what the notebooks do not show already."""

from functools import partial

import pytest
import torch
from torch import nn

from ssl_nb import encoders, methods, objectives, training, views
from ssl_nb.data import Split
from ssl_nb.methods import Alignment, Decoder, Denoising, JointEmbedding, MaskedPrediction, Together, TokenHead
from ssl_nb.tokens import Patches, Tokens, grid_places, multiblock_masks, random_mask
from ssl_nb.views import AddNoise, Hide, View

cut = Patches(2, channels=1)
hide = Hide(random_mask, tokenizer=cut)


def images(n=32):
    x = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return Split({"images": x.float() / 255})


def small(**how):
    torch.manual_seed(0)
    return encoders.create("transformer", **{"tokenizer": cut, "values": 4, "embed_dim": 16, "depth": 1, "num_heads": 2} | how)


def as_is(batch, generator):
    return [batch.x]


def filled(view, keep, value):
    "A view of the same tokens, with a value in all that are not kept."
    keep = keep.view(*keep.shape, *[1] * (view.x.x.ndim - 2))
    return view._replace(x=view.x._replace(x=torch.where(keep, view.x.x, value)))


class Labels(nn.Module):
    "A target that counts how often it was asked, and is renewed before each epoch."

    def __init__(self):
        super().__init__()
        self.register_buffer("renewed", torch.tensor(0))

    def before_epoch(self, method, split, progress):
        self.renewed += len(split)

    def forward(self, method, view, batch, seen):
        return (view.x.x.flatten(2).mean(-1) > 0.5).long()


# Masked prediction


def test_what_is_hidden_does_not_reach_the_prediction():
    method = MaskedPrediction(small(), Decoder(16, 4, dim=16), methods.pieces, methods.masked_smooth_l1, views=hide)
    (view,) = method.views(images(), torch.Generator().manual_seed(0))
    other = filled(view, ~view.mask, 7.0)
    torch.testing.assert_close(method.predictor(method.seen(view), view), method.predictor(method.seen(other), other))
    assert not torch.allclose(method.loss([view]).loss, method.loss([other]).loss)  # but it is the target


def test_replaced_tokens_keep_their_places_and_hide_their_values():
    method = MaskedPrediction(
        small(), TokenHead(nn.Linear(16, 4)), methods.pieces, methods.masked_smooth_l1, drop=False, views=hide
    )
    (view,) = method.views(images(), torch.Generator().manual_seed(0))
    assert method.seen(view).x.shape[1] == 16
    other = filled(view, ~view.mask, 7.0)
    torch.testing.assert_close(method.seen(view).x, method.seen(other).x)


def test_a_context_smaller_than_what_is_not_predicted():
    blocks = Hide(
        partial(multiblock_masks, targets=1, target_area=(0.2, 0.3), min_keep=2, context_area=(0.4, 0.5)), tokenizer=cut
    )
    method = MaskedPrediction(
        small(), Decoder(16, 16, dim=16), methods.latents, methods.masked_smooth_l1, views=blocks, momentum=0.9
    )
    (view,) = blocks(images(), torch.Generator().manual_seed(0))
    seen = method.seen(view)
    assert seen.x.shape[1] == (~view.facts["hidden"][0]).sum() < (~view.mask[0]).sum()
    assert method.predictor(seen, view).shape == (32, 16, 16)
    method.loss([view]).loss.backward()


def test_padding_is_neither_seen_nor_predicted():
    def pad(x):  # the last 6 of 16 tokens of every second row are padding
        tokens = cut(x)
        real = torch.ones(len(x), 16, dtype=torch.bool)
        real[::2, 10:] = False
        return tokens._replace(real=real)

    method = MaskedPrediction(
        small(tokenizer=pad),
        Decoder(16, 4, dim=16),
        methods.pieces,
        methods.masked_smooth_l1,
        views=Hide(random_mask, tokenizer=pad),
    )
    (view,) = method.views(images(), torch.Generator().manual_seed(0))
    assert not (view.mask & ~view.x.real).any()
    other = filled(view, view.x.real, 9.0)
    torch.testing.assert_close(method.loss([view]).loss, method.loss([other]).loss)


def test_the_teacher_gives_the_targets_and_follows():
    method = MaskedPrediction(
        small(),
        Decoder(16, 16, dim=16),
        methods.latents,
        methods.masked_smooth_l1,
        views=hide,
        momentum=0.5,
        evaluate_teacher=True,
    )
    assert method.evaluated is method.teacher.module
    before = method.teacher.module.norm.weight.clone()
    nn.init.constant_(method.encoder.norm.weight, 3.0)
    method.after_step(0.5)
    torch.testing.assert_close(method.teacher.module.norm.weight, (before + 3) / 2)
    with pytest.raises(ValueError, match="set momentum"):
        MaskedPrediction(small(), None, None, None, views=None, evaluate_teacher=True)


def test_parts_are_told_of_each_epoch_and_their_state_is_kept():
    method = MaskedPrediction(
        small(), TokenHead(nn.Linear(16, 2)), Labels(), methods.masked_cross_entropy, drop=False, views=hide
    )
    training.fit(method, images(), epochs=3, batch_size=16, lr=1e-3, device="cpu", report=lambda line: None)
    assert int(method.target.renewed) == 3 * 32 and "target.renewed" in method.state_dict()


def test_a_view_without_a_mask_is_refused():
    method = MaskedPrediction(small(), TokenHead(nn.Linear(16, 2)), methods.pieces, methods.masked_smooth_l1, views=as_is)
    with pytest.raises(ValueError, match=r"views\.Hide"):
        method.step(images())


# Joint embedding


def clip(momentum=None):
    "An encoder and a projector for each of two kinds of view."
    torch.manual_seed(0)
    pixels, halves = (
        small(),
        encoders.create(
            "transformer",
            values=32,
            tokenizer=lambda x: Tokens(x.flatten(2), grid_places((2,))),
            embed_dim=8,
            depth=1,
            num_heads=2,
        ),
    )

    def both(batch, generator):
        return [View(batch.x), View(batch.x.view(-1, 1, 2, 32).squeeze(1))]

    return JointEmbedding(
        nn.ModuleList([pixels, halves]),
        lambda p, t: objectives.nt_xent(p[0], t[1]),
        projector=(16, 4),
        views=both,
        momentum=momentum,
    )


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_each_view_has_its_own_encoder(momentum):
    method = clip(momentum)
    losses = training.fit(method, images(64), epochs=15, batch_size=64, lr=3e-3, device="cpu", report=lambda line: None).series(
        "loss"
    )[1]
    assert losses[-1] < losses[0]
    assert method.evaluated is (method.teacher.module[0] if method.evaluate_teacher else method.encoder)[0]
    assert method.embed(images(3)).shape == (3, 16)


def test_tokens_can_be_compared():
    torch.manual_seed(0)

    def compare(p, t):
        return (p[0] - t[1].detach()).square().mean()

    method = JointEmbedding(
        small(),
        compare,
        projector=nn.Linear(16, 4),
        represent=lambda encoder, view: encoder.tokens(view.x).x,
        views=lambda batch, generator: [batch.x, batch.x.flip(3)],
    )
    step = method.step(images())
    assert step.representation.shape == (32, 16) and step.loss.isfinite() and step.metrics["embedding_std"].ndim == 0


# The other frames


def test_a_sum_trains_every_part_and_evaluates_the_first():
    encoder = small()
    labels = MaskedPrediction(
        encoder, TokenHead(nn.Linear(16, 2)), Labels(), methods.masked_cross_entropy, drop=False, views=hide
    )
    contrast = JointEmbedding(
        encoder, lambda p, t: objectives.nt_xent(*p), projector=(16, 4), views=lambda batch, generator: [batch.x, batch.x.flip(3)]
    )
    method = Together({"labels": labels, "contrast": contrast}, {"contrast": 0.5})
    weights = [
        part.predictor.layer.weight if part is labels else next(part.projector.parameters()) for part in (labels, contrast)
    ]
    before = [weight.detach().clone() for weight in weights]
    history = training.fit(method, images(), epochs=1, batch_size=16, lr=1e-2, device="cpu", report=lambda line: None)
    assert (
        all(not torch.equal(weight, was) for weight, was in zip(weights, before, strict=True))
        and int(labels.target.renewed) == 32
    )
    row = history.rows[-1]
    assert row["loss"] == pytest.approx(row["labels"] + 0.5 * row["contrast"], rel=1e-5)
    assert method.evaluated is encoder and "labels_masked_correct" in row


def test_views_can_be_shared():
    encoder = small()
    parts = {
        name: JointEmbedding(
            encoder, lambda p, t: objectives.nt_xent(*p), projector=(16, 4), views=views.create("simclr", size=8)
        )
        for name in "ab"
    }
    first, second = Together(parts, shared_views=True).views(images(), torch.Generator().manual_seed(0))
    assert all(torch.equal(a.x, b.x) for a, b in zip(first.x, second.x, strict=True))
    first, second = Together(parts).views(images(), torch.Generator().manual_seed(0))
    assert not torch.equal(first.x[0].x, second.x[0].x)


def test_the_reference_of_an_alignment_does_not_move():
    reference = small(embed_dim=8)
    method = Alignment(small(), reference, methods.relation_kl, views=as_is)
    before = [value.clone() for value in reference.state_dict().values()]
    training.fit(method, images(), epochs=2, batch_size=16, lr=1e-2, device="cpu", report=lambda line: None)
    assert (
        all(torch.equal(a, b) for a, b in zip(reference.state_dict().values(), before, strict=True))
        and not method.train().reference.training
    )


def test_noise_follows_a_view_maker_and_its_generator():
    maker = AddNoise(views=views.create("mae", size=8))
    a, b, c = (maker(images(), torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(a.x, b.x) and not torch.equal(a.x, c.x) and not torch.equal(a.facts["clean"], images().x)


@pytest.mark.parametrize("target", ["noise", "clean", "velocity"])
def test_denoising_of_what_is_known_has_no_loss(target):
    method = Denoising(small(), lambda tokens, view: view.facts[target], views=AddNoise(), target=target, weight=lambda t: 1 - t)
    assert method.step(images()).loss == 0
