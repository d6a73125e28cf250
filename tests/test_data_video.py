"""Video: moving digits against their own factors, made-up zips of frames; the real ones where SSL_NB_DATA has them."""

import io
import math
import zipfile

import pytest
import torch
from real_data import needs
from torchvision.io import encode_jpeg, encode_png

from ssl_nb.data import load, video
from ssl_nb.data.video import DIRECTIONS, SEQUENCES, clips, davis16, direction_of, moving_digits, video_sam2_bedroom

# ---- moving digits


def test_a_direction_is_the_nearest_of_eight():
    angle = torch.arange(8) * math.pi / 4
    for off in (-0.35, 0, 0.35):  # within the sector of 45 degrees
        ways = torch.stack([(angle + off).cos(), (angle + off).sin()], -1)
        assert direction_of(ways).tolist() == list(range(8))
    assert DIRECTIONS[direction_of(torch.tensor([0.0, 5.0]))] == "down"  # y is down


@pytest.fixture(scope="module")
def moving():
    return moving_digits(size=24, frames=4, n_train=300, n_test=100, seed=1)


def test_moving_digits_are_clips_with_their_factors(moving):
    assert moving.spec.shape == (4, 1, 24, 24) and moving.train.inputs == "clip" and moving.spec.modality == "video"
    assert (len(moving.train), len(moving.test)) == (300, 100) and moving.train["clip"].dtype == torch.uint8
    assert not set(moving.train["digit"].tolist()) & set(moving.test["digit"].tolist())
    assert not set(moving.train["background"].tolist()) & set(moving.test["background"].tolist())
    split = moving.train
    torch.testing.assert_close(split["position"][:, 1:] - split["position"][:, :-1], split["velocity"][:, :-1], atol=1e-4, rtol=0)
    assert torch.equal(split["direction"], direction_of(split["velocity"][:, 0]))
    assert torch.bincount(split["direction"], minlength=8).min() > 15
    turned = split["angle"][:, 1:] - split["angle"][:, :-1]
    torch.testing.assert_close(turned, split["spin"][:, None].expand_as(turned), atol=1e-3, rtol=0)
    grown = split["scale"][:, 1:] / split["scale"][:, :-1]
    torch.testing.assert_close(grown, split["growth"][:, None].expand_as(grown), atol=1e-4, rtol=0)


def test_the_digit_is_where_its_position_says(moving):
    masks, at = moving.train["masks"].float(), torch.arange(24) + 0.5
    mass = masks.sum((-2, -1))
    center = torch.stack([(masks.sum(-2) * at).sum(-1), (masks.sum(-1) * at).sum(-1)], -1) / mass[..., None]
    assert (center - moving.train["position"]).abs().mean() < 0.5


def test_moving_digits_repeat_with_their_seed(moving):
    again = moving_digits(size=24, frames=4, n_train=300, n_test=100, seed=1)
    assert torch.equal(moving.train["direction"], again.train["direction"])
    assert torch.equal(moving.test["clip"], again.test["clip"])
    other = moving_digits(size=24, frames=4, n_train=300, n_test=100, seed=2)
    assert not torch.equal(moving.train["digit"], other.train["digit"])
    with pytest.raises(ValueError, match="at least 2 frames.*got 1"):
        load("moving_digits", frames=1)
    with pytest.raises(ValueError, match="size at least 8"):
        load("moving_digits", size=4)


# ---- clips


@pytest.mark.parametrize("frames, length, number", [(10, 5, 2), (11, 5, 2), (5, 5, 1), (4, 1, 4)])
def test_clips_do_not_overlap(frames, length, number):
    cut = clips(torch.arange(frames), length)
    assert cut.shape == (number, length) and cut.flatten().tolist() == list(range(number * length))


@pytest.mark.parametrize("length", [0, 11])
def test_clips_of_no_frames_or_too_many(length):
    with pytest.raises(ValueError, match=f"from 1 to the 10 frames.*got {length}"):
        clips(torch.arange(10), length)


# ---- zips


def jpeg(gray, height=30, width=50):
    "A picture whose middle square has one gray and whose sides are black."
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    side = min(height, width)
    image[:, :, (width - side) // 2 : (width + side) // 2] = gray
    return bytes(encode_jpeg(image, quality=95).tolist())


def png(covered, height=30, width=50):
    "A mask whose upper part is set; `covered` is its share."
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, : round(height * covered)] = 255
    return bytes(encode_png(mask).tolist())


def zipped(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def davis_files(frames=5):
    files = {}
    for k, name in enumerate(SEQUENCES):
        for i in range(frames):
            files[f"DAVIS/JPEGImages/480p/{name}/{i:05}.jpg"] = jpeg(20 * k + 10 * i)
            files[f"DAVIS/Annotations/480p/{name}/{i:05}.png"] = png(k / 10)
    return files


@pytest.fixture
def put(made_up, monkeypatch):
    "Writes a made-up zip for a set, with its checksum."

    def write(constant, folder, content):
        folder, [file] = made_up(folder, {getattr(video, constant).name: content})
        monkeypatch.setattr(video, constant, file)
        return folder / file.name

    return write


def test_frames_and_masks_of_davis(put):
    path = put("_DAVIS", "davis16", zipped(davis_files()))
    found = load("davis16", size=10, frames=2)
    assert found.spec.shape == (2, 3, 10, 10) and found.spec.group == "sequence"
    assert (len(found.train), len(found.test)) == (10, 4)  # two clips of five frames
    assert found.train["sequence"].unique().tolist() == [0, 1, 2, 3, 4] and found.test["sequence"].unique().tolist() == [5, 6]
    for split in (found.train, found.test):
        for clip, masks, k, start in zip(split["clip"], split["masks"], split["sequence"], split["start"], strict=True):
            gray = 20 * k + 10 * (start + torch.arange(2))
            middle = clip[..., 1:-1, 1:-1].float().mean((1, 2, 3))
            assert (middle - gray).abs().max() < 4  # JPEG is lossy
            assert masks.dtype == torch.bool and masks.float().mean() == pytest.approx(k.item() / 10, abs=1e-6)
    path.unlink()
    assert torch.equal(davis16(size=10, frames=2).train["clip"], found.train["clip"])  # from the cache
    assert davis16(size=10, frames=5).train["clip"].shape == (5, 5, 3, 10, 10)
    with pytest.raises(ValueError, match="from 1 to the 5 frames"):
        davis16(size=10, frames=6)


def test_faulty_zips_are_refused(put):
    files = davis_files(2)
    broken = dict(files) | {"DAVIS/JPEGImages/480p/dog/00001.jpg": b"no picture"}
    put("_DAVIS", "davis16", zipped(broken))
    with pytest.raises(ValueError, match="davis16_7seq.zip .*dog/00001.jpg does not decode"):
        davis16(size=8, frames=2)
    put("_DAVIS", "davis16", zipped({n: c for n, c in files.items() if "Annotations/480p/libby" not in n}))
    with pytest.raises(ValueError, match="2 frames and 0 masks of libby"):
        davis16(size=8, frames=2)
    path = put("_DAVIS", "davis16", zipped(files)[:-40])
    with pytest.raises(ValueError, match="does not unpack"):
        davis16(size=8, frames=2)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match="its md5 is .*Delete it"):
        davis16(size=8, frames=2)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="SSL_NB_DATA to the folder whose subfolder davis16"):
        davis16(size=8, frames=2)
    for wrong in (dict(size=0), dict(frames=0)):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            davis16(**wrong)


def test_a_recording_is_split_by_time(put):
    put("_BEDROOM", "video_sam2_bedroom", zipped({f"{4 * i:05}.jpg": jpeg(4 * i) for i in range(50)}))
    found = load("video_sam2_bedroom", size=8)
    assert (len(found.train), len(found.test)) == (8, 2) and found.spec.group is None and "one recording" in found.spec.notes
    assert found.train["start"].tolist() == list(range(0, 40, 5)) and found.test["start"].tolist() == [40, 45]
    gray = found.test["clip"][..., 1:-1, 1:-1].float().mean((2, 3, 4)).flatten()
    assert (gray - 4 * torch.arange(40, 50)).abs().max() < 4
    assert len(video_sam2_bedroom(size=8, frames=25).test) == 1
    with pytest.raises(ValueError, match="two clips of 26 frames do not fit into 50"):
        video_sam2_bedroom(size=8, frames=26)


# ---- the real ones


@needs("davis16")
def test_real_davis():
    single = load("davis16", size=32, frames=1)
    assert len(single.train) + len(single.test) == 341
    counts = torch.bincount(torch.cat([single.train["sequence"], single.test["sequence"]]))
    assert counts.tolist() == [50, 40, 60, 52, 50, 49, 40] and SEQUENCES[2] == "dog"
    covered = single.train["masks"].float().mean()
    assert 0.05 < covered < 0.3 and not set(single.train["sequence"].tolist()) & set(single.test["sequence"].tolist())


@needs("video_sam2_bedroom")
def test_real_bedroom():
    found = load("video_sam2_bedroom", size=32, frames=1)
    assert (len(found.train), len(found.test)) == (40, 10) and found.train["clip"].float().std() > 20
