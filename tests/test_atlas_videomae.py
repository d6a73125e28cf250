"""VideoMAE: what is hidden, what reaches a prediction, that it learns, and what is refused."""

import math

import pytest
import torch

import ssl_nb.atlas.videomae  # noqa: F401
from ssl_nb import encoders, methods
from ssl_nb.data import Split
from ssl_nb.tokens import Patches
from ssl_nb.training import fit


def clips(n=8, frames=4, size=15, channels=1):
    return torch.rand(n, frames, channels, size, size, generator=torch.Generator().manual_seed(0))


def make(patch=(2, 3, 3), channels=1, **knobs):
    torch.manual_seed(0)
    cut = Patches(patch, channels=len(patch) - 1)
    encoder = encoders.create("transformer", tokenizer=cut, values=math.prod(patch) * channels, embed_dim=16, depth=1)
    return methods.create("videomae", encoder=encoder, decoder_dim=16, **knobs)


def view_of(method, x):
    (view,) = method.views(Split({"clip": x}), torch.Generator().manual_seed(1))
    return view


@pytest.mark.parametrize("ratio", [0.9, 0.95])
def test_a_tube_hides_the_same_places_in_every_slot(ratio):
    view = view_of(make(mask_ratio=ratio), clips())
    places = view.mask.unflatten(1, (2, 25))
    assert torch.equal(places[:, 0], places[:, 1]) and (places[:, 0].sum(1) == 25 - int(25 * (1 - ratio))).all()
    assert len({tuple(row) for row in places[:, 0].tolist()}) > 1  # each clip has its own


def test_a_random_mask_does_not():
    places = view_of(make(mask="random", mask_ratio=0.75), clips()).mask.unflatten(1, (2, 25))
    assert not torch.equal(places[:, 0], places[:, 1])


def test_nothing_hidden_reaches_a_prediction():
    method, x = make().eval(), clips()
    view = view_of(method, x)
    other = view._replace(x=view.x._replace(x=torch.where(view.mask[..., None], 9.0, view.x.x)))
    with torch.no_grad():
        guess, again = (method.predictor(method.seen(v), v) for v in (view, other))
    assert torch.equal(guess, again)
    assert method.seen(view).x.shape[1] == 2 * 2  # two of 25 places in each of two slots


def test_the_loss_is_that_of_normalized_hidden_tubelets():
    method, x = make(channels=3).eval(), clips(channels=3)
    view = view_of(method, x)
    with torch.no_grad():
        loss, guess = method.loss([view]).loss, method.predictor(method.seen(view), view)
    target = view.x.x[view.mask]
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert loss.item() == pytest.approx((guess[view.mask] - target).square().mean().item(), rel=1e-4)
    assert guess.shape == view.x.x.shape == (8, 50, 2 * 3 * 3 * 3)


def test_brightness_and_contrast_of_a_clip_are_no_part_of_the_target():
    method, x = make(), clips()
    views = [view_of(method, y) for y in (x, 0.3 * x + 0.5)]
    guess = torch.zeros(8, 50, 18)
    one, other = (method.compare(guess, view.x.x, view.mask).item() for view in views)
    assert one == pytest.approx(other, rel=1e-2)


def test_it_learns():
    ramp = torch.linspace(0, 1, 15)
    sign = torch.tensor([1.0, -1.0]).repeat(32)[:, None, None, None, None]
    x = 3 * sign * (ramp - 0.5).expand(64, 4, 1, 15, 15)  # one visible tubelet tells which way all others rise
    history = fit(make(), Split({"clip": x}), epochs=25, batch_size=16, lr=1e-2, device="cpu", report=lambda line: None)
    loss = history.series("loss")[1]
    assert sum(loss[-10:]) < 0.5 * sum(loss[:10])


def test_an_encoder_of_frames_makes_it_a_masked_autoencoder_of_images():
    method = make(patch=(3, 3), mask="random", mask_ratio=0.75)
    view = view_of(method, clips()[:, 0])
    assert view.mask.shape == (8, 25) and torch.isfinite(method.loss([view]).loss)


def test_its_card():
    card = methods.card("videomae")
    assert (card.row, card.modality, card.family) == ("videomae", "video", "masked prediction")
    assert card.knobs["mask_ratio"] == 0.9 and card.knobs["mask"] == "tube"


def test_bad_input():
    with pytest.raises(ValueError, match="tubes.*tube"):
        make(mask="tubes")
    with pytest.raises(TypeError, match="does not cut any"):
        methods.create("videomae", encoder=encoders.create("convnet"))
    with pytest.raises(ValueError, match="does not leave"):
        view_of(make(mask_ratio=0.97), clips())
