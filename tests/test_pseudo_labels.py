"""Pseudo labels: nearest centroids, counts without padding, and topics as scikit-learn infers them."""

import pytest
import torch

from ssl_nb.methods import Clusters, Topics, unit_counts


def documents(rows=90, words=30, seed=0):
    "Units 0 to 3 of one topic, 4 to 7 of another, 8 to 11 of a third; and the topic of each row."
    g = torch.Generator().manual_seed(seed)
    topic = torch.arange(rows) % 3
    return torch.randint(4, (rows, words), generator=g) + 4 * topic[:, None], topic


def test_units_are_the_nearest_centroids():
    clusters, x = Clusters(5, 3), torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(0))
    clusters.fit(x.flatten(0, 1))
    assert torch.equal(clusters(x), torch.cdist(x, clusters.centroids.expand(4, -1, -1)).argmin(-1))
    assert torch.equal(clusters(clusters.centroids[None])[0], torch.arange(5))


def test_separate_clusters_are_found():
    place = torch.tensor([[0.0, 0], [50, 0], [0, 50]])
    x = place.repeat(20, 1) + torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    found = Clusters(3, 2).fit(x)(x[None])[0].view(20, 3)
    assert (found == found[:1]).all() and found[0].unique().numel() == 3


def test_counts_are_those_of_bincount_and_leave_padding_out():
    units = torch.randint(6, (5, 9), generator=torch.Generator().manual_seed(0))
    real = torch.arange(9) < torch.tensor([9, 4, 1, 0, 7])[:, None]
    expected = torch.stack([torch.bincount(row[seen], minlength=6) for row, seen in zip(units, real, strict=True)]).float()
    assert torch.equal(unit_counts(units, 6, real), expected)
    assert torch.equal(unit_counts(units, 6), unit_counts(units, 6, torch.ones_like(real)))


def test_the_posterior_is_that_of_scikit_learn():
    from sklearn.decomposition import LatentDirichletAllocation

    g = torch.Generator().manual_seed(0)
    counts = torch.randint(5, (40, 12), generator=g).float()
    model = LatentDirichletAllocation(4, max_iter=10, random_state=3).fit(counts.numpy())
    topics = Topics(4, 12).fit(counts, seed=3)
    expected = torch.from_numpy(model.transform(counts.numpy())).float()
    torch.testing.assert_close(topics.posterior(counts), expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(topics.posterior(torch.zeros(1, 12)), torch.full((1, 4), 0.25))


def test_documents_of_a_topic_have_one_label():
    units, topic = documents()
    counts = unit_counts(units, 12)
    found = Topics(3, 12).fit(counts)(counts)
    assert len({(int(a), int(b)) for a, b in zip(found, topic, strict=True)}) == 3 and found.unique().numel() == 3


def test_fitted_values_travel_with_the_weights():
    units, _ = documents()
    counts = unit_counts(units, 12)
    fitted, fresh = Topics(3, 12).fit(counts), Topics(3, 12)
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh.posterior(counts), fitted.posterior(counts))


@pytest.mark.parametrize("call, words", [
    (lambda: Clusters(1, 2), "clusters is 1"),
    (lambda: Topics(1, 5), "topics is 1"),
    (lambda: Clusters(9, 2).fit(torch.zeros(8, 2)), "8 tokens cannot be fitted by 9")])  # fmt: skip
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
