"""What the training loop may rely on: what is evaluated, what a method was made from, and that labels stay out."""
import copy
import json

import pytest
import torch

from ssl_nb import encoders, methods
from ssl_nb.data import Split, image_split
from ssl_nb.training import Trainer
from ssl_nb.views import SceneViews

STOCK = methods.list(modality="image")  # before any test registers its own
UNSUPERVISED = [name for name in STOCK if methods.card(name).family != "reference"]


def make(name, size=16, **knobs):
    torch.manual_seed(0)
    network = dict(patch_size=4, embed_dim=16, depth=1, num_heads=2) if name == "mae" else dict(channels=(4, 8, 8))
    encoder = encoders.create("vit" if name == "mae" else "convnet", in_chans=1, img_size=size, **network)
    return methods.create(name, encoder=encoder, **knobs)


@pytest.mark.parametrize("name", STOCK)
def test_the_teacher_is_evaluated_where_the_paper_does_so(name):
    method, x = make(name).eval(), torch.rand(3, 1, 16, 16)
    kept = method.teacher.module[0] if name == "dino" else method.encoder
    assert method.evaluated is kept
    with torch.no_grad():
        for p in kept.parameters():
            p.mul_(1.1)  # so that it differs from the other one
        batch = Split({"images": x})
        assert torch.equal(method.embed(batch), kept(x))
        assert name != "dino" or not torch.equal(method.embed(batch), method.encoder(x))


def test_there_must_be_a_teacher_to_evaluate():
    with pytest.raises(ValueError, match="set momentum"):
        methods.JointEmbedding(encoders.create(channels=(4, 8, 8)), lambda p, t: 0, projector=[4], evaluate_teacher=True)


@pytest.mark.parametrize("name", STOCK)
def test_a_method_remembers_how_it_was_made(name):
    method, knobs = make(name), methods.card(name).knobs
    knobs.pop("views")
    assert method.made == {"name": name, "knobs": knobs}
    json.dumps(method.made)  # a checkpoint writes it into a text file
    assert copy.deepcopy(method).made == method.made
    some = next(knob for knob, default in knobs.items() if isinstance(default, float | int))
    changed = make(name, **{some: knobs[some] // 2 or knobs[some] / 2})
    assert changed.made["knobs"] != knobs and changed.made["knobs"].keys() == knobs.keys()


def test_a_method_made_by_hand_does_not_claim_a_recipe():
    assert methods.Supervised(encoders.create(channels=(4, 8, 8))).made is None


def _trained(name, split, views):
    method = make(name, **({"views": views} if views else {}))
    Trainer(method, split, epochs=2, batch_size=8, device="cpu", seed=3).run(lambda line: None)
    return method.state_dict()


@pytest.mark.parametrize("column", ["images", "glyph"])
@pytest.mark.parametrize("name", UNSUPERVISED)
def test_other_labels_train_the_same_weights(name, column):
    "Labels, and every column that is derived from them, are replaced by noise: no bit of the weights changes."
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 16, 16), generator=generator, dtype=torch.uint8)
    glyph = torch.randint(0, 256, (24, 1, 8, 8), generator=generator, dtype=torch.uint8)

    def split(seed):
        labels = torch.randint(0, 10, (24,), generator=torch.Generator().manual_seed(seed))
        return Split({"images": images, "labels": labels, "glyph": glyph, "class": labels.clone(), "digit": labels + 100})

    assert not torch.equal(split(1)["labels"], split(2)["labels"])
    views = SceneViews(size=16, views=1 if name == "mae" else 2) if column == "glyph" else None
    one, other = (_trained(name, split(seed), views) for seed in (1, 2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_comparison_of_weights_would_notice_labels():
    images = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8)
    ends = [_trained("supervised", image_split(images, labels), None) for labels in (torch.arange(24) % 10, torch.arange(24) % 7)]
    assert not all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
