"""Maps, their scores and records; EmbeddingMap driven without a browser."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import manifold

from ssl_nb.explore import map_layout, projection
from ssl_nb.explore.embedding_map import EmbeddingMap
from ssl_nb.explore.map_layout import pca
from ssl_nb.explore.map_quality import continuity, neighbor_graph, trustworthiness
from ssl_nb.explore.map_worker import worker
from ssl_nb.explore.points import Points, coloring, measure
from ssl_nb.explore.projection import MapRecipe, aligned, project, recipe, remember, remembered

pytestmark = pytest.mark.xdist_group("maps")  # one process pays for numba


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    projection._maps.clear()


def blobs(n=120, d=8, groups=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % groups
    return torch.randn(n, d, generator=g) + 8 * torch.eye(groups, d)[labels] + 1, labels


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- neighbors and scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbors_are_those_of_scikit_learn(metric):
    from sklearn.neighbors import NearestNeighbors

    x = gaussian(300, 16) + 3
    index, distance = neighbor_graph(x, 7, metric)
    truth, which = NearestNeighbors(n_neighbors=7, metric=metric).fit(x.numpy()).kneighbors()
    assert (index.numpy() == which).mean() > 0.999
    np.testing.assert_allclose(distance, truth, rtol=1e-4, atol=1e-6)


def test_neighbors_close_together_and_far_from_the_origin_keep_their_order():
    x = 1000 + 1e-3 * gaussian(50, 4, dtype=torch.float64)
    index, distance = neighbor_graph(x, 3, "euclidean")
    truth = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).topk(3, largest=False)
    assert torch.equal(index, truth.indices)
    torch.testing.assert_close(distance, truth.values)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 5, 29])
def test_trustworthiness_is_that_of_scikit_learn_and_continuity_its_mirror(metric, k):
    x, flat = gaussian(90, 10, dtype=torch.float64), gaussian(90, 2, seed=1, dtype=torch.float64)
    flat[:, 0] = x[:, 0]
    ours = trustworthiness(x, flat, k, metric)
    assert ours == pytest.approx(manifold.trustworthiness(x.numpy(), flat.numpy(), n_neighbors=k, metric=metric), abs=1e-12)
    assert continuity(x, flat, k) == pytest.approx(manifold.trustworthiness(flat.numpy(), x.numpy(), n_neighbors=k), abs=1e-12)
    assert ours.samples.mean() == pytest.approx(ours) and ours.interval is None


def test_scores_of_a_copy_are_1_of_a_shuffle_about_a_half():
    x = gaussian(400, 5)
    assert trustworthiness(x, x) == 1 == continuity(x, x)
    assert trustworthiness(x, x.flip(0)) == pytest.approx(0.5, abs=0.05)


def test_a_sample_of_many_points_is_said_and_its_interval_holds_the_truth(monkeypatch):
    x = gaussian(6000, 5)
    sampled = trustworthiness(x, x[:, :2], sample=800)
    assert "800 of 6,000" in sampled.protocol and len(sampled.notes["points"]) == 800
    exact = trustworthiness(x, x[:, :2], sample=6000)
    assert sampled.interval[0] - 0.01 < exact < sampled.interval[1] + 0.01


def test_scores_refuse_what_they_cannot_measure():
    x = gaussian(20, 3)
    with pytest.raises(ValueError, match="below half of the 20"):
        trustworthiness(x, x, 10)
    with pytest.raises(ValueError, match="20 points of one space and 19"):
        trustworthiness(x, x[:19])


# -- maps -------------------------------------------------------------------------------------------------------------


def test_torch_keeps_its_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        project(gaussian(60, 4), cache=False)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_same_seed_gives_the_same_bits_and_the_other_process_too():
    x, _ = blobs()
    one = project(x, seed=1, cache=False)
    assert torch.equal(one, project(x, seed=1, cache=False))
    assert not torch.equal(one, project(x, seed=2, cache=False))
    assert torch.equal(one, *worker().make(recipe(x, seed=1), [x]))


def test_what_numba_compiled_is_kept_for_the_next_process():
    project(gaussian(60, 4), cache=False)
    kept = map_layout._umap().umap_.smooth_knn_dist.stats
    assert kept.cache_path and (kept.cache_hits or kept.cache_misses)


def test_maps_are_made_where_numba_cannot_keep_anything():
    class ReadOnly:
        def enable_caching(self):
            raise RuntimeError("cannot cache function: no locator available")

    loop = ReadOnly()
    assert map_layout._kept(loop) is loop


@pytest.mark.parametrize("method", ["umap", "densmap", "pca"])
def test_a_record_goes_through_json_and_makes_the_map_again(method):
    x, labels = blobs()
    r = recipe(x, method=method, n_neighbors=9, min_dist=0.3, metric="euclidean", seed=5)
    again = MapRecipe.from_json(json.dumps(json.loads(r.to_json())))
    assert again == r and again.key == r.key
    [flat] = r.make(x, cache=False)
    assert flat.shape == (120, 2) and flat.dtype == torch.float32 and flat.isfinite().all()
    assert torch.equal(flat, *again.make(x, cache=False))
    centers = torch.stack([flat[labels == c].mean(0) for c in range(3)])
    assert (torch.cdist(flat, centers).argmin(1) == labels).float().mean() > 0.95


def test_a_record_refuses_other_features_order_and_versions():
    x, _ = blobs()
    r = recipe(x, method="pca")
    for other in (x.flip(0), x + 1, x.double(), x[:-1]):
        with pytest.raises(ValueError, match="values, order, shape or type"):
            r.make(other)
    older = MapRecipe.from_json(r.to_json().replace(torch.__version__.split("+")[0], "0.1"))
    with pytest.raises(ValueError, match="0.1"):
        older.make(x)


def test_neighbors_are_searched_once_for_all_min_dist(monkeypatch):
    x, _ = blobs(seed=9)
    searched = []
    whole = map_layout.neighbor_graph
    monkeypatch.setattr(map_layout, "neighbor_graph", lambda *a: searched.append(1) or whole(*a))
    for min_dist in (0.0, 0.4):
        project(x, min_dist=min_dist)
    project(x, n_neighbors=30)
    assert searched == [1]


def test_the_cache_outlives_the_process_and_a_damaged_file(monkeypatch, tmp_path):
    x, _ = blobs()
    r = recipe(x, method="pca")
    flat = project(x, "pca")
    flat += 1  # the caller's copy, not the cache's
    projection._maps.clear()
    [kept] = remembered(r)
    assert torch.equal(kept, pca(x))
    [file] = (tmp_path / "cache" / "maps").glob("*.safetensors")
    file.write_bytes(b"damaged")
    projection._maps.clear()
    assert remembered(r) is None and torch.equal(project(x, "pca"), kept)


def test_the_cache_stays_small(monkeypatch, tmp_path):
    monkeypatch.setattr(projection, "_LARGEST", 5000)
    for seed in range(20):
        remember(recipe(blobs(seed=seed)[0], method="pca"), [torch.zeros(120, 2)])
    assert 1 <= len(list((tmp_path / "cache" / "maps").iterdir())) <= 5


def step(maps):
    "How far a point moves from map to map, against the size of the first."
    moved = [(a - b).norm(dim=1).mean() for a, b in zip(maps, maps[1:], strict=False)]
    return float(torch.stack(moved).mean() / torch.pdist(maps[0]).mean())


def test_aligned_maps_move_less_and_are_as_trustworthy():
    x, _ = blobs(200)
    states = [x + 0.3 * s * gaussian(*x.shape, seed=3) for s in range(3)]
    together, alone = aligned(states, cache=False), [project(s, cache=False) for s in states]
    assert step(together) < 0.5 * step(alone)
    for state, one, other in zip(states, together, alone, strict=True):
        assert trustworthiness(state, one, metric="cosine") > trustworthiness(state, other, metric="cosine") - 0.03
    assert all(torch.equal(a, b) for a, b in zip(together, aligned(states, cache=False), strict=True))


def test_aligned_pca_is_pca_turned():
    x, _ = blobs()
    one, two = aligned([x, x @ torch.linalg.qr(gaussian(8, 8)).Q], method="pca")
    torch.testing.assert_close(torch.pdist(one), torch.pdist(two), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_aligned_does_what_umap_learns_class_does():
    import umap

    x, _ = blobs(200)
    states = [x + 0.3 * s * gaussian(*x.shape, seed=3) for s in range(3)]
    theirs = umap.AlignedUMAP(random_state=0, n_neighbors=16, metric="cosine").fit_transform(
        [s.numpy() for s in states], relations=[{i: i for i in range(200)}] * 2
    )
    theirs, ours = [torch.tensor(np.array(m)) for m in theirs], aligned(states, cache=False)
    assert step(ours) < 2 * step(theirs) + 0.02
    for state, one, other in zip(states, ours, theirs, strict=True):
        assert trustworthiness(state, one, metric="cosine") > trustworthiness(state, other, metric="cosine") - 0.03


@pytest.mark.parametrize("n", [2, 3, 4, 7, 13])
def test_few_points(n):
    x, _ = blobs(n)
    if n < 4:
        with pytest.raises(ValueError, match="too few for umap"):
            project(x)
        assert project(x, "pca").shape == (n, 2)
    else:
        assert project(x, n_neighbors=50).isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(features=gaussian(5)), "shape"),
        (dict(features=gaussian(1, 3)), "2 rows"),
        (dict(features=gaussian(9, 3) * float("nan")), "NaN"),
        (dict(method="umpa"), "did you mean 'umap'"),
        (dict(metric="cosin"), "did you mean 'cosine'"),
        (dict(min_dist=-1.0), "between 0 and 1"),
        (dict(n_neighbors=1), "at least 2"),
        (dict(n_neighbors=2.5), "whole number"),
    ],
)
def test_bad_input_is_refused_before_work_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        project(**dict(features=gaussian(30, 4)) | arguments)


def test_the_pure_part_needs_no_widgets_and_no_umap():
    heavy = "ipywidgets", "umap", "numba", "jscatter", "matplotlib"
    code = f"import sys, ssl_nb.explore.map_worker; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# -- columns ----------------------------------------------------------------------------------------------------------


def test_colors_of_columns():
    c = coloring("digit", np.array([3, 3, 8, -1]), classes=list("0123456789"))
    assert c.categories == ["unknown", "3", "8"] and c.colors[0] == "#b0b0b0" and len(set(c.colors)) == 3
    c = coloring("loss", np.array([0.1, np.nan, 2.5, np.inf]))
    assert c.index.tolist() == [1, 0, 255, 0] and len(c.colors) == 256 and "no value" in c.html()
    assert coloring("flag", np.array([True, False])).categories == ["False", "True"]
    assert coloring("text", np.array(["b", None, "a"], dtype=object)).categories == ["no value", "a", "b"]
    assert coloring("<i>", np.array(["<b>"])).html().count("&lt;") == 2
    assert coloring("id", np.arange(50)).categories is None and coloring("same", np.ones(4)).index.tolist() == [1] * 4
    assert "colors repeat" in coloring("many", np.arange(50), classes=range(50)).html()


def test_search():
    x, labels = blobs(30)
    p = Points(
        x,
        labels=labels,
        columns={"ink": np.arange(30) / 2},
        names=[f"photo {i}" for i in range(30)],
        classes=["cat", "dog", "owl"],
    )
    assert p.find("17").tolist() == [17] and p.find("3, 5").tolist() == [3, 5]
    assert p.find("label = DOG").tolist() == list(range(1, 30, 3))
    assert p.find("photo 29").tolist() == [29] and p.find("ink=1.5").tolist() == [3]
    for text, message in (("30", "from 0 to 29"), ("labl=cat", "did you mean 'label'"), ("walrus", "nothing is called")):
        with pytest.raises(ValueError, match=message):
            p.find(text)


def test_measures_of_a_selection_are_the_evaluators():
    from ssl_nb.evaluators import alignment, effective_rank, rankme

    x, labels = blobs()
    m = measure(x, x + 0.1, np.flatnonzero(labels == 1))
    rows = x[labels == 1]
    assert (m.count, m.rows) == (40, 40)
    assert m.rankme == pytest.approx(rankme(rows)) and m.effective_rank == pytest.approx(effective_rank(rows))
    assert m.alignment == pytest.approx(alignment(rows, rows + 0.1))
    assert measure(gaussian(3000, 8), budget=1.0).rows == 1000


# -- the widget -------------------------------------------------------------------------------------------------------


def pictures(n):
    return (torch.arange(n * 64).view(n, 1, 8, 8) % 256).to(torch.uint8)


def test_pca_is_there_at_once_and_umap_follows():
    x, labels = blobs(seed=20)
    w = EmbeddingMap(x, pictures(120), labels)
    assert w.error is None
    if w.busy:  # the other process may have been quick
        assert "PCA is shown meanwhile" in w.caption.value and torch.equal(w.maps[0], pca(x))
    w.wait()
    assert not w.busy and w.shown.method == "umap" and torch.equal(w.maps[0], project(x, cache=False))
    trust, cont = w.scores()
    assert trust == trustworthiness(x, w.maps[0], 15, "cosine") and cont == continuity(x, w.maps[0], 15, "cosine")
    assert f"trustworthiness@15 {trust:.3f}" in w.caption.value and f"continuity@15 {cont:.3f}" in w.alt
    assert torch.equal(*MapRecipe.from_json(w.recipe.to_json()).make(x, cache=False), w.maps[0])


def test_quick_moves_coalesce_the_old_map_stays_and_a_known_one_is_shown_at_once():
    x, labels = blobs(seed=21)
    w = EmbeddingMap(x, labels=labels).wait()
    first, asked = w.maps[0].clone(), []
    make = worker().make
    try:
        worker().make = lambda r, f: asked.append(r.min_dist) or make(r, f)
        for value in (0.2, 0.3, 0.4, 0.5, 0.6):
            w.min_dist.value = value
        assert "old one" in w.busy and torch.equal(w.maps[0], first)
        w.wait()
    finally:
        worker().make = make
    assert asked[-1] == 0.6 and len(asked) <= 2
    assert w.shown.min_dist == 0.6 and not torch.equal(w.maps[0], first)
    w.min_dist.value = 0.1
    assert torch.equal(w.maps[0], first) and not w.busy
    w.method.value = "pca"
    assert torch.equal(w.maps[0], pca(x)) and w.n_neighbors.disabled


def test_hover_click_lasso_search_and_export(tmp_path):
    x, labels = blobs()
    w = EmbeddingMap(
        x, pictures(120), labels, {"loss": np.linspace(0, 1, 120)}, classes=["a", "b", "c"], views=x + 0.1, method="pca"
    ).wait()
    w.scatter.widget.hovering = 44
    point, near = w.panels()[:2]
    assert point.title == "point #44" and "label c" in point.note
    truth = torch.nn.functional.cosine_similarity(x[44:45], x).scatter(0, torch.tensor([44]), -9).topk(8)
    assert f"cosine {truth.values[0]:.2f} to {truth.values[7]:.2f}" in near.note and near.marks[0].grid == (2, 4)
    w.picked(1, 0, 0, (1, 2))
    assert w.point == truth.indices[6]

    assert w.export() is None and "Nothing is selected" in w.message
    w.scatter.widget.selection = np.array([5, 3, 8], np.uint32)  # as a lasso does
    assert w.chosen.tolist() == [3, 5, 8] and "3 points are selected" in w.alt
    table = w.selected()
    assert table["index"].tolist() == [3, 5, 8] and list(table) == ["index", "label", "loss", "class", "x", "y"]
    np.testing.assert_allclose(table[["x", "y"]], w.maps[0][[3, 5, 8]])
    assert "singular values, 3 points" in [p.title for p in w.panels()] and w.panels()[4].title.startswith("alignment")

    import pandas as pd

    one, two = w.export(), w.export()
    assert one.name == "embedding_map.csv" and two.name == "embedding_map-1.csv" and str(two) in w.message
    assert pd.read_csv(one)["index"].tolist() == [3, 5, 8]
    with pytest.raises(FileExistsError, match="not overwritten"):
        w.export(one)

    w.search.value = "label=b"
    assert set(w.selected()["class"]) == {"b"} and w.scatter.widget.zoom_to_call_idx == 1
    w.search.value = "label=walrus"
    assert "nothing is called" in w.error
    w.search.value = "0"
    assert w.error is None and w.chosen.tolist() == [0]


def test_neighbors_beside_the_map_are_by_its_metric():
    x = gaussian(50, 4) + 5
    w = EmbeddingMap(x, metric="euclidean", method="pca")
    index, distance = neighbor_graph(x, 8, "euclidean")
    found, values = w._nearest()
    assert found.tolist() == index[0].tolist()
    torch.testing.assert_close(values, distance[0], rtol=1e-4, atol=1e-5)
    assert "distance" in w.panels()[1].note


def test_features_of_zeros_are_shown():
    w = EmbeddingMap(torch.zeros(40, 4), method="pca").wait()
    assert w.error is None and w.figure()._repr_png_()


def test_colors_reach_the_map():
    x, labels = blobs()
    w = EmbeddingMap(x, labels=labels, columns={"loss": np.linspace(0, 1, 120)}, method="pca").wait()
    assert (w.scatter.widget.points[:, 2] == labels.numpy()).all() and len(w.scatter.widget.color) == 3
    before = w.scatter.widget.points[:, :2].copy()
    w.color.value = "loss"
    assert w.scatter.widget.points[[0, -1], 2].tolist() == [1, 255] and len(w.scatter.widget.color) == 256
    assert (w.scatter.widget.points[:, :2] == before).all() and np.abs(before).max() <= 1
    w.color.value = "trust of each point"
    assert w.colors.high == pytest.approx(w.scores()[0].samples.max())


def test_the_browser_gets_the_view_of_jupyter_scatter_unchanged():
    import jscatter
    from jscatter.widget import JupyterScatter

    shown = EmbeddingMap(gaussian(30, 4), method="pca").scatter.widget
    assert isinstance(shown, JupyterScatter) and shown.view_module == str(JupyterScatter._esm)
    assert "view_module" in shown._esm and "change:points" in shown._esm
    words = dict(axes=False, legend=False, tooltip=False, lasso_initiator=False, lasso_on_long_press=True)
    words |= dict(opacity=0.85, opacity_unselected=0.25, transition_points_duration=500, zoom_animation=500)
    plain = jscatter.Scatter(x=np.zeros(30), y=np.zeros(30), width="auto", **words).widget
    ours = "points", "height", "size", "opacity", "toolbar_buttons", "lasso_color"
    ours += "color", "color_by", "color_scale", "color_domain", "color_histogram"
    ours += "x_domain", "y_domain", "x_scale_domain", "y_scale_domain", "x_histogram", "y_histogram"
    idle = "title", "tooltip", "label"  # of parts that are off
    for name in JupyterScatter.class_own_traits(sync=True):
        if name not in ours and not any(word in name for word in idle) and name != "dom_element_id":
            assert np.array_equal(getattr(shown, name), getattr(plain, name)), name


def test_linked_maps_morph_and_share_their_selection():
    x, labels = blobs(60)
    w = EmbeddingMap({"epoch 0": gaussian(60, 4), "epoch 9": x}, labels=labels).wait()
    assert len(w.maps) == 2 and w.scores("epoch 0") and w.scores("epoch 9")
    w.slide.value = "epoch 9"
    assert w.scatter.widget.transition_points and torch.equal(w._flat("epoch 9"), w.maps[1])
    w.beside.value = "epoch 0"
    assert w.other_place.children == (w.second.widget,) and w.caption.value.count("trustworthiness@15") == 2
    w.second.widget.selection = np.array([1, 2], np.uint32)
    assert w.chosen.tolist() == [1, 2] == w.scatter.selection.tolist()
    assert [p.equal for p in w.still_panels()[:2]] == [True, True]
    w.beside.value = None
    assert not w.other_place.children and "densmap" not in [v for _, v in w.method.options]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(features=gaussian(1, 4)), "1 point"),
        (dict(features=gaussian(9)), "shape"),
        (dict(features={}), "empty"),
        (dict(features=gaussian(9, 4) * float("nan")), "NaN"),
        (dict(labels=[0] * 5), "labels have 5 rows, the features 30"),
        (dict(images=pictures(29)), "images have 29 rows"),
        (dict(images=torch.zeros(30, 4)), r"images have shape \(30, 4\)"),
        (dict(columns={"loss": [1.0]}), "column 'loss' have 1"),
        (dict(columns={"loss": np.zeros((30, 2))}), "one value for each point"),
        (dict(names=["a"]), "names have 1"),
        (dict(method="umpa"), "did you mean 'umap'"),
        (dict(color="ink"), "none of the columns"),
        (dict(views=gaussian(30, 5)), "second view"),
        (dict(features={"a": gaussian(30, 4), "b": gaussian(29, 4)}), "same|have 29"),
        (dict(min_dist=3.0), "between 0 and 1"),
        (dict(colors="label"), "colors"),
    ],
)
def test_bad_input_becomes_a_message_in_the_widgets_place(arguments, message):
    import re

    w = EmbeddingMap(**dict(features=gaussian(30, 4)) | arguments)
    assert re.search(message, w.error) and len(w.children) == 1 and "Traceback" not in w.children[0].value


def test_labels_of_texts_fewer_points_than_neighbors_and_a_table():
    import pandas as pd

    x, _ = blobs(9)
    w = EmbeddingMap(x, labels=["cat", "dog", "owl"] * 3, columns=pd.DataFrame({"ink": range(9)}), n_neighbors=40).wait()
    assert w.error is None and "only" not in w.message and "8 are used" in w.message and w.shown.neighbors == 8
    assert w.points.coloring("label").categories == ["cat", "dog", "owl"]


def test_three_points_fall_back_to_a_message_and_pca():
    w = EmbeddingMap(blobs(3)[0])
    w.wait()
    assert "too few for umap" in w.error and w.shown.method == "pca" and len(w.children) > 1


def test_a_worker_that_dies_is_told_and_started_again():
    x, _ = blobs(seed=30)
    worker().start()
    worker().process.kill()
    worker().process.wait()
    assert torch.equal(*worker().make(recipe(x, method="pca"), [x]), pca(x))
    request = worker()._ask
    try:

        def dies(_):
            worker().process.kill()
            return request({"recipe": "", "folder": ""})

        worker()._ask = dies
        w = EmbeddingMap(x)
        w.wait()
    finally:
        worker()._ask = request
    assert "ended with code" in w.error and w.shown.method == "pca"
    assert len(w.children) > 1 and w.scores()
    w.min_dist.value = 0.3
    w.wait()
    assert w.error is None and w.shown.min_dist == 0.3


def test_the_still_shows_the_map_with_its_scores():
    x, labels = blobs()
    w = EmbeddingMap(x, pictures(120), labels, method="pca").wait()
    panel = w.still_panels()[0]
    assert panel.title == "PCA" and "trustworthiness@15" in panel.note and len(panel.marks[0].x) == 120
    assert w.figure()._repr_png_().startswith(b"\x89PNG")
    w.select([1, 2])
    assert [len(m.x) for m in w.still_panels()[0].marks] == [118, 2]


def test_many_points_need_no_square_matrix():
    import resource

    x = gaussian(100_000, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    w = EmbeddingMap(x, columns={"first": x[:, 0]}, method="pca").wait()
    w.scatter.widget.hovering = 99_999
    w.select(np.arange(50_000))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert w.error is None and grown < 1500, f"{grown:.0f} MB"  # 100,000 x 100,000 floats are 40,000 MB
    assert "from 1,000 points" in w.caption.value and len(w.still_panels()[0].marks[0].x) <= 20_000
