"""Scenes: the picture agrees with every ground truth that is told about it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_nb.data import holdout, load, photographs, scenes
from ssl_nb.data.photographs import PHOTOGRAPHS, TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS
from ssl_nb.data.scenes import FACTORS, STYLES, Knobs, compose
from ssl_nb.views import SceneViews


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return load("digits").train


def centroid(masks):
    at = torch.arange(masks.shape[-1]) + 0.5
    mass = masks.float().sum((-2, -1))
    return torch.stack([masks.float().sum(-2) @ at, masks.float().sum(-1) @ at], -1) / mass[..., None]


# ---- shapes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("frames", [1, 4])
def test_shapes_and_ranges(digits, channels, objects, frames):
    n, size = 5, 20
    glyphs = digits["images"][: n * objects].view(n, objects, 8, 8)
    knobs = Knobs(size=size, channels=channels, frames=frames, styles=STYLES, contrast=1.0)
    scene = compose(glyphs, seeded(), knobs)
    time, one = (() if frames == 1 else (frames,)), (() if objects == 1 else (objects,))
    expected = dict(
        images=(n, *time, channels, size, size),
        instances=(n, *time, size, size),
        background=(n,),
        position=(n, *time, *one, 2),
        scale=(n, *time, *one),
        angle=(n, *time, *one),
        boxes=(n, *time, *one, 4),
        masks=(n, *time, *one, size, size),
        style=(n, *one),
        color=(n, *one, channels),
    )
    if frames > 1:
        expected |= dict(velocity=(n, *time, *one, 2), spin=(n, *one), growth=(n, *one))
    assert {name: tuple(v.shape) for name, v in scene.items()} == expected
    assert scene["images"].dtype == torch.float32 and scene["masks"].dtype == torch.bool
    assert scene["images"].min() >= 0 and scene["images"].max() <= 1
    assert scene["style"].max() < len(STYLES) and scene["color"].min() >= 0 and scene["color"].max() <= 1


# ---- ground truths


@pytest.mark.parametrize("size", [24, 48])
def test_position_is_the_centroid_and_objects_are_whole(digits, size):
    scene = compose(digits["images"], seeded(), Knobs(size=size))
    error = (centroid(scene["masks"]) - scene["position"]).norm(dim=1)
    assert error.mean() < 0.2 and error.quantile(0.99) < 0.75 and error.max() < 1.5
    unclipped = compose(digits["images"], seeded(), Knobs(size=2 * size, scale=(0.275, 0.45), position=0))
    # The same digits at the same angles, far from any border: as many pixels as they have here.
    ratio = scene["masks"].sum((1, 2)) / unclipped["masks"].sum((1, 2))
    assert 0.97 < ratio.mean() < 1.03 and ratio.quantile(0.005) > 0.8


def test_boxes_bound_masks(digits):
    scene = compose(digits["images"][:60].view(20, 3, 8, 8), seeded(), Knobs(size=32, frames=3))
    for mask, box in zip(scene["masks"].flatten(0, 2), scene["boxes"].flatten(0, 2).tolist(), strict=True):
        y, x = torch.nonzero(mask, as_tuple=True)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert torch.equal(scenes._boxes(torch.zeros(2, 5, 5).bool()), torch.zeros(2, 4).long())


def test_instances_show_the_object_in_front(digits):
    scene = compose(digits["images"][:200].view(50, 4, 8, 8), seeded(), Knobs(size=32))
    hidden = torch.zeros(50, 32, 32, dtype=torch.bool)
    for i in range(4):
        assert torch.equal(scene["instances"] == i + 1, scene["masks"][:, i] & ~hidden)
        hidden |= scene["masks"][:, i]
    assert torch.equal(scene["instances"] == 0, ~hidden)
    assert (scene["masks"].sum(1) > 1).any()  # some do overlap


def test_the_background_is_the_photograph_it_says(digits):
    glyphs, knobs = digits["images"][:50], Knobs(size=24, contrast=1.0)
    scene = compose(glyphs, seeded(), knobs, part="test")
    plain = compose(torch.zeros_like(glyphs), seeded(), knobs, part="test")  # no ink: background alone
    bank = scenes.bank("test", 24, 1)
    for image, photograph in zip(plain["images"], scene["background"], strict=True):
        windows = bank.windows[bank.photograph == photograph].float() / 255
        distance = (windows.sub(0.5).mul(0.9).add(0.45) - image[:, None, None]).abs().amax((1, 4, 5))
        assert distance.min() < 1e-4
    far = (
        scene["position"][:, :, None, None]
        - torch.stack(torch.meshgrid(torch.arange(24) + 0.5, torch.arange(24) + 0.5, indexing="xy"))
    ).norm(dim=1) > 23
    assert far.any() and (scene["images"][:, 0] - plain["images"][:, 0])[far].abs().max() < 0.02


def test_the_color_is_that_of_the_ink(digits):
    scene = compose(digits["images"][:100], seeded(), Knobs(size=48, channels=3, styles=("plain", "inverted")))
    for image, mask, color in zip(scene["images"], scene["masks"], scene["color"], strict=True):
        inside = (
            -torch.nn.functional.max_pool2d(-mask[None].float(), 5, 1, 2)[0] > 0
        )  # two pixels from the edge
        if inside.any():
            torch.testing.assert_close(image[:, inside].median(1).values, color, atol=0.02, rtol=0)
    dark = scene["style"] == STYLES.index("inverted")
    assert (
        scene["color"][dark].max() < 0.2 < 0.65 < scene["color"][~dark].amax(1).min()
        and 30 < dark.sum() < 70
    )


def sampled(glyph, position, angle, scale, size):
    maps, center = scenes._enlarge(glyph, size)
    truth = dict(
        position=torch.tensor(position).view(1, 1, 1, 2),
        angle=torch.full((1, 1, 1), float(angle)),
        scale=torch.full((1, 1, 1), float(scale)),
    )
    return scenes._sample(maps, center, truth, size, 1)[0, 0, 0]


def test_angles_are_counter_clockwise_scale_and_position_as_told(digits):
    glyph = digits["images"][7:8]
    upright = sampled(glyph, (20.0, 20.0), 0, 0.6, 40)
    torch.testing.assert_close(
        sampled(glyph, (20.0, 20.0), 90, 0.6, 40), upright.rot90(1, (1, 2)), atol=1e-4, rtol=0
    )
    moved = sampled(glyph, (23.0, 15.0), 0, 0.6, 40)  # 3 to the right, 5 up
    torch.testing.assert_close(moved[:, :35, 3:], upright[:, 5:, :37], atol=1e-4, rtol=0)
    double = sampled(glyph, (20.0, 20.0), 0, 1.2, 40)
    assert abs((double[0] > 0.5).sum() / (upright[0] > 0.5).sum() - 4) < 0.4


def test_the_picture_is_that_of_the_equation(digits):
    "Against the sum of Gaussians, evaluated where each pixel looks."
    glyph, size = digits["images"][12:13], 24
    _, center = scenes._enlarge(glyph, size)
    position, angle, scale = torch.tensor([10.0, 13.0]), math.radians(-17), 0.7
    at = torch.arange(size) + 0.5
    dx, dy = (at - position[0])[None, :], (at - position[1])[:, None]
    c, s, cells = math.cos(angle), math.sin(angle), 8 / (scale * size)
    qx, qy = center[0, 0, 0] + cells * (c * dx - s * dy), center[0, 0, 1] + cells * (s * dx + c * dy)
    middle = torch.arange(8) + 0.5
    squared = (qx[..., None, None] - middle) ** 2 + (qy[..., None, None] - middle[:, None]) ** 2
    ink = (glyph[0, 0].float() / 255 * torch.exp(-squared / 0.5)).sum((-2, -1)) / (0.5 * math.pi)
    found = sampled(glyph, position.tolist(), math.degrees(angle), scale, size)[0]
    assert (found - ink).abs().max() < 0.1 and (found - ink).abs().mean() < 0.01


# ---- motion


@settings(max_examples=50, deadline=None)
@given(st.floats(4, 20), st.floats(-15, 15), st.floats(0, 4))
def test_paths_are_thrown_back(start, velocity, reach):
    pair = torch.full((1, 1, 2), reach)
    path = scenes._move(torch.full((1, 1, 2), start), torch.full((1, 1, 2), velocity), pair, 24, 10)[
        0, :, 0, 0
    ]
    x, v = start, velocity
    for found in path.tolist():
        assert found == pytest.approx(x, abs=1e-3) and reach - 1e-3 <= found <= 24 - reach + 1e-3
        x += v
        if x < reach:
            x, v = 2 * reach - x, -v
        elif x > 24 - reach:
            x, v = 2 * (24 - reach) - x, -v


def test_velocity_leads_to_the_next_frame(digits):
    glyphs = digits["images"][:100].view(50, 2, 8, 8)
    clip = compose(glyphs, seeded(), Knobs(size=32, frames=6, speed=0.1))
    torch.testing.assert_close(clip["position"][:, :-1] + clip["velocity"][:, :-1], clip["position"][:, 1:])
    torch.testing.assert_close(clip["scale"][:, 1:], clip["scale"][:, :-1] * clip["growth"][:, None])
    torch.testing.assert_close(clip["angle"][:, 1:], clip["angle"][:, :-1] + clip["spin"][:, None])
    error = (centroid(clip["masks"]) - clip["position"]).norm(dim=-1)
    assert error.mean() < 0.3
    still = compose(glyphs, seeded(), Knobs(size=32, frames=3, speed=0, spin=0, growth=0))
    torch.testing.assert_close(still["images"][:, 0], still["images"][:, 2], atol=1e-3, rtol=0)


# ---- chance


def test_the_same_seed_gives_the_same_scenes(digits):
    a, b, c = (compose(digits["images"][:9], seeded(s), Knobs(styles=STYLES, channels=3)) for s in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["position"], c["position"])


def test_factors_have_chances_of_their_own(digits):
    a = compose(digits["images"][:9], seeded(), Knobs())
    b = compose(digits["images"][:9], seeded(), Knobs(contrast=0.2, styles="outline"))
    assert all(
        torch.equal(a[name], b[name]) for name in ("position", "angle", "scale", "background", "masks")
    )
    torch.testing.assert_close(
        compose(digits["images"][:9], seeded(), Knobs(angle=10.0))["angle"], a["angle"] / 2
    )


def test_factors_fill_their_ranges(digits):
    scene = compose(digits["images"], seeded(), Knobs(size=24, styles=STYLES, scale=(0.5, 0.8), angle=15.0))
    assert scene["angle"].min() < -14.5 and scene["angle"].max() > 14.5 and scene["angle"].abs().max() <= 15
    assert 0.5 <= scene["scale"].min() < 0.51 and 0.79 < scene["scale"].max() <= 0.8
    assert torch.bincount(scene["style"], minlength=4).min() > 0.2 * len(digits)
    assert (scene["position"].mean(0) - 12).abs().max() < 0.5 and (scene["position"].std(0) > 1.5).all()
    assert set(scene["background"].tolist()) == set(range(len(TRAIN_PHOTOGRAPHS)))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(size=4),
        dict(channels=2),
        dict(frames=0),
        dict(styles=("plaid",)),
        dict(styles=()),
        dict(position=2),
        dict(angle=-1),
        dict(scale=(0.9, 0.5)),
        dict(scale=0),
        dict(contrast=7),
        dict(speed=-1),
        dict(spin=-1),
        dict(growth=1),
    ],
)
def test_knobs_that_make_no_scene(wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=f"scenes want {name} "):
        load("scenes", **wrong)


# ---- as a data set


def test_train_and_test_share_neither_digits_nor_photographs():
    data = load("scenes", n_train=1500, n_test=600)
    for name in ("digit", "background"):
        assert not set(data.train[name].tolist()) & set(data.test[name].tolist())
    assert (
        len(set(data.train["digit"].tolist())) == 1347
        and len(set(data.test["digit"].tolist())) == 450
    )
    assert {PHOTOGRAPHS[i] for i in data.test["background"].tolist()} == set(TEST_PHOTOGRAPHS)
    whole = load("digits").train
    first = {row: i for i, row in enumerate(whole["digit"].tolist())}
    for glyph, digit, label in zip(
        data.train["glyph"][:50], data.train["digit"][:50], data.train["labels"], strict=False
    ):
        assert (
            torch.equal(glyph, whole["images"][first[int(digit)]]) and label == whole["labels"][first[int(digit)]]
        )


def test_a_data_set_is_fixed_by_its_seed():
    a, b = load("scenes", n_train=50, n_test=20), load("scenes", n_train=50, n_test=30)
    assert torch.equal(a.train["images"], b.train["images"])
    assert all(torch.equal(a.train[name], b.train[name]) for name in a.train)
    assert not torch.equal(a.train["images"], load("scenes", n_train=50, n_test=20, seed=1).train["images"])
    assert not torch.equal(a.train["angle"][:20], a.test["angle"])


@pytest.mark.parametrize("objects, group", [(1, "digit"), (3, "front")])
def test_scenes_are_held_out_by_digit(objects, group):
    data = load("scenes", n_train=1500, n_test=20, size=16, objects=objects)
    assert data.spec.group == group
    rest, held = holdout(data.train, 0.2, by=data.spec.group)
    seen, all_digits = rest["digit"], held["digit"]
    front = (lambda digits: digits) if objects == 1 else (lambda digits: digits[:, 0])
    assert not set(front(seen).tolist()) & set(front(all_digits).tolist())
    if objects == 3:  # what a split by rows does: most held-out digits are known
        plain_rest, plain = holdout(data.train, 0.2)
        assert torch.isin(front(plain["digit"]), front(plain_rest["digit"])).float().mean() > 0.3
    assert torch.equal(torch.bincount(held["labels"], minlength=10) > 0, torch.ones(10).bool())


def test_objects_and_frames_as_columns():
    data = load("scenes", size=32, channels=3, objects=2, frames=3, n_train=8, n_test=4)
    train = data.train
    assert train["images"].shape == (8, 3, 32, 32) and train["clip"].shape == (8, 3, 3, 32, 32)
    assert torch.equal(train["images"], train["clip"][:, 0]) and train["clip"].dtype == torch.uint8
    assert torch.equal(train["labels"], train["class"][:, 0]) and train["glyph"].shape == (8, 2, 8, 8)
    assert train[2:4]["masks"].shape == (2, 3, 2, 32, 32)
    assert data.spec.shape == (3, 32, 32) and len(data.spec.mean) == 3
    with pytest.raises(ValueError, match="objects of at least 1"):
        load("scenes", objects=0)


# ---- views


def test_views_are_repeatable_and_differ(digits):
    views = SceneViews(views=3, styles=STYLES, channels=3, size=20)
    a, b = views(digits["images"][:6], seeded()), views(digits["images"][:6], seeded())
    assert len(a) == 3 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(
        v.shape == (6, 3, 20, 20) and v.dtype == torch.float32 and 0 <= v.min() and v.max() <= 1 for v in a
    )
    assert not torch.equal(a[0], a[1]) and "views=3" in repr(views)


@pytest.mark.parametrize("factor", [f for f in FACTORS if f != "background"])
def test_a_shared_factor_is_the_same_and_the_others_are_not(digits, factor):
    views = SceneViews(shared=factor, styles=STYLES, channels=3, size=32, scale=(0.3, 0.4))
    a, b = (view.facts for view in views.make(digits["images"][:64].view(32, 2, 8, 8), seeded()))
    for name in a:
        same = (a[name] - b[name]).abs().max() < 1e-4
        if name == factor == "color":
            bright = (a["style"] == 1) == (b["style"] == 1)  # inverted ink is a dark version of the color
            assert torch.equal(a["color"][bright], b["color"][bright])
        elif name == factor == "position":  # or the nearest at which the object is whole
            assert (a[name] - b[name]).abs().median() < 1e-4
        else:
            assert same == (name == factor), name


def test_views_of_a_split_are_those_of_its_glyphs_with_their_truth(digits):
    split = load("scenes", n_train=40, n_test=4).train
    views = SceneViews()
    made, plain = views(split, seeded()), views(split["glyph"], seeded())
    assert all(torch.equal(view.x, x) for view, x in zip(made, plain, strict=True))
    assert made[0].facts["angle"].shape == (40, 1) and not torch.equal(made[0].facts["angle"], made[1].facts["angle"])


def test_a_shared_background(digits):
    empty = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    a, b = SceneViews(shared="background")(empty, seeded())
    assert torch.equal(a, b)
    a, b = SceneViews()(empty, seeded())
    assert not torch.equal(a, b)


def test_everything_shared_is_one_image(digits):
    a, b = SceneViews(shared=FACTORS, styles=STYLES)(digits["images"][:16], seeded())
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_views_refuse_what_they_do_not_know(digits):
    with pytest.raises(ValueError, match="no knob 'frames'"):
        SceneViews(frames=3)
    with pytest.raises(ValueError, match="cannot share 'colr'"):
        SceneViews(shared="colr")
    with pytest.raises(ValueError, match="at least 1 view"):
        SceneViews(views=0)
    for wrong in (
        digits["images"][:2].float(),
        digits["images"][:2, 0],
        torch.zeros(2, 1, 24, 24).byte(),
        digits["images"][:0],
    ):
        with pytest.raises(ValueError, match="column 'glyph'"):
            SceneViews()(wrong)


def test_a_missing_photograph_is_named(monkeypatch):
    monkeypatch.setattr(photographs, "TEST_PHOTOGRAPHS", ("nowhere.png",))
    with pytest.raises(FileNotFoundError, match="nowhere.png is not where scikit-image keeps it"):
        photographs.bank("test", 11, 1)


def test_blank_digits_are_drawn_without_a_nan():
    scene = compose(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), seeded())
    assert all(torch.isfinite(v.float()).all() for v in scene.values()) and not scene["masks"].any()
    assert scene["boxes"].sum() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_as_on_the_cpu(digits):
    glyphs, views = digits["images"][:16], SceneViews(styles=STYLES, channels=3)
    here, there = views(glyphs, seeded()), views(glyphs.cuda(), seeded())
    assert all(b.is_cuda for b in there)
    torch.testing.assert_close([b.cpu() for b in there], here, atol=1e-3, rtol=0)
    own = views(glyphs.cuda(), torch.Generator("cuda").manual_seed(0))
    assert own[0].is_cuda
