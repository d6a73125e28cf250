"""Data: every format on small fakes, every fault named; real files where SSL_NB_DATA has them."""

import gzip
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import needs, real

from ssl_nb import data
from ssl_nb.data import Split, fetch, holdout, image_split, load, moments
from ssl_nb.data import images as data_images


@pytest.fixture
def places(tmp_path, monkeypatch):
    "An empty data folder and an empty cache."
    given, cache = tmp_path / "given", tmp_path / "cache"
    monkeypatch.setenv("SSL_NB_DATA", str(given))
    monkeypatch.setenv("SSL_NB_CACHE", str(cache))
    return given, cache


def put(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def md5(content):
    return hashlib.md5(content).hexdigest()


def leftovers(folder):
    return [p for p in folder.rglob("*") if p.name.startswith(".")]


# ---- Split, moments, holdout


def toy(n=10, classes=3):
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4).contiguous()
    return image_split(images, torch.arange(n) % classes, row=torch.arange(n))


@pytest.mark.parametrize(
    "index", [3, slice(2, 7, 2), [4, 1], torch.tensor([0, 9, 9]), torch.arange(10) > 6, np.array([2, 3])]
)
def test_indexing_keeps_rows_together(index):
    part = toy()[index]
    rows = part["row"]
    assert torch.equal(part["images"][:, 0, 0, 0].long(), rows) and torch.equal(part["labels"], rows % 3)
    assert len(part) == len(rows) >= 1


def test_get_and_repr():
    split = toy()
    assert split["images"] is split["images"] and split["labels"] is split["labels"]
    with pytest.raises(ValueError, match="no column 'rwo'; it has images, labels, row"):
        split["rwo"]
    assert repr(split) == "Split(10 rows: images 3x4x4 uint8, labels int64, row int64)"
    assert torch.equal(split.to("cpu")["row"], split["row"])


@pytest.mark.parametrize(
    "images, labels, columns, word",
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), {}, "uint8"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), {}, r"\(n, c, h, w\)"),
        (torch.zeros(2, 1, 0, 0).byte(), torch.zeros(2).long(), {}, "with pixels"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2), {}, "must be integers"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3).long(), {}, "'labels' has 3 rows and 'images' has 2"),
        (
            torch.zeros(2, 1, 4, 4).byte(),
            torch.zeros(2).long(),
            {"angle": torch.zeros(1)},
            "'angle' has 1 rows and 'images' has 2",
        ),
    ],
)
def test_a_split_of_images_refuses_what_does_not_fit(images, labels, columns, word):
    with pytest.raises(ValueError, match=word):
        image_split(images, labels, **columns)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.sampled_from([1, 3]))
def test_moments_are_those_of_the_floats(seed, n, channels):
    images = torch.randint(0, 256, (n, channels, 5, 7), generator=torch.Generator().manual_seed(seed)).byte()
    mean, std = moments(images)
    floats = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), floats.mean((0, 2, 3)), atol=6e-5, rtol=0)
    torch.testing.assert_close(
        torch.tensor(std).double(), floats.std((0, 2, 3), correction=0), atol=6e-5, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(60, 200), st.integers(1, 5), st.sampled_from([0.1, 0.25, 0.5]))
def test_holdout_is_stratified_disjoint_and_repeatable(seed, n, classes, fraction):
    labels = torch.randint(-1, classes, (n,), generator=torch.Generator().manual_seed(seed))
    split = Split({"labels": labels, "row": torch.arange(n)})
    train, valid = holdout(split, fraction, seed=seed)
    rows = torch.cat([train["row"], valid["row"]])
    assert torch.equal(rows.sort().values, torch.arange(n))
    assert torch.equal(train["row"], train["row"].sort().values)
    for label in labels.unique():
        whole, held = (labels == label).sum().item(), (valid["labels"] == label).sum().item()
        assert abs(held - whole * fraction) <= 0.5 + 1e-4
    assert torch.equal(holdout(split, fraction, seed=seed)[1]["row"], valid["row"])


def test_holdout_of_classes_too_small_to_share_is_an_error():
    with pytest.raises(ValueError, match="leaves one side empty"):
        holdout(Split({"labels": torch.arange(4)}), 0.1)


def test_holdout_depends_on_its_seed_and_checks_its_fraction():
    split = toy(100)
    assert not torch.equal(holdout(split, seed=0)[1]["row"], holdout(split, seed=1)[1]["row"])
    for wrong in (0, 1, 1.5, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holdout(split, wrong)
    with pytest.raises(ValueError, match="one side empty"):
        holdout(toy(6), 0.1)


def grouped(rows, n_groups, seed=0, mixed=False):
    "A split whose rows belong to groups; all rows of a group have one label, unless `mixed`."
    draw = torch.Generator().manual_seed(seed)
    group = torch.randint(n_groups, (rows,), generator=draw)
    labels = torch.randint(4, (rows,), generator=draw) if mixed else group % 4
    return Split({"labels": labels, "subject": group * 7 - 3, "row": torch.arange(rows)})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(40, 90), st.booleans())
def test_holdout_by_group_divides_no_group(seed, n_groups, mixed):
    split = grouped(300, n_groups, seed, mixed)
    rest, held = holdout(split, 0.25, seed=seed, by="subject")
    assert not set(rest["subject"].tolist()) & set(held["subject"].tolist())
    rows = torch.cat([rest["row"], held["row"]])
    assert torch.equal(rows.sort().values, torch.arange(300))
    assert torch.equal(held["row"], held["row"].sort().values)
    for label in range(1 if mixed else 4):  # the share is one of groups, of each class if groups have classes
        of = (lambda part: part["subject"].unique()) if mixed else (
            lambda part, label=label: part["subject"][part["labels"] == label].unique())
        assert abs(len(of(held)) - 0.25 * len(of(split))) <= 0.5
    assert torch.equal(holdout(split, 0.25, seed=seed, by="subject")[1]["row"], held["row"])


def test_holdout_by_a_field_that_cannot_group_is_an_error():
    split = Split({"images": torch.zeros(4, 1), "labels": torch.arange(4), "pair": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="no column 'subject'; it has images, labels, pair"):
        holdout(split, 0.5, by="subject")
    with pytest.raises(ValueError, match="'pair' is 2 float32"):
        holdout(split, 0.5, by="pair")
    with pytest.raises(ValueError, match="of 4 groups leaves one side empty"):
        holdout(grouped(100, 4), 0.25, by="subject")


@pytest.mark.parametrize(
    "spec, test, word",
    [
        (dict(), toy()[:3], None),
        (dict(classes=("a", "b")), toy(), "labels in the train split of 'mine' reach from 0 to 2; with 2 classes"),
        (dict(), image_split(toy()["images"], torch.full((10,), -2)), "labels in the test split of 'mine' reach from -2"),
        (dict(), image_split(toy()["images"], torch.full((10,), -1)), None),
        (dict(), image_split(toy()["images"][:, :1], toy()["labels"]), r"images in the test split .*have shape \(1, 4, 4\)"),
        (dict(), image_split(toy()["images"][:, :, 1:], toy()["labels"]), r"images in the test split .*have shape \(3, 3, 4\)"),
        (dict(shape=(3, 8, 8)), toy(), r"images in the train split of 'mine' have shape \(3, 4, 4\), not \(3, 8, 8\)"),
        (dict(group="row"), toy(), None),
        (dict(group="subject"), toy(), "no column 'subject'"),
    ],
)
def test_data_are_what_their_spec_says(spec, test, word):
    spec = data.Spec(**{**dict(name="mine", shape=(3, 4, 4), classes=("a", "b", "c"), mean=(0.0,), std=(1.0,)), **spec})
    if word is None:
        assert data.Data(spec, toy(), test).test is test
    else:
        with pytest.raises(ValueError, match=word):
            data.Data(spec, toy(), test)


# ---- names and options


def test_no_name_is_no_folder():
    with pytest.raises(ValueError, match="unknown data set ''"):
        load("")


@pytest.mark.parametrize(
    "wrong, meant",
    [("digit", "digits"), ("MNIST", "mnist"), ("cifar-10", "cifar10"), ("fashionmnist", "fashion_mnist")],
)
def test_unknown_names_get_the_nearest(wrong, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        load(wrong)


def test_unknown_options_get_the_nearest():
    with pytest.raises(ValueError, match="'donwload'; did you mean 'download'"):
        load("mnist", donwload=True)
    with pytest.raises(ValueError, match="'sise'; did you mean 'size'"):
        load("scenes", sise=32)
    with pytest.raises(ValueError, match="known: none"):
        load("digits", size=9)


def test_a_loader_of_ones_own():
    @data.register("mine")
    def mine(n: int = 4):
        return data.Data(data.Spec("mine", (3, 4, 4), ("a", "b", "c"), (0.0,), (1.0,)), toy(n), toy(n))

    try:
        assert "mine" in data.names() and len(load("mine", n=7).train) == 7
    finally:
        del data.loaders._own["mine"]


# ---- digits


def test_digits_are_whole_disjoint_and_as_their_spec_says():
    digits = load("digits")
    rows = torch.cat([digits.train["digit"], digits.test["digit"]])
    assert torch.equal(rows.sort().values, torch.arange(1797))
    assert moments(digits.train["images"]) == (digits.spec.mean, digits.spec.std)
    assert torch.bincount(digits.test["labels"]).min() >= 43 and digits.train["images"].max() == 255
    for label in range(10):  # the test split is the end of each class
        assert (
            digits.train["digit"][digits.train["labels"] == label].max()
            < digits.test["digit"][digits.test["labels"] == label].min()
        )


# ---- IDX


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, ">u4").tobytes()
        + array.astype(np.uint8).tobytes()
    )


@pytest.fixture
def fake_mnist(places, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (6, 28, 28)),
        np.arange(6) % 10,
        rng.integers(0, 256, (4, 28, 28)),
        np.arange(4),
    ]
    contents = [idx(a) for a in arrays]
    files = [
        f.__class__(f.name, md5(gzip.compress(c, mtime=0)), f.urls, md5(c))
        for f, c in zip(data_images._FILES["mnist"], contents, strict=True)
    ]
    monkeypatch.setitem(data_images._FILES, "mnist", tuple(files))
    for file, content in zip(files, contents, strict=True):
        put(
            places[0] / "mnist", file.name, gzip.compress(content, 1)
        )  # another compression, the same content
    return arrays, files, places[0] / "mnist"


def test_mnist_from_the_data_folder(fake_mnist):
    arrays, _, _ = fake_mnist
    found = load("mnist")
    assert (found.train["images"][:, 0].numpy() == arrays[0]).all() and (
        found.test["labels"].numpy() == arrays[3]
    ).all()
    assert found.train["images"].dtype == torch.uint8 and found.spec.classes[3] == "3"
    found.train["images"][0] = 0  # its memory is its own


@pytest.mark.parametrize(
    "damage, word",
    [
        (lambda c: c[:-20], "does not unpack"),
        (lambda c: b"<html>not found</html>", "does not unpack"),
        (lambda c: gzip.compress(gzip.decompress(c)[:-1]), "expected"),
        (lambda c: gzip.compress(gzip.decompress(c)[:-1] + b"\x07"), "expected"),
        (lambda c: b"", "expected"),
    ],
)
def test_damaged_idx_is_refused_and_kept(fake_mnist, damage, word):
    _, files, folder = fake_mnist
    path = folder / files[2].name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"(?s){files[2].name}.*{word}.*Delete it"):
        load("mnist")
    assert path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01" + bytes(8),
        b"\0\0\x08\x02" + bytes(5),
        idx(np.zeros((2, 3)))[:-1],
        idx(np.zeros((2, 3))) + b"1",
        b"\0\0\x08\x03" + b"\xff" * 12,
    ],
)
def test_malformed_idx_is_refused(tmp_path, content):
    path = put(tmp_path, "some-ubyte", content)
    with pytest.raises(ValueError, match="no IDX file"):
        data_images._parse_idx(content, path)


def test_a_missing_file_says_where_it_was_looked_for(places):
    with pytest.raises(FileNotFoundError) as error:
        load("mnist", download=False)
    said = str(error.value)
    assert "train-images-idx3-ubyte.gz" in said and "download=True" in said
    assert all(str(p / "mnist") in said for p in places)
    with pytest.raises(FileNotFoundError, match="SSL_NB_DATA"):
        load("cifar10_jpeg")


def test_addresses_and_checksums_are_those_of_torchvision():
    from torchvision.datasets import MNIST, STL10, FashionMNIST

    for name, theirs in (("mnist", MNIST), ("fashion_mnist", FashionMNIST)):
        assert [(f.name, f.md5) for f in data_images._FILES[name]] == theirs.resources
        assert all(any(f.urls[0] == m + f.name for m in theirs.mirrors) for f in data_images._FILES[name])
    [stl] = data_images._FILES["stl10"]
    assert (stl.name, stl.md5, stl.urls) == (STL10.filename, STL10.tgz_md5, (STL10.url,))


# ---- downloads, from a server on this machine


@pytest.fixture
def server():
    served = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = served.get(self.path.strip("/"))
            self.send_response(404 if content is None else 200)
            self.end_headers()
            if content is not None and self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield served, f"http://127.0.0.1:{it.server_address[1]}/"
        it.shutdown()


def serve_mnist(fake_mnist, server, monkeypatch):
    _, files, folder = fake_mnist
    served, url = server
    for file in files:
        served[file.name] = gzip.compress(gzip.decompress((folder / file.name).read_bytes()), mtime=0)
        (folder / file.name).unlink()
    remote = tuple(
        f.__class__(f.name, f.md5, (url + "gone/" + f.name, url + f.name), f.content) for f in files
    )
    monkeypatch.setitem(data_images._FILES, "mnist", remote)
    return served, remote


def test_a_download_is_checked_and_kept(fake_mnist, places, server, monkeypatch):
    served, files = serve_mnist(fake_mnist, server, monkeypatch)
    assert len(load("mnist").train) == 6
    assert sorted(p.name for p in (places[1] / "mnist").iterdir()) == sorted(f.name for f in files)
    served.clear()
    assert len(load("mnist").train) == 6  # from the cache


def test_half_a_download_is_no_file(fake_mnist, places, server, monkeypatch):
    served, files = serve_mnist(fake_mnist, server, monkeypatch)
    served[files[0].name] = served[files[0].name][:100]
    with pytest.raises(ConnectionError, match=f"(?s){files[0].name}.*by hand.*{files[0].md5}"):
        load("mnist")
    assert list((places[1] / "mnist").iterdir()) == []


def test_a_cache_that_cannot_be_written_says_so(fake_mnist, server, tmp_path, monkeypatch):
    serve_mnist(fake_mnist, server, monkeypatch)
    monkeypatch.setenv("SSL_NB_CACHE", str(put(tmp_path, "a_file", b"") / "cache"))
    with pytest.raises(OSError, match="Set SSL_NB_CACHE"):
        load("mnist")


# ---- archives: CIFAR, STL-10


def archive(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def put_archive(places, monkeypatch, name, members):
    [file] = data_images._FILES[name]
    content = archive(members)
    monkeypatch.setitem(data_images._FILES, name, (file.__class__(file.name, md5(content)),))
    return put(places[0] / name, file.name, content)


def cifar10_members(n=2):
    rng = np.random.default_rng(0)
    images, labels = (
        rng.integers(0, 256, (6, n, 3, 32, 32), dtype=np.uint8),
        rng.integers(0, 10, (6, n), dtype=np.uint8),
    )
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    records = [
        np.concatenate([b[:, None], a.reshape(n, -1)], 1).tobytes()
        for a, b in zip(images, labels, strict=True)
    ]
    return dict(zip(names, records, strict=True)), images, labels


def test_cifar10_in_order_and_without_a_pickle(places, monkeypatch):
    members, images, labels = cifar10_members()
    bomb = pickle.dumps(print)
    path = put_archive(
        places, monkeypatch, "cifar10", {"batches.meta": bomb, **dict(reversed(members.items()))}
    )
    for loader in ("load", "loads"):
        monkeypatch.setattr(pickle, loader, lambda *_: pytest.fail("a pickle was loaded"))
    found = load("cifar10")
    assert (found.train["images"].numpy() == images[:5].reshape(10, 3, 32, 32)).all()
    assert (found.train["labels"].numpy() == labels[:5].ravel()).all() and (
        found.test["labels"].numpy() == labels[5]
    ).all()
    path.unlink()
    assert torch.equal(
        load("cifar10").train["images"], found.train["images"]
    )  # decoded once, from then on from the cache


def test_cifar100_has_fine_labels_and_a_coarse_column(places, monkeypatch):
    record = bytes([3, 42]) + bytes(range(256)) * 12
    names = "\n".join(f"class{i}" for i in range(100)).encode()
    put_archive(
        places,
        monkeypatch,
        "cifar100",
        {"fine_label_names.txt": names, "train.bin": record * 2, "test.bin": record},
    )
    found = load("cifar100")
    assert found.train["labels"].tolist() == [42, 42] and found.test["coarse"].tolist() == [3]
    assert found.spec.classes[42] == "class42" and found.train["images"][0, 0, 0, 5] == 5


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda m: m.pop("data_batch_3.bin"), "no member data_batch_3.bin"),
        (lambda m: m.update({"test_batch.bin": m["test_batch.bin"][:-1]}), "no multiple of 3073"),
        (lambda m: m.update({"test_batch.bin": b""}), "no multiple of 3073"),
    ],
)
def test_malformed_archives_are_refused(places, monkeypatch, change, word):
    members = cifar10_members()[0]
    change(members)
    put_archive(places, monkeypatch, "cifar10", members)
    with pytest.raises(ValueError, match=word):
        load("cifar10")
    assert not leftovers(places[1]) and not list(places[1].rglob("*.npz"))


def test_a_truncated_archive_is_refused(places, monkeypatch):
    path = put_archive(places, monkeypatch, "cifar10", cifar10_members()[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"cifar-10-binary.tar.gz.*expected {md5(whole)}"):
        load("cifar10")
    monkeypatch.setitem(data_images._FILES, "cifar10", (fetch.File(path.name, md5(path.read_bytes())),))
    with pytest.raises(ValueError, match="does not unpack"):
        load("cifar10")


def test_stl10_is_stored_by_columns(places, monkeypatch):
    image = np.arange(3 * 96 * 96, dtype=np.uint32).reshape(3, 96, 96).astype(np.uint8)
    stored = np.ascontiguousarray(image.swapaxes(1, 2)).tobytes()
    put_archive(
        places,
        monkeypatch,
        "stl10",
        {
            "train_X.bin": stored * 2,
            "train_y.bin": bytes([1, 10]),
            "test_X.bin": stored,
            "test_y.bin": bytes([3]),
            "unlabeled_X.bin": stored * 3,
        },
    )
    found = load("stl10")
    assert (found.train["images"][1].numpy() == image).all() and found.train["labels"].tolist() == [0, 9]
    free = load("stl10", unlabeled=True)
    assert (
        len(free.train) == 3
        and free.train["labels"].unique().tolist() == [-1]
        and free.test["labels"].tolist() == [2]
    )


# ---- the decoded cache


def test_a_damaged_cache_is_made_anew(places):
    made = []

    def build():
        made.append(1)
        return {"a": np.arange(1000)}

    fetch.decoded("thing", build)
    [path] = places[1].rglob("thing.npz")
    assert (fetch.decoded("thing", build)["a"] == np.arange(1000)).all() and len(made) == 1
    for damaged in (path.read_bytes()[:-30], path.read_bytes()[:2000] + b"x" + path.read_bytes()[2001:], b""):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged.*made again"):
            assert (fetch.decoded("thing", build)["a"] == np.arange(1000)).all()
    assert len(made) == 4 and not leftovers(places[1])


def test_an_interrupted_write_leaves_nothing(places, monkeypatch):
    def cut(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", cut)
    with pytest.raises(KeyboardInterrupt):
        fetch.decoded("a", lambda: {"a": np.arange(3)})
    assert list((places[1] / "decoded").iterdir()) == []


def test_without_a_cache_it_still_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_NB_CACHE", str(put(tmp_path, "a_file", b"")))
    with pytest.warns(UserWarning, match="Set SSL_NB_CACHE"):
        assert fetch.decoded("thing", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


# ---- JPEG streams


def jpeg_file(folder, n=5, **change):
    from torchvision.io import encode_jpeg

    streams = [encode_jpeg(torch.full((3, 32, 32), 20 * i).byte(), quality=95).numpy() for i in range(n)]
    arrays = (
        dict(
            jpeg=np.concatenate(streams),
            offsets=np.cumsum([0] + [len(s) for s in streams]),
            labels=np.arange(n, dtype=np.uint8),
        )
        | change
    )
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "some.npz", **arrays)
    return folder / "some.npz"


def test_jpeg_streams_decode_in_order(tmp_path):
    images, labels = data_images._jpeg_arrays(jpeg_file(tmp_path))
    assert images.shape == (5, 3, 32, 32) and labels.tolist() == [0, 1, 2, 3, 4]
    assert np.abs(images.mean((1, 2, 3)) - 20 * np.arange(5)).max() < 2


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(offsets=np.array([0, 5, 3, 9, 9, 9])), "offsets"),
        (dict(offsets=np.array([0, 1])), "offsets"),
        (dict(labels=np.arange(4)), "offsets"),
        (dict(jpeg=np.zeros(3175, np.uint8)), "offsets|does not decode"),
    ],
)
def test_malformed_streams_are_refused(tmp_path, change, word):
    with pytest.raises(ValueError, match=word):
        data_images._jpeg_arrays(jpeg_file(tmp_path, **change))


# ---- small sets of real images


def test_a_part_of_mnist_comes_with_the_package(monkeypatch):
    monkeypatch.delenv("SSL_NB_DATA", raising=False)
    monkeypatch.setattr(fetch, "download", lambda *_: pytest.fail("a download was tried"))
    found = load("mnist_small")
    assert found.train["images"].shape == (10000, 1, 28, 28) and found.test["images"].shape == (2000, 1, 28, 28)
    assert moments(found.train["images"]) == (found.spec.mean, found.spec.std)
    assert found.train["labels"][:5].tolist() == [5, 0, 4, 1, 9] and found.spec.license == "CC BY-SA 3.0"
    assert torch.bincount(found.test["labels"]).tolist() == [175, 234, 219, 207, 217, 179, 178, 205, 192, 194]


def test_a_shipped_file_that_is_damaged_or_missing_is_named(tmp_path, monkeypatch):
    import ssl_nb

    monkeypatch.setattr(ssl_nb, "__file__", str(tmp_path / "ssl_nb" / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="mnist_small.npz .*Install it again"):
        load("mnist_small")
    put(tmp_path / "data", "mnist_small.npz", b"damaged")
    with pytest.raises(ValueError, match="mnist_small.npz .*its md5 is"):
        load("mnist_small")


# ---- the user's own


def write_image(path, level, size=(40, 60), gray=False):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size if gray else (*size, 3), level, np.uint8)).save(path)


def test_a_folder_of_classes(tmp_path):
    for i in range(5):
        write_image(tmp_path / "cats" / f"{i}.png", 10)
        write_image(tmp_path / "ants" / "deep" / f"{i}.jpg", 200, gray=True)
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    found = load(tmp_path, size=16)
    assert found.spec.classes == ("ants", "cats") and found.spec.shape == (3, 16, 16)
    assert len(found.train) == 8 and torch.bincount(found.test["labels"]).tolist() == [1, 1]
    assert (found.train["images"][found.train["labels"] == 1] == 10).all()
    assert moments(found.train["images"]) == (found.spec.mean, found.spec.std)
    assert load(str(tmp_path), size=8, channels=1).spec.shape == (1, 8, 8)


def test_a_folder_with_train_and_test(tmp_path):
    for part, level in (("train", 30), ("test", 90)):
        for name in ("a", "b"):
            write_image(tmp_path / part / name / "1.png", level)
    found = load(tmp_path, size=8)
    assert (found.train["images"] == 30).all() and (found.test["images"] == 90).all() and len(found.test) == 2
    write_image(tmp_path / "test" / "c" / "1.png", 0)
    with pytest.raises(ValueError, match="that train/ has not: c"):
        load(tmp_path)


def test_images_without_classes(tmp_path):
    for i in range(5):
        write_image(tmp_path / f"{i}.png", i)
    found = load(tmp_path, size=8, test_fraction=0.4)
    assert found.spec.classes == () and found.train["labels"].tolist() == [-1] * 3 and found.test["labels"].tolist() == [-1] * 2


def test_a_test_folder_without_classes_is_unlabeled(tmp_path):
    for i in range(4):
        write_image(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", i)
        write_image(tmp_path / "test" / f"{i}.png", i)
    found = load(tmp_path, size=8)
    assert found.spec.classes == ("a", "b") and sorted(found.train["labels"].tolist()) == [0, 0, 1, 1]
    assert found.test["labels"].tolist() == [-1] * 4


def test_hidden_files_are_no_images(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"{i}.png", 9)
    write_image(tmp_path / ".thumbnails" / "0.png", 0)
    write_image(tmp_path / "._0.png", 0)
    found = load(tmp_path, size=8, test_fraction=0.5)
    assert len(found.train) + len(found.test) == 4 and found.train["images"].min() == 9


def test_the_middle_is_cut_out_and_sides_keep_their_ratio(tmp_path):
    from PIL import Image

    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255
    (tmp_path / "a").mkdir()
    for i in range(5):
        Image.fromarray(wide).save(tmp_path / "a" / f"{i}.png")
    assert load(tmp_path, size=20, channels=1).train["images"].min() == 255


def test_faults_in_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no images"):
        load(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="no train/"):
        load(tmp_path)
    write_image(tmp_path / "own" / "a" / "1.png", 0)
    put(tmp_path / "own" / "a", "2.png", (tmp_path / "own" / "a" / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="2.png .*does not decode"):
        load(tmp_path / "own")
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        load(tmp_path / "own", channels=2)
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load(tmp_path / "own", size=0)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_an_npz_with_everything(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    found = load(
        save(
            tmp_path / "own.npz",
            images=images,
            labels=np.arange(6) % 2,
            test_images=images[:2],
            test_labels=np.array([1, 0]),
            angle=np.arange(6.0),
            test_angle=np.ones(2),
            classes=np.array(["no", "yes"]),
        )
    )
    assert found.spec.name == "own" and found.spec.classes == ("no", "yes") and found.spec.shape == (3, 8, 8)
    assert (found.train["images"].permute(0, 2, 3, 1).numpy() == images).all()
    assert found.train["angle"].tolist() == list(range(6)) and found.test["angle"].tolist() == [1, 1]


@pytest.mark.parametrize("color", [(), (3,)])
def test_a_file_of_medmnist_is_read_as_it_is(tmp_path, color):
    arrays = {f"{part}_{kind}": np.zeros((n, 28, 28, *color) if kind == "images" else (n, 1), np.uint8)
              for part, n in (("train", 12), ("val", 4), ("test", 6)) for kind in ("images", "labels")}
    arrays["train_labels"][6:] = 1
    found = load(save(tmp_path / "pneumoniamnist.npz", **arrays))
    assert found.train["images"].shape == (12, 3 if color else 1, 28, 28) and len(found.test) == 6
    assert found.train["labels"].tolist() == [0] * 6 + [1] * 6 and found.spec.classes == ("0", "1")
    arrays["train_labels"] = np.zeros((12, 14), np.uint8)  # several labels an image, as in ChestMNIST
    with pytest.raises(ValueError, match=r"labels are uint8 of shape \(12, 14\)"):
        load(save(tmp_path / "chestmnist.npz", **arrays))


@pytest.mark.parametrize(
    "shape, expected",
    [((9, 8, 8), (1, 8, 8)), ((9, 1, 8, 8), (1, 8, 8)), ((9, 3, 8, 8), (3, 8, 8)), ((9, 8, 8, 1), (1, 8, 8))],
)
def test_an_npz_of_images_alone(tmp_path, shape, expected):
    found = load(save(tmp_path / "own.npz", images=np.zeros(shape, np.uint8)))
    assert found.spec.shape == expected and found.spec.classes == () and len(found.test) == 2
    assert found.train["labels"].unique().tolist() == found.test["labels"].unique().tolist() == [-1]


def test_a_part_of_an_npz_without_labels_is_unlabeled(tmp_path):
    images, labels = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 3
    found = load(save(tmp_path / "own.npz", images=images, labels=labels, test_images=images[:2]))
    assert found.train["labels"].tolist() == labels.tolist() and found.test["labels"].tolist() == [-1, -1]
    assert found.spec.classes == ("0", "1", "2")
    found = load(save(tmp_path / "own.npz", images=images, test_images=images, test_labels=labels))
    assert found.train["labels"].tolist() == [-1] * 6 and found.spec.classes == ("0", "1", "2")
    medical = dict(train_images=images, train_labels=labels[:, None], test_images=images[:2])
    assert load(save(tmp_path / "own.npz", **medical)).test["labels"].tolist() == [-1, -1]


def test_an_npz_can_be_held_out_by_group(tmp_path):
    subject = np.arange(40) // 4
    path = save(tmp_path / "own.npz", images=np.zeros((40, 8, 8), np.uint8), labels=subject % 2, subject=subject)
    found = load(path, group="subject", test_fraction=0.4)
    assert found.spec.group == "subject" and len(found.test) == 16
    assert not set(found.train["subject"].tolist()) & set(found.test["subject"].tolist())
    with pytest.raises(ValueError, match="no column 'patient'; it has images, labels, subject"):
        load(path, group="patient")


EIGHT = dict(images=np.zeros((9, 8, 8), np.uint8))


@pytest.mark.parametrize(
    "arrays, word",
    [
        (dict(labels=np.zeros(3)), "no array 'images'"),
        (dict(images=np.zeros((3, 8, 8), np.float32)), "not uint8: save"),
        (dict(images=np.zeros((3, 8, 8, 4), np.uint8)), "have shape"),
        (dict(images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(3)), "not integers"),
        (dict(images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(2, int)), "'labels' has 2 rows"),
        (
            dict(images=np.zeros((3, 8, 8), np.uint8), labels=np.arange(3), classes=np.array(["a"])),
            "its labels reach from 0 to 2; with 1 classes they go from 0 to 0",
        ),
        (EIGHT | dict(labels=np.arange(9) - 2), "its labels reach from -2"),
        (EIGHT | dict(labels=np.arange(9) * 10**12), "labels reach to 8000000000000 for 9 images"),
        (
            EIGHT | dict(labels=np.zeros(9, int), test_images=EIGHT["images"], test_labels=np.arange(9)),
            "its labels reach from 0 to 8; with 1 classes",
        ),
        (EIGHT | dict(labels=np.zeros(9, int), test_labels=np.zeros(9, int)), "test_labels but no test_images"),
        (EIGHT | dict(test_images=np.zeros((9, 8, 7), np.uint8)), r"images in the test split of 'own' have shape \(1, 8, 7\)"),
        (EIGHT | dict(test_images=np.zeros((9, 8, 8, 3), np.uint8)), r"images in the test split of 'own' have shape \(3, 8, 8\)"),
        (dict(images=np.zeros((9, 0, 0), np.uint8)), "at least one pixel"),
        (dict(images=np.zeros((0, 8, 8), np.uint8)), "at least one pixel and image"),
        (EIGHT | dict(test_images=np.zeros((9, 8, 0), np.uint8)), "at least one pixel"),
        (EIGHT | dict(labels=np.zeros(0, int)), "'labels' has 0 rows"),
        (dict(images=np.zeros((3, 8, 8), np.uint8), words=np.array(["a", "b", "c"])), "can't convert|words"),
        (dict(images=np.array([{}])), "no .npz of plain arrays"),
    ],
)
def test_malformed_npz_is_refused(tmp_path, arrays, word):
    with pytest.raises(ValueError, match=f"own.npz .*{word}"):
        load(save(tmp_path / "own.npz", **arrays))


def test_a_truncated_or_missing_npz(tmp_path):
    path = save(tmp_path / "own.npz", images=np.zeros((9, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="own.npz .*truncated"):
        load(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="no .npz of plain arrays"):
        load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no file"):
        load(path)


# ---- the same data?


def test_a_fingerprint_is_that_of_the_content(places, tmp_path, monkeypatch):
    first, second = np.zeros((9, 8, 8), np.uint8), np.ones((9, 8, 8), np.uint8)
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    path = save(one / "mine.npz", images=first)
    before = data.fingerprint(path)
    assert before == data.fingerprint(save(other / "mine.npz", images=first)) and len(before) == 64
    assert before != data.fingerprint(save(other / "mine.npz", images=second))
    monkeypatch.chdir(other)
    assert data.fingerprint("mine.npz") == data.fingerprint(other / "mine.npz") != before
    monkeypatch.chdir(one)
    assert data.fingerprint("mine.npz") == data.fingerprint(path) == before


def test_a_changed_file_of_the_same_size_and_time_is_another(places, tmp_path):
    path = save(tmp_path / "mine.npz", images=np.zeros((9, 8, 8), np.uint8))
    before, when = data.fingerprint(path), path.stat()
    save(path, images=np.ones((9, 8, 8), np.uint8))
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert path.stat().st_size == when.st_size and data.fingerprint(path) != before


def test_a_fingerprint_of_a_folder_is_of_names_classes_and_images(places, tmp_path):
    def fill(folder):
        for i in range(4):
            write_image(folder / "ab"[i % 2] / f"{i}.png", 10 * i)
        (folder / "notes.txt").write_text("not read")
        return folder

    folder, found = fill(tmp_path / "some"), []
    before = data.fingerprint(folder)
    assert before == data.fingerprint(fill(tmp_path / "elsewhere" / "some"))
    (folder / "notes.txt").write_text("not read, and changed")
    assert data.fingerprint(folder) == before
    for change in (
        lambda: write_image(folder / "a" / "0.png", 200),
        lambda: (folder / "a" / "2.png").rename(folder / "b" / "2.png"),
        lambda: (folder / "b" / "1.png").unlink(),
        lambda: (folder / "c").mkdir(),
    ):
        change()
        found.append(data.fingerprint(folder))
    assert len({before, *found}) == 5
    assert data.fingerprint("digits") is None and data.fingerprint(tmp_path / "nowhere.npz") is None
    (tmp_path / "empty").mkdir()
    assert data.fingerprint(tmp_path / "empty") is None


def test_only_what_changed_is_read_again(places, tmp_path, monkeypatch):
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, kind: read.append(f.name) or digest(f, kind))
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 60 * 10**9)  # a minute later
    for i in range(4):
        write_image(tmp_path / "some" / f"{i}.png", i)
    before = data.fingerprint(tmp_path / "some")
    assert len(read) == 4 and data.fingerprint(tmp_path / "some") == before and len(read) == 4
    write_image(tmp_path / "some" / "2.png", 77)
    assert data.fingerprint(tmp_path / "some") != before and [os.path.basename(r) for r in read[4:]] == ["2.png"]
    [note] = (places[1] / "hashes").iterdir()
    for damaged in ("", "[1]", "{}", '{"0.png": 3}'):
        note.write_text(damaged)
        assert len(data.fingerprint(tmp_path / "some")) == 64
    assert not leftovers(places[1])


def test_a_file_that_was_changed_just_now_is_not_noted(places, tmp_path):
    path = save(tmp_path / "mine.npz", images=np.zeros((9, 8, 8), np.uint8))
    data.fingerprint(path)
    assert [p.read_text() for p in places[1].rglob("*.json")] in ([], ["{}"])


# ---- the real ones


@needs("mnist")
def test_real_mnist():
    found = load("mnist", download=False)
    assert (len(found.train), len(found.test)) == (60000, 10000)
    assert moments(found.train["images"]) == (found.spec.mean, found.spec.std)
    assert torch.bincount(found.test["labels"]).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]


@needs("mnist")
def test_the_shipped_part_is_the_beginning_of_mnist():
    whole, small = load("mnist", download=False), load("mnist_small")
    for part, n in (("train", 10_000), ("test", 2_000)):
        of_whole, of_small = getattr(whole, part), getattr(small, part)
        assert torch.equal(of_whole["images"][:n], of_small["images"]) and torch.equal(of_whole["labels"][:n], of_small["labels"])


@needs("fashion_mnist_8k")
def test_real_part_of_fashion_mnist():
    found = load("fashion_mnist_8k")
    assert (len(found.train), len(found.test)) == (6700, 1500) and found.spec.classes[9] == "ankle boot"
    assert moments(found.train["images"]) == (found.spec.mean, found.spec.std)


@needs("fashion_mnist_sprite")
def test_real_sprite():
    found = load("fashion_mnist_sprite")
    assert torch.bincount(found.train["labels"]).tolist() == [72] * 10
    assert moments(found.train["images"]) == (found.spec.mean, found.spec.std)


@needs("cifar10_jpeg")
def test_real_jpeg_files(places, monkeypatch):
    monkeypatch.setenv("SSL_NB_DATA", real)
    file = data_images._FILES["cifar10_jpeg"][-1]
    images, labels = data_images._jpeg_arrays(fetch.checked(fetch.find(file, "cifar10_jpeg", False), file))
    assert images.shape == (10000, 3, 32, 32) and np.bincount(labels).tolist() == [1000] * 10


@pytest.mark.slow
@needs("cifar10_jpeg")
def test_real_cifar10_jpeg(places, monkeypatch):
    monkeypatch.setenv("SSL_NB_DATA", real)
    found = load("cifar10_jpeg")
    assert (len(found.train), len(found.test)) == (50000, 10000) and "not comparable" in found.spec.notes
    assert moments(found.train["images"]) == (found.spec.mean, found.spec.std)
    monkeypatch.setenv("SSL_NB_DATA", "")
    assert torch.equal(load("cifar10_jpeg").test["images"], found.test["images"])  # from the cache
