"""COCO in small: made-up archives in its layout, captions, outlines and boxes; the real one where SSL_NB_DATA has it."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from real_data import needs, real
from torchvision.io import encode_jpeg

from ssl_nb.data import coco, load
from ssl_nb.data.coco import LICENSES, captions_of, tiny_coco
from ssl_nb.data.text import texts

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
HEIGHT, WIDTH = 40, 80


def square(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(i, image, polygons, box, category=18):
    return {"id": i, "image_id": image, "segmentation": polygons, "bbox": box, "category_id": category, "iscrowd": 0, "area": 1.0}


def archive(**changes):
    "Four images in two parts; the first has a square, a shape in two parts and a crowd, the others nothing."
    files = {}
    for part, ids in (("train2017", (7, 3)), ("val2017", (9, 8))):
        images = [{"id": i, "file_name": f"{i:012}.jpg", "height": HEIGHT, "width": WIDTH, "license": 1 + i % 8} for i in ids]
        for i in ids:
            image = torch.full((3, HEIGHT, WIDTH), 20 * i, dtype=torch.uint8)
            files[f"{part}/{i:012}.jpg"] = bytes(encode_jpeg(image, quality=95).tolist())
        runs = np.zeros((HEIGHT, WIDTH), int)
        runs[:10, 40:60] = 1  # rows 0 to 9, columns 40 to 59
        counts = [40 * 40] + [10, 30] * 19 + [10, 30 + 20 * 40]
        crowd = annotation(5, ids[1], {"counts": counts, "size": [HEIGHT, WIDTH]}, [40, 0, 20, 10], 1) | {"iscrowd": 1}
        objects = [crowd, annotation(2, ids[1], [square(0, 0, 20, 10), square(40, 20, 80, 40)], [0, 0, 80, 40], 90),
                   annotation(1, ids[1], [square(20, 10, 60, 30)], [20, 10, 40, 20])]  # fmt: skip
        pairs = [(i, k) for k in (4, 3, 2, 1, 0) for i in ids]
        spoken = [{"id": 100 * i + k, "image_id": i, "caption": f" image {i}, é, caption {k} "} for i, k in pairs]
        for kind, annotations, categories in (("instances", objects, CATEGORIES), ("captions", spoken, [])):
            table = {"images": images, "annotations": annotations, "categories": categories}
            files[f"annotations/{kind}_{part}.json"] = json.dumps(table)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as out:
        for name, data in (files | changes.get("files", {})).items():
            if name not in changes.get("without", ()):
                out.writestr(name, data)
    return content.getvalue()


@pytest.fixture
def put(made_up, monkeypatch):
    "Writes a made-up archive, with its checksum."

    def write(content):
        folder, [file] = made_up("tiny_coco", {"tiny_coco.zip": content})
        monkeypatch.setattr(coco, "_FILE", file)
        return folder / file.name

    return write


# ---- a made-up archive


def test_images_captions_and_their_order(put):
    put(archive())
    found = load("tiny_coco", size=20)
    assert found.spec.shape == (3, 20, 20) and found.spec.classes == ("person", "dog", "toothbrush")
    assert found.train.inputs == "images" and found.spec.modality == "image-text"
    assert found.train["image_id"].tolist() == [3, 7] and found.test["image_id"].tolist() == [8, 9]
    for split in (found.train, found.test):
        assert (split["images"].float().mean((1, 2, 3)) - 20 * split["image_id"]).abs().max() < 3
        assert split["license"].tolist() == [1 + i % 8 for i in split["image_id"].tolist()]
        assert set(LICENSES) >= set(split["license"].tolist())
        assert split["full_size"].tolist() == [[HEIGHT, WIDTH]] * 2
        assert texts(captions_of(split)) == [f"image {i}, é, caption {k}" for i in split["image_id"].tolist() for k in range(5)]
    turned = found.train[[1, 0, 1]]  # a batch with an image twice
    assert texts(captions_of(turned)[torch.arange(3) * 5 + 2]) == [f"image {i}, é, caption 2" for i in (7, 3, 7)]


def test_masks_and_boxes_are_scaled_with_the_image(put):
    put(archive())
    split = tiny_coco(size=20).train
    assert split["masks"].lengths.tolist() == [0, 3] or split["masks"].lengths.tolist() == [3, 0]
    row = split[int(split["masks"].lengths.argmax())]
    assert row["categories"].values.tolist() == [1, 2, 0] and row["crowd"].values.tolist() == [False, False, True]
    boxes = torch.tensor([[5.0, 5, 15, 15], [0, 0, 20, 20], [10, 0, 15, 5]])  # 80 x 40 pixels become 20 x 20
    torch.testing.assert_close(row["boxes"].values, boxes)
    expected = torch.zeros(3, 20, 20, dtype=torch.bool)
    expected[0, 5:15, 5:15] = True
    expected[1, :5, :5] = expected[1, 10:, 10:] = True
    expected[2, :5, 10:15] = True
    assert torch.equal(row["masks"].values, expected)


@pytest.mark.parametrize("size", [7, 16, 33])
def test_a_mask_has_the_pixels_whose_centers_are_inside(size):
    from matplotlib.path import Path

    rng = np.random.default_rng(size)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
    x, y = 30 + 25 * rng.uniform(0.4, 1, 9) * np.cos(angle), 20 + 18 * rng.uniform(0.4, 1, 9) * np.sin(angle)
    mask = coco._polygon_mask([np.stack([x, y], 1).flatten().tolist()], 40, 60, size)
    centers = (np.stack(np.meshgrid(*[np.arange(size) + 0.5] * 2), -1) / size * [60, 40]).reshape(-1, 2)
    assert (mask.flatten() == Path(np.stack([x, y], 1)).contains_points(centers)).all() and mask.any()


def test_a_run_mask_at_full_size_is_the_inverse_of_its_runs():
    full = np.random.default_rng(0).random((12, 12)) > 0.5
    column = full.T.flatten()
    ends = np.flatnonzero(np.diff(column)) + 1
    counts = np.diff(np.concatenate([[0], ends, [len(column)]])).tolist()
    mask = coco._run_mask(counts if not column[0] else [0, *counts], 12, 12, 12)
    assert (mask == full).all()


@pytest.mark.parametrize("changes, word", [
    (dict(without=("train2017/000000000003.jpg",)), "it has no .*000000000003.jpg"),
    (dict(without=("annotations/captions_val2017.json",)), "it has no .*captions_val2017.json"),
    (dict(files={"val2017/000000000009.jpg": b"no picture"}), "000000000009.jpg does not decode"),
    (dict(files={"annotations/captions_train2017.json": json.dumps({"annotations": []})}), "has not 5 captions"),
])  # fmt: skip
def test_faulty_archives_are_refused(put, changes, word):
    put(archive(**changes))
    with pytest.raises(ValueError, match=f"tiny_coco.zip .*{word}"):
        tiny_coco(size=8)


def test_a_truncated_or_missing_archive_and_a_wrong_size(put):
    path = put(archive()[:-30])
    with pytest.raises(ValueError, match="does not unpack"):
        tiny_coco(size=8)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match="its md5 is .*Delete it"):
        tiny_coco(size=8)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="SSL_NB_DATA to the folder whose subfolder tiny_coco"):
        tiny_coco(size=8)
    with pytest.raises(ValueError, match="size of at least 1, got 0"):
        load("tiny_coco", size=0)


# ---- the real one


@needs("tiny_coco")
def test_real_counts_and_areas():
    found = load("tiny_coco", size=256)
    splits = (found.train, found.test)
    assert [len(s) for s in splits] == [50, 50] and sum(len(captions_of(s)) for s in splits) == 500
    assert sum(len(s["masks"].values) for s in splits) == 852 and len(found.spec.classes) == 80
    assert not set(found.train["image_id"].tolist()) & set(found.test["image_id"].tolist())
    assert all(t.strip() == t and len(t) > 10 for s in splits for t in texts(captions_of(s)))
    with zipfile.ZipFile(os.path.join(real, "tiny_coco", "tiny_coco.zip")) as archive:
        known = json.loads(archive.read("annotations/instances_val2017.json"))["annotations"]
    known.sort(key=lambda a: (a["image_id"], a["id"]))
    pixels = (found.test["full_size"].prod(1) / 256**2).repeat_interleave(found.test["masks"].lengths)
    area = found.test["masks"].values.sum((1, 2)) * pixels
    expected = torch.tensor([a["area"] for a in known])
    large = (expected > 3000) & ~found.test["crowd"].values  # the area of a crowd in the file is not that of its runs
    assert large.sum() > 100 and ((area - expected).abs() / expected)[large].max() < 0.1
