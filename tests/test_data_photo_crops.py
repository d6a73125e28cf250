"""Crops of photographs: labels, tiles, and no pixel in both splits."""

import pytest
import torch

from ssl_nb import data
from ssl_nb.data.photo_crops import COLOR_PHOTOGRAPHS
from ssl_nb.data.photographs import open_photograph, tiles


def test_every_crop_is_a_window_of_a_tile_of_its_photograph():
    sets = data.load("photo_crops", size=16, n_train=40, n_test=20)
    parts = [tiles(open_photograph(name, 3), 320, 32) for name in COLOR_PHOTOGRAPHS]
    for row in range(20):
        one = sets.test[row : row + 1]
        x, y = one["corner"][0].tolist()
        windows = parts[int(one["labels"])][:, :, y : y + 16, x : x + 16]
        assert (windows == one["images"]).flatten(1).all(1).any()


def test_no_tile_is_in_both_splits_and_none_has_two_labels():
    sets = data.load("photo_crops", n_train=2000, n_test=1000)
    labels = {}
    for split in (sets.train, sets.test):
        for tile, label in zip(split["tile"].tolist(), split["labels"].tolist(), strict=True):
            assert labels.setdefault(tile, label) == label
    assert not set(sets.train["tile"].tolist()) & set(sets.test["tile"].tolist())
    assert sets.spec.group == "tile" and len(set(sets.test["tile"].tolist())) > 60


def test_classes_are_balanced_and_the_seed_repeats_them():
    one, again, other = (data.load("photo_crops", n_train=105, n_test=10, seed=s) for s in (0, 0, 1))
    assert torch.bincount(one.train["labels"]).tolist() == [11] * 5 + [10] * 5
    assert torch.equal(one.train["images"], again.train["images"])
    assert not torch.equal(one.train["images"], other.train["images"])


def test_another_seed_tests_on_the_same_tiles():
    one, other = (data.load("photo_crops", n_train=10, n_test=3000, seed=s) for s in (0, 1))
    assert set(one.test["tile"].tolist()) == set(other.test["tile"].tolist())


@pytest.mark.parametrize("size", [8, 80])
def test_the_smallest_and_the_largest_crops(size):
    sets = data.load("photo_crops", size=size, n_train=20, n_test=10)
    assert sets.train["images"].shape == (20, 3, size, size)


@pytest.mark.parametrize(
    "wrong, word",
    [(dict(size=7), "size is 7"), (dict(size=81), "8 to 80"), (dict(n_train=9), "n_train is 9"), (dict(n_test=0), "n_test is 0")],
)
def test_bad_options_are_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        data.load("photo_crops", **wrong)
