"""The views gallery: every slider redraws, and what it says of factors is true."""

import dataclasses
import re

import pytest
import torch

from ssl_nb import data, views
from ssl_nb.evaluators.equivariance import factor_r2
from ssl_nb.explore import ViewsGallery
from ssl_nb.explore.views_gallery import network, read, train_under


@pytest.fixture(scope="module")
def sets():
    return data.load("scenes", channels=3, n_train=256, n_test=128)


def picture(gallery, panel=1):
    return torch.tensor(gallery.panels()[panel].marks[0].rgb)


@pytest.mark.parametrize("preset", [*views.names(), "scenes"])
def test_every_control_of_every_preset_redraws_the_batch(sets, preset):
    gallery = ViewsGallery(sets, preset=preset)
    assert gallery.error is None
    for name, several in gallery.knobs.items():
        for control in several:
            frame, was = gallery.canvas.count, control.value
            if isinstance(was, tuple):
                control.value = (control.min, control.min + 0.1)
            else:
                control.value = (not was) if isinstance(was, bool) else control.min if was != control.min else control.max
            assert gallery.canvas.count == frame + 1, name
            value = gallery.values()[name]
            assert gallery.error is None and (name in gallery.alt) == (value is not False)
            assert isinstance(value, bool) or f"{name} {value}" in gallery.alt


def test_the_same_parameters_draw_the_same_batch_and_another_draw_does_not(sets):
    gallery = ViewsGallery(sets)
    first = picture(gallery)
    assert torch.equal(picture(gallery), first)
    gallery.redrawn()
    assert not torch.equal(picture(gallery), first)


def test_a_view_without_changes_is_the_image(sets):
    gallery = ViewsGallery(sets)
    for name, value in {"scale": (1.0, 1.0), "flip": 0.0, "strength": 0.0, "gray": 0.0, "blur": 0.0}.items():
        gallery.knobs[name][0].value = value
    assert torch.equal(picture(gallery, 1), picture(gallery, 0))


def test_own_maker_and_own_images():
    own = ViewsGallery(torch.rand(4, 3, 16, 16), maker=lambda batch, generator: [1 - batch.x / 255])
    shown = own.panels()
    assert [panel.title for panel in shown] == ["images (16 pixels)", "view 0 (16 pixels)"]
    inside = torch.tensor(shown[0].marks[0].rgb).int() + torch.tensor(shown[1].marks[0].rgb).int()
    assert (inside[:16, :16] - 255).abs().max() <= 1


def test_training_in_the_background_leaves_the_reading_and_refuses_a_second_start(sets):
    gallery = ViewsGallery(sets, steps=3)
    gallery.start()
    gallery.start()
    assert "wait" in gallery.message or not gallery.thread.is_alive()
    gallery.thread.join(60)
    assert [r.name for r in gallery.readings] == ["untrained", "1: simclr"]
    assert len(gallery.panels()) == 5 and "linear probe reads" in gallery.alt


def test_r2_of_a_factor_that_features_hold_do_not_hold_and_of_wrong_lengths():
    g = torch.Generator().manual_seed(0)
    x, f = torch.randn(600, 5, generator=g), torch.randn(600, generator=g)
    features = torch.cat([x, f[:, None]], 1)
    assert factor_r2(features[:400], f[:400], features[400:], f[400:]) > 0.99
    assert factor_r2(x[:400], f[:400], x[400:], f[400:]) < 0.05
    with pytest.raises(ValueError, match="399"):
        factor_r2(x[:400], f[:399], x[400:], f[400:])


def test_intervals_are_over_digits_where_the_data_names_them(sets):
    maker = views.create("simclr", size=24)
    alone = dataclasses.replace(sets, spec=dataclasses.replace(sets.spec, group=None))
    for data_set, of in ((sets, "groups"), (alone, "examples")):
        scores = read("untrained", network(maker, data_set), data_set).representation
        assert {score.of for score in scores.values()} == {of}


def test_training_is_repeatable_and_changes_what_is_read(sets):
    maker = views.create("simclr", size=24)
    a, b = (read("run", train_under(maker, sets, steps=4), sets) for _ in range(2))
    before = read("untrained", network(maker, sets), sets)
    assert a.embedding == b.embedding != before.embedding


@pytest.mark.parametrize("wrong, says", [
    (lambda sets: ViewsGallery(torch.randn(8, 3, 24, 24)), "undo the normalization"),
    (lambda sets: ViewsGallery(torch.full((2, 3, 8, 8), float("nan"))), r"\[nan"),
    (lambda sets: ViewsGallery(torch.zeros(8, 24, 24)), "shape"),
    (lambda sets: ViewsGallery(sets, preset="simclrs"), "simclr"),
    (lambda sets: ViewsGallery(sets.test, preset="scene"), "scenes"),
    (lambda sets: ViewsGallery(sets, color=1), "color"),
])
def test_bad_input_is_a_message_in_the_place_of_the_widget(sets, wrong, says):
    gallery = wrong(sets)
    assert re.search(says, gallery.error) and gallery.children == (gallery._said,)
