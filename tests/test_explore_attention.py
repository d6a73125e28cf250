import itertools
import math
import os
import warnings

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_nb import data, disk, encoders, evaluators
from ssl_nb.explore import attention_map
from ssl_nb.explore.attention_look import as_encoder, attention_distance, attention_entropy, inspect, rollout
from ssl_nb.explore.attention_map import AttentionMap
from ssl_nb.explore.attention_masks import jaccard, mask_overlap, mass_mask
from ssl_nb.explore.attention_pictures import _edge, pca_colors
from ssl_nb.explore.panels import Picture
from ssl_nb.explore.scenes_vit import Recipe, scenes_vit


def images(n=3, c=1, h=24, w=24):
    return torch.randint(0, 256, (n, c, h, w), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def vit(**knobs):
    torch.manual_seed(0)
    return encoders.create("vit", **{"in_chans": 1, "img_size": 24, "embed_dim": 32, "depth": 2, **knobs})


def timm_vit(**knobs):
    torch.manual_seed(0)
    settings = dict(img_size=(16, 24), patch_size=(4, 8), in_chans=3, num_classes=0, embed_dim=32, depth=3, num_heads=2)
    return timm.models.VisionTransformer(**{**settings, **knobs})


MODELS = {
    "ours": (vit, (1, 24, 24), (8, 8), 1, True),
    "rectangles": (timm_vit, (3, 16, 24), (4, 3), 1, True),
    "registers": (lambda: timm_vit(reg_tokens=3), (3, 16, 24), (4, 3), 4, True),
    "registers only": (lambda: timm_vit(reg_tokens=2, class_token=False, global_pool="avg"), (3, 16, 24), (4, 3), 2, False),
    "no class token": (lambda: timm_vit(class_token=False, global_pool="avg"), (3, 16, 24), (4, 3), 0, False),
    "any size": (lambda: timm_vit(dynamic_img_size=True), (3, 32, 8), (8, 1), 1, True),
    "padded": (lambda: timm_vit(dynamic_img_size=True, dynamic_img_pad=True), (3, 15, 17), (4, 3), 1, True),
    "rope": (
        lambda: timm.create_model(
            "vit_tiny_patch16_dinov3" if timm.is_model("vit_tiny_patch16_dinov3") else "eva02_tiny_patch14_224",
            img_size=56 if not timm.is_model("vit_tiny_patch16_dinov3") else 64,
            num_classes=0,
        ),
        None,
        (4, 4),
        None,
        True,
    ),
}


def case(name):
    make, shape, grid, prefix, has_class = MODELS[name]
    model = make().eval()
    if shape is None:
        size = model.patch_embed.img_size
        shape, prefix = (3, *size), model.num_prefix_tokens
    return model, images(1, *shape)[0], grid, prefix, has_class


# ---------------------------------------------------------------------------------------------------- one forward


@pytest.mark.parametrize("name", MODELS)
def test_any_plain_transformer_can_be_looked_into(name):
    model, image, grid, prefix, has_class = case(name)
    look = inspect(model, image)
    t = grid[0] * grid[1]
    assert (look.grid, look.prefix, look.has_class) == (grid, prefix, has_class)
    assert look.attention.shape[-2:] == (prefix + t,) * 2 and look.attention.dtype is torch.float32
    torch.testing.assert_close(look.attention.sum(-1), torch.ones(look.attention.shape[:-1]))
    assert look.tokens.shape[:2] == (look.layers, t)
    features = as_encoder(model).tokens(image[None]).x
    torch.testing.assert_close(look.tokens[-1], features[0].detach(), atol=1e-5, rtol=1e-4)
    assert look.map(0, 0).shape == grid and look.pixels(look.map()).shape == image.shape[1:]
    assert look.head_maps(0, (1, 0)).shape == (look.heads, *grid)


@pytest.mark.parametrize("name", ["ours", "registers", "no class token"])
def test_the_weights_are_those_that_the_layer_used(name):
    "Weights times values, through the output projection, are what the last attention layer gives out."
    model, image, *_ = case(name)
    encoder = as_encoder(model)
    layer, seen = encoder.backbone.blocks[-1].attn, {}
    hooks = [
        layer.qkv.register_forward_hook(lambda m, i, o: seen.__setitem__("qkv", o)),
        layer.register_forward_hook(lambda m, i, o: seen.__setitem__("out", o)),
    ]
    with torch.no_grad():
        encoder(image[None])  # fused
    for hook in hooks:
        hook.remove()
    s, heads = seen["qkv"].shape[1], layer.num_heads
    values = seen["qkv"].view(s, 3, heads, -1)[:, 2].transpose(0, 1)  # (heads, s, d)
    mixed = (inspect(model, image).attention[-1] @ values).transpose(0, 1).reshape(1, s, -1)
    torch.testing.assert_close(layer.proj(mixed), seen["out"], atol=1e-5, rtol=1e-4)


def test_looking_changes_nothing_and_is_in_evaluation_mode():
    encoder = vit(proj_drop_rate=0.5, attn_drop_rate=0.5).train()
    a, b = (inspect(encoder, images()[0]) for _ in range(2))
    assert torch.equal(a.attention, b.attention) and torch.equal(a.tokens, b.tokens)
    assert encoder.training and all(block.attn.fused_attn for block in encoder.backbone.blocks)
    assert not any(block._forward_hooks or block.attn.attn_drop._forward_hooks for block in encoder.backbone.blocks)
    assert torch.get_float32_matmul_precision() == "highest" and not a.tokens.requires_grad


def test_full_precision_under_autocast_and_for_half_precision_weights():
    encoder, image = vit(), images()[0]
    plain = inspect(encoder, image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inspect(encoder, image).attention, plain.attention)
    half = vit().bfloat16()
    look = inspect(half, image)
    assert (look.attention.sum(-1) - 1).abs().max() < 1e-6
    assert next(half.parameters()).dtype is torch.bfloat16  # a copy was cast, not the network


def test_a_plain_timm_model_normalizes_as_it_was_trained():
    model = timm.create_model("test_vit", num_classes=0).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    image = images(1, 3, 160, 160)[0]
    with torch.no_grad():
        expected = model.forward_features(((image / 255 - mean) / std)[None])[0, 1:]
    torch.testing.assert_close(inspect(model, image).tokens[-1], expected, atol=1e-4, rtol=1e-4)


def test_bytes_and_floats_are_the_same_image_and_a_method_brings_its_encoder():
    encoder = vit()
    a, b = inspect(encoder, images()[0]), inspect(encoder, images()[0] / 255)
    torch.testing.assert_close(a.attention, b.attention)
    from ssl_nb import methods

    method = methods.create("simclr", encoder=encoder)
    assert torch.equal(inspect(method, images()[0]).attention, a.attention)


# -------------------------------------------------------------------------------------------- maps, by naive loops


@pytest.mark.parametrize("name", ["ours", "registers", "registers only", "no class token"])
def test_maps_are_rows_of_the_attention(name):
    model, image, (rows, columns), prefix, has_class = case(name)
    look = inspect(model, image)
    for layer, head in itertools.product(range(look.layers), range(look.heads)):
        weights = look.attention[layer, head]
        for row, column in ((0, 0), (rows - 1, columns - 1), (1, 2 % columns)):
            got = look.map(layer, head, (row, column))
            for r, c in itertools.product(range(rows), range(columns)):
                assert got[r, c] == weights[prefix + row * columns + column, prefix + r * columns + c]
        whole = look.map(layer, head).flatten()
        for j in range(rows * columns):
            column = [weights[i, prefix + j] for i in ([0] if has_class else range(prefix, prefix + rows * columns))]
            torch.testing.assert_close(whole[j], sum(column) / len(column))
    torch.testing.assert_close(look.map(0, "mean"), sum(look.map(0, h) for h in range(look.heads)) / look.heads)
    assert torch.equal(look.map(-1, -1), look.map(look.layers - 1, look.heads - 1))


def test_rollout_against_loops_and_its_limits():
    attention = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    rolled = torch.eye(5)
    for layer in attention:
        step = torch.zeros(5, 5)
        for i, j in itertools.product(range(5), range(5)):
            step[i, j] = 0.5 * sum(float(head[i, j]) for head in layer) / 2 + 0.5 * (i == j)
        step = torch.stack([row / row.sum() for row in step])
        rolled = torch.stack([sum(step[i, k] * rolled[k] for k in range(5)) for i in range(5)])
    torch.testing.assert_close(rollout(attention)[-1], rolled)
    torch.testing.assert_close(rollout(attention[None])[0], rollout(attention))  # a batch of one
    assert torch.equal(rollout(torch.eye(4).expand(3, 2, 4, 4))[-1], torch.eye(4))
    even = rollout(torch.full((20, 1, 4, 4), 0.25))[-1]
    torch.testing.assert_close(even, torch.full((4, 4), 0.25), atol=1e-5, rtol=0)


@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_the_mass_mask_is_the_smallest_that_holds_the_mass(seed, mass):
    map = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)).double()
    keep = mass_mask(map, mass)
    total, held = map.sum(), map[keep].sum()
    assert held >= mass * total - 1e-9
    if keep.sum() > 0:
        assert held - map[keep].min() < mass * total  # one patch fewer is not enough
        assert (~keep).sum() == 0 or map[keep].min() >= map[~keep].max()


def test_the_mass_mask_is_that_of_dino():
    "As in the authors' visualize_attention.py: sort upward, cumulate, keep what lies beyond 1 - threshold."
    maps = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0))
    for threshold in (0.1, 0.6, 0.95):
        values, order = torch.sort(maps.flatten(1))
        values = values / values.sum(1, keepdim=True)
        beyond = values.cumsum(1) > 1 - threshold
        back = torch.argsort(order)
        expected = torch.stack([b[i] for b, i in zip(beyond, back, strict=False)]).view_as(maps)
        assert torch.equal(mass_mask(maps, threshold), expected)


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.1, math.nan])
def test_a_mass_that_is_no_share_is_refused(mass):
    with pytest.raises(ValueError, match="mass is"):
        mass_mask(torch.ones(2, 2), mass)


def test_jaccard_against_loops():
    a, b = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    both = sum(bool(a[i, j] and b[i, j]) for i in range(5) for j in range(7))
    either = sum(bool(a[i, j] or b[i, j]) for i in range(5) for j in range(7))
    assert float(jaccard(a, b)) == pytest.approx(both / either)
    assert jaccard(a, a) == 1 and jaccard(a, ~a) == 0 and jaccard(a & ~a, a & ~a) == 1


def test_attention_distance_against_loops_and_its_limits():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 6, 6, generator=generator)  # rows need not sum to 1
    for head, got in zip(attention, attention_distance(attention, (2, 3), (4, 8)), strict=False):
        total = 0.0
        for i, j in itertools.product(range(6), range(6)):
            far = math.hypot((i // 3 - j // 3) * 4, (i % 3 - j % 3) * 8)
            total += float(head[i, j] / head[i].sum()) * far
        assert float(got) == pytest.approx(total / 6, rel=1e-5)
    assert attention_distance(torch.eye(6), (2, 3)) == 0
    order = torch.randperm(6, generator=generator)
    moved = torch.eye(6)[order]  # each patch reads exactly one other
    expected = sum(math.hypot(i // 3 - int(j) // 3, i % 3 - int(j) % 3) for i, j in enumerate(order)) / 6
    assert float(attention_distance(moved, (2, 3))) == pytest.approx(expected)


def test_entropy_against_loops_and_its_limits():
    attention = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    got = attention_entropy(attention)
    for layer, head in itertools.product(range(2), range(3)):
        rows = [-sum(float(p) * math.log(p) for p in row) for row in attention[layer, head]]
        assert float(got[layer, head]) == pytest.approx(sum(rows) / 5, rel=1e-5)
    assert attention_entropy(torch.eye(5)) == 0
    assert float(attention_entropy(torch.full((5, 5), 0.2))) == pytest.approx(math.log(5))


def test_similarity_against_loops():
    look = inspect(vit(), images()[0])
    for layer in range(2):
        got, here = look.similarity((2, 3), layer), look.tokens[layer, 2 * 8 + 3]
        for r, c in ((0, 0), (7, 7), (2, 3), (5, 1)):
            other = look.tokens[layer, r * 8 + c]
            assert float(got[r, c]) == pytest.approx(float(here @ other / here.norm() / other.norm()), abs=1e-5)
    assert float(got[2, 3]) == pytest.approx(1, abs=1e-6)


# ----------------------------------------------------------------------------------------------------- PCA colors


def test_pca_colors_keep_the_order_of_the_components():
    tokens = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3, 1] + [0.01] * 7)
    [colors] = pca_colors(tokens)
    assert colors.shape == (64, 3) and colors.dtype is torch.uint8
    lightness = colors.float().mean(1)
    assert torch.corrcoef(torch.stack([lightness, tokens[:, 0]]))[0, 1] > 0.8  # signed: the largest loading is positive


@pytest.mark.parametrize("t, d", [(64, 10), (10, 64), (5, 2), (2, 5), (1, 4)])
def test_pca_colors_are_the_same_each_time_and_for_a_shifted_space(t, d):
    scale = torch.tensor([9.0, 3, 1, *[0.1] * d])[:d]  # components that no rounding can exchange
    tokens = torch.randn(t, d, generator=torch.Generator().manual_seed(1)) * scale
    [a], [b] = pca_colors(tokens), pca_colors(tokens.clone())
    assert torch.equal(a, b) and a.shape == (t, 3)
    [shifted] = pca_colors(tokens + 5)
    assert (a.int() - shifted.int()).abs().max() <= 2


@pytest.mark.parametrize("t, d", [(2, 5), (3, 40), (20, 40), (20, 5)])
@pytest.mark.parametrize("shift", [0, 5])
def test_pca_colors_do_not_draw_directions_that_hold_nothing(t, d, shift):
    generator = torch.Generator().manual_seed(1)
    on_a_line = torch.randn(t, 1, generator=generator) * torch.randn(1, d, generator=generator) + shift
    [colors] = pca_colors(on_a_line)
    assert (colors == colors[:, :1]).all()  # the first component is gray; the others are rounding
    assert colors.float().std() > 50


def test_a_shared_basis_gives_like_tokens_like_colors():
    tokens = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    one, two = pca_colors(tokens, tokens.flip(0))
    assert torch.equal(one, two.flip(0))
    with pytest.raises(ValueError, match=r"widths \[5, 6\]"):
        pca_colors(tokens, tokens[:, :5])
    assert (pca_colors(torch.ones(4, 3))[0] == 128).all()


# ----------------------------------------------------------------------------------------------------- over a data set


@pytest.mark.parametrize("name", ["ours", "no class token"])
def test_overlap_of_a_batch_is_that_of_each_image(name):
    model, image, *_ = case(name)
    batch = images(5, *image.shape)
    masks = torch.rand(5, *image.shape[1:], generator=torch.Generator().manual_seed(0)) > 0.7
    got = mask_overlap(model, batch, masks, mass=0.4, layer=1, batch_size=2)
    for i in range(5):
        look = inspect(model, batch[i])
        for key, scores in got.items():
            head = int(key[5:]) if key.startswith("head") else key
            kept = look.pixels(mass_mask(look.map(1, head), 0.4))
            assert float(scores[i]) == pytest.approx(float(jaccard(kept, masks[i])), abs=0.02)  # ties at the edge of the mass
    assert list(got) == [*(f"head {i}" for i in range(look.heads)), "mean", "rollout"]


def test_the_outline_lies_inside_the_mask():
    import numpy as np

    mask = np.zeros((12, 12), bool)
    mask[3:9, 2:8] = True
    edge = _edge(mask, 1)
    assert not (edge & ~mask).any() and edge.sum() == 20 and _edge(np.ones((4, 4), bool), 1).sum() == 12


# ------------------------------------------------------------------------------------------------- the cached encoder

QUICK = dict(epochs=1, embed_dim=32, depth=1, num_heads=2, patch_size=6, batch_size=512)


def test_the_encoder_is_trained_once_and_kept(tmp_path):
    lines, random_state = [], torch.get_rng_state()
    first = scenes_vit(tmp_path, report=lines.append, **QUICK)
    assert torch.equal(torch.get_rng_state(), random_state)  # nobody else's random numbers change
    assert len(lines) == 1 and not first.training
    again = scenes_vit(tmp_path, report=lines.append, **QUICK)
    assert len(lines) == 1 and all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    untrained = scenes_vit(tmp_path, **{**QUICK, "epochs": 0})
    assert not torch.equal(untrained.backbone.blocks[0].attn.qkv.weight, first.backbone.blocks[0].attn.qkv.weight)
    assert untrained.backbone.pos_embed.shape == first.backbone.pos_embed.shape and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("epochs", [1, 5])
def test_the_encoders_of_the_lesson_come_with_the_package(tmp_path, epochs):
    trained = scenes_vit(tmp_path, epochs=epochs, report=print)
    untrained = scenes_vit(tmp_path, epochs=0)
    assert not list(tmp_path.iterdir())  # nothing was trained
    assert not torch.equal(trained.backbone.blocks[0].attn.qkv.weight, untrained.backbone.blocks[0].attn.qkv.weight)


@pytest.mark.slow
def test_the_shipped_encoder_is_what_training_makes(tmp_path, monkeypatch):
    sets = data.load("scenes", size=24)
    bank, queries = sets.train[:2000], sets.test[:500]

    def votes(encoder):
        z = [encoders.embed(encoder, part["images"]) for part in (bank, queries)]
        return float(evaluators.knn(z[0], bank["labels"], z[1], queries["labels"], k=20))

    shipped, untrained = scenes_vit(tmp_path), scenes_vit(tmp_path, epochs=0)
    monkeypatch.setattr(disk, "shipped_folder", lambda: tmp_path)
    trained = scenes_vit(tmp_path, report=lambda line: None)
    # another CPU rounds differently and arrives at other weights, so only the gain is compared
    assert min(votes(shipped), votes(trained)) > votes(untrained) + 0.05


@pytest.mark.parametrize(
    "damage", [lambda b: b[:100], lambda b: b"", lambda b: b[:-4] + b"oops", lambda b: b"no safetensors at all" * 9]
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    first = scenes_vit(tmp_path, report=lambda line: None, **QUICK)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="damaged"):
        anew = scenes_vit(tmp_path, report=lambda line: None, **QUICK)
    torch.testing.assert_close(anew.state_dict(), first.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scenes_vit(tmp_path, report=print, **QUICK)


def test_a_file_of_other_settings_is_not_taken(tmp_path):
    scenes_vit(tmp_path, report=lambda line: None, **QUICK)
    [file] = tmp_path.iterdir()
    other = tmp_path / Recipe(**{**QUICK, "seed": 1}).file
    file.rename(other)
    with pytest.warns(UserWarning, match="other settings"):
        scenes_vit(tmp_path, report=lambda line: None, **{**QUICK, "seed": 1})


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="SSL_NB_CACHE"):
        encoder = scenes_vit(tmp_path / "file" / "encoders", report=lambda line: None, **QUICK)
    assert encoder(images(2)).shape == (2, 32)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.warns(UserWarning, match="disk full"):
        scenes_vit(tmp_path, report=lambda line: None, **QUICK)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------- the widget


@pytest.fixture
def shown():
    masks = torch.zeros(3, 24, 24, dtype=torch.bool)
    masks[:, 6:15, 9:18] = True
    return AttentionMap(vit(), images(), masks, labels=["a", "b", "c"])


def test_every_control_changes_what_is_drawn(shown):
    def drawn():
        return [
            [
                getattr(m, k).tobytes() if hasattr(getattr(m, k), "tobytes") else str(getattr(m, k))
                for m in p.marks
                for k in vars(m)
            ]
            + [p.title, p.note]
            for p in shown.panels()
        ]

    assert not shown.error and len(shown.panels()) == 8
    for control, value in [
        (shown.image, 1),
        (shown.layer, 0),
        (shown.head, 2),
        (shown.head, "rollout"),
        (shown.alpha, 0.2),
        (shown.mass, 30.0),
        (shown.outlined, False),
        (shown.shared, True),
        (shown.whole, False),
    ]:
        before, count = drawn(), shown.canvas.count
        control.value = value
        assert shown.canvas.count == count + 1 and drawn() != before, control.description
    assert not shown.message


def test_a_click_chooses_the_patch_and_arrow_keys_walk(shown):
    shown.canvas.pick = dict(panel=0, x=40.0, y=70.0, cell=[2, 5], count=1)
    assert shown.patch == (2, 5) and shown.whole.value is False
    assert torch.equal(shown.state()["map"], shown.state()["look"].map(1, "mean", (2, 5)))
    shown.canvas.pick = dict(panel=1, x=40.0, y=70.0, cell=[3, 5], count=2)
    assert shown.patch == (3, 5) and "patch (3, 5)" in shown.alt
    shown.canvas.pick = dict(panel=6, x=1.0, y=2.0, cell=None, count=3)  # a chart
    assert shown.patch == (3, 5)
    shown.whole.value = True
    assert torch.equal(shown.state()["map"], shown.state()["look"].map())


def test_a_click_on_a_head_chooses_it(shown):
    index = [p.title for p in shown.panels()].index("Every head of layer 1")
    shown.canvas.pick = dict(panel=index, x=1.0, y=1.0, cell=[1, 0], count=1)
    assert shown.head.value == 2 and shown.whole.value  # whose attention is shown stays
    assert shown.panels()[index].marks[0].cell == (1, 0)


def test_numbers_shown_are_those_of_the_pure_part(shown):
    look = inspect(shown.encoders[0], images()[0])
    scores = mask_overlap(shown.encoders[0], images(), shown.masks)
    shown.overlaps()
    for name, value in shown.overlaps().items():
        assert value == pytest.approx(float(scores[name][0]), abs=0.02)
    distance = next(p for p in shown.panels() if p.title == "Attention distance")
    assert torch.equal(distance.marks[1].y, look.distance.flatten()) and "pixels" in distance.y
    even = attention_distance(torch.full((64, 64), 1 / 64), (8, 8), (3, 3))
    assert look.even == pytest.approx((float(even), math.log(65)))
    assert f"Jaccard {shown.state()['jaccard']:.2f}" in shown.alt and "Image 0 (a)" in shown.alt


def test_two_encoders_of_other_grids_depths_and_heads_follow_one_another():
    second = vit(patch_size=6, depth=1, num_heads=2, class_token=False, global_pool="avg")
    w = AttentionMap(vit(), images(), torch.ones(3, 24, 24), second=second, names=("fine", "coarse"), head=3, query=(7, 0))
    assert not w.error and len(w.panels()) == 12 == len(w._roles())
    assert (w.state(0)["query"], w.state(1)["query"]) == ((7, 0), (3, 0))
    assert (w.state(1)["layer"], w.state(1)["head"]) == (0, 1)
    coarse = [i for i, role in enumerate(w._roles()) if role == (1, "place")][0]
    w.canvas.pick = dict(panel=coarse, x=0.0, y=0.0, cell=[1, 2], count=1)
    assert w.patch == (3, 5) and w.state(1)["query"] == (1, 2)
    for i, (_which, kind) in enumerate(w._roles()):
        assert ("every head" in w.panels()[i].title) == (kind == "heads")
        assert any(isinstance(m, Picture) for m in w.panels()[i].marks) == (kind != "numbers")
    w.whole.value = True
    assert "mean of all patches" in w.alt and w.figure() is not None


def test_a_forward_is_run_once_for_each_image(shown, monkeypatch):
    calls, real = [], inspect
    monkeypatch.setattr(attention_map, "inspect", lambda *a: calls.append(1) or real(*a))
    shown.layer.value, shown.head.value, shown.mass.value = 0, 1, 20.0
    assert not calls
    shown.image.value = 2
    shown.image.value = 0
    assert len(calls) == 1
    with torch.no_grad():
        shown.encoders[0].backbone.pos_embed.add_(1)
    before = shown.state()["map"]
    shown.refresh()  # after the network was trained on
    assert not torch.equal(shown.state()["map"], before)


def test_no_masks_no_jaccard_and_one_image_will_do():
    w = AttentionMap(vit(), images()[0])
    assert not w.error and len(w.panels()) == 7 == len(w._roles()) and w.state()["jaccard"] is None and "Jaccard" not in w.alt
    w.picked(0, 0, 0, (0, 0))
    assert w.patch == (0, 0)


@pytest.mark.parametrize("name", MODELS)
def test_the_widget_takes_any_of_them(name):
    model, image, grid, *_ = case(name)
    w = AttentionMap(model, image)
    assert not w.error and w.panels()[0].marks[0].grid == grid
    w.picked(0, 0, 0, (grid[0] - 1, grid[1] - 1))
    w.head.value = "rollout"
    assert not w.message and w.figure() is not None


def bad(word, *arguments, **more):
    return pytest.param(word, arguments, more, id=word)


@pytest.mark.parametrize(
    "word, arguments, more",
    [
        bad("no attention layers", lambda: encoders.create("convnet", in_chans=1, img_size=24), images()),
        bad("is no encoder", lambda: torch.nn.Linear(3, 3), images()),
        bad(
            "no attention layers to read",
            lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=0),
            images(1, 3, 224, 224),
        ),
        bad("masks have shape (3, 12, 12)", vit, images(), torch.ones(3, 12, 12)),
        bad("masks have shape (2, 24, 24)", vit, images(), torch.ones(2, 24, 24)),
        bad("images have 3 channels", vit, images(3, 3)),
        bad("images.expand(-1, 3, -1, -1)", lambda: vit(in_chans=3), images()),
        bad("images are 20 x 24 pixels", vit, images(h=20)),
        bad("are not finite", vit, torch.full((2, 1, 24, 24), torch.nan)),
        bad("values from -2 to 2", vit, torch.linspace(-2, 2, 576).view(1, 1, 24, 24)),
        bad("give at least one", vit, images()[:0]),
        bad("(24, 24); give at least one", vit, images()[0, 0]),
        bad("image 3 is out of range", vit, images(), image=3),
        bad("layer 2 is out of range", vit, images(), layer=2),
        bad("head 4 is out of range", vit, images(), head=4),
        bad("head 'median' is out of range", vit, images(), head="median"),
        bad("row 8 is out of range", vit, images(), query=(8, 0)),
        bad("column -9 is out of range", vit, images(), query=(0, -9)),
        bad("mass is 0", vit, images(), mass=0),
        bad("2 labels for 3 images", vit, images(), labels=["a", "b"]),
        bad("2 names for 1 encoders", vit, images(), names=("a", "b")),
    ],
)
def test_bad_input_is_told_in_the_widgets_place(word, arguments, more):
    make, *rest = arguments
    w = AttentionMap(make(), *rest, **more)
    assert w.error and word in w.error, w.error
    assert len(w.children) == 1 and 'role="alert"' in w.children[0].value  # the message, and nothing else
    assert w._still_bundle() == ({"text/plain": ""}, {})


def test_a_second_encoder_that_does_not_fit_is_told_too():
    w = AttentionMap(vit(), images(), second=vit(img_size=32))
    assert "24 x 24 pixels, the encoder takes 32 x 32" in w.error
    assert "one forward" not in w.error and AttentionMap(vit(), images(), second=encoders.create("convnet", in_chans=1)).error


def test_a_method_is_looked_into_at_the_encoder_that_it_evaluates(monkeypatch, tmp_path):
    from ssl_nb import encoders, methods, training

    vit = encoders.create("vit", in_chans=1, img_size=24, patch_size=6, embed_dim=32, depth=1, num_heads=2)
    dino = methods.create("dino", encoder=vit)
    assert as_encoder(dino) is dino.evaluated is not vit

    made, create = [], methods.create
    monkeypatch.setattr(methods, "create", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    monkeypatch.setattr(training, "fit", lambda *a, **k: None)
    quick = dict(epochs=1, embed_dim=32, depth=1, num_heads=2, patch_size=6)
    assert scenes_vit(tmp_path, method="dino", **quick) is made[0].evaluated
