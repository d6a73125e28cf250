"""Graphs of TUDataset: made-up sets in the same format, copies, folds; the real ones where SSL_NB_DATA has them."""

import hashlib

import numpy as np
import pytest
import torch
from real_data import needs

from ssl_nb.data import Ragged, graphs, load
from ssl_nb.data.graphs import stratified_folds, tu, wl_hash


def some_graphs(n, seed=0, kinds=3):
    "Random connected graphs: (labels, edges with the smaller node first, types of edges, attributes)."
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        size = int(rng.integers(3, 9))
        edges = {(int(rng.integers(v)), v) for v in range(1, size)}
        edges |= {tuple(sorted(rng.choice(size, 2, replace=False).tolist())) for _ in range(2)}
        edges = sorted(edges)
        labels, types = rng.integers(0, kinds, size), rng.integers(0, 2, len(edges))
        made.append((labels, edges, types, rng.normal(size=(size, 2)).astype(np.float32)))
    return made


def written(folder, made, name="TOY"):
    "Write a set as TUDataset does, and give the md5 of each file."
    starts = np.cumsum([1] + [len(labels) for labels, *_ in made])
    of_each = zip(starts, made, strict=False)
    lines = [(a + s, b + s, t) for s, (_, edges, types, _) in of_each for (a, b), t in zip(edges, types, strict=True)]
    lines = np.array(lines + [(b, a, t) for a, b, t in lines])[np.random.default_rng(1).permutation(2 * len(lines))]
    texts = {
        "A": "".join(f"{a}, {b}\n" for a, b, _ in lines),
        "edge_labels": "".join(f"{t + 4}\n" for *_, t in lines),
        "graph_indicator": "".join(f"{i}\n" * len(labels) for i, (labels, *_) in enumerate(made, 1)),
        "graph_labels": "".join(f"{[-1, 1][i % 2]}\n" for i in range(len(made))),
        "node_labels": "".join(f"{v + 6}\n" for labels, *_ in made for v in labels),
        "node_attributes": "".join(f" {x:.6f},  {y:.6f}\n" for *_, at in made for x, y in at),
    }
    (folder / name).mkdir(parents=True, exist_ok=True)
    for part, text in texts.items():
        (folder / name / f"{name}_{part}.txt").write_text(text)
    return {part: hashlib.md5(text.encode()).hexdigest() for part, text in texts.items()}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A set TOY of 40 graphs, of which the last ten are the first ten again."
    monkeypatch.setenv("SSL_NB_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("SSL_NB_CACHE", str(tmp_path / "cache"))
    made = some_graphs(30)
    made += made[:10]
    monkeypatch.setitem(graphs._TU, "TOY", written(tmp_path / "given" / "tu", made))
    monkeypatch.setitem(graphs._CARDS, "TOY", (("-1", "1"), "nothing", "made up"))
    return made


def rows_of(made):
    "atoms, bonds and bond_types of graphs."
    return (Ragged.of([torch.as_tensor(labels) for labels, *_ in made]),
            Ragged.of([torch.tensor(edges) for _, edges, *_ in made]),
            Ragged.of([torch.as_tensor(types) for *_, types, _ in made]))


def renumbered(graph, rng):
    "The same graph, its nodes in another order."
    labels, edges, types, at = graph
    new = rng.permutation(len(labels))
    moved = [tuple(sorted((int(new[a]), int(new[b])))) for a, b in edges]
    order = rng.permutation(len(edges))
    return labels[np.argsort(new)], [moved[i] for i in order], types[order], at


# ---- files


def test_what_was_written_is_read(toy):
    found = load("tu", subset="TOY")
    assert found.spec.name == "TOY" and found.spec.group == "structure" and found.spec.modality == "graph"
    assert found.train.inputs == ("atoms", "bonds") and len(found.train) + len(found.test) == 40
    seen = 0
    for split in (found.train, found.test):
        columns = [split[name].rows() for name in ("atoms", "bonds", "bond_types", "attributes")]
        for atoms, bonds, types, attributes, label in zip(*columns, split["labels"], strict=True):
            [i, *_] = [k for k, g in enumerate(toy) if len(g[3]) == len(attributes) and np.allclose(g[3], attributes, atol=1e-5)]
            labels, edges, kinds, _ = toy[i]
            assert atoms.tolist() == labels.tolist() and [tuple(b) for b in bonds.tolist()] == edges
            assert types.tolist() == kinds.tolist() and label == i % 2
            seen += 1
    assert seen == 40


def test_copies_are_on_one_side_in_every_fold(toy):
    held = []
    for fold in range(10):
        found = tu("TOY", fold=fold, seed=3)
        assert not set(found.train["structure"].tolist()) & set(found.test["structure"].tolist())
        assert f"fold {fold} of 10" in found.spec.notes and "seed 3" in found.spec.notes
        held += [row.numpy().tobytes() for row in found.test["attributes"].rows()]
    assert len(held) == 40 and len(set(held)) == 30
    different = {naive_structure((labels, edges, 0 * types, at)) for labels, edges, types, at in toy}
    assert len(torch.cat([found.train["structure"], found.test["structure"]]).unique()) == len(different)


def test_a_truncated_file_a_missing_one_and_wrong_options(toy, tmp_path):
    path = tmp_path / "given" / "tu" / "TOY" / "TOY_A.txt"
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with pytest.raises(ValueError, match="TOY_A.txt .*its md5 is .*Delete it"):
        tu("TOY")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="TOY_A.txt of 'tu' is neither in .*SSL_NB_DATA"):
        tu("TOY")
    with pytest.raises(ValueError, match="did you mean 'MUTAG'"):
        load("tu", subset="Mutag")
    with pytest.raises(ValueError, match="fold from 0 to 9, got 10"):
        tu("TOY", fold=10)


@pytest.mark.parametrize("part, change, word", [
    ("node_labels", lambda text: text[2:], "lines and TOY_graph_indicator.txt has"),
    ("edge_labels", lambda text: text + "4\n", "lines and TOY_A.txt has"),
    ("graph_indicator", lambda text: "2\n" + text[2:], "does not list the nodes"),
    ("A", lambda text: text + "1, 200\n", "not pairs of nodes"),
    ("A", lambda text: text + "1, 99999\n", "not pairs of nodes"),
    ("A", lambda text: text + "a, b\n", "no table of numbers"),
])  # fmt: skip
def test_files_that_do_not_fit_together_are_refused(toy, tmp_path, part, change, word):
    folder = tmp_path / "given" / "tu" / "TOY"
    paths = {p: folder / f"TOY_{p}.txt" for p in graphs._TU["TOY"]}
    text = change(paths[part].read_text())
    if part == "A":  # as many types as edges
        paths["edge_labels"].write_text(paths["edge_labels"].read_text() + "4\n")
    paths[part].write_text(text)
    with pytest.raises(ValueError, match=f"TOY_.*{word}"):
        graphs._graph_columns(paths)


# ---- copies


def naive_structure(graph, rounds=8):
    "Color refinement with nested tuples, for one graph."
    labels, edges, types, _ = graph
    near = {v: [] for v in range(len(labels))}
    for (a, b), t in zip(edges, types, strict=True):
        near[a].append((b, int(t)))
        near[b].append((a, int(t)))
    colors = [hash((int(v),)) for v in labels]
    for _ in range(rounds):
        colors = [hash((colors[v], tuple(sorted((colors[u], t) for u, t in near[v])))) for v in near]
    return tuple(sorted(colors))


@pytest.mark.parametrize("seed", range(3))
def test_the_hash_is_that_of_the_graph_and_not_of_its_numbering(seed):
    rng = np.random.default_rng(seed)
    made = some_graphs(60, seed, kinds=2)
    again = [renumbered(g, rng) for g in made]
    one, other = wl_hash(*rows_of(made)), wl_hash(*rows_of(again))
    assert torch.equal(one, other)
    naive = [naive_structure(g) for g in made]  # the same pairs are equal as in an independent version
    assert (np.equal.outer(one.numpy(), one.numpy()) == [[a == b for b in naive] for a in naive]).all()


def test_the_hash_of_a_graph_does_not_depend_on_its_neighbors_in_the_column():
    made = some_graphs(12)
    whole = wl_hash(*rows_of(made))
    assert torch.equal(whole, torch.cat([wl_hash(*rows_of([g])) for g in made]))


def test_types_of_edges_count_only_if_they_are_given():
    labels, edges, types, at = some_graphs(1)[0]
    other = (labels, edges, 1 - types, at)
    (atoms, bonds, kinds) = rows_of([(labels, edges, types, at), other])
    a, b = wl_hash(atoms, bonds, kinds)
    c, d = wl_hash(atoms, bonds)
    assert a != b and c == d


@pytest.mark.parametrize("seed", range(3))
def test_folds_are_balanced_and_divide_no_group(seed):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 250, (300,), generator=generator)
    labels = (group * 7 % 3 > 0).long()
    folds = stratified_folds(labels, group, seed=seed)
    assert all(len(folds[group == g].unique()) == 1 for g in group.unique())
    largest = int(torch.bincount(group).max())
    for label in (0, 1):
        count = torch.bincount(folds[labels == label], minlength=10)
        assert count.max() - count.min() <= largest
    assert torch.equal(folds, stratified_folds(labels, group, seed=seed))
    assert not torch.equal(folds, stratified_folds(labels, group, seed=seed + 1))


# ---- the real ones


@needs("tu")
@pytest.mark.parametrize("subset, graphs_, nodes, edges, per_class", [  # the table of Morris et al. 2020
    ("MUTAG", 188, 17.93, 19.79, [63, 125]),
    ("PROTEINS", 1113, 39.06, 72.82, [663, 450]),
    ("DHFR", 756, 42.43, 44.54, [295, 461]),
    ("BZR", 405, 35.75, 38.36, [319, 86]),
    ("NCI109", 4127, 29.68, 32.13, [2048, 2079]),
])  # fmt: skip
def test_real_sets_are_those_of_the_literature(subset, graphs_, nodes, edges, per_class):
    found = load("tu", subset=subset)
    both = (found.train, found.test)
    assert sum(len(s) for s in both) == graphs_
    assert abs(sum(s["atoms"].lengths.sum().item() for s in both) / graphs_ - nodes) < 0.006
    assert abs(sum(s["bonds"].lengths.sum().item() for s in both) / graphs_ - edges) < 0.006
    assert torch.bincount(torch.cat([s["labels"] for s in both])).tolist() == per_class
    assert not set(found.train["structure"].tolist()) & set(found.test["structure"].tolist())
    for label, count in enumerate(per_class):
        assert abs((found.test["labels"] == label).sum().item() - count / 10) <= 6
    for split in both:
        assert (split["bonds"].values[:, 0] < split["bonds"].values[:, 1]).all()
        assert (split["bonds"].values[:, 1] < split["atoms"].lengths.repeat_interleave(split["bonds"].lengths)).all()


@needs("tu")
def test_nitroarenes_of_mutag():
    found = load("tu")
    names = ("atoms", "bonds", "bond_types")
    whole = [row for s in (found.train, found.test) for row in zip(*(s[name].rows() for name in names), strict=True)]
    first = [0] * 14 + [1, 2, 2]  # 14 carbons and a nitro group, which has a double bond and a single one
    found = [(bonds, types) for atoms, bonds, types in whole if atoms.tolist() == first and types.tolist().count(0) == 16]
    assert found and all(len(bonds) == 19 and sorted(types.tolist()) == [0] * 16 + [1, 1, 2] for bonds, types in found)
