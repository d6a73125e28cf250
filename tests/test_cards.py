"""Cards: the equation on a card is the one that is computed, and defaults that differ from the paper's say so."""
import copy

import pytest
import torch
import torch.nn.functional as F

from ssl_nb import encoders, methods, objectives
from ssl_nb.data import Split
from ssl_nb.tokens import random_mask
from ssl_nb.views import View, as_views

STOCK = methods.list(modality="image")  # before any test registers its own


def cosine(a, b):
    return a @ b / (a.norm() * b.norm())


def cross_entropy(p, q):
    return -(p * q.log()).sum()


# Each takes what the symbols of the card stand for (embeddings z, predictions p, targets t: a list over views) and the knobs.


def simclr(z, p, t, knobs, method):
    z, n, total = torch.cat(z), len(z[0]), 0
    for i in range(2 * n):
        s = torch.stack([cosine(z[i], z[k]) for k in range(2 * n)])
        e, others = (s / knobs["temperature"]).exp(), [k for k in range(2 * n) if k != i]
        total = total - (e[(i + n) % (2 * n)] / e[others].sum()).log()
    return total / (2 * n)


def moco(z, p, t, knobs, method):
    q, k, total = F.normalize(p[0]), F.normalize(t[0]), 0
    for i in range(len(q)):
        positive, *negatives = [(q[i] @ m / knobs["temperature"]).exp() for m in (k[i], *method.compare.directed.queue)]
        total = total - (positive / (positive + sum(negatives))).log()
    return total / len(q)


def barlow_twins(z, p, t, knobs, method):
    a, b = (v - v.mean(0) for v in z)
    c = torch.stack([torch.stack([cosine(x, y) for y in b.T]) for x in a.T])
    diagonal = c.diagonal()
    return ((1 - diagonal) ** 2).sum() + knobs["lambda_"] * (c.square().sum() - diagonal.square().sum())


def vicreg(z, p, t, knobs, method):
    (n, d), covariances = z[0].shape, [torch.cov(v.T) for v in z]
    v = [sum(max(0, 1 - (c[j, j] + 1e-4).sqrt()) for j in range(d)) / d for c in covariances]
    c = [(c.square().sum() - c.diagonal().square().sum()) / d for c in covariances]
    return (knobs["invariance"] / (n * d) * (z[0] - z[1]).square().sum() + knobs["variance"] / 2 * sum(v)
            + knobs["covariance"] * sum(c))


def byol(z, p, t, knobs, method):
    squared = lambda a, b: (a / a.norm() - b / b.norm()).square().sum()  # noqa: E731
    return sum(squared(p[0][i], t[1][i]) + squared(p[1][i], t[0][i]) for i in range(len(p[0]))) / len(p[0])


def simsiam(z, p, t, knobs, method):
    d = lambda p, z: -sum(cosine(*pair) for pair in zip(p, z, strict=True)) / len(p)  # noqa: E731
    return d(p[0], z[1]) / 2 + d(p[1], z[0]) / 2


def swav(z, p, t, knobs, method):
    q = [objectives.sinkhorn(s.detach(), epsilon=knobs["epsilon"]) for s in p]
    pairs = [(0, 1), (1, 0)]
    return sum(cross_entropy(q[v], (p[w] / knobs["temperature"]).softmax(1)) for v, w in pairs) / len(z[0]) / len(pairs)


def dino(z, p, t, knobs, method):
    pairs = [(v, w) for v in (0, 1) for w in range(len(p)) if w != v]
    target = [((x - method.compare.center) / knobs["teacher_temperature"]).softmax(1) for x in t]
    student = [(x / knobs["student_temperature"]).softmax(1) for x in p]
    return sum(cross_entropy(target[v], student[w]) for v, w in pairs) / len(z[0]) / len(pairs)


NAIVE = {f.__name__: f for f in (simclr, moco, barlow_twins, vicreg, byol, simsiam, swav, dino)}
SMALL = {"moco": {"queue": 12}, "dino": {"out_dim": 16}}


@pytest.mark.parametrize("name", NAIVE)
def test_the_equation_of_a_joint_embedding_is_what_is_computed(name):
    torch.manual_seed(0)
    encoder = encoders.create("convnet", in_chans=1, img_size=16, channels=(4, 8, 8))
    width = {} if name == "dino" else {"projector": (8, 6)}
    method = methods.create(name, encoder=encoder, **width, **SMALL.get(name, {})).double()
    if name == "dino":
        method.compare.center.normal_(0, 0.05)
    images = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    views = as_views([view.double() for view in method.views(images, torch.Generator().manual_seed(0))])
    naive = copy.deepcopy(method)
    online = views if method.online_views is None else [views[i] for i in method.online_views]
    z = [naive.projector(naive.encoder(v.x)) for v in online]
    t = naive.targets(views, z)
    expected = NAIVE[name](z, [naive.predictor(v) for v in z], t, method.made["knobs"], naive)
    assert torch.isclose(method.loss(views).loss, expected, rtol=1e-9)


def test_the_equation_of_the_masked_autoencoder_is_what_is_computed():
    torch.manual_seed(0)
    encoder = encoders.create("vit", in_chans=1, img_size=8, patch_size=2, embed_dim=16, depth=1, num_heads=2)
    method, images = methods.create("mae", encoder=encoder).double(), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    view = View(images, random_mask((3, 16), ratio=0.75))
    loss = method.loss([view]).loss
    guess, patches, errors = method.predictor(method.seen(view), view), objectives.patchify(images, 2), []
    for i, j in view.mask.nonzero().tolist():
        x = patches[i, j]
        errors.append((guess[i, j] - (x - x.mean()) / (x.var() + 1e-6).sqrt()).square().sum() / 4)
    assert torch.isclose(loss, sum(errors) / len(errors), rtol=1e-9)


def test_the_equation_of_the_supervised_reference_is_what_is_computed():
    torch.manual_seed(0)
    encoder = encoders.create("convnet", in_chans=1, img_size=16, channels=(4, 8, 8))
    method = methods.create("supervised", encoder=encoder).double()
    views = as_views([torch.rand(4, 1, 16, 16, dtype=torch.float64) for _ in range(2)])
    labels = torch.tensor([3, 0, 9, 3])
    probabilities = [method.classifier(method.encoder(v.x)).softmax(1) for v in views]
    expected = -sum(p[i, labels[i]].log() for p in probabilities for i in range(4)) / 8
    assert torch.isclose(method.loss(views, Split({"images": views[0].x, "labels": labels})).loss, expected, rtol=1e-9)


@pytest.mark.parametrize("name", STOCK)
def test_defaults_that_differ_from_the_paper_are_on_the_card(name):
    card = methods.card(name)
    shown = card._repr_markdown_()
    for knob, value in card.paper_knobs.items():
        assert card.knobs[knob] != value
        assert f"`{knob}={card.knobs[knob]!r}` (paper: {value if isinstance(value, str) else f'`{value!r}`'})" in shown
    assert card.family == "reference" or card.paper_knobs
    assert shown.count("(paper: ") - sum(part.count("(paper: ") for part in card.parts.values()) == len(card.paper_knobs)
    assert card.parts["views"].strip("`") in ("simclr", "byol", "dino", "mae")


@pytest.mark.parametrize("name", STOCK)
def test_the_views_on_the_card_are_the_views_that_are_made(name):
    from ssl_nb import views

    encoder = encoders.create("vit" if name == "mae" else "convnet", in_chans=1, img_size=16)
    expected = views.create(methods.card(name).parts["views"].strip("`"), size=16)
    made = methods.create(name, encoder=encoder).views
    assert repr(made.views if name == "mae" else made) == repr(expected)


@pytest.mark.parametrize("name,knob,value", [
    ("simclr", "projector", (2048, 128)),
    ("moco", "temperature", 0.07), ("moco", "queue", 65536), ("moco", "momentum", 0.999),
    ("barlow_twins", "projector", (8192,) * 3), ("vicreg", "projector", (8192,) * 3),
    ("byol", "momentum", 0.996), ("byol", "projector", (4096, 256)),
    ("simsiam", "projector", (2048,) * 3), ("swav", "prototypes", 3000), ("dino", "out_dim", 65536),
    ("mae", "decoder_dim", 512), ("mae", "decoder_depth", 8), ("mae", "decoder_heads", 16)])  # fmt: skip
def test_what_the_papers_used(name, knob, value):
    assert methods.card(name).paper_knobs[knob] == value


def test_a_paper_knob_that_the_recipe_does_not_have_is_refused():
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        methods.register("wrong", paper_knobs={"temprature": 0.1})(lambda encoder, *, temperature=0.2: None)
    assert "wrong" not in methods.list()
