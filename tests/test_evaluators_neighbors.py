"""The screened route of `nearest` against the plain one, and retrieval against independent counts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ssl_nb import evaluators as ev
from ssl_nb.evaluators import neighbors


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- neighbors, screened in bfloat16


@settings(max_examples=40, deadline=None)
@given(
    q=st.integers(1, 70),
    n=st.integers(60, 400),
    d=st.integers(2, 40),
    k=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1e-4, 1e-2, 1.0]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_screening_changes_nothing(q, n, d, k, spread, seed, dtype):
    centers = randn(4, d, seed=seed, dtype=dtype)
    bank = centers[torch.arange(n) % 4] + spread * randn(n, d, seed=seed + 1, dtype=dtype)
    queries = F.normalize(randn(q, d, seed=seed + 2, dtype=dtype), dim=1)
    scale = 1 / bank.norm(dim=1).clamp(min=1e-12)
    plain, index = neighbors._plain(queries, bank, scale, k, 32)
    screened, found = neighbors._screened(queries, bank, scale, k, 32)
    exact = (queries.double() @ F.normalize(bank.double(), dim=1).T).topk(k).values
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(screened.double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(plain.double(), exact, rtol=0, atol=tolerance)
    assert all(len(set(row.tolist())) == k for row in found)  # no neighbor twice


def test_screening_does_again_only_what_it_cannot_prove(monkeypatch):
    done, plain = [], neighbors._plain
    monkeypatch.setattr(neighbors, "_plain", lambda queries, *rest: done.append(len(queries)) or plain(queries, *rest))
    bank, queries = randn(5000, 64), F.normalize(randn(300, 64, seed=1), dim=1)
    neighbors._screened(queries, bank, 1 / bank.norm(dim=1), 5)
    assert sum(done) < 100
    done.clear()
    neighbors._screened(queries, bank[:1].expand(5000, 64), torch.full((5000,), 1 / bank[0].norm()), 5)
    assert done == [300]


def test_nearest_takes_the_screened_route_where_it_pays_and_agrees(monkeypatch):
    bank, queries = randn(9000, 32), randn(100, 32, seed=1)
    monkeypatch.setattr(neighbors, "_screening_pays", lambda *_: False)
    plain = ev.nearest(queries, bank, 3)
    monkeypatch.setattr(neighbors, "_screening_pays", lambda *_: True)
    screened = ev.nearest(queries, bank, 3)
    torch.testing.assert_close(screened[0], plain[0], rtol=0, atol=1e-6)
    assert torch.equal(screened[1], plain[1])


# ---- retrieval


def test_map_is_scikit_learns_average_precision():
    x, ids = randn(120, 16), torch.arange(120) % 7
    unit = F.normalize(x, dim=1).double()
    each = []
    for i in range(120):
        others = torch.arange(120) != i
        each.append(average_precision_score(ids[others] == ids[i], unit[others] @ unit[i]))
    found = ev.retrieval(x, ids)
    np.testing.assert_allclose(found["map"].samples, each, atol=1e-9)
    assert found["map"].of == "examples" and found["map"].interval[0] < found["map"] < found["map"].interval[1]


def test_rank_1_is_the_nearest_neighbor():
    x, ids = randn(200, 8), torch.arange(200) % 5
    _, nearest = ev.nearest(x, x, 2)
    assert ev.retrieval(x, ids)["rank_1"] == pytest.approx((ids[nearest[:, 1]] == ids).double().mean().item())


@pytest.mark.parametrize("block", [1, 50, 2**22])
def test_blocks_and_a_gallery_of_its_own(block):
    queries, gallery = randn(30, 8), randn(90, 8, seed=1)
    ids, gallery_ids = torch.arange(30) % 3, torch.arange(90) % 3
    found, whole = (ev.retrieval(queries, ids, gallery, gallery_ids, block=b) for b in (block, 10**6))
    assert {name: float(score) for name, score in found.items()} == {name: float(score) for name, score in whole.items()}
    order = (F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).argsort(1, descending=True)
    first = (gallery_ids[order] == ids[:, None]).int().argmax(1) + 1
    assert whole["mrr"] == pytest.approx((1 / first.double()).mean().item())


def test_ties_count_against_the_encoder_and_lonely_queries_are_left_out():
    collapsed = ev.retrieval(torch.ones(20, 4), torch.arange(20) % 2)
    assert collapsed["rank_1"] == 0 and collapsed["mrr"] == pytest.approx(1 / 11)
    found = ev.retrieval(torch.eye(5), torch.tensor([0, 0, 1, 1, 2]))
    assert found["map"].notes["left_out"] == 1 and len(found["map"].samples) == 4


# ---- what is refused, and features of any size


@pytest.mark.parametrize("k", [20.0, 0, -1, True, "20", 2.5, np.float64(5)])
def test_k_is_an_int_of_at_least_one(k):
    with pytest.raises(ValueError, match="whole number"):
        ev.knn(randn(30, 4), torch.arange(30) % 3, randn(9, 4), torch.arange(9) % 3, k=k)
    score = ev.knn(randn(30, 4), torch.arange(30) % 3, randn(9, 4), torch.arange(9) % 3, k=np.int64(5))
    assert score.protocol.startswith("knn@5")


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_neighbors_do_not_depend_on_the_size_of_features(scale):
    bank, queries = randn(60, 5), randn(20, 5, seed=1)
    labels, truth = torch.arange(60) % 3, torch.arange(20) % 3
    plain = ev.knn(bank, labels, queries, truth, k=7)
    for a, b in ((scale, scale), (scale, 1.0), (1.0, scale)):
        assert (ev.knn(bank * a, labels, queries * b, truth, k=7).samples == plain.samples).all()
    found = ev.retrieval(queries * scale, truth, bank * scale, labels)
    assert found["map"] == pytest.approx(ev.retrieval(queries, truth, bank, labels)["map"], abs=1e-6)


@pytest.mark.parametrize("name", ["knn", "linear_probe", "mlp_probe", "label_efficiency", "retrieval", "log_me", "finetune"])
def test_unlabeled_rows_are_refused(name):
    x, y = randn(40, 4), torch.arange(40) % 2
    part = torch.where(torch.arange(40) < 5, -1, y)
    for train, test in ((part, y), (y, part)):
        with pytest.raises(ValueError, match="5 of 40 labels of .* are -1, which means unlabeled"):
            if name == "retrieval":
                ev.retrieval(x, train, x, test)
            elif name == "log_me":
                ev.log_me(x, part)
            elif name == "finetune":
                from ssl_nb.data import image_split
                from ssl_nb.methods.finetune import finetune

                images = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
                finetune(torch.nn.Flatten(), image_split(images, train), image_split(images, test), device="cpu")
            else:
                getattr(ev, name)(x, train, x, test, **(dict(fractions=(0.5,)) if name == "label_efficiency" else {}))
