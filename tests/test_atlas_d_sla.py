import pytest
import torch
from test_graph_views import made_up

from ssl_nb import methods
from ssl_nb.atlas import d_sla as recipe
from ssl_nb.data.split import Ragged, Split
from ssl_nb.encoders import GIN
from ssl_nb.objectives.discrepancy import discrepancy_margin, edit_distance_loss, graph_discrimination
from ssl_nb.tokens.nodes import graph_batch
from ssl_nb.views.graph_views import GraphViews, PerturbEdges


def make(**knobs):
    torch.manual_seed(0)
    return methods.create("d_sla", encoder=GIN(4, embed_dim=16, depth=2), **knobs)


def several(n=8):
    return made_up([6 + i for i in range(n)], types=False)


def test_the_card_names_row_and_modality():
    card = methods.card("d_sla")
    assert card.row == "d_sla" and card.modality == "graph" and card.recipe is recipe.d_sla
    assert make(strength=0.1, margin=2.0).made["knobs"]["margin"] == 2.0


def test_the_loss_is_its_three_parts():
    method, batch = make(edit_weight=3.0, margin_weight=0.25, margin=1.5).eval(), several()
    views = method.views(batch, torch.Generator().manual_seed(0))
    h = method.versions(views)
    edits = torch.stack([view.facts["edit_distance"] for view in views[1:]], 1)
    expected = graph_discrimination(method.score(h)[..., 0]) + 3 * edit_distance_loss(h[:, 0], h[:, 1:], edits)
    expected = expected + 0.25 * discrepancy_margin(h[:, 0], h[:, 1:], margin=1.5)
    torch.testing.assert_close(method.loss(views, batch).loss, expected)


def test_versions_are_rows_of_one_batch_in_the_order_of_the_views():
    method, batch = make(mask_ratio=0).eval(), several()
    views = method.views(batch, torch.Generator().manual_seed(0))
    h = method.versions(views)
    assert h.shape == (8, 4, 16)
    for place, view in enumerate(views):
        torch.testing.assert_close(h[:, place], method.encoder(view.x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.embed(batch), h[:, 0], rtol=1e-4, atol=1e-5)


def test_strength_grows_from_version_to_version():
    views = make(strength=0.1, versions=3).views(several(), torch.Generator().manual_seed(0))
    edges = several()["bonds"].lengths
    for place, view in enumerate(views[1:], 1):
        assert view.facts["edit_distance"].tolist() == (2 * (edges * 0.1 * place).round().clamp(min=1)).tolist()
        assert view.mask.any(1).all() and not torch.equal(view.mask, views[0].mask)


def test_a_few_steps_lower_the_loss_on_the_same_views():
    method, batch = make(), several()
    views = method.views(batch, torch.Generator().manual_seed(0))
    optimizer, losses = torch.optim.AdamW(method.parameters(), 3e-3), []
    for _ in range(20):
        loss = method.loss(views, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_graphs_in_which_nothing_can_be_moved_count_for_the_margin_only():
    pair = Ragged.of([torch.tensor([[0, 1]]), *several(4)["bonds"].rows()])
    batch = Split({"atoms": Ragged.of([torch.tensor([0, 1]), *several(4)["atoms"].rows()]), "bonds": pair}, ("atoms", "bonds"))
    method = make().eval()
    views = method.views(batch, torch.Generator().manual_seed(0))
    step = method.loss(views, batch)
    assert views[1].facts["edit_distance"][0] == 0 and step.loss.isfinite()
    h = method.versions(views)
    torch.testing.assert_close(step.metrics["discrimination"], graph_discrimination(method.score(h[1:])[..., 0]))
    torch.testing.assert_close(step.metrics["margin"], discrepancy_margin(h[:, 0], h[:, 1:]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="share of 1.2"):
        make(strength=0.4)
    with pytest.raises(ValueError, match="edit distance"):
        make(views=GraphViews([PerturbEdges(0.2)], [])).step(several())
    with pytest.raises(ValueError, match="2 or more changed"):
        make(versions=1).step(several())
    with pytest.raises(ValueError, match="counted|nodes"):
        graph_batch(several().assign(bonds=Ragged.of([torch.tensor([[0, 99]])] * 8)))
