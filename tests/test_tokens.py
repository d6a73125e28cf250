"""Tokenizers: each agrees with an independent implementation, and gives its input back."""

import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from ssl_nb import tokens as tk
from ssl_nb.data import Ragged, Split
from ssl_nb.objectives.masked_reconstruction import patchify, unpatchify

real = os.environ.get("SSL_NB_DATA", "")
needs_shakespeare = pytest.mark.skipif(not os.path.isdir(os.path.join(real, "text_tinyshakespeare")) or not real,
                                       reason="SSL_NB_DATA has no text_tinyshakespeare")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- Tokens


def test_take_brings_along_all_that_belongs_to_a_token():
    n, t = 3, 7
    x, real = torch.rand(n, t, 2, 5), torch.rand(n, t) > 0.3
    raw, place, prefix = torch.rand(n, t, 4), torch.rand(n, t, 3), torch.rand(n, 1, 5)
    index = torch.stack([torch.randperm(t)[:4] for _ in range(n)])
    taken = tk.Tokens(x, place, real, raw, (t,), prefix).take(index)
    for i in range(n):
        for name, field in (("x", x), ("place", place), ("real", real), ("raw", raw)):
            assert torch.equal(getattr(taken, name)[i], field[i, index[i]])
    assert taken.grid is None and taken.prefix is prefix


def test_a_shared_place_stays_shared_for_a_shared_index():
    tokens = tk.Tokens(torch.rand(2, 6, 1), tk.grid_places((2, 3)), grid=(2, 3))
    assert tokens.take(torch.tensor([5, 0])).place.tolist() == [[1, 2], [0, 0]]
    assert tokens.take(torch.tensor([[5], [0]])).place.tolist() == [[[1, 2]], [[0, 0]]]


def test_gradients_go_to_the_tokens_that_are_taken():
    x = torch.rand(1, 4, 2, requires_grad=True)
    tk.Tokens(x, tk.grid_places((4,))).take(torch.tensor([[2, 0]])).x.sum().backward()
    assert x.grad[0, :, 0].tolist() == [1, 0, 1, 0]


def test_places_of_a_grid_are_the_indices_of_numpy():
    assert tk.grid_places((2, 3, 4)).tolist() == list(map(list, np.ndindex(2, 3, 4)))


# ---- Patches


def test_patches_of_images_are_those_of_the_objective():
    images = torch.rand(3, 3, 12, 20, generator=seeded())
    made = tk.Patches(4)(images)
    assert torch.equal(made.x, patchify(images, 4))
    assert torch.equal(tk.Patches(4).join(made.x, made.grid), unpatchify(made.x, 4, grid=(3, 5)))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_convolution_with_equal_stride_is_linear_in_patches(k):
    conv = [torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d][k - 1](2, 5, (2, 3, 4)[:k], stride=(2, 3, 4)[:k]).double()
    x = torch.rand(2, 2, *(4, 6, 8)[:k], dtype=torch.double)
    weight = conv.weight.movedim(1, -1).flatten(1)
    ours = torch.nn.functional.linear(tk.Patches((2, 3, 4)[:k])(x).x, weight, conv.bias)
    assert torch.allclose(ours, conv(x).flatten(2).mT)


@given(data=st.data())
@settings(max_examples=40)
def test_cutting_and_joining_are_inverse(data):
    k = data.draw(st.integers(1, 3))
    size, grid = (data.draw(st.tuples(*[st.integers(1, 3)] * k)) for _ in range(2))
    shape = (2, data.draw(st.integers(1, 3)), *(s * g for s, g in zip(size, grid, strict=True)))
    channels = data.draw(st.integers(1, k + 1))
    x = torch.arange(float(np.prod(shape))).view(shape).movedim(1, channels)
    patches = tk.Patches(size, channels=channels)
    made = patches(x)
    assert made.grid == grid and made.x.shape[1] == len(made.place) == np.prod(grid)
    assert torch.equal(patches.join(made.x, made.grid), x)


def test_a_token_of_a_clip_is_the_box_at_its_place():
    clip = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    made = tk.Patches((2, 4, 4), channels=2)(clip)
    f, r, c = made.place[5].tolist()
    box = clip[1, 2 * f:2 * f + 2, :, 4 * r:4 * r + 4, 4 * c:4 * c + 4].movedim(1, -1)
    assert torch.equal(made.x[1, 5], box.flatten().float() / 255)


def test_recordings_of_different_lengths():
    rows = [torch.rand(7, 2), torch.rand(12, 2), torch.rand(4, 2)]
    made = tk.Patches(4, channels=2)(Ragged.of(rows))
    assert made.real.sum(1).tolist() == [2, 3, 1] and made.grid == (3,)
    for i, row in enumerate(rows):
        flat = made.x[i].flatten()[:row.numel()]
        assert torch.equal(flat, row.flatten()) and not made.x[i].flatten()[row.numel():].any()


def test_clips_of_different_lengths():
    rows = [torch.rand(3, 1, 4, 4), torch.rand(6, 1, 4, 4)]
    made = tk.Patches((2, 2, 2), channels=2)(Ragged.of(rows))
    assert made.grid == (3, 2, 2) and made.real.sum(1).tolist() == [8, 12]
    assert not made.x[0][~made.real[0]].any() and (made.x[0][made.real[0]].abs().sum(1) > 0).all()


@pytest.mark.parametrize("call, words", [
    (lambda: tk.Patches(5)(torch.rand(1, 1, 8, 8)), "8 x 8 values cannot be cut into patches of 5 x 5"),
    (lambda: tk.Patches((2, 2, 2))(torch.rand(1, 1, 8, 8)), "3 directions and the input has 2"),
    (lambda: tk.Patches(())(torch.rand(1, 1, 8, 8)), "size is"),
    (lambda: tk.Patches(2)(torch.ones(1, 1, 8, 8, dtype=torch.int64)), "bytes or floats"),
    (lambda: tk.Patches(2).join(torch.rand(1, 5, 4), (2, 2)), "do not fill a grid"),
    (lambda: tk.Patches(2, channels=4)(torch.rand(1, 1, 8, 8)), "no axis 4"),
])
def test_faults_of_patches(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ---- Words

LINES = ["the cat sat on the mat", "the cats sat on the mats", "naïve 東京 🙂", ""] * 10


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6))
def test_texts_survive_the_column_and_the_bytes(texts):
    column = tk.encode_text(texts)
    assert tk.decode_text(column) == texts
    assert tk.Bytes().decode(tk.Bytes()(column, ends=True).x) == texts


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
@settings(max_examples=25)
def test_byte_pairs_encode_and_decode_any_text(texts):
    tokenizer = byte_pairs()
    assert tokenizer.decode(tokenizer(tk.encode_text(texts), ends=True).x) == texts


def byte_pairs(cache={}):  # noqa: B006
    if "bpe" not in cache:
        cache["bpe"] = tk.train_tokenizer(tk.encode_text(LINES), "bpe", vocabulary=300)
    return cache["bpe"]


@pytest.mark.parametrize("name", ["bytes", "bpe", "wordpiece"])
def test_special_tokens_padding_and_ends(name):
    options = {} if name == "bytes" else {"vocabulary": 300}
    tokenizer = tk.train_tokenizer(tk.encode_text(LINES), name, **options)
    column = tk.encode_text(LINES[:4])
    plain, framed, short = tokenizer(column), tokenizer(column, ends=True), tokenizer(column, longest=4, ends=True)
    pad, cls, sep = (tokenizer.specials[name] for name in ("[PAD]", "[CLS]", "[SEP]"))
    assert (plain.x[~plain.real] == pad).all() and (plain.x[plain.real] != pad).all()
    assert torch.equal(framed.real.sum(1), plain.real.sum(1) + 2)
    for i in range(4):
        own = plain.x[i][plain.real[i]].tolist()
        assert framed.x[i][framed.real[i]].tolist() == [cls, *own, sep]
        assert short.x[i][short.real[i]].tolist() == [cls, *own[:2], sep]
    assert tokenizer.is_special(framed.x)[framed.real].sum() >= 8
    assert plain.x.max() < tokenizer.vocabulary and plain.grid == (plain.x.shape[1],)


def test_wordpiece_takes_the_longest_match():
    tokenizer = tk.train_tokenizer(tk.encode_text(LINES), "wordpiece", vocabulary=300)
    ids = tokenizer(tk.encode_text(["The CATS zzz"])).x[0]
    assert tokenizer.pieces(ids) == ["the", "cats", "[UNK]"]
    assert tokenizer.decode(ids[None]) == ["the cats"]


def test_a_missing_library_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ssl_nb\[text\]'"):
        tk.train_tokenizer(tk.encode_text(["a"]), "bpe")


def test_importing_tokens_imports_no_extra():
    import subprocess
    code = ("import sys, ssl_nb.tokens; "
            "sys.exit(bool({'tokenizers', 'torch_geometric'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("call, words", [
    (lambda: tk.train_tokenizer(tk.encode_text(["a"]), "bpe", vocabulary=10), "need 261 ids"),
    (lambda: tk.train_tokenizer(tk.encode_text(["a"]), "bpq"), "did you mean 'bpe'"),
    (lambda: tk.Bytes()(tk.encode_text(["a"]), longest=2, ends=True), "leaves no room"),
    (lambda: tk.decode_text(Ragged.of([torch.zeros(2)])), "UTF-8 bytes"),
])
def test_faults_of_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@needs_shakespeare
def test_byte_pairs_shorten_real_text():
    with open(os.path.join(real, "text_tinyshakespeare", "input.txt"), encoding="utf-8") as file:
        column = tk.encode_text(file.read(100_000).split("\n\n"))
    tokenizer = tk.train_tokenizer(column, "bpe", vocabulary=1000)
    made = tokenizer(column)
    assert tokenizer.decode(made.x) == tk.decode_text(column)
    assert made.real.sum() < 0.5 * len(column.values)


# ---- Columns


def table(n=50):
    g = seeded()
    numeric = torch.randn(n, 3, generator=g) * torch.tensor([1.0, 10, 1000]) + 5
    numeric[torch.rand(n, 3, generator=g) < 0.2] = float("nan")
    return numeric, torch.stack([torch.randint(-1, 3, (n,), generator=g), torch.randint(0, 5, (n,), generator=g)], 1)


def test_numeric_columns_are_standardized_as_by_scikit_learn():
    numeric, _ = table()
    train, test = numeric[:30], numeric[30:]
    scaler = StandardScaler().fit(train.double().numpy())
    made = tk.Columns.fit(train)(test)
    expected = torch.from_numpy(scaler.transform(test.double().numpy())).float()
    assert torch.equal(made.real, ~test.isnan())
    assert torch.allclose(made.x[..., 0][made.real], expected[made.real], atol=1e-5)


def test_the_table_comes_back():
    numeric, categorical = table()
    columns = tk.Columns.fit((numeric, categorical))
    back = columns.join(columns((numeric, categorical)))
    assert torch.allclose(back[0], numeric, rtol=1e-4, atol=1e-4, equal_nan=True) and torch.equal(back[1], categorical)


def test_each_category_of_each_column_has_its_own_id():
    _, categorical = table()
    columns = tk.Columns.fit(table())
    made = columns(table())
    ids = made.x[..., 1].long()
    assert columns.ids == 3 + 3 + 5 and 0 <= ids.min() and ids.max() < columns.ids
    there = categorical >= 0
    pairs = {(j, categorical[i, j].item(), ids[i, 3 + j].item()) for i, j in there.nonzero().tolist()}
    assert len(pairs) == len({p[:2] for p in pairs}) == len({p[2] for p in pairs}) == 8


def test_partitions_are_those_of_transtab():
    def authors(columns, n, ratio):  # as published, on names of columns
        cut = np.array_split(np.arange(columns), n)
        overlap = int(np.ceil(len(cut[0]) * ratio))
        if overlap == 0:
            return [c.tolist() for c in cut]
        near = [cut[i + 1][:overlap] if i < n - 1 else cut[i - 1][-overlap:] for i in range(n)]
        return [np.concatenate(both).tolist() for both in zip(cut, near, strict=True)]
    for columns in range(3, 20):
        for n in range(2, min(columns, 5) + 1):
            for ratio in (0, 0.1, 0.5, 1):
                assert [p.tolist() for p in tk.vertical_partitions(columns, n, ratio)] == authors(columns, n, ratio)


@pytest.mark.parametrize("call, words", [
    (lambda: tk.Columns.fit(table())(table()[0]), "does not fit"),
    (lambda: tk.Columns.fit(table(), names=list("abcde"))((table()[0], table()[1] + 9)), "'d' has category 11 and 3 are known"),
    (lambda: tk.Columns.fit(torch.ones(3)), "a table has floats"),
    (lambda: tk.Columns.fit((torch.ones(3, 1), torch.ones(3, 1))), "a table has floats"),
    (lambda: tk.Columns.fit(table(), names=["a"]), "got 1 names for 5 columns"),
    (lambda: tk.vertical_partitions(3, 4), "3 columns cannot be cut into 4 parts"),
])
def test_faults_of_columns(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ---- Points


def test_farthest_points_agree_with_the_definition():
    clouds = torch.rand(2, 60, 3, generator=seeded())
    for cloud, chosen in zip(clouds, tk.farthest_points(clouds, 12).tolist(), strict=True):
        distance = torch.cdist(cloud.double(), cloud.double())
        for i in range(1, 12):
            near = distance[chosen[:i]].amin(0)
            assert near[chosen[i]] >= near.max() - 1e-6


def test_the_first_point_is_drawn_by_the_generator_among_real_ones():
    clouds = torch.rand(400, 6, 3, generator=seeded())
    real = torch.arange(6).expand(400, -1) >= 3
    assert (tk.farthest_points(clouds, 1, real=real) == 3).all()
    first = tk.farthest_points(clouds, 1, seeded(1), real=real)
    assert first.unique().tolist() == [3, 4, 5] and torch.equal(first, tk.farthest_points(clouds, 1, seeded(1), real=real))


def test_neighbors_are_those_of_scikit_learn():
    from sklearn.neighbors import NearestNeighbors
    points, centers = torch.rand(1, 200, 3, generator=seeded()), torch.rand(1, 9, 3, generator=seeded(1))
    _, index = NearestNeighbors(n_neighbors=7).fit(points[0].numpy()).kneighbors(centers[0].numpy())
    assert tk.nearest_points(points, centers, 7)[0].tolist() == index.tolist()


def test_ragged_clouds_are_as_clouds_alone():
    rows = [torch.rand(m, 3, generator=seeded(m)) for m in (40, 9, 20)]
    made = tk.PointGroups(12, 5)(Ragged.of(rows))
    assert made.real.sum(1).tolist() == [12, 9, 12]
    for i, row in enumerate(rows):
        alone, k = tk.PointGroups(12, 5)(row[None]), int(made.real[i].sum())
        assert torch.allclose(made.x[i, :k], alone.x[0, :k]) and torch.equal(made.place[i, :k], alone.place[0, :k])


def test_groups_of_a_cloud_smaller_than_a_group_repeat_the_center():
    made = tk.PointGroups(2, 4)(Ragged.of([torch.rand(2, 3, generator=seeded()), torch.rand(9, 3)]))
    assert (made.x[0].abs().sum(-1) == 0).sum(1).tolist() == [3, 3]


def test_points_come_back():
    cloud = torch.rand(1, 30, 3, generator=seeded())
    groups = tk.PointGroups(30, 3)
    made = groups(cloud)
    back = groups.join(made.x, made.place)
    assert back.shape == (1, 90, 3) and torch.cdist(cloud.double(), back.double()).amin(2).max() < 1e-5


# ---- Nodes


def molecules(both=False):
    bonds = [torch.tensor([[0, 1], [1, 2]]), torch.zeros(0, 2, dtype=torch.int64), torch.tensor([[0, 1], [1, 2], [2, 0]])]
    types = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64), torch.tensor([1, 1, 3])]
    if both:
        bonds, types = [torch.cat([b, b.flip(1)]) for b in bonds], [torch.cat([t, t]) for t in types]
    return Split({"atoms": Ragged.of([torch.tensor([6, 6, 8]), torch.tensor([7]), torch.tensor([6, 7, 8])]),
                  "bonds": Ragged.of(bonds), "bond_types": Ragged.of(types)})


def test_graphs_are_those_of_torch_geometric():
    from torch_geometric.data import Batch, Data
    from torch_geometric.utils import to_undirected
    split, listed = molecules(), []
    for i in range(3):
        row = split[i]
        x, bonds, types = (row[name].values for name in ("atoms", "bonds", "bond_types"))
        edges, attr = to_undirected(bonds.T, types, num_nodes=len(x), reduce="min")
        listed.append(Data(x=x, edge_index=edges, edge_attr=attr))
    theirs, ours = Batch.from_data_list(listed), tk.to_geometric(tk.graph_batch(split))
    assert type(ours) is type(theirs) and ours.num_graphs == theirs.num_graphs == 3
    for name in ("x", "edge_index", "edge_attr", "batch", "ptr"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_bonds_in_one_or_both_directions_are_the_same():
    one, both = (tk.graph_batch(molecules(b)) for b in (False, True))
    assert torch.equal(one.edges, both.edges) and torch.equal(one.edge_types, both.edge_types)


def test_graphs_without_types_or_edges():
    none = torch.zeros(3, dtype=torch.int64)
    split = Split({"atoms": molecules()["atoms"], "bonds": Ragged(torch.zeros(0, 2, dtype=torch.int64), none)})
    batch = tk.graph_batch(split)
    assert batch.edges.shape == (2, 0) and batch.edge_types is None and batch.sizes.tolist() == [3, 1, 3]
    typed = tk.graph_batch(split.assign(bond_types=Ragged(torch.zeros(0, dtype=torch.int64), none)))
    assert typed.edge_types.shape == (0,)


def test_nodes_as_tokens_and_back():
    batch = tk.graph_batch(molecules())
    made = tk.to_tokens(batch)
    assert made.real.sum(1).tolist() == [3, 1, 3] and torch.equal(tk.from_tokens(made, batch).x, batch.x)
    assert torch.equal(made.x.flatten()[tk.token_edges(batch)], batch.x[batch.edges])


def test_torch_geometric_that_is_missing_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ssl_nb\[graphs\]'"):
        tk.to_geometric(tk.graph_batch(molecules()))


@pytest.mark.parametrize("change, words", [
    ({"bonds": Ragged.of([torch.tensor([[0, 1], [1, 3]]), *molecules()["bonds"].rows()[1:]])},
     r"edge \(1, 3\) belongs to a graph with 3 nodes"),
    ({"bond_types": Ragged.of([torch.tensor([1]), *molecules()["bond_types"].rows()[1:]])}, "give one for each edge"),
    ({"bonds": molecules()["atoms"]}, "Ragged int64 column"),
])
def test_faults_of_graphs(change, words):
    with pytest.raises(ValueError, match=words):
        tk.graph_batch(molecules().assign(**change))
