"""ssl_nb.views: operations beside torchvision, samplers beside definitions, promises of a view maker."""

import colorsys
import dataclasses
import itertools
import math
import multiprocessing
import os

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ssl_nb import views as V
from ssl_nb.views import parts

BICUBIC, BILINEAR = tv.InterpolationMode.BICUBIC, tv.InterpolationMode.BILINEAR


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, c=3, h=32, w=32, seed=0):
    """Noise, and the edge cases of hue: a gray, a black, a white image, and one with two equal channels."""
    x = torch.rand(n, c, h, w, generator=seeded(seed))
    x[0], x[1], x[2] = x[0, :1], 0.0, 1.0
    if c == 3:
        x[3, 1] = x[3, 0]
    return x


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


# ---------------------------------------------------------------- operations


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_crop_resize_equals_torchvision(data):
    h, w = data.draw(st.integers(1, 40), "h"), data.draw(st.integers(1, 40), "w")
    size = data.draw(st.tuples(st.integers(1, 48), st.integers(2, 48)), "size")
    tall, wide = data.draw(st.integers(1, h), "tall"), data.draw(st.integers(1, w), "wide")
    top, left = data.draw(st.integers(0, h - tall), "top"), data.draw(st.integers(0, w - wide), "left")
    filter, mode = data.draw(st.sampled_from([("bilinear", BILINEAR), ("bicubic", BICUBIC)]), "filter")
    x = torch.rand(2, 3, h, w, generator=seeded(h * 41 + w))
    box = torch.tensor([[top, left, tall, wide]] * 2)
    ours = V.crop_resize(x, box, size, torch.tensor([False, True]), filter)
    theirs = tv.resized_crop(x, top, left, tall, wide, list(size), interpolation=mode, antialias=True).clamp(
        0, 1
    )
    same(ours, torch.stack([theirs[0], theirs[1].flip(-1)]))


def test_crop_resize_to_a_line():
    """torch 2.15 loses the height of a view of width 1, so the oracle is a turned image with height 1."""
    x = images(4, h=9, w=7)
    lying = tv.resized_crop(x.mT.contiguous(), 2, 1, 4, 7, [1, 5], antialias=True)
    same(V.crop_resize(x, torch.tensor([[1, 2, 7, 4]] * 4), (5, 1)), lying.mT)


def test_every_image_has_its_own_box():
    x, boxes = images(16), V.random_boxes(16, 32, 32, generator=seeded())
    theirs = [
        tv.resized_crop(i, *b.int().tolist(), [24, 24], antialias=True) for i, b in zip(x, boxes, strict=True)
    ]
    same(V.crop_resize(x, boxes, 24), torch.stack(theirs))


def test_interpolation_rows_sum_to_one():
    for filter in ("bilinear", "bicubic"):
        a = V.interpolation_matrix(torch.tensor([3.0, 0]), torch.tensor([5.0, 40]), 40, 17, None, filter)
        same(a.sum(-1), torch.ones(2, 17))
        assert (a[0, :, :3] == 0).all() and (a[0, :, 8:] == 0).all(), "pixels outside the crop were used"


def neutral(n, **given):
    one = torch.ones(n)
    return (
        dict(brightness=one, contrast=one, saturation=one, hue=None, order=torch.arange(4).expand(n, 4))
        | given
    )


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_one_linear_color_operation(name, c):
    x, factor = images(20, c), torch.rand(20, generator=seeded(1)) * 2
    theirs = [getattr(tv, f"adjust_{name}")(i, f) for i, f in zip(x, factor.tolist(), strict=True)]
    same(V.color_jitter(x, **neutral(20, **{name: factor})), torch.stack(theirs))


def test_hue_equals_torchvision_and_colorsys():
    x, turn = images(20), torch.rand(20, generator=seeded(1)) - 0.5
    turn[:3], turn[4:6] = 0.25, torch.tensor([0.5, -0.5])
    ours = V.adjust_hue(x, turn)
    same(ours, torch.stack([tv.adjust_hue(i, f) for i, f in zip(x, turn.tolist(), strict=True)]))
    h, s, v = colorsys.rgb_to_hsv(*x[7, :, 3, 5].tolist())
    same(ours[7, :, 3, 5], torch.tensor(colorsys.hsv_to_rgb((h + turn[7].item()) % 1, s, v)))


def test_hue_of_pure_colors():
    red, green, blue = torch.eye(3)[:, :, None, None].split(1)
    third = torch.tensor([1 / 3])
    same(V.adjust_hue(red, third), green)
    same(V.adjust_hue(green, third), blue)
    same(V.adjust_hue(blue, third), red)


@pytest.mark.parametrize("c", [1, 3])
def test_jitter_in_all_orders_equals_torchvision(c):
    orders = torch.tensor(list(itertools.permutations(range(4))))
    n, g = len(orders) * 3, seeded(2)
    x, order = images(n, c), orders.repeat(3, 1)
    b, k, s = torch.rand(3, n, generator=g) * 1.6 + 0.2
    hue = torch.rand(n, generator=g) - 0.5
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)

    def one(i):
        image = x[i]
        for step in order[i].tolist():
            image = operations[step](image, (b, k, s, hue)[step][i].item())
        return image

    same(V.color_jitter(x, b, k, s, hue, order), torch.stack([one(i) for i in range(n)]))


def test_grayscale_and_solarize():
    x = images(8)
    same(V.grayscale(x), tv.rgb_to_grayscale(x, 3))
    same(V.grayscale(x[:, :1]), x[:, :1], 0)
    same(V.solarize(x, 0.3), tv.solarize(x, 0.3))


@pytest.mark.parametrize("radius", [1, 4, 11])
def test_blur_equals_torchvision(radius):
    x, sigma = images(8, h=20, w=30), torch.rand(8, generator=seeded(1)) * 2 + 0.1
    taps = [2 * radius + 1] * 2
    theirs = [tv.gaussian_blur(i, taps, [s, s]) for i, s in zip(x, sigma.tolist(), strict=True)]
    same(V.gaussian_blur(x, sigma, radius), torch.stack(theirs))


def test_blur_too_wide_says_so():
    with pytest.raises(ValueError, match="radius=7 or less"):
        V.gaussian_blur(images(4, h=8, w=9), torch.ones(4), 8)


def test_affine_equals_torchvision():
    n, g = 12, seeded(3)
    x = images(n, h=24, w=32)
    angle, scale = torch.rand(n, generator=g) * 360 - 180, torch.rand(n, generator=g) + 0.5
    shift, shear = torch.rand(n, 2, generator=g) * 10 - 5, torch.rand(n, 2, generator=g) * 40 - 20
    theirs = [
        tv.affine_image(
            x[i], angle[i].item(), shift[i].tolist(), scale[i].item(), shear[i].tolist(), BILINEAR
        )
        for i in range(n)
    ]
    same(V.affine(x, angle, shift, scale, shear), torch.stack(theirs), 1e-4)


def test_affine_fill_is_the_value_outside():
    x, one = torch.full((1, 1, 8, 8), 0.25), torch.ones(1)
    moved = V.affine(x, 0 * one, torch.tensor([[4.0, 0]]), one, torch.zeros(1, 2), fill=0.75)
    same(moved[0, 0, :, :4], torch.full((8, 4), 0.75))
    same(moved[0, 0, :, 4:], torch.full((8, 4), 0.25))


def test_noise_and_erase_equal_torchvision():
    x = images(6)
    noise = torch.randn(x.shape, generator=seeded(5))
    torch.manual_seed(5)
    same(V.add_noise(x, noise, torch.full((6,), 0.1)), tv.gaussian_noise(x, sigma=0.1))
    boxes = torch.tensor(
        [[2, 3, 10, 7], [0, 0, 0, 0], [0, 0, 32, 32], [31, 31, 1, 1], [5, 0, 1, 32], [0, 9, 9, 9]]
    )
    theirs = [tv.erase(i, *b.tolist(), torch.tensor(0.5)) for i, b in zip(x, boxes, strict=True)]
    same(V.erase(x, boxes, 0.5), torch.stack(theirs), 0)


# ---------------------------------------------------------------- random parameters


def torchvision_boxes(part, n, h, w):
    torch.manual_seed(0)
    image = torch.empty(3, h, w)
    drawn = [part.make_params([image]) for _ in range(n)]
    return torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).float()


@pytest.mark.parametrize(
    "h, w, scale", [(224, 224, (0.08, 1.0)), (224, 300, (0.4, 1.0)), (64, 200, (0.9, 1.0))]
)
def test_boxes_are_distributed_as_torchvisions(h, w, scale):
    theirs = torchvision_boxes(T.RandomResizedCrop(32, scale=scale), 4000, h, w)
    ours = V.random_boxes(20_000, h, w, scale, generator=seeded())
    values = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
    }
    for name, value in values.items():
        assert stats.ks_2samp(value(ours).numpy(), value(theirs).numpy()).pvalue > 1e-3, name


def test_small_boxes_have_uniform_area_and_log_uniform_ratio():
    """Where every try fits, nothing is rejected, and the definition holds without the lean."""
    b = V.random_boxes(20_000, 4000, 4000, (0.05, 0.4), generator=seeded())
    area, log_ratio = b[:, 2] * b[:, 3] / 4000**2, (b[:, 3] / b[:, 2]).log()
    assert stats.kstest(area.numpy(), stats.uniform(0.05, 0.35).cdf).pvalue > 1e-3
    low = math.log(3 / 4)
    assert stats.kstest(log_ratio.numpy(), stats.uniform(low, -2 * low).cdf).pvalue > 1e-3


def test_positions_of_a_box_are_equally_likely():
    b = V.random_boxes(20_000, 10, 10, (0.36, 0.36), (1.0, 1.0), seeded())
    assert (b[:, 2:] == 6).all()
    counts = torch.bincount(b[:, 0].long() * 5 + b[:, 1].long(), minlength=25)
    assert len(counts) == 25 and stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "h, w, expected",
    [
        (8, 100, [0, 44, 8, 11]),  # very wide: the widest ratio allowed, centered
        (100, 8, [44, 0, 11, 8]),
        (10, 10, [0, 0, 10, 10]),
    ],
)
def test_when_no_try_fits_the_crop_is_central(h, w, expected):
    torch.manual_seed(0)
    b = V.random_boxes(50, h, w, (1.0, 1.0), (3 / 4, 4 / 3), seeded())
    central = torch.tensor(expected).float()
    assert (b == central).all(1).float().mean() > 0.9
    params = T.RandomResizedCrop(8, scale=(1.0, 1.0)).make_params([torch.empty(3, h, w)])
    assert [params[k] for k in ("top", "left", "height", "width")] == expected


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0.01, 1.0), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_boxes_lie_within_the_image(h, w, smallest, seed):
    b = V.random_boxes(64, h, w, (smallest, 1.0), generator=seeded(seed))
    assert (b == b.round()).all() and (b[:, :2] >= 0).all() and (b[:, 2:] >= 1).all()
    assert (b[:, 0] + b[:, 2] <= h).all() and (b[:, 1] + b[:, 3] <= w).all()


def test_erasures_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    part, image = T.RandomErasing(p=1.0), torch.empty(3, 48, 64)
    drawn = [part.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[d["i"], d["j"], d["h"], d["w"]] for d in drawn]).float()
    ours = V.random_erasures(20_000, 48, 64, generator=seeded())
    for k in range(4):
        assert stats.ks_2samp(ours[:, k].numpy(), theirs[:, k].numpy()).pvalue > 1e-3, (
            "top left height width".split()[k]
        )


def test_when_no_erasure_fits_nothing_is_erased():
    x = images(8)
    boxes = V.random_erasures(8, 32, 32, scale=(1.0, 1.0), ratio=(1.0, 1.0), generator=seeded())
    same(V.erase(x, boxes, 0.5), x, 0)


def test_jitter_parameters():
    b, k, s, hue, order = V.random_jitter(20_000, 0.8, 1.5, 0.2, 0.1, seeded())
    for values, low, width in ((b, 0.2, 1.6), (k, 0.0, 2.5), (s, 0.8, 0.4), (hue, -0.1, 0.2)):
        assert stats.kstest(values.numpy(), stats.uniform(low, width).cdf).pvalue > 1e-3
    which = (order * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(which) == 24 and stats.chisquare(which.numpy()).pvalue > 1e-3, "orders are not equally likely"


def test_affine_blur_and_noise_parameters():
    angle, shift, scale, shear = V.Affine(30, 0.1, (0.8, 1.2), 5).draw(20_000, (1, 20, 40), seeded())
    (blur,) = V.Blur().draw(20_000, (1, 20, 40), seeded())
    noise, sigma = V.Noise((0.0, 0.2)).draw(2000, (1, 4, 4), seeded())
    expected = [
        (angle, -30, 60),
        (shift[:, 0], -4, 8),
        (shift[:, 1], -2, 4),
        (scale, 0.8, 0.4),
        (shear[:, 0], -5, 10),
        (blur, 0.1, 1.9),
        (sigma, 0, 0.2),
    ]
    for values, low, width in expected:
        assert stats.kstest(values.numpy(), stats.uniform(low, width).cdf).pvalue > 1e-3
    assert stats.kstest(noise.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    assert (shear[:, 1] == 0).all()


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_p_is_the_share_of_images_touched(p):
    n = 2000
    x = torch.full((n, 1, 2, 2), 0.75)
    (view,) = V.Views([V.Solarize(p=p)])(x, seeded())
    touched = int((view[:, 0, 0, 0] == 0.25).sum())
    assert touched == p * n if p in (0, 1) else stats.binomtest(touched, n, p).pvalue > 1e-3


# ---------------------------------------------------------------- parts and views


ALL_PARTS = [
    V.Crop(20),
    V.Jitter(0.4, 0.4, 0.4, 0.1, p=0.8),
    V.Grayscale(p=0.3),
    V.Blur(p=0.5),
    V.Solarize(p=0.3),
    V.Flip(),
    V.Affine(20, 0.1, (0.9, 1.1), 5, p=0.7),
    V.Noise(p=0.5),
    V.Erase(p=0.5),
]


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_every_part_on_every_input(c, dtype):
    x = images(6, c, 24, 28)
    x = (x * 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)
    before = x.clone()
    for recipe in [
        ALL_PARTS,
        *([p] for p in ALL_PARTS),
        [dataclasses.replace(V.Solarize(), p=0.5), V.Crop((9, 13))],
    ]:
        (view,) = V.Views(recipe)(x, seeded())
        assert view.dtype == torch.float32 and view.is_contiguous() and not view.requires_grad
        assert 0 <= view.min() and view.max() <= 1
        assert torch.equal(x, before), f"{recipe} changed its input"


def test_bytes_and_floats_give_the_same_views():
    x = (images(6) * 255).to(torch.uint8)
    make = V.create("byol", size=24)
    for a, b in zip(make(x, seeded()), make(x.float() / 255, seeded()), strict=True):
        same(a, b)


def test_same_seed_same_views_whatever_the_piece(monkeypatch):
    x = images(70)
    for name in V.names():
        make = V.create(name, size=32)
        whole = make(x, seeded(7))
        assert all(torch.equal(a, b) for a, b in zip(whole, make(x, seeded(7)), strict=True))
        assert not torch.equal(whole[0], make(x, seeded(8))[0])
        monkeypatch.setattr(parts, "_PIECE", 40_000)
        for a, b in zip(whole, make(x, seeded(7)), strict=True):
            same(a, b, 1e-5)
        monkeypatch.undo()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_change_nothing(threads):
    x, make = images(300), V.create("dino", size=32)
    threads(1)
    alone = make(x, seeded())
    threads(3)
    together = make(x, seeded())
    assert torch.get_num_threads() == 3
    for a, b in zip(alone, together, strict=True):
        same(a, b)


def test_an_error_in_a_piece_comes_out(threads):
    @dataclasses.dataclass(frozen=True)
    class Broken(V.Part):
        def apply(self, images):
            raise RuntimeError("the part is broken")

    threads(2)
    with pytest.raises(RuntimeError, match="the part is broken"):
        V.Views([V.Crop(32), Broken()])(images(500), seeded())


def _workers_of_a_child(queue):
    torch.set_num_threads(1)  # as in every loader's worker; torch itself does not survive a fork with more
    queue.put(list(parts._workers(2).map(lambda k: k + 1, [1, 2])))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_workers_of_its_own(threads):
    assert list(parts._workers(2).map(lambda k: k + 1, [1, 2])) == [2, 3]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_workers_of_a_child, args=(queue,), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0 and queue.get() == [2, 3]


def test_autocast_and_inference_mode_change_nothing(threads):
    x, make = images(300), V.create("simclr", size=32)
    for n in (1, 2):
        threads(n)
        plain = make(x, seeded())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(make(x, seeded())[0], plain[0])
        with torch.inference_mode():
            made = make(x.clone(), seeded())
        assert torch.equal(made[0], plain[0]) and not made[0].is_inference()


@given(st.integers(0, 2000), st.integers(1, 10**6), st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_pieces_cover_the_batch_once(n, floats, threads):
    pieces = parts._pieces(n, floats, threads)
    rows = [i for p in pieces for i in range(n)[p]]
    assert rows == list(range(n)) and all(len(range(n)[p]) for p in pieces)


def test_a_generator_goes_on_and_without_one_torch_manual_seed_counts():
    x, make, g = images(4), V.create("simclr", size=16), seeded()
    assert not torch.equal(make(x, g)[0], make(x, g)[0])
    torch.manual_seed(3)
    a = make(x)
    torch.manual_seed(3)
    assert torch.equal(a[0], make(x)[0])


def test_views_of_one_image_are_independent_of_each_other_and_of_other_images():
    """No two views share a box, and the copies of a recipe are not shuffled among images."""
    x = torch.arange(1, 9).float().view(8, 1, 1, 1).expand(8, 3, 16, 16) / 8  # image i is flat, value i / 8
    for view in V.Views(*[[V.Crop(8)]] * 5)(x, seeded()):
        same(view, x[:, :, :8, :8])
    ramp = torch.linspace(0, 1, 64).expand(400, 1, 64, 64)
    a, b = (v.mean((1, 2, 3)) for v in V.Views([V.Crop(8)], [V.Crop(8)])(ramp, seeded()))
    assert abs(stats.pearsonr(a.numpy(), b.numpy()).statistic) < 0.2


def test_pipeline_is_its_operations_in_order():
    """A view maker, taken apart: the same draws fed to the pure operations by hand."""
    x, g = images(5), seeded(4)
    recipe = [V.Crop(16, filter="bicubic"), V.Jitter(0.4, 0.4, 0.4, 0.1), V.Blur(radius=3)]
    (view,) = V.Views(recipe)(x, seeded(4))
    for part in recipe:
        x = part.apply(x, *part.draw(5, tuple(x.shape[1:]), g))
    same(view, x)


def test_gray_images_stay_in_range_and_ignore_color():
    x = images(6, c=1)
    strong, plain = ([V.Crop(16), V.Jitter(saturation=s, hue=h)] for s, h in ((0.9, 0.5), (0.0, 0.0)))
    a, b = V.Views(strong)(x, seeded())[0], V.Views(plain)(x, seeded())[0]
    same(a, b)


@pytest.mark.parametrize("name", ["simclr", "byol", "dino", "mae"])
def test_batches_of_none_and_one(name):
    for n in (0, 1):
        for view in V.create(name, size=32)(images(4)[:n], seeded()):
            assert view.shape[0] == n and view.isfinite().all()


def test_operations_compile_without_a_break():
    b, k, s, hue, order = V.random_jitter(4, 0.4, 0.4, 0.4, 0.1, seeded())
    x, boxes = images(4), V.random_boxes(4, 32, 32, generator=seeded())

    def view(x):
        return V.solarize(V.color_jitter(V.crop_resize(x, boxes, 16), b, k, s, hue, order))

    same(torch.compile(view, backend="eager", fullgraph=True)(x), view(x))


# ---------------------------------------------------------------- presets


def recipes(name, **knobs):
    return V.create(name, **knobs).recipes


def test_simclr_is_the_papers():
    first, second = recipes("simclr", size=224)
    assert (
        first
        == second
        == (
            V.Crop(224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5),
            V.Jitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            V.Grayscale(p=0.2),
            V.Blur((0.1, 2.0), p=0.5),
        )
    )


def test_simclr_for_cifar_is_appendix_b9():
    first, _ = recipes("simclr", size=32)
    assert first == (V.Crop(32), V.Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), V.Grayscale(p=0.2))
    assert V.Blur(p=0.5) in recipes("simclr", size=32, blur=0.5)[0]


def test_byol_is_table_6():
    first, second = recipes("byol", size=224)
    common = (V.Crop(224, filter="bicubic"), V.Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), V.Grayscale(p=0.2))
    assert first == (*common, V.Blur(p=1.0)) and second == (*common, V.Blur(p=0.1), V.Solarize(0.5, p=0.2))


def test_handwriting_moves_the_ink_and_never_mirrors_it():
    first, second = recipes("handwriting", size=28)
    assert first == second and not any(isinstance(p, V.Flip) or getattr(p, "flip", 0) for p in first)
    x = torch.zeros(64, 1, 28, 28)
    x[:, :, 6:22, 8:12] = x[:, :, 18:22, 8:20] = 1.0  # an L, whose foot points right
    made = V.create("handwriting", size=28, scale=(1.0, 1.0))(x, seeded())[0]
    columns = torch.arange(28.0)
    parts = [made[:, 0, rows] for rows in (slice(18, 26), slice(4, 14))]
    foot, stem = ((part.sum(1) * columns).sum(1) / part.sum((1, 2)) for part in parts)
    assert (foot > stem).all()


def test_dino_is_the_authors_code():
    first, second, *local = recipes("dino", size=224)
    assert len(local) == 8 and len(set(local)) == 1
    assert first[0] == second[0] == V.Crop(224, (0.4, 1.0), filter="bicubic")
    assert local[0][0] == V.Crop(96, (0.05, 0.4), filter="bicubic")
    assert [r[3].p for r in (first, second, local[0])] == [1.0, 0.1, 0.5]
    assert V.Solarize(0.5, p=0.2) in second and not any(isinstance(p, V.Solarize) for p in first + local[0])


@pytest.mark.parametrize("size, local", [(224, 96), (96, 40), (64, 24), (32, 16), (8, 8)])
def test_local_size_of_dino(size, local):
    assert recipes("dino", size=size)[-1][0].size == local
    assert recipes("dino", size=size, local_size=10, local_views=6)[-1][0].size == 10


def test_mae_is_crop_and_flip():
    assert recipes("mae", size=224) == [(V.Crop(224, (0.2, 1.0), filter="bicubic"),)]


@pytest.mark.parametrize("size, radius", [(224, 11), (96, 4), (32, 1), (16, 1)])
def test_blur_kernel_spans_a_tenth_of_the_side(size, radius):
    x = torch.zeros(1, 1, size, size)
    x[..., size // 2, size // 2] = 1
    lit = V.Blur().apply(x, torch.tensor([2.0])).amax((0, 1, 2)).nonzero()
    assert len(lit) == 2 * radius + 1


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: V.create("simclir", size=32), "did you mean 'simclr'"),
        (lambda: V.create("dino", size=32, local_view=3), "did you mean 'local_views'"),
        (lambda: V.create("mae"), "size=32"),
        (lambda: V.create("simclr", size=0), "positive number of pixels"),
        (lambda: V.create("simclr", size=32, scale=(0.5, 0.2)), "smallest, largest"),
        (lambda: V.create("simclr", size=32, gray=1.5), "from 0 to 1"),
        (lambda: V.Crop(32, p=0.5), "for all images"),
        (lambda: V.Crop(32, filter="nearest"), "bilinear, bicubic"),
        (lambda: V.Jitter(hue=0.7), "at most 0.5"),
        (lambda: V.Views(V.Crop(32)), "one list of parts"),
        (lambda: V.Views([torch.nn.Identity()]), "one list of parts"),
        (lambda: V.create("mae", size=8)(torch.zeros(3, 8, 8)), "Stack single images"),
        (lambda: V.create("mae", size=8)(torch.zeros(2, 8, 8, 3)), "channels before"),
        (lambda: V.create("mae", size=8)([1, 2]), "got list"),
        (lambda: V.create("mae", size=8)(torch.zeros(2, 3, 8, 8).int()), "uint8"),
        (lambda: V.create("mae", size=8)(torch.full((2, 3, 8, 8), 128.0)), "Divide bytes by 255"),
        (lambda: V.create("mae", size=8)(torch.full((2, 3, 8, 8), math.nan)), "nan"),
    ],
)
def test_messages_name_the_mend(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------- GPU, benchmark


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_gpu_gives_the_same_views_without_waiting(where):
    x, make = images(64), V.create("dino", size=32)
    make(x.cuda(), torch.Generator(where).manual_seed(0))
    if where == "cuda":
        device, generator = x.cuda(), torch.Generator("cuda").manual_seed(0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            make(device, generator)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        for a, b in zip(make(x, seeded()), make(x.cuda(), seeded()), strict=True):
            same(a, b.cpu(), 1e-4)
