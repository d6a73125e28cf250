import pytest
import torch
import torch.nn.functional as F

from ssl_nb import encoders, methods, objectives
from ssl_nb.data import Split
from ssl_nb.methods.masked_prediction import visible_places
from ssl_nb.methods.method import mlp
from ssl_nb.tokens import Tokens, random_mask
from ssl_nb.views import View, as_views

JOINT = ["barlow_twins", "byol", "dino", "moco", "simclr", "simsiam", "swav", "vicreg"]


def make(name, **knobs):
    torch.manual_seed(0)
    encoder = encoders.create("vit" if name == "mae" else "convnet", in_chans=1, img_size=24)
    return methods.create(name, encoder=encoder, **knobs)


def batch(n=16):
    return Split({"images": torch.randint(0, 256, (n, 1, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)})


def views(method, n=16):
    return as_views(method.views(batch(n), torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", [*JOINT, "mae"])
def test_a_few_steps_lower_the_loss_on_the_same_views(name):
    still = {"center_momentum": 1.0} if name == "dino" else {}  # a center that does not move: the targets stay the same
    method, generator = make(name, **still), torch.Generator().manual_seed(0)
    same = as_views(method.views(batch(32), generator))
    optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), 1e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(0)  # the same mask every time
        loss = method.loss(same).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", methods.list(modality="image"))
def test_every_card_is_whole_and_every_knob_is_accepted(name):
    card = methods.card(name)
    assert card.summary and card.equation and card.parts and (card.paper or card.family == "reference")
    assert "$$" in card._repr_markdown_() and all(knob in card._repr_markdown_() for knob in card.knobs)
    make(name, **card.knobs)


@pytest.mark.parametrize("name", ["byol", "moco", "dino"])
def test_no_gradient_reaches_a_teacher_and_it_follows(name):
    method = make(name)
    method.loss(views(method)).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.teacher.module[0].parameters()]
    method.after_step(0.0)
    momentum = {"byol": 0.99, "moco": 0.99, "dino": 0.996}[name]
    for old, new in zip(before, method.teacher.module[0].parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 1 - momentum), atol=1e-5, rtol=1e-3)


def test_simclr_is_its_parts():
    method = make("simclr", temperature=0.2)
    two = views(method)
    z = [method.projector(method.encoder(v.x)) for v in two]
    torch.testing.assert_close(method.loss(two).loss, objectives.nt_xent(*z, temperature=0.2))


def test_moco_contrasts_the_first_view_with_the_teacher_of_the_second():
    method = make("moco")
    two = views(method)
    q = F.normalize(method.projector(method.encoder(two[0].x)), dim=1)
    with torch.no_grad():
        k = F.normalize(method.teacher(two[1].x), dim=1)
    memory = method.compare.directed.queue.clone()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ memory.reshape(-1, q.shape[1]).T], 1) / 0.2
    torch.testing.assert_close(method.loss(two).loss, F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)))


def test_state_dict_round_trip_is_the_same_method_and_keeps_the_schedule():
    method, other = make("dino"), make("dino")
    method.after_step(0.25)
    with torch.no_grad():
        for p in method.parameters():
            p.mul_(1.1)
    other.load_state_dict(method.state_dict())
    assert other.progress == 0.25
    assert torch.equal(other.loss(views(method)).loss, method.loss(views(method)).loss)


@pytest.mark.parametrize("kind", ["mlp", "linear", "none", "directpred", "directcopy"])
def test_predictors_of_byol(kind):
    method = make("byol", predictor=kind)
    trained = sum(p.numel() for p in method.predictor.parameters() if p.requires_grad)
    assert (trained == 0) == (kind in ("none", "directpred", "directcopy"))
    method.loss(views(method)).loss.backward()
    before = method.predictor(torch.eye(128)).detach().clone() if trained == 0 else None
    method.after_step(0.5)
    if kind.startswith("direct"):
        assert not torch.allclose(method.predictor(torch.eye(128)), before)  # set from what it has seen


def test_mae_reconstructs_only_what_it_does_not_see():
    method = make("mae").eval()
    view, = method.views(batch(), torch.Generator().manual_seed(3))
    target = objectives.patchify(view.x, 3)
    changed = target.clone()
    changed[~view.mask] = 0.123  # what is visible is no target: constant patches would be NaN or 0 if they were
    with torch.no_grad():
        prediction = method.predictor(method.seen(view), view)
        expected = objectives.masked_mse(prediction, target, view.mask)
        torch.testing.assert_close(objectives.masked_mse(prediction, changed, view.mask), expected)
        torch.testing.assert_close(method.loss([view]).loss, expected)
        hidden = objectives.patchify(view.x, 3).clone()
        hidden[view.mask] = 0.7  # nor does the encoder see what is hidden
        blind = view._replace(x=objectives.unpatchify(hidden, 3))
        torch.testing.assert_close(method.predictor(method.seen(blind), blind), prediction)


def test_decoder_puts_tokens_back_where_they_were():
    # with a decoder that changes nothing, a visible token comes out at its own place, the mask token everywhere else
    decoder = methods.Decoder(128, 1, grid=(8, 8), dim=128, depth=1, num_heads=1)
    decoder.enter = decoder.norm = decoder.leave = torch.nn.Identity()
    decoder.blocks = torch.nn.ModuleList()
    torch.nn.init.zeros_(decoder.positions.table)
    torch.nn.init.constant_(decoder.mask_token, -5.0)
    view = View(torch.zeros(2, 1, 8, 8), random_mask((2, 64), ratio=0.75))
    keep = visible_places(view)
    visible = Tokens(keep[..., None].float().expand(-1, -1, 128), keep[..., None], prefix=torch.zeros(2, 1, 128))
    out = decoder(visible, view)[..., 0]
    assert torch.equal(out[view.mask], torch.full((96,), -5.0))
    for row in range(2):
        assert out[row][~view.mask[row]].tolist() == (~view.mask[row]).nonzero().flatten().tolist()


def test_the_users_own_method_in_a_line():
    @methods.register("mine", family="test", summary="nothing")
    def mine(encoder, *, weight=2.0, views=None):
        return methods.JointEmbedding(encoder, lambda p, t: weight * (p[0] - p[1]).square().mean(), projector=[8], views=views)

    try:
        assert methods.list(family="test") == ["mine"]
        method = make("mine", weight=3.0, views=lambda batch, generator: [batch.x / 255, batch.x / 255 + 0.1])
        assert method.step(batch()).loss > 0
    finally:
        methods.method.methods._own.pop("mine")


@pytest.mark.parametrize("call, error, message", [
    (lambda: methods.create("barlow_twin"), ValueError, "did you mean 'barlow_twins'"),
    (lambda: methods.create("simclr", temprature=0.1), TypeError, "did you mean 'temperature'"),
    (lambda: make("byol", predictor="quadratic"), ValueError, "choose one of mlp"),
    (lambda: methods.create("mae", encoder=encoders.create("convnet")), TypeError, "use a vision transformer"),
    (lambda: make("barlow_twins").step(batch(1)), ValueError, "1 value|1 example|batch")])
def test_bad_input_names_value_reason_and_mend(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("size, patch", [(32, 4), (24, 3), (16, 8), (8, 1)])
def test_dino_trains_a_vision_transformer_on_its_own_small_crops(size, patch):
    torch.manual_seed(0)
    encoder = encoders.create("vit", in_chans=1, img_size=size, patch_size=patch, embed_dim=16, depth=1, num_heads=2)
    x = torch.rand(2, 1, size, size)
    before = encoder(x)
    method = methods.create("dino", encoder=encoder, out_dim=16)
    assert torch.equal(encoder(x), before)  # nothing changes for images of the size that it was made for
    pictures = Split({"images": torch.randint(0, 256, (3, 1, size, size), dtype=torch.uint8)})
    crops = method.views(pictures, torch.Generator().manual_seed(0))
    small = crops[2].x.shape[-1]
    assert len(crops) == 10 and crops[0].x.shape[-1] == size and small % patch == 0
    assert small < size or size == 2 * patch
    method.loss(crops).loss.backward()
    assert encoder.backbone.pos_embed.grad.abs().max() > 0 and method.embed(Split({"images": x})).shape == (2, 16)


def test_a_teacher_with_batch_normalization_can_be_evaluated():
    "Its running statistics are its own: with its student's, evaluation would normalize by what other weights measured."
    torch.manual_seed(0)
    encoder = encoders.create("convnet", in_chans=1, img_size=16, channels=(4, 8, 8))
    method = methods.create("dino", encoder=encoder, out_dim=16)
    same = as_views([torch.rand(64, 1, 16, 16) for _ in range(2)])
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(3)  # a student that is far from its teacher
        for _ in range(80):
            method.loss(same)
            method.after_step(1.0)  # momentum 1: the teacher's weights stand still
        expected = torch.cat([method.teacher.module[0](view.x) for view in same])
        got = torch.cat([method.eval().evaluated(view.x) for view in same])
    assert (got - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("call, message", [
    (lambda: make("simclr", projector=(0, 128)), "widths .* has no outputs"),
    (lambda: make("byol", projector=(16, 1)), "widths .* has no outputs"),
    (lambda: make("swav", prototypes=0), "train nothing"),
    (lambda: make("swav", prototypes=1), "train nothing"),
    (lambda: make("moco", queue=0), "must be positive"),
    (lambda: make("moco", momentum=1.5), "momentum is 1.5"),
    (lambda: make("dino", out_dim=1), "trains nothing"),
    (lambda: make("mae", decoder_depth=0), "depth 0"),
    (lambda: make("mae", decoder_heads=3), "num_heads 3"),
    (lambda: make("mae", mask_ratio=1.0), "ratio of 1.0"),
    (lambda: make("mae", mask_ratio=0.99), "ratio of 0.99"),
    (lambda: make("supervised", classes=1), "classes is 1"),
    (lambda: make("supervised", classes=3).step(batch(2).assign(labels=torch.tensor([0, 3]))), "0 to 2"),
    (lambda: make("supervised").step(batch(2).assign(labels=torch.tensor([0, -1]))), "without a label"),
    (lambda: methods.create("mae", encoder=encoders.create("vit", in_chans=1, img_size=8)), "one pixel and one channel")])
def test_what_would_train_nothing_is_refused_when_the_method_is_made(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mae_with_one_pixel_in_a_patch_trains_on_plain_pixels_or_on_colors():
    for in_chans, knobs in [(1, dict(normalize_target=False)), (3, {})]:
        encoder = encoders.create("vit", in_chans=in_chans, img_size=8, embed_dim=16, depth=1, num_heads=2)  # patches of 1 x 1
        loss = methods.create("mae", encoder=encoder, **knobs).step(Split({"images": torch.rand(2, in_chans, 8, 8)})).loss
        loss.backward()
        assert loss.isfinite() and encoder.backbone.pos_embed.grad.isfinite().all()


def test_mlp_is_linear_norm_relu_linear():
    kinds = [type(layer).__name__ for layer in mlp([4, 8, 2], last_norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
