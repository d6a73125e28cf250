"""What a user may hand to any evaluator by mistake: a clear error or the documented limit, for every one of them."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_nb import evaluators as ev


def halves(z):
    return np.arange(len(z)) % 2


def flat(found):
    "Every number of what an evaluator returns."
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list | tuple):
        return [x for part in found for x in flat(part)]
    return [torch.as_tensor(found, dtype=torch.float64)]


# Each takes one matrix of features (n, d); what else it needs is made of it or of its rows.
EVERY = {
    "alpha_req": ev.alpha_req,
    "lidar": lambda z: ev.lidar(torch.stack([torch.as_tensor(z)] * 2, 1)),
    "nesum": ev.nesum,
    "stable_rank": ev.stable_rank,
    "coherence": ev.coherence,
    "self_cluster": ev.self_cluster,
    "participation_ratio": ev.participation_ratio,
    "two_nn": ev.two_nn,
    "manifold_capacity": lambda z: ev.manifold_capacity([z[0::2], z[1::2]], draws=20),
    "cka": lambda z: ev.cka(z, z),
    "cca": lambda z: ev.cca(z, z),
    "neural_predictivity": lambda z: ev.neural_predictivity(z, z, "ridge", splits=2),
    "log_me": lambda z: ev.log_me(z, halves(z)),
    "trans_rate": lambda z: ev.trans_rate(z, halves(z)),
    "ood_scores": lambda z: ev.ood_scores(z[0::2], z[1::4], z[3::4], kinds=("mahalanobis", "knn"), k=1),
    "retrieval": lambda z: ev.retrieval(z, halves(z)),
    "equivariance_r2": lambda z: ev.equivariance_r2(z, z, np.arange(float(len(z)))),
    "equivariance_rank": lambda z: ev.equivariance_rank(z, z),
    "label_efficiency": lambda z: ev.label_efficiency(z, halves(z), z, halves(z), fractions=(0.5,), seeds=2),
    "shape_sensitivity": lambda z: ev.shape_sensitivity([z, z, z]),
    "evaluate_features": lambda z: ev.evaluate_features(z, halves(z), z, halves(z), ("rankme", "two_nn", "knn"), k=1),
}
each = pytest.mark.parametrize("evaluate", EVERY.values(), ids=EVERY.keys())


@each
@pytest.mark.parametrize(
    "bad, reason",
    [
        (torch.full((12, 4), math.nan), "NaN or infinity"),
        (torch.ones(12, 4).index_fill(0, torch.tensor([5]), -math.inf), "NaN or infinity"),
        (torch.zeros(0, 3), "0"),
        (torch.zeros(4, 0), "0"),
        (torch.zeros(12, 3, dtype=torch.complex64), "real numbers"),
        (torch.zeros(12, 3, dtype=torch.bool), "real numbers"),
    ],
    ids=["nan", "infinity", "no rows", "no columns", "complex", "bool"],
)
def test_bad_features_are_named(evaluate, bad, reason):
    with pytest.raises(ValueError) as error:
        evaluate(bad)
    assert reason in str(error.value) and len(str(error.value)) > 25


@each
def test_graph_layout_and_context_do_not_matter(evaluate):
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 1
    expected, kept = flat(evaluate(z)), z.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attached = flat(evaluate((z * 1.0).requires_grad_()))
    torch.testing.assert_close(attached, expected, rtol=1e-5, atol=1e-6)
    assert not any(x.requires_grad for x in attached)
    torch.testing.assert_close(flat(evaluate(z.T.contiguous().T)), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flat(evaluate(torch.stack([z, z], 2)[:, :, 0])), expected, rtol=1e-5, atol=1e-6)
    frozen = z.numpy().copy()
    frozen.flags.writeable = False  # as a memory map that is only read
    torch.testing.assert_close(flat(evaluate(frozen)), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(z, kept)  # nothing is written to the input


# Why each may refuse features that are finite; those not named take any.
SHAPE, SAME = r"have shape \(.*\); needed: \d rows or more and a column", r"all \d+ rows of \w+ are the same"
REASONS = {
    **dict.fromkeys(("alpha_req", "nesum", "participation_ratio", "trans_rate", "equivariance_rank"), SHAPE),
    "lidar": "needed: 2 images or more",
    "self_cluster": "2 rows and 2 dimensions or more",
    "two_nn": f"{SHAPE}|different rows in .* needed: 5|equally far everywhere",
    "manifold_capacity": f"{SHAPE}|is centered at the mean of all points",
    "cka": f"{SHAPE}|{SAME}",
    "cca": f"{SHAPE}|{SAME}",
    "neural_predictivity": f"{SHAPE}|{SAME}|leave too little: needed are 3 stimuli|answer the same to every stimulus",
    "log_me": f"{SHAPE}|zero in every entry",
    "ood_scores": f"{SHAPE}|do not vary within classes",
    "retrieval": "no query has an item of its identity",
    "equivariance_r2": f"{SHAPE}|needed are 8 objects or more",
    "label_efficiency": f"{SHAPE}|no room for one of each of the 2 classes",
    "evaluate_features": f"{SHAPE}|different rows in .* needed: 5|equally far everywhere",
}


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 12),
    seed=st.integers(0, 9),
    kind=st.sampled_from(["random", "constant", "zeros", "one column lives", "rows twice"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64]),
)
def test_any_features_give_a_number_or_a_reason(name, n, d, seed, kind, dtype):
    z = (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 4).clamp(0.5, 50).to(dtype)
    if kind == "constant":
        z = z[:1].expand(n, d)
    elif kind == "zeros":
        z = torch.zeros_like(z)
    elif kind == "one column lives":
        z[:, 1:] = 1
    elif kind == "rows twice":
        z = z.repeat_interleave(2, 0)
    try:
        found = EVERY[name](z)
    except ValueError as error:
        assert re.search(REASONS[name], str(error))
        fine = kind == "random" and dtype in (torch.float32, torch.float64) and n >= 30 and d >= 2
        assert not fine, "nothing is wrong with these"
    else:  # alpha_req alone has a documented NaN, so that a monitor does not stop a run
        assert "no fit" in getattr(found, "protocol", "") or not any(x.isnan().any() for x in flat(found))


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda x: ev.cka(x, x[:9]), "9"),
        (lambda x: ev.cca(x, x[:9]), "9"),
        (lambda x: ev.log_me(x, np.zeros(9, int)), "9"),
        (lambda x: ev.trans_rate(x, np.zeros(9, int)), "9"),
        (lambda x: ev.log_me(x, np.zeros(40, int)), "class"),
        (lambda x: ev.retrieval(x, np.arange(40)), "no query"),
        (lambda x: ev.retrieval(x, np.zeros(40, int), x), "both"),
        (lambda x: ev.retrieval(x, np.zeros(40, int), x[:, :3], np.zeros(40, int)), "same encoder"),
        (lambda x: ev.equivariance_r2(x, x[:9], np.zeros(40)), "9"),
        (lambda x: ev.comparisons({"a": [1.0, 2], "b": [1.0]}), "cannot be paired"),
        (lambda x: ev.holm([0.5, 1.5]), "[0, 1]"),
        (lambda x: ev.evaluate_features(x, halves(x), x, halves(x), ["alignment"]), "alignment"),
        (lambda x: ev.evaluate_features(x, halves(x), x, halves(x), ["rank_me"]), "did you mean 'rankme'"),
        (lambda x: ev.evaluate_features(x, halves(x), x, halves(x), "quik"), "did you mean 'quick'"),
    ],
)
def test_refusals_name_value_and_reason(call, reason):
    with pytest.raises(ValueError) as error:
        call(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)))
    assert reason in str(error.value)
